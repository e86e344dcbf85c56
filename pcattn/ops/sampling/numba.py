"""Farthest point sampling on the CPU: a k-d tree skips the points that are too far from a new sample to change."""

import numpy as np
import torch
from torch import Tensor

from pcattn.ops.kdtree import LEAF, build_tree, precedes
from pcattn.ops.sampling.reference import POINTNET2_MIN_SQUARED_NORM, centroid
from pcattn.ops.threads import jit, run_split


def farthest_point_sample(
    pos: Tensor, num_samples: int, rule: str = "centroid", lengths: Tensor | None = None
) -> Tensor:
    """See `pcattn.ops.sampling.reference.farthest_point_sample`."""
    batch, num_points, _ = pos.shape
    points = np.ascontiguousarray(pos.double().numpy())
    counts = np.full(batch, num_points) if lengths is None else np.ascontiguousarray(lengths.long().numpy())
    by_index = rule == "pointnet2"
    start = points[:, 0].copy() if by_index else centroid(pos, lengths).numpy()
    tree = build_tree(points, counts)
    chosen = np.zeros((batch, num_samples), dtype=np.int64)
    run_split(lambda first, last: _sample(tree, start, by_index, first, last, chosen), batch)
    return torch.from_numpy(chosen)


@jit
def _sample(tree, start, by_index, first, last, chosen):  # type: ignore[no-untyped-def]
    coords, index, low, high, _, leaves = tree
    for b in range(first, last):
        _sample_cloud(coords[b], index[b], low[b], high[b], leaves[b], start[b].copy(), by_index, chosen[b])


@jit
def _sample_cloud(coords, index, low, high, leaves, center, by_index, chosen):  # type: ignore[no-untyped-def]
    # Distance of every point to the nearest sample; -1 marks points that cannot be chosen (again).
    nearest = np.empty(index.shape)
    # For every node, the largest of these values and the place of the first point that has it.
    top = np.full(leaves.shape[0], -1.0)
    place = np.zeros(leaves.shape[0], dtype=np.int64)
    # Work space of `_update`, allocated once.
    scan = np.empty(LEAF)
    stack = np.empty(64, dtype=np.int64)
    inner = np.empty(leaves.shape[0], dtype=np.int64)
    leaf = -1
    _reset(coords, index, by_index, leaves, nearest, top)
    if not by_index:
        # The first sample is the point farthest from `center`, which is no sample itself.
        _update(center, leaf, coords, index, low, high, leaves, by_index, nearest, top, place, scan, stack, inner)
        _reset(coords, index, by_index, leaves, nearest, top)
    for step in range(chosen.shape[0]):
        if step and top[0] < 0.0:  # none is left
            chosen[step] = chosen[0]
            continue
        if step or not by_index:
            leaf, lane = place[0] // LEAF, place[0] % LEAF
            chosen[step] = index[leaf, lane]
            for axis in range(coords.shape[1]):
                center[axis] = coords[leaf, axis, lane]
            if not by_index:
                nearest[leaf, lane] = -1.0
        _update(center, leaf, coords, index, low, high, leaves, by_index, nearest, top, place, scan, stack, inner)


@jit
def _reset(coords, index, by_index, leaves, nearest, top):  # type: ignore[no-untyped-def]
    for leaf in range(index.shape[0]):
        for i in range(LEAF):
            nearest[leaf, i] = np.inf if index[leaf, i] >= 0 else -1.0
            if by_index:
                norm = 0.0
                for axis in range(coords.shape[1]):
                    norm += coords[leaf, axis, i] * coords[leaf, axis, i]
                if norm <= POINTNET2_MIN_SQUARED_NORM:
                    nearest[leaf, i] = -1.0
    for node in range(leaves.shape[0]):
        top[node] = np.inf if leaves[node, 1] > leaves[node, 0] else -1.0


@jit
def _update(  # type: ignore[no-untyped-def]
    center, center_leaf, coords, index, low, high, leaves, by_index, nearest, top, place, scan, stack, inner
):
    """Account for a new sample at `center`, which lies in the leaf `center_leaf`."""
    # The bits of non-negative floats, read as integers, have the order of the floats, and those of -1 come first.
    # Loops over integers become vector instructions.
    bits = nearest.view(np.int64)
    num_inner = 0
    stack[0] = 0
    height = 1
    while height:
        height -= 1
        node = stack[height]
        distance = 0.0
        for axis in range(center.shape[0]):
            difference = max(low[node, axis] - center[axis], center[axis] - high[node, axis], 0.0)
            distance += difference * difference
        # No computed distance to a point of the box is smaller, so nothing changes there. For the reason see
        # `_box_distance` in `pcattn.ops.neighbors.numba`.
        if distance >= top[node] and not leaves[node, 0] <= center_leaf < leaves[node, 1]:
            continue
        if leaves[node, 1] - leaves[node, 0] > 1:
            inner[num_inner] = node
            num_inner += 1
            stack[height] = 2 * node + 1
            stack[height + 1] = 2 * node + 2
            height += 2
            continue
        leaf = leaves[node, 0]
        if center.shape[0] == 3:  # one pass for the common case
            x, y, z = center[0], center[1], center[2]
            for i in range(LEAF):
                dx = x - coords[leaf, 0, i]
                dy = y - coords[leaf, 1, i]
                dz = z - coords[leaf, 2, i]
                scan[i] = dx * dx + dy * dy + dz * dz
        else:
            for i in range(LEAF):
                scan[i] = 0.0
            for axis in range(center.shape[0]):
                x = center[axis]
                for i in range(LEAF):
                    difference = x - coords[leaf, axis, i]
                    scan[i] += difference * difference
        for i in range(LEAF):
            nearest[leaf, i] = scan[i] if scan[i] < nearest[leaf, i] else nearest[leaf, i]
        largest = bits[leaf, 0]
        for i in range(LEAF):
            largest = max(largest, bits[leaf, i])
        lane = 0
        ties = 0
        for i in range(LEAF):
            lane = max(lane, i if bits[leaf, i] == largest else 0)
            ties += bits[leaf, i] == largest
        if ties > 1 and nearest[leaf, lane] >= 0.0:
            for i in range(LEAF):
                if bits[leaf, i] == largest and _precedes(coords, index, by_index, leaf * LEAF + i, leaf * LEAF + lane):
                    lane = i
        top[node] = nearest[leaf, lane]
        place[node] = leaf * LEAF + lane
    for i in range(num_inner - 1, -1, -1):  # parents were noted before their children
        node = inner[i]
        child = 2 * node + 1
        if top[child + 1] > top[child] or (
            top[child + 1] == top[child] >= 0.0 and _precedes(coords, index, by_index, place[child + 1], place[child])
        ):
            child += 1
        top[node] = top[child]
        place[node] = place[child]


@jit
def _precedes(coords, index, by_index, p, other):  # type: ignore[no-untyped-def]
    """Whether the point at place p comes before another, in lexicographic order or by index."""
    if by_index:
        return index[p // LEAF, p % LEAF] < index[other // LEAF, other % LEAF]
    return precedes(coords, index, p, other)
