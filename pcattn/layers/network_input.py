"""The input of a network: positions and features, checked."""

import torch
from torch import Tensor

from pcattn.utils.checks import check_device, check_dtype, reads_values
from pcattn.utils.errors import InputError

#: The largest coordinate or feature that a network accepts: products of products of larger ones overflow float32.
LARGEST_INPUT = 1e12


def network_input(pos: Tensor, features: Tensor | None, num_features: int, like: Tensor) -> Tensor:
    """Check the input of a network and concatenate positions and features.

    Args:
        pos: (B, N, 3).
        features: (B, N, F), or None if F is 0.
        num_features: F, which the network was built for.
        like: a weight of the network, whose dtype the input must have.

    Shape:
        (B, N, 3 + F).

    Raises:
        InputError: a shape or dtype is not what the network was built for, or a value is NaN, infinite or beyond
            `LARGEST_INPUT`. Values on a GPU are not checked, because reading them would wait for the device; NaN gives
            NaN there.
    """
    if pos.dim() != 3 or pos.shape[2] != 3 or 0 in pos.shape:
        raise InputError(f"expected pos to be (B, N, 3) with B >= 1 and N >= 1, but got shape {tuple(pos.shape)}")
    check_device(pos=pos, features=features)
    for name, values in (("pos", pos), ("features", features)):
        if values is None:
            continue
        check_dtype(name, values, like, "the weights")
        if reads_values(values):
            _check_values(name, values)
    if not num_features:
        if features is not None:
            raise InputError(
                f"expected no features (the network has num_features=0), but got shape {tuple(features.shape)}"
            )
        return pos
    expected = (*pos.shape[:2], num_features)
    if features is None or features.shape != expected:
        got = "none" if features is None else f"shape {tuple(features.shape)}"
        raise InputError(f"expected features to be {expected}, but got {got}")
    return torch.cat((pos, features), dim=2)


def _check_values(name: str, values: Tensor) -> None:
    fits = values.detach().abs() <= LARGEST_INPUT  # false for NaN
    if not bool(fits.all()):
        cloud = int((~fits).flatten(1).any(dim=1).nonzero()[0])
        if not bool(values.isfinite().all()):
            raise InputError(f"expected {name} to be finite, but cloud {cloud} of the batch has NaN or infinity")
        raise InputError(
            f"expected {name} of at most {LARGEST_INPUT:g}, but cloud {cloud} of the batch has "
            f"{float(values[cloud].abs().max()):g}: normalize the clouds"
        )
