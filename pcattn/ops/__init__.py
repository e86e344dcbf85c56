"""Geometry on batches of point clouds: neighbor search, farthest point sampling, gathering, interpolation.

This module checks the arguments and registers the operations with `torch.library`, so that `torch.compile` and
`torch.export` pass through them. Every search has several back-ends with identical results, see `pcattn.ops.backends`:
the argument `backend="auto"` takes the fastest that can run.

What is nearest or farthest is decided in float64, outside autocast, on direct differences: for float32 (and half
precision) input that is exactly what float64 brute force finds. Equal distances are ordered by the coordinates of the
points, lexicographically (first coordinate, then second, ...), and only points equal in all coordinates by index; so
results do not depend on the order of the points, and are the same in every run.

Clouds of different sizes are padded to one size; `lengths` (B,) says how many points of each are real.

Real points have to be finite, and indices to be those of points: anything else raises `ValueError` on the CPU. On a GPU
the values stay unread, because looking at them would wait for the device; the result for a cloud with NaN or infinity
is then arbitrary, and an index out of range is undefined (`pcattn.utils.checks`).
"""

from typing import NamedTuple

import torch
from torch import Tensor

from pcattn.ops import reference
from pcattn.ops.backends import BACKENDS, fps_backend, group_backend, knn_backend
from pcattn.utils.checks import (
    check_count,
    check_device,
    check_finite,
    check_floating,
    check_indices,
    check_lengths,
    check_points,
)
from pcattn.utils.errors import InputError

__all__ = ["KNN", "ball_query", "farthest_point_sample", "gather", "group", "interpolate", "knn"]

_METRICS = ("l2", "linf")
_FPS_RULES = ("centroid", "pointnet2")


class KNN(NamedTuple):
    """Result of `knn` and `ball_query`. If `indices[b, m, i] = j`, point j of cloud b is the i-th nearest to query m.

    Missing neighbors have distance inf and repeat the index of the nearest one (0 if there is none), so that
    gathering them is valid and a maximum over them is unchanged; `distances.isfinite()` is the mask of the others.
    """

    #: (B, M, k), squared Euclidean (`"l2"`) or maximum (`"linf"`), float32 or float64; a distance too large for float32
    #: is its largest number
    distances: Tensor
    indices: Tensor  #: (B, M, k), int64


def knn(
    query: Tensor,
    support: Tensor,
    k: int,
    metric: str = "l2",
    *,
    query_lengths: Tensor | None = None,
    support_lengths: Tensor | None = None,
    query_indices: Tensor | None = None,
    backend: str = "auto",
) -> KNN:
    r"""The k nearest neighbors in `support` of every point of `query`, nearest first.

    Distances are direct differences, :math:`\sum_d (q_d - s_d)^2` or :math:`\max_d |q_d - s_d|`; ties as the module
    says. Gradients flow through `distances`.

    Args:
        query: (B, M, D).
        support: (B, N, D), D arbitrary: positions or features.
        k: number of neighbors, 1 <= k <= N. Clouds with fewer than k points have missing neighbors, see `KNN`.
        metric: `"l2"` or `"linf"`.
        query_lengths: (B,), number of real queries; the others get missing neighbors.
        support_lengths: (B,), number of real support points; the others are nobody's neighbors.
        query_indices: (B, M), where `query[b, m]` is `support[b, query_indices[b, m]]`: this point comes first, also
            among copies of it. With `query is support` (one tensor passed twice) that is understood.
        backend: `"auto"`, `"triton"`, `"numba"` or `"reference"`.

    Shape:
        `distances` and `indices` are (B, M, k).

    Raises:
        InputError: shapes do not fit, an argument is out of range, or `backend` cannot run (with every reason).
    """
    if metric not in _METRICS:
        raise InputError(f"expected metric to be one of {', '.join(_METRICS)}, but got {metric!r}")
    if query is support and query_indices is None and query.dim() == 3:
        query_indices = torch.arange(query.shape[1], device=query.device).expand(query.shape[:2])
    return _search(query, support, k, metric, torch.inf, query_lengths, support_lengths, query_indices, backend)


