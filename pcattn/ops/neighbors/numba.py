"""Neighbor search on the CPU with a k-d tree.

The tree takes any number of dimensions. Above about 6 it visits most leaves, and the search costs as much as a scan.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from pcattn.ops.kdtree import LEAF, build_tree, precedes
from pcattn.ops.threads import inlined, jit, run_split


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
    batch, num_queries, _ = query.shape
    query_count = _lengths(query_lengths, batch, num_queries)
    support_count = _lengths(support_lengths, batch, support.shape[1])
    own = np.zeros((batch, 0), dtype=np.int64) if query_indices is None else _array(query_indices)
    found = np.empty((batch, num_queries, k))
    indices = np.empty((batch, num_queries, k), dtype=np.int64)
    queries, points = _array(query.double()), _array(support.double())
    tree = build_tree(points, support_count)
    linf = metric == "linf"

    def search(start: int, stop: int) -> None:
        _search(queries, own, query_count, points, support_count, tree, k, limit, linf, start, stop, found, indices)

    run_split(search, batch * num_queries, grain=64)
    return torch.from_numpy(found), torch.from_numpy(indices)


def _array(points: Tensor) -> Any:
    return np.ascontiguousarray(points.numpy())


def _lengths(lengths: Tensor | None, batch: int, size: int) -> Any:
    if lengths is None:
        return np.full(batch, size)
    return np.ascontiguousarray(lengths.clamp(0, size).long().numpy())


@jit
def _search(  # type: ignore[no-untyped-def]
    query, own, query_lengths, points, support_lengths, tree, k, limit, linf, start, stop, out_distances, out_indices
):
    """Search for the queries of flat index start to stop, cloud by cloud."""
    coords, index, low, high, first_index, leaves = tree
    num_queries = query.shape[1]
    row = start
    while row < stop:
        b = row // num_queries
        begin = row - b * num_queries
        end = min(num_queries, begin + stop - row)
        _search_cloud(
            query[b],
            own[b],
            query_lengths[b],
            points[b],
            support_lengths[b],
            coords[b],
            index[b],
            low[b],
            high[b],
            first_index[b],
            leaves[b],
            k,
            limit,
            linf,
            begin,
            end,
            out_distances[b],
            out_indices[b],
        )
        row += end - begin


@jit
def _search_cloud(  # type: ignore[no-untyped-def]
    query,
    own,
    num_queries,
    points,
    num_points,
    coords,
    index,
    low,
    high,
    first_index,
    leaves,
    k,
    limit,
    linf,
    start,
    stop,
    out_distances,
    out_indices,
):
    # Distances of the best points so far, nearest first, from slot 1 on, and the places of these points in the order of
    # the leaves. Slot 0 is nearer than anything, which ends an insertion. Unsigned slots need no check for negative
    # indices.
    near = np.empty(k + 1)
    place = np.empty(k + 1, dtype=np.int64)
    near[0] = -1.0
    one = np.uintp(1)
    scan = np.empty(LEAF)
    stack_node = np.empty(64, dtype=np.int64)
    stack_distance = np.empty(64)
    for m in range(start, stop):
        first = 0
        self_index = -1
        count = 0
        capacity = k
        bound = limit
        height = 0
        if m < num_queries and num_points:
            if own.shape[0] and own[m] < num_points:
                self_index = own[m]
                first = 1
                capacity = k - 1
                out_distances[m, 0] = _distance(query, m, points, self_index, linf)
                out_indices[m, 0] = self_index
            if capacity:
                stack_node[0] = 0
                stack_distance[0] = _box_distance(query, m, low, high, 0, linf)
                height = 1
        while height:
            height -= 1
            node = stack_node[height]
            to_box = stack_distance[height]
            if to_box > bound:
                continue
            # A box at the distance of the last neighbor matters only if it may hold a point that precedes it.
            if (
                count == capacity
                and to_box == bound
                and not _may_precede(low, first_index, node, coords, index, place[capacity])
            ):
                continue
            if leaves[node, 1] - leaves[node, 0] > 1:
                near_child, far_child = 2 * node + 1, 2 * node + 2
                to_near = _box_distance(query, m, low, high, near_child, linf)
                to_far = _box_distance(query, m, low, high, far_child, linf)
                if to_far < to_near:
                    near_child, far_child = far_child, near_child
                    to_near, to_far = to_far, to_near
                if to_far <= bound:
                    stack_node[height] = far_child
                    stack_distance[height] = to_far
                    height += 1
                stack_node[height] = near_child
                stack_distance[height] = to_near
                height += 1
                continue
            leaf = leaves[node, 0]
            _leaf_distances(query, m, coords, leaf, linf, scan)
            for i in range(LEAF):
                d = scan[i]
                if d <= bound:
                    if index[leaf, i] == self_index:
                        continue
                    p = leaf * LEAF + i
                    if count < capacity:
                        count += 1
                    elif d == bound and not precedes(coords, index, p, place[capacity]):
                        continue
                    slot = np.uintp(count)
                    while near[slot - one] > d:
                        near[slot] = near[slot - one]
                        place[slot] = place[slot - one]
                        slot -= one
                    while near[slot - one] == d and precedes(coords, index, p, place[slot - one]):
                        near[slot] = near[slot - one]
                        place[slot] = place[slot - one]
                        slot -= one
                    near[slot] = d
                    place[slot] = p
                    if count == capacity:
                        bound = min(bound, near[capacity])
        for i in range(count):
            p = place[i + 1]
            out_distances[m, first + i] = near[i + 1]
            out_indices[m, first + i] = index[p // LEAF, p % LEAF]
        for i in range(first + count, k):
            out_distances[m, i] = np.inf
            out_indices[m, i] = out_indices[m, 0] if first + count else 0


@inlined
def _leaf_distances(query, m, coords, leaf, linf, out):  # type: ignore[no-untyped-def]
    if not linf and query.shape[1] == 3:  # one pass for the common case
        x, y, z = query[m, 0], query[m, 1], query[m, 2]
        for i in range(LEAF):
            dx = x - coords[leaf, 0, i]
            dy = y - coords[leaf, 1, i]
            dz = z - coords[leaf, 2, i]
            out[i] = dx * dx + dy * dy + dz * dz
    else:
        for i in range(LEAF):
            out[i] = 0.0
        for axis in range(query.shape[1]):
            x = query[m, axis]
            for i in range(LEAF):
                difference = abs(x - coords[leaf, axis, i])
                # In this form the NaN of padding stays NaN.
                farther = out[i] if difference <= out[i] else difference
                out[i] = farther if linf else out[i] + difference * difference


@inlined
def _box_distance(query, m, low, high, node, linf):  # type: ignore[no-untyped-def]
    """Distance to the nearest corner, edge or face of a box.

    Rounding is monotone and the steps are those of the distance to a point, so this is never larger than the
    *computed* distance to a point in the box.
    """
    result = 0.0
    for axis in range(query.shape[1]):
        x = query[m, axis]
        difference = max(low[node, axis] - x, x - high[node, axis], 0.0)
        if linf:
            result = max(result, difference)
        else:
            result += difference * difference
    return result


@jit
def _distance(query, m, points, p, linf):  # type: ignore[no-untyped-def]
    result = 0.0
    for axis in range(query.shape[1]):
        difference = abs(query[m, axis] - points[p, axis])
        if linf:
            result = max(result, difference)
        else:
            result += difference * difference
    return result


@jit
def _may_precede(low, first_index, node, coords, index, other):  # type: ignore[no-untyped-def]
    """Whether some point of a box can come before the point at place `other`."""
    for axis in range(low.shape[1]):
        y = coords[other // LEAF, axis, other % LEAF]
        if low[node, axis] != y:
            return low[node, axis] < y
    return first_index[node] < index[other // LEAF, other % LEAF]
