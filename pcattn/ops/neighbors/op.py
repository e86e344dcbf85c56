"""Neighbor search, with checked arguments: `pcattn::knn`, which `ball_query` uses as well.

Distances are compared in float64, outside autocast, on differences of coordinates: for float32 and half precision that
is exactly what float64 brute force finds. Equal distances are ordered by the coordinates of the points,
lexicographically, and points that are equal in all coordinates by index.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from pcattn.ops.backends import Kernels, check_backend, why_not_numba, why_not_triton
from pcattn.ops.grouping.reference import flat_indices, gather
from pcattn.ops.neighbors import reference
from pcattn.utils.checks import check_count, check_device, check_finite, check_indices, check_lengths, check_points
from pcattn.utils.errors import InputError

_METRICS = ("l2", "linf")
_TRITON_MAX_K = 256


class KNN(NamedTuple):
    """Result of `knn` and `ball_query`: if `indices[b, m, i] = j`, point j of cloud b is the i-th nearest to query m.

    Missing neighbors have distance inf and repeat the index of the nearest neighbor (0 if there is none). Gathering
    them is therefore valid and leaves a maximum over the neighbors unchanged; `distances.isfinite()` masks them.
    """

    #: (B, M, k), float32 or float64, ascending. For `"l2"` these are *squared* Euclidean distances, for `"linf"`
    #: maximum distances. A distance too large for float32 is the largest float32 number.
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

    Distances are :math:`\sum_d (q_d - s_d)^2` for `"l2"` and :math:`\max_d |q_d - s_d|` for `"linf"`. They are compared
    in float64, and ties are broken by the coordinates of the points. Gradients flow through `distances`.

    Args:
        query: (B, M, D).
        support: (B, N, D), D arbitrary: positions or features.
        k: number of neighbors, 1 <= k <= N. Clouds with fewer than k real points have missing neighbors, see `KNN`.
        metric: `"l2"` or `"linf"`.
        query_lengths: (B,), number of real queries; the others are padding and get missing neighbors only.
        support_lengths: (B,), number of real support points; the others are padding and never neighbors.
        query_indices: (B, M), states that `query[b, m]` is `support[b, query_indices[b, m]]`. This point then comes
            first, also among copies of it. Not needed if `query is support`.
        backend: `"auto"`, `"triton"`, `"numba"` or `"reference"`.

    Shape:
        `distances` and `indices` are (B, M, k).

    Raises:
        InputError: the shapes do not fit, an argument is out of range, on the CPU a position is NaN or infinite, or
            `backend` cannot run (the message lists every reason).
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
    """The k nearest of the support points within `radius` of every query, nearest first.

    Differs from PointNet++'s code, which takes the k points of the ball with the smallest indices.

    Args:
        query: (B, M, D).
        support: (B, N, D).
        radius: Euclidean, in units of the positions; points at exactly this distance belong to the ball.
        k: most neighbors of a query, 1 <= k <= N. Balls with fewer points have missing neighbors, see `KNN`.
        query_lengths, support_lengths, backend: see `knn`.

    Shape:
        `distances` (squared) and `indices` are (B, M, k).

    Raises:
        InputError: as `knn`, or `radius` is not positive.
    """
    if not radius > 0:
        raise InputError(f"expected radius to be positive, but got {radius}")
    return _search(query, support, k, "l2", float(radius) ** 2, query_lengths, support_lengths, None, backend)


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
    check_backend(backend)
    query, support = search_dtype(query), search_dtype(support)
    if query.dtype != support.dtype:
        query, support = query.double(), support.double()
    return KNN(*_knn(query, support, k, metric, limit, query_lengths, support_lengths, query_indices, backend))


def search_dtype(points: Tensor) -> Tensor:
    """Points in float32 or float64: distances in half precision would be all but useless."""
    return points if points.dtype == torch.float64 else points.float()


def _why_not_triton(query: Tensor, k: int) -> list[str]:
    """Reasons why the Triton kernel cannot run."""
    reasons = why_not_triton(query)
    if k > _TRITON_MAX_K:
        reasons.append(f"k={k} is more than the {_TRITON_MAX_K} neighbors it keeps on chip")
    return reasons


_KERNELS = Kernels(reference, numba=why_not_numba, triton=_why_not_triton)


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
    kernels = _KERNELS.choose(backend, query, k)
    distances, indices = kernels.knn(query, support, k, metric, limit, query_lengths, support_lengths, query_indices)
    if query.dtype != distances.dtype:  # inf marks a missing neighbor, never one that is far away
        largest = torch.finfo(query.dtype).max
        distances = torch.where(distances.isinf(), distances, distances.clamp(max=largest))
    return distances.to(query.dtype), indices


@_knn.register_fake
def _(query: Tensor, support: Tensor, k: int, *_: Any) -> tuple[Tensor, Tensor]:
    shape = (query.shape[0], query.shape[1], k)
    return query.new_empty(shape), query.new_empty(shape, dtype=torch.long)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(inputs[0], inputs[1], *output)
    ctx.metric = inputs[3]
    ctx.mark_non_differentiable(output[1])


def _differentiate(ctx: Any, grad: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
    query, support, distances, indices = ctx.saved_tensors
    difference = query[:, :, None] - gather(support, indices)  # (B, M, k, D)
    grad = grad.masked_fill(distances.isinf(), 0.0)[..., None]
    if ctx.metric == "l2":
        grad = 2 * grad * difference
    else:
        # The coordinates that reach the maximum share its gradient evenly.
        largest = (difference.abs() == difference.abs().amax(-1, keepdim=True)).to(grad.dtype)
        grad = grad * difference.sign() * largest / largest.sum(-1, keepdim=True)
    rows = flat_indices(indices, support.shape[1])
    grad_support = torch.zeros_like(support).flatten(0, 1).index_add(0, rows, grad.flatten(0, 2)).view_as(support)
    return grad.sum(2), -grad_support, *[None] * 7


_knn.register_autograd(_differentiate, setup_context=_save)