def ball_query(
    query: Tensor,
    support: Tensor,
    radius: float,
    k: int,
    *,
    query_lengths: Tensor | None = None,
    support_lengths: Tensor | None = None,
    backend: str = "auto",
) -> KNN:
    """The support points within `radius` of every query (at most k, the nearest ones), nearest first.

    Where a ball holds more than k points, PointNet++'s code takes those with the smallest indices; here they are the
    nearest, whatever the order of the points.

    Args:
        query: (B, M, D).
        support: (B, N, D).
        radius: Euclidean; points at exactly this distance belong to the ball.
        k: number of places for neighbors, 1 <= k <= N; places that stay empty are missing neighbors, see `KNN`.
        query_lengths, support_lengths, backend: see `knn`.

    Shape:
        `distances` (squared) and `indices` are (B, M, k).

    Raises:
        InputError: as `knn`, or `radius` is not positive.
    """
    if not radius > 0:
        raise InputError(f"expected radius to be positive, but got {radius}")
    return _search(query, support, k, "l2", float(radius) ** 2, query_lengths, support_lengths, None, backend)


def farthest_point_sample(
    pos: Tensor,
    num_samples: int,
    rule: str = "centroid",
    *,
    lengths: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """Choose `num_samples` points, each the farthest from those chosen before it (Eldar et al. 1997).

    Args:
        pos: (B, N, D).
        num_samples: 1 <= num_samples <= N. A cloud with fewer points repeats the first chosen one at the end.
        rule: `"centroid"` starts at the point farthest from the centroid, breaks ties by coordinates, and chooses no
            point twice. `"pointnet2"` is the rule of pointnet2_ops and PCT's released code: start at index 0, never
            choose a point with a squared norm of at most 1e-3, break ties by index.
        lengths: (B,), number of real points, at least 1; the others are never chosen.
        backend: `"auto"`, `"triton"`, `"numba"` or `"reference"`.

    Shape:
        indices (B, num_samples), int64.

    Raises:
        InputError: shapes do not fit, an argument is out of range, or `backend` cannot run (with every reason).
    """
    check_points("pos", pos)
    check_device(pos=pos, lengths=lengths)
    check_lengths("lengths", lengths, pos, 1)
    check_finite("pos", pos, lengths)
    _check_backend(backend)
    num_samples = check_count("num_samples", num_samples, pos.shape[1], "the number of points")
    if rule not in _FPS_RULES:
        raise InputError(f"expected rule to be one of {', '.join(_FPS_RULES)}, but got {rule!r}")
    return _farthest_point_sample(_search_dtype(pos.detach()), num_samples, rule, lengths, backend)


def gather(features: Tensor, indices: Tensor) -> Tensor:
    """Rows of `features` by index: `out[b, ..., :] = features[b, indices[b, ...], :]`.

    Args:
        features: (B, N, C).
        indices: (B, ...), integers in [0, N).

    Shape:
        (B, ..., C).

    Raises:
        InputError: shapes do not fit, or on the CPU an index is out of range.
    """
    if features.dim() != 3 or indices.dim() < 1 or indices.shape[0] != features.shape[0]:
        raise InputError(
            "expected features (B, N, C) and indices (B, ...) with the same B, "
            f"but got {tuple(features.shape)} and {tuple(indices.shape)}"
        )
    check_device(features=features, indices=indices)
    check_indices("indices", indices, features.shape[1])
    return reference.gather(features, indices)


def group(features: Tensor, neighbors: Tensor, centers: Tensor | None = None, *, backend: str = "auto") -> Tensor:
    r"""Relative features of neighborhoods: :math:`[f_j - f_i,\; f_i]` for every neighbor j of center i.

    The input of PCT's local aggregation (section 3.3) and of DGCNN's edge convolution.

    Args:
        features: (B, N, C).
        neighbors: (B, M, k), indices of the neighbors of each center.
        centers: (B, M), indices of the centers; None: center m is point m (then M = N).
        backend: `"auto"`, `"triton"` or `"reference"`.

    Shape:
        (B, M, k, 2C).

    Raises:
        InputError: shapes do not fit, on the CPU an index is out of range, or `backend` cannot run (with every reason).
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
    if centers is not None:
        check_indices("centers", centers, num_points)
    else:
        if neighbors.shape[1] != num_points:
            raise InputError(
                f"expected neighbors of all {num_points} points where centers are not given, "
                f"but got shape {tuple(neighbors.shape)}"
            )
        centers = torch.arange(num_points, device=features.device).expand(batch, -1)
    _check_backend(backend)
    return _group(features, neighbors, centers, backend)


def interpolate(
    query: Tensor,
    support: Tensor,
    features: Tensor,
    k: int = 3,
    *,
    query_lengths: Tensor | None = None,
    support_lengths: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    r"""Features at `query`, from those of the k nearest support points (PointNet++ section 3.4, equation 2).

    .. math::
        f(q) = \frac{\sum_i w_i f_i}{\sum_i w_i}, \qquad w_i = \frac{1}{\|q - s_i\|^2}

    There is no epsilon: at a support point the result is the feature of that point (the mean, if several lie there),
    and it does not depend on the scale of the cloud. Gradients flow to `features`, and to the positions. Features are
    not looked at: where one is NaN, so is what is interpolated from it.

    Args:
        query: (B, M, D).
        support: (B, N, D).
        features: (B, N, C), of the support points.
        k: number of neighbors, reduced to N where there are fewer points.
        query_lengths, support_lengths, backend: see `knn`. Padded queries get zeros.

    Shape:
        (B, M, C), in the dtype of `features`, also under autocast.

    Raises:
        InputError: as `knn`.
    """
    if features.dim() != 3 or features.shape[:2] != support.shape[:2]:
        raise InputError(
            "expected support (B, N, D) and features (B, N, C) with the same B and N, "
            f"but got {tuple(support.shape)} and {tuple(features.shape)}"
        )
    check_points("query", query)
    check_points("support", support)
    check_floating("features", features)
    check_device(support=support, features=features)
    # In float64 the squares of coordinates of 1e-30 and of 1e30 are numbers, too.
    exact = query.double()
    distances, indices = knn(
        exact,
        exact if query is support else support.double(),
        min(k, support.shape[1]),
        query_lengths=query_lengths,
        support_lengths=support_lengths,
        backend=backend,
    )
    # Weights relative to the nearest point, whose own is 1, do not overflow; the common factor cancels.
    absent, zero = ~distances.isfinite(), distances == 0
    weights = distances[..., :1].detach() / distances.masked_fill(absent | zero, 1.0)
    weights = weights.masked_fill(zero, 1.0).masked_fill(absent, 0.0)
    weights = weights / weights.sum(-1, keepdim=True).clamp(min=1.0)
    with torch.autocast(features.device.type, enabled=False):
        return torch.einsum("bmk,bmkc->bmc", weights.to(features.dtype), reference.gather(features, indices))


def _search(
    query: Tensor,
    support: Tensor,
    k: int,
    metric: str,
    limit: float,
    query_lengths: Tensor | None,
    support_lengths: Tensor | None,
    query_indices: Tensor | None,
    backend: str,
) -> KNN:
    check_points("query", query)
    check_points("support", support)
    check_device(
        query=query,
        support=support,
        query_lengths=query_lengths,
        support_lengths=support_lengths,
        query_indices=query_indices,
    )
    if query.shape[0] != support.shape[0] or query.shape[2] != support.shape[2]:
        raise InputError(
            "expected query (B, M, D) and support (B, N, D) with the same B and D, "
            f"but got {tuple(query.shape)} and {tuple(support.shape)}"
        )
    k = check_count("k", k, support.shape[1], "the number of support points")
    if query_indices is not None:
        if query_indices.shape != query.shape[:2]:
            raise InputError(
                f"expected query_indices to be {tuple(query.shape[:2])}, but got shape {tuple(query_indices.shape)}"
            )
        check_indices("query_indices", query_indices, support.shape[1])
    check_lengths("query_lengths", query_lengths, query, 0)
    check_lengths("support_lengths", support_lengths, support, 0)
    check_finite("query", query, query_lengths)
    check_finite("support", support, support_lengths)
    _check_backend(backend)
    query, support = _search_dtype(query), _search_dtype(support)
    if query.dtype != support.dtype:
        query, support = query.double(), support.double()
    return KNN(*_knn(query, support, k, metric, limit, query_lengths, support_lengths, query_indices, backend))


def _check_backend(backend: str) -> None:
    if backend not in BACKENDS:
        raise InputError(f"expected backend to be one of {', '.join(BACKENDS)}, but got {backend!r}")


def _search_dtype(points: Tensor) -> Tensor:
    """Half precision is widened: distances in it would be all but useless."""
    return points if points.dtype == torch.float64 else points.float()


@torch.library.custom_op("pcattn::knn", mutates_args=())
def _knn(
    query: Tensor,
    support: Tensor,
    k: int,
    metric: str,
    limit: float,
    query_lengths: Tensor | None,
    support_lengths: Tensor | None,
    query_indices: Tensor | None,
    backend: str,
) -> tuple[Tensor, Tensor]:
    search = knn_backend(backend, query, k)
    distances, indices = search(query, support, k, metric, limit, query_lengths, support_lengths, query_indices)
    largest = torch.finfo(query.dtype).max
    if query.dtype != distances.dtype:  # inf is a missing neighbor, and not one that is far away
        distances = torch.where(distances.isinf(), distances, distances.clamp(max=largest))
    return distances.to(query.dtype), indices


@_knn.register_fake
def _(query, support, k, metric, limit, query_lengths, support_lengths, query_indices, backend):  # type: ignore[no-untyped-def]
    shape = (query.shape[0], query.shape[1], k)
    return query.new_empty(shape), query.new_empty(shape, dtype=torch.long)


def _knn_setup(ctx, inputs, output):  # type: ignore[no-untyped-def]
    ctx.save_for_backward(inputs[0], inputs[1], *output)
    ctx.metric = inputs[3]
    ctx.mark_non_differentiable(output[1])


def _knn_backward(ctx, grad, _):  # type: ignore[no-untyped-def]
    query, support, distances, indices = ctx.saved_tensors
    difference = query[:, :, None] - reference.gather(support, indices)  # (B, M, k, D)
    grad = grad.masked_fill(distances.isinf(), 0.0)[..., None]
    if ctx.metric == "l2":
        grad = 2 * grad * difference
    else:
        # The maximum is shared evenly by the coordinates that reach it.
        largest = (difference.abs() == difference.abs().amax(-1, keepdim=True)).to(grad.dtype)
        grad = grad * difference.sign() * largest / largest.sum(-1, keepdim=True)
    rows = reference.flat_indices(indices, support.shape[1])
    of_support = torch.zeros_like(support).flatten(0, 1).index_add(0, rows, grad.flatten(0, 2)).view_as(support)
    return grad.sum(2), -of_support, *[None] * 7


_knn.register_autograd(_knn_backward, setup_context=_knn_setup)


@torch.library.custom_op("pcattn::farthest_point_sample", mutates_args=())
def _farthest_point_sample(pos: Tensor, num_samples: int, rule: str, lengths: Tensor | None, backend: str) -> Tensor:
    return fps_backend(backend, pos)(pos, num_samples, rule, lengths)


@_farthest_point_sample.register_fake
def _(pos, num_samples, rule, lengths, backend):  # type: ignore[no-untyped-def]
    return pos.new_empty(pos.shape[0], num_samples, dtype=torch.long)


@torch.library.custom_op("pcattn::group", mutates_args=())
def _group(features: Tensor, neighbors: Tensor, centers: Tensor, backend: str) -> Tensor:
    return group_backend(backend, features)(features, neighbors, centers)


@_group.register_fake
def _(features, neighbors, centers, backend):  # type: ignore[no-untyped-def]
    return features.new_empty(*neighbors.shape, 2 * features.shape[2])


def _group_setup(ctx, inputs, output):  # type: ignore[no-untyped-def]
    ctx.num_points = inputs[0].shape[1]
    ctx.save_for_backward(inputs[1], inputs[2])


def _group_backward(ctx, grad):  # type: ignore[no-untyped-def]
    neighbors, centers = ctx.saved_tensors
    relative, own = grad.chunk(2, dim=-1)
    channels = relative.shape[-1]
    result = grad.new_zeros(grad.shape[0] * ctx.num_points, channels)
    result = result.index_add(0, reference.flat_indices(neighbors, ctx.num_points), relative.flatten(0, 2))
    at_center = (own - relative).sum(2).flatten(0, 1)
    result = result.index_add(0, reference.flat_indices(centers, ctx.num_points), at_center)
    return result.view(-1, ctx.num_points, channels), None, None, None


_group.register_autograd(_group_backward, setup_context=_group_setup)
