"""A k-d tree over every cloud of a batch, for the CPU kernels of neighbor search and farthest point sampling.

Leaves hold `LEAF` points, so that a leaf is scanned in vector instructions; only the last leaf of a cloud is padded,
with NaN, for which every comparison is false. Nodes are stored as a heap: the children of node i are 2i + 1 and 2i + 2.
Place p is lane p % LEAF of leaf p // LEAF.
"""

from typing import Any, NamedTuple

import numpy as np

from pcattn.ops.threads import jit, run_split

LEAF = 32


class Tree(NamedTuple):
    """The trees of B clouds, float64 and int64."""

    coords: Any  #: (B, leaves, D, LEAF), the points leaf by leaf, NaN for padding
    index: Any  #: (B, leaves, LEAF), their indices in the cloud, -1 for padding
    low: Any  #: (B, nodes, D), smallest coordinates of a node's points
    high: Any  #: (B, nodes, D), largest coordinates
    first_index: Any  #: (B, nodes), smallest index of a node's points
    leaves: Any  #: (B, nodes, 2), first leaf of a node, and the leaf after its last one


def build_tree(points: Any, lengths: Any) -> Tree:
    """Trees over the first `lengths[b]` of the points (B, N, D), a contiguous float64 array."""
    batch, num_points, dim = points.shape
    num_leaves = -(-num_points // LEAF)
    num_nodes = 2 * (1 << (num_leaves - 1).bit_length()) - 1
    tree = Tree(
        np.full((batch, num_leaves, dim, LEAF), np.nan),
        np.full((batch, num_leaves, LEAF), -1),
        np.full((batch, num_nodes, dim), np.inf),
        np.full((batch, num_nodes, dim), -np.inf),
        np.zeros((batch, num_nodes), dtype=np.int64),
        np.zeros((batch, num_nodes, 2), dtype=np.int64),
    )
    run_split(lambda start, stop: _build(points, lengths, *tree, start, stop), batch)
    return tree


@jit
def _build(points, lengths, coords, index, low, high, first_index, leaves, start, stop):  # type: ignore[no-untyped-def]
    dim = points.shape[2]
    num_nodes = low.shape[1]
    keys = np.empty(points.shape[1])
    order = np.empty(points.shape[1], dtype=np.int64)
    for b in range(start, stop):
        length = lengths[b]
        for i in range(length):
            order[i] = i
        leaves[b, 0, 1] = (length + LEAF - 1) // LEAF
        for node in range(num_nodes):
            first, last = leaves[b, node, 0], leaves[b, node, 1]
            if first == last:
                continue
            begin, end = first * LEAF, min(last * LEAF, length)
            smallest = order[begin]
            for i in range(begin, end):
                p = order[i]
                smallest = min(smallest, p)
                for axis in range(dim):
                    x = points[b, p, axis]
                    if x < low[b, node, axis]:
                        low[b, node, axis] = x
                    if x > high[b, node, axis]:
                        high[b, node, axis] = x
            first_index[b, node] = smallest
            if last - first == 1:
                continue
            widest = 0
            for axis in range(1, dim):
                if high[b, node, axis] - low[b, node, axis] > high[b, node, widest] - low[b, node, widest]:
                    widest = axis
            for i in range(begin, end):
                keys[i] = points[b, order[i], widest]
            middle = (first + last) // 2
            _partition(keys, order, begin, end - 1, middle * LEAF)
            leaves[b, 2 * node + 1, 0], leaves[b, 2 * node + 1, 1] = first, middle
            leaves[b, 2 * node + 2, 0], leaves[b, 2 * node + 2, 1] = middle, last
        for i in range(length):
            leaf, lane = i // LEAF, i % LEAF
            index[b, leaf, lane] = order[i]
            for axis in range(dim):
                coords[b, leaf, axis, lane] = points[b, order[i], axis]


@jit
def precedes(coords, index, p, other):  # type: ignore[no-untyped-def]
    """Whether the point at place p comes before another in lexicographic order (by index if they are equal)."""
    for axis in range(coords.shape[1]):
        x, y = coords[p // LEAF, axis, p % LEAF], coords[other // LEAF, axis, other % LEAF]
        if x != y:
            return x < y
    return index[p // LEAF, p % LEAF] < index[other // LEAF, other % LEAF]


@jit
def _partition(keys, order, left, right, target):  # type: ignore[no-untyped-def]
    """Rearrange keys[left : right + 1] and order: the smaller keys before position `target`, the larger from there on.

    Equal keys are ordered by `order`, so that copies of one point end up side by side.
    """
    while left < right:
        a, m, c = left, (left + right) // 2, right
        if _less(keys, order, m, a):
            a, m = m, a
        if _less(keys, order, c, m):
            m = a if _less(keys, order, c, a) else c
        pivot, pivot_order = keys[m], order[m]
        i, j = left, right
        while i <= j:
            while i < right and (keys[i] < pivot or (keys[i] == pivot and order[i] < pivot_order)):
                i += 1
            while j > left and (pivot < keys[j] or (keys[j] == pivot and pivot_order < order[j])):
                j -= 1
            if i <= j:
                keys[i], keys[j] = keys[j], keys[i]
                order[i], order[j] = order[j], order[i]
                i += 1
                j -= 1
        if target <= j:
            right = j
        elif target >= i:
            left = i
        else:
            return


@jit
def _less(keys, order, a, b):  # type: ignore[no-untyped-def]
    return keys[a] < keys[b] or (keys[a] == keys[b] and order[a] < order[b])
