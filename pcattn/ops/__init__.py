"""Geometry on batches of point clouds: neighbour search, farthest point sampling, gathering.

This module checks the arguments and registers the operations with `torch.library`, so that `torch.compile` and
`torch.export` pass through them. Searches run in at least float32 and outside autocast.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from pcattn.ops import reference

__all__ = ["KNN", "farthest_point_sample", "gather", "knn"]

_FPS_RULES = {
    "centroid": reference.farthest_point_sample,
    "pointnet2": reference.farthest_point_sample_pointnet2,
}


class KNN(NamedTuple):
    """Result of `knn`. If `indices[b, m, i] = j`, point j of cloud b is the i-th nearest to query m."""

    distances: Tensor  #: (B, M, k), squared Euclidean, in the dtype of the search (at least float32)
    indices: Tensor  #: (B, M, k), int64


def knn(query: Tensor, support: Tensor, k: int) -> KNN:
    r"""The k nearest neighbours in `support` of every point of `query`, nearest first.

    Distances are direct differences, :math:`\sum_d (q_d - s_d)^2`. Equal distances are ordered by the coordinates of
    the support points (lexicographically), so the result does not depend on the order of the points. Gradients flow
    through `distances`.

    Args:
        query: (B, M, D).
        support: (B, N, D), D arbitrary.
        k: number of neighbours, 1 <= k <= N.

    Shape:
        `distances` and `indices` are (B, M, k).

    Raises:
        ValueError: shapes do not fit, or k is out of range.
    """
    _check_points("query", query)
    _check_points("support", support)
    if query.shape[0] != support.shape[0] or query.shape[2] != support.shape[2]:
        raise ValueError(
            "expected query (B, M, D) and support (B, N, D) with the same B and D, "
            f"but got {tuple(query.shape)} and {tuple(support.shape)}"
        )
    if not 1 <= k <= support.shape[1]:
        raise ValueError(f"expected 1 <= k <= {support.shape[1]} (the number of support points), but got k={k}")
    query, support = _search_dtype(query), _search_dtype(support)
    indices = _knn(query.detach(), support.detach(), k)
    distances = (query[:, :, None] - gather(support, indices)).square().sum(-1)
    return KNN(distances, indices)


def farthest_point_sample(pos: Tensor, num_samples: int, rule: str = "centroid") -> Tensor:
    """Choose `num_samples` points, each the farthest from those chosen before it (Eldar et al. 1997).

    Args:
        pos: (B, N, D).
        num_samples: 1 <= num_samples <= N.
        rule: `"centroid"` starts at the point farthest from the centroid and breaks ties by coordinates, so the chosen
            points do not depend on the order of the points. `"pointnet2"` is the rule of pointnet2_ops and PCT's
            released code: start at index 0, never choose a point with a squared norm of at most 1e-3.

    Shape:
        indices (B, num_samples), int64.

    Raises:
        ValueError: shapes do not fit, or `num_samples` or `rule` is out of range.
    """
    _check_points("pos", pos)
    if not 1 <= num_samples <= pos.shape[1]:
        raise ValueError(f"expected 1 <= num_samples <= {pos.shape[1]} (the number of points), but got {num_samples}")
    if rule not in _FPS_RULES:
        raise ValueError(f"expected rule to be one of {', '.join(_FPS_RULES)}, but got {rule!r}")
    return _farthest_point_sample(_search_dtype(pos.detach()), num_samples, rule)


def gather(features: Tensor, indices: Tensor) -> Tensor:
    """Rows of `features` by index: `out[b, ..., :] = features[b, indices[b, ...], :]`.

    Args:
        features: (B, N, C).
        indices: (B, ...), int64, values in [0, N).

    Shape:
        (B, ..., C).
    """
    batch, num_points, channels = features.shape
    # One flat index_select is faster than torch.gather in the forward and in the backward pass.
    offsets = torch.arange(batch, device=indices.device).view(-1, *[1] * (indices.dim() - 1)) * num_points
    rows = features.reshape(-1, channels).index_select(0, (indices + offsets).flatten())
    return rows.view(*indices.shape, channels)


def _check_points(name: str, points: Tensor) -> None:
    if points.dim() != 3 or 0 in points.shape:
        raise ValueError(f"expected {name} to be (B, N, D) and not empty, but got shape {tuple(points.shape)}")
    if not points.is_floating_point():
        raise ValueError(f"expected {name} to be floating point, but got {points.dtype}")


def _search_dtype(points: Tensor) -> Tensor:
    """Half precision confuses neighbours: searches run in float32 or float64."""
    return points if points.dtype == torch.float64 else points.float()


@torch.library.custom_op("pcattn::knn", mutates_args=())
def _knn(query: Tensor, support: Tensor, k: int) -> Tensor:
    with torch.autocast(query.device.type, enabled=False):
        return reference.knn(query, support, k)


@_knn.register_fake
def _(query: Tensor, support: Tensor, k: int) -> Tensor:
    return query.new_empty(query.shape[0], query.shape[1], k, dtype=torch.long)


@torch.library.custom_op("pcattn::farthest_point_sample", mutates_args=())
def _farthest_point_sample(pos: Tensor, num_samples: int, rule: str) -> Tensor:
    with torch.autocast(pos.device.type, enabled=False):
        return _FPS_RULES[rule](pos, num_samples)


@_farthest_point_sample.register_fake
def _(pos: Tensor, num_samples: int, rule: str) -> Tensor:
    return pos.new_empty(pos.shape[0], num_samples, dtype=torch.long)
