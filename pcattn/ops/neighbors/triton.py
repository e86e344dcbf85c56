"""Neighbor search on the GPU: distances and the k best in one kernel, without a distance matrix.

Each program keeps the k nearest points of `BLOCK_M` queries in registers, unsorted, and walks over the support points
in tiles of `BLOCK_N`. A tile without a point nearer than the farthest of these costs one comparison.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from pcattn.ops.backends import on_device

BLOCK_M = 16
BLOCK_N = 128


def knn(
    query: Tensor,
    support: Tensor,
    k: int,
    metric: str = "l2",
    limit: float = torch.inf,
    query_lengths: Tensor | None = None,
    support_lengths: Tensor | None = None,
    query_indices: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """See `pcattn.ops.neighbors.reference.knn`."""
    batch, num_queries, dim = query.shape
    num_points = support.shape[1]
    query = query.contiguous()
    support = support.transpose(1, 2).contiguous()  # (B, D, N): neighboring threads read neighboring points
    query_count = _lengths(query_lengths, query, num_queries)
    support_count = _lengths(support_lengths, query, num_points)
    own = query_indices.contiguous() if query_indices is not None else query_count
    found = query.new_empty(batch, num_queries, k, dtype=torch.float64)
    indices = query.new_empty(batch, num_queries, k, dtype=torch.long)
    with on_device(query):
        knn_fwd_kernel[(triton.cdiv(num_queries, BLOCK_M), batch)](
            query,
            support,
            own,
            query_count,
            support_count,
            torch.full((1,), limit, dtype=torch.float64, device=query.device),
            found,
            indices,
            num_queries,
            num_points,
            dim,
            k,
            K=max(2, triton.next_power_of_2(k)),
            LINF=metric == "linf",
            HAS_OWN=query_indices is not None,
            BLOCK_M=BLOCK_M,
            BLOCK_N=BLOCK_N,
            enable_fp_fusion=False,  # a fused product and sum would round differently from the other backends
        )
    return found, indices


def _lengths(lengths: Tensor | None, like: Tensor, size: int) -> Tensor:
    if lengths is None:
        return torch.full((like.shape[0],), size, dtype=torch.int32, device=like.device)
    return lengths.clamp(0, size).int()


@triton.jit
def precedes(points, a, b, num_points, dim):  # type: ignore[no-untyped-def]
    """Whether point a comes before point b in lexicographic order (by index if they are equal); points (D, N)."""
    result = a < b
    for step in range(dim):
        axis = dim - 1 - step
        x = tl.load(points + axis * num_points + a)
        y = tl.load(points + axis * num_points + b)
        result = tl.where(x == y, result, x < y)
    return result


@triton.jit
def knn_fwd_kernel(  # type: ignore[no-untyped-def]
    query,  # (B, M, D)
    support,  # (B, D, N)
    own,  # (B, M), or anything where HAS_OWN is false
    query_lengths,  # (B,)
    support_lengths,  # (B,)
    limit_ptr,  # (1,): a float argument would arrive in single precision
    out_distances,  # (B, M, k)
    out_indices,  # (B, M, k)
    num_queries,
    num_points,
    dim,
    k,
    K: tl.constexpr,
    LINF: tl.constexpr,
    HAS_OWN: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """The k best of BLOCK_M queries; grid (blocks of queries, clouds)."""
    infinity = float("inf")
    b = tl.program_id(1).to(tl.int64)
    rows = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    count = tl.load(support_lengths + b)
    limit = tl.load(limit_ptr)
    real = rows < tl.load(query_lengths + b)
    query += b * num_queries * dim
    support += b * num_points * dim
    lanes = tl.arange(0, BLOCK_N)
    slots = tl.arange(0, K)

    self_index = tl.full((BLOCK_M,), -1, tl.int64)
    if HAS_OWN:
        self_index = tl.load(own + b * num_queries + rows, mask=real, other=-1).to(tl.int64)
        self_index = tl.where(self_index < count, self_index, -1)
    first = (self_index >= 0).to(tl.int32)  # (BLOCK_M,) slots of the output that the point itself takes

    # The best so far. Unused slots are -1, so that they are never the worst.
    used = slots[None, :] < (k - first)[:, None]
    best = tl.where(used & real[:, None], infinity, -1.0).to(tl.float64)  # (BLOCK_M, K)
    best_index = tl.zeros((BLOCK_M, K), tl.int64)
    worst = tl.max(best, axis=1)
    worst_slot = tl.zeros((BLOCK_M,), tl.int32)
    worst_index = tl.zeros((BLOCK_M,), tl.int64)

    for start in range(0, count, BLOCK_N):
        points = start + lanes
        present = points < count
        d = tl.zeros((BLOCK_M, BLOCK_N), tl.float64)
        for axis in range(dim):
            x = tl.load(query + rows * dim + axis, mask=real, other=0.0).to(tl.float64)
            y = tl.load(support + axis * num_points + points, mask=present, other=0.0).to(tl.float64)
            difference = x[:, None] - y[None, :]
            if LINF:
                d = tl.maximum(d, tl.abs(difference))
            else:
                d += difference * difference
        keep = present[None, :] & (points[None, :] != self_index[:, None]) & (d <= limit)
        d = tl.where(keep, d, infinity)
        nearest = tl.min(d, axis=1)
        more = tl.sum(((nearest <= worst) & (nearest < infinity)).to(tl.int32), axis=0)
        while more > 0:
            # Every row offers one point per turn: the nearest, and of several the first in lexicographic order. If
            # that one is not accepted, no other is.
            candidates = d == nearest[:, None]
            several = (tl.sum(candidates.to(tl.int32), axis=1) > 1) & (nearest < infinity)
            if tl.sum(several.to(tl.int32), axis=0) > 0:
                for axis in range(dim):
                    y = tl.load(support + axis * num_points + points, mask=present, other=0.0).to(tl.float64)
                    smallest = tl.min(tl.where(candidates, y[None, :], infinity), axis=1)
                    candidates = candidates & (y[None, :] == smallest[:, None])
            lane = tl.min(tl.where(candidates, lanes[None, :], BLOCK_N), axis=1)
            index = tl.minimum(start + lane, num_points - 1).to(tl.int64)
            accept = nearest < worst
            tied = (nearest == worst) & (nearest < infinity)
            if tl.sum(tied.to(tl.int32), axis=0) > 0:
                accept = accept | (tied & precedes(support, index, worst_index, num_points, dim))
            d = tl.where((lanes[None, :] == lane[:, None]) | (accept == 0)[:, None], infinity, d)
            replace = accept[:, None] & (slots[None, :] == worst_slot[:, None])
            best = tl.where(replace, nearest[:, None], best)
            best_index = tl.where(replace, index[:, None], best_index)

            worst = tl.max(best, axis=1)
            at_worst = best == worst[:, None]
            worst_slot = tl.min(tl.where(at_worst, slots[None, :], K - 1), axis=1)
            worst_index = tl.sum(tl.where(slots[None, :] == worst_slot[:, None], best_index, 0), axis=1)
            several = (tl.sum(at_worst.to(tl.int32), axis=1) > 1) & (worst >= 0.0) & (worst < infinity)
            if tl.sum(several.to(tl.int32), axis=0) > 0:
                for slot in range(K):
                    other = tl.sum(tl.where(slots[None, :] == slot, best_index, 0), axis=1)
                    other_tied = tl.sum((at_worst & (slots[None, :] == slot)).to(tl.int32), axis=1) > 0
                    later = several & other_tied & precedes(support, worst_index, other, num_points, dim)
                    worst_slot = tl.where(later, slot, worst_slot)
                    worst_index = tl.where(later, other, worst_index)

            nearest = tl.min(d, axis=1)
            more = tl.sum(((nearest <= worst) & (nearest < infinity)).to(tl.int32), axis=0)

    # The rank of each of the best is the number of those before it. Missing ones may have any order.
    usable = used & real[:, None]
    rank = tl.zeros((BLOCK_M, K), tl.int32)
    for slot in range(K):
        here = slots[None, :] == slot
        other = tl.sum(tl.where(here, best, 0.0), axis=1)[:, None]
        other_index = tl.sum(tl.where(here, best_index, 0), axis=1)[:, None]
        other_used = tl.sum((here & usable).to(tl.int32), axis=1)[:, None] > 0
        before = other < best
        tied = (other == best) & (slots[None, :] != slot)
        finite_ties = (tied & usable & (best < infinity)).to(tl.int32)
        if tl.sum(tl.sum(finite_ties, axis=1), axis=0) > 0:
            first_of_tie = precedes(support, other_index + tl.zeros_like(best_index), best_index, num_points, dim)
            before = before | (tied & (best < infinity) & first_of_tie)
        before = before | (tied & (best == infinity) & (slot < slots[None, :]))
        rank += (before & other_used).to(tl.int32)

    own_distance = tl.zeros((BLOCK_M,), tl.float64)
    if HAS_OWN:
        for axis in range(dim):
            x = tl.load(query + rows * dim + axis, mask=real, other=0.0).to(tl.float64)
            y = tl.load(support + axis * num_points + self_index, mask=first > 0, other=0.0).to(tl.float64)
            difference = x - y
            if LINF:
                own_distance = tl.maximum(own_distance, tl.abs(difference))
            else:
                own_distance += difference * difference

    # Missing neighbors repeat the nearest one.
    head = tl.sum(tl.where((rank == 0) & usable & (best < infinity), best_index, 0), axis=1)
    head = tl.where(first > 0, self_index, head)
    out = (b * num_queries + rows.to(tl.int64)) * k
    inside = rows < num_queries
    best_index = tl.where(best < infinity, best_index, head[:, None])
    place = out[:, None] + first[:, None] + rank
    tl.store(out_distances + place, best, mask=usable)
    tl.store(out_indices + place, best_index, mask=usable)
    if HAS_OWN:
        tl.store(out_distances + out, own_distance, mask=first > 0)
        tl.store(out_indices + out, self_index, mask=first > 0)
    padding = inside[:, None] & (real == 0)[:, None] & (slots[None, :] < k)
    tl.store(out_distances + out[:, None] + slots[None, :], tl.full((BLOCK_M, K), infinity, tl.float64), mask=padding)
    tl.store(out_indices + out[:, None] + slots[None, :], tl.zeros((BLOCK_M, K), tl.int64), mask=padding)
