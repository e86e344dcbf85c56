"""Farthest point sampling, with checked arguments: `pcattn::farthest_point_sample`."""

from typing import Any

import torch
from torch import Tensor

from pcattn.ops.backends import Kernels, check_backend, why_not_numba, why_not_triton
from pcattn.ops.neighbors.op import search_dtype
from pcattn.ops.sampling import reference
from pcattn.utils.checks import check_count, check_device, check_finite, check_lengths, check_points
from pcattn.utils.errors import InputError

_RULES = ("centroid", "pointnet2")

_KERNELS = Kernels(reference, numba=why_not_numba, triton=why_not_triton)


def farthest_point_sample(
    pos: Tensor,
    num_samples: int,
    rule: str = "centroid",
    *,
    lengths: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """Choose `num_samples` points, each the farthest from those chosen before it.

    Args:
        pos: (B, N, D).
        num_samples: 1 <= num_samples <= N. In a cloud with fewer real points, the first sample is repeated at the end.
        rule: `"centroid"` starts at the point farthest from the centroid, breaks ties by coordinates, and chooses no
            point twice. `"pointnet2"` is the rule of pointnet2_ops and of PCT's released code: it starts at index 0,
            never chooses another point whose squared norm is at most 1e-3, and breaks ties by index.
        lengths: (B,), number of real points, at least 1; the others are padding and never chosen.
        backend: `"auto"`, `"triton"`, `"numba"` or `"reference"`.

    Shape:
        indices (B, num_samples), int64.

    Raises:
        InputError: the shapes do not fit, an argument is out of range, on the CPU a position is NaN or infinite, or
            `backend` cannot run (the message lists every reason).

    Source: The farthest point strategy for progressive image sampling, Eldar et al. 1997.
    """
    check_points("pos", pos)
    check_device(pos=pos, lengths=lengths)
    check_lengths("lengths", lengths, pos, 1)
    check_finite("pos", pos, lengths)
    check_backend(backend)
    num_samples = check_count("num_samples", num_samples, pos.shape[1], "the number of points")
    if rule not in _RULES:
        raise InputError(f"expected rule to be one of {', '.join(_RULES)}, but got {rule!r}")
    indices: Tensor = _farthest_point_sample(search_dtype(pos.detach()), num_samples, rule, lengths, backend)
    return indices


@torch.library.custom_op("pcattn::farthest_point_sample", mutates_args=())
def _farthest_point_sample(pos: Tensor, num_samples: int, rule: str, lengths: Tensor | None, backend: str) -> Tensor:
    indices: Tensor = _KERNELS.choose(backend, pos).farthest_point_sample(pos, num_samples, rule, lengths)
    return indices


@_farthest_point_sample.register_fake
def _(pos: Tensor, num_samples: int, *_: Any) -> Tensor:
    return pos.new_empty(pos.shape[0], num_samples, dtype=torch.long)
