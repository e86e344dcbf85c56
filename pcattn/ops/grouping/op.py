"""Gathering and grouping, with checked arguments."""

import torch
from torch import Tensor

from pcattn.ops.grouping import reference
from pcattn.utils.checks import check_device, check_indices
from pcattn.utils.errors import InputError


def gather(features: Tensor, indices: Tensor) -> Tensor:
    """Rows of `features` by index: `out[b, ..., :] = features[b, indices[b, ...], :]`.

    Args:
        features: (B, N, C).
        indices: (B, ...), integers in [0, N).

    Shape:
        (B, ..., C).

    Raises:
        InputError: the shapes do not fit, or on the CPU an index is out of range.
    """
    if features.dim() != 3 or indices.dim() < 1 or indices.shape[0] != features.shape[0]:
        raise InputError(
            "expected features (B, N, C) and indices (B, ...) with the same B, "
            f"but got {tuple(features.shape)} and {tuple(indices.shape)}"
        )
    check_device(features=features, indices=indices)
    check_indices("indices", indices, features.shape[1])
    return reference.gather(features, indices)


def group(features: Tensor, neighbors: Tensor, centers: Tensor | None = None) -> Tensor:
    r"""Relative features of neighborhoods: :math:`[f_j - f_i,\; f_i]` for every neighbor j of center i.

    This is the input of PCT's local aggregation (section 3.3) and of DGCNN's edge convolution.

    Args:
        features: (B, N, C).
        neighbors: (B, M, k), indices of the neighbors of each center.
        centers: (B, M), indices of the centers. With None, center m is point m and M = N.

    Shape:
        (B, M, k, 2C).

    Raises:
        InputError: the shapes do not fit, or on the CPU an index is out of range.
    """
    expected = tuple(neighbors.shape[:2]) if centers is None else tuple(centers.shape)
    fits = features.dim() == neighbors.dim() == 3 and neighbors.shape[0] == features.shape[0]
    if not fits or expected != neighbors.shape[:2]:
        got = "none" if centers is None else tuple(centers.shape)
        raise InputError(
            "expected features (B, N, C), neighbors (B, M, k) and centers (B, M), "
            f"but got {tuple(features.shape)}, {tuple(neighbors.shape)} and {got}"
        )
    batch, num_points, _ = features.shape
    if features.dtype == torch.bool:
        raise InputError(f"expected features to be numbers, but got {features.dtype}")
    check_device(features=features, neighbors=neighbors, centers=centers)
    check_indices("neighbors", neighbors, num_points)
    if centers is None:
        if neighbors.shape[1] != num_points:
            raise InputError(
                f"expected neighbors of all {num_points} points because centers is None, "
                f"but got shape {tuple(neighbors.shape)}"
            )
        centers = torch.arange(num_points, device=features.device).expand(batch, -1)
    else:
        check_indices("centers", centers, num_points)
    return reference.group(features, neighbors, centers)
