"""Neighbor search in feature space on the CPU: a scan in the input's precision finds candidates, float64 decides."""

from typing import Any

import numpy as np

from pcattn.ops.threads import inlined, jit, run_split

_LANES = 64


def search_features(
    query: Any,
    own: Any,
    query_lengths: Any,
    support: Any,
    support_lengths: Any,
    k: int,
    limit: float,
    out_distances: Any,
    out_indices: Any,
) -> None:
    """Neighbors by squared distance for any number of dimensions, see `pcattn.ops.reference.knn`.

    Args:
        query: (B, M, D), contiguous, float32 or float64.
        own: (B, M) or (B, 0), `query_indices`.
        query_lengths: (B,).
        support: (B, N, D), as `query`.
        support_lengths: (B,).
        k, limit: see the reference.
        out_distances, out_indices: (B, M, k), written.
    """
    batch, num_points, dim = support.shape
    blocks = -(-num_points // _LANES)
    lanes = np.zeros((batch, blocks * _LANES, dim), dtype=support.dtype)
    lanes[:, :num_points] = support
    lanes = np.ascontiguousarray(lanes.reshape(batch, blocks, _LANES, dim).swapaxes(2, 3))
    # Each of the dim terms and sums is rounded at most twice; the margin of 4 covers higher orders.
    precision = np.finfo(support.dtype)
    relative = 4.0 * (dim + 4) * float(precision.eps)
    absolute = dim * float(precision.smallest_normal)

    def search(start: int, stop: int) -> None:
        _search(
            query,
            own,
            query_lengths,
            support,
            support_lengths,
            lanes,
            relative,
            absolute,
            k,
            limit,
            start,
            stop,
            out_distances,
            out_indices,
        )

    run_split(search, batch * query.shape[1], grain=16)


@jit
def _search(  # type: ignore[no-untyped-def]
    query,
    own,
    query_lengths,
    support,
    support_lengths,
    lanes,
    relative,
    absolute,
    k,
    limit,
    start,
    stop,
    out_distances,
    out_indices,
):
    num_queries, dim = query.shape[1], query.shape[2]
    scan = np.empty((lanes.shape[1], _LANES), dtype=query.dtype)
    values = scan.reshape(-1)
    least = np.empty(k + 1)  # the smallest values of the scan, see `numba_knn` for slot 0 and the unsigned slots
    least[0] = -1.0
    near = np.empty(k + 1)
    near[0] = -1.0
    place = np.empty(k + 1, dtype=np.int64)
    candidates = np.zeros(support.shape[1] + 3, dtype=np.int64)
    one = np.uintp(1)
    for row in range(start, stop):
        b = row // num_queries
        m = row - b * num_queries
        num_points = support_lengths[b]
        first = 0
        count = 0
        self_index = -1
        if m < query_lengths[b] and num_points:
            if own.shape[1] and own[b, m] < num_points:
                self_index = own[b, m]
                first = 1
                value = 0.0
                for axis in range(dim):
                    difference = np.float64(query[b, m, axis]) - np.float64(support[b, self_index, axis])
                    value += difference * difference
                out_distances[b, m, 0] = value
                out_indices[b, m, 0] = self_index
            _scan(query, b, m, lanes, scan)
            for i in range(1, k + 1):
                least[i] = np.inf
            for j in range(num_points):
                value = np.float64(values[j])
                if value < least[k]:
                    slot = np.uintp(k)
                    while least[slot - one] > value:
                        least[slot] = least[slot - one]
                        slot -= one
                    least[slot] = value
            # k points are within the last of these up to rounding, so no point that is farther counts.
            bound = min(least[k], limit) * (1.0 + 2.0 * relative) + 2.0 * absolute
            num_candidates = 0
            for j in range(num_points):
                candidates[num_candidates] = j
                num_candidates += values[j] <= bound
            capacity = k - first
            for chunk in range(0, num_candidates, 4):
                # Sums over the axes one after the other, as in the reference, for four points at a time.
                p0, p1, p2, p3 = (
                    candidates[chunk],
                    candidates[chunk + 1],
                    candidates[chunk + 2],
                    candidates[chunk + 3],
                )
                d0 = d1 = d2 = d3 = 0.0
                for axis in range(dim):
                    x = np.float64(query[b, m, axis])
                    e0 = x - np.float64(support[b, p0, axis])
                    e1 = x - np.float64(support[b, p1, axis])
                    e2 = x - np.float64(support[b, p2, axis])
                    e3 = x - np.float64(support[b, p3, axis])
                    d0 += e0 * e0
                    d1 += e1 * e1
                    d2 += e2 * e2
                    d3 += e3 * e3
                for i in range(min(4, num_candidates - chunk)):
                    p = candidates[chunk + i]
                    value = d0 if i == 0 else d1 if i == 1 else d2 if i == 2 else d3
                    if p == self_index or not value <= limit or not capacity:
                        continue
                    if count < capacity:
                        count += 1
                    elif value > near[capacity] or (
                        value == near[capacity] and not _precedes(support, b, p, place[capacity])
                    ):
                        continue
                    slot = np.uintp(count)
                    while near[slot - one] > value or (
                        near[slot - one] == value and _precedes(support, b, p, place[slot - one])
                    ):
                        near[slot] = near[slot - one]
                        place[slot] = place[slot - one]
                        slot -= one
                    near[slot] = value
                    place[slot] = p
        for i in range(count):
            out_distances[b, m, first + i] = near[i + 1]
            out_indices[b, m, first + i] = place[i + 1]
        for i in range(first + count, k):
            out_distances[b, m, i] = np.inf
            out_indices[b, m, i] = out_indices[b, m, 0] if first + count else 0


@inlined
def _scan(query, b, m, lanes, scan):  # type: ignore[no-untyped-def]
    """Squared distances of one query to all points, in the precision of the input."""
    for block in range(lanes.shape[1]):
        for i in range(_LANES):
            scan[block, i] = 0
        for axis in range(lanes.shape[2]):
            x = query[b, m, axis]
            for i in range(_LANES):
                difference = x - lanes[b, block, axis, i]
                scan[block, i] += difference * difference


@jit
def _precedes(points, b, p, other):  # type: ignore[no-untyped-def]
    """Whether point p comes before another in lexicographic order (by index if they are equal)."""
    for axis in range(points.shape[2]):
        if points[b, p, axis] != points[b, other, axis]:
            return points[b, p, axis] < points[b, other, axis]
    return p < other
