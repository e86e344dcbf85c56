"""The operations in short, pure torch: the definition that every faster back-end must equal.

All functions take dense batches, run on any device, and leave gradients to the callers in `pcattn.ops`.
"""

import torch
from torch import Tensor

# Scratch memory of one block of the distance computation, in elements: bounds memory whatever the number of points.
_BLOCK_ELEMENTS = 1 << 22

# Points closer to the origin than this (squared) are never chosen by the rule of pointnet2_ops.
_POINTNET2_MIN_SQUARED_NORM = 1e-3


def lexicographic_order(points: Tensor) -> Tensor:
    """Indices (B, N) that sort the points (B, N, D) by their first coordinate, then the second, and so on.

    Ties of distances are broken by this order, so that results do not depend on the order of the points.
    """
    order = torch.arange(points.shape[1], device=points.device).expand(points.shape[:2])
    for axis in reversed(range(points.shape[2])):
        column = points[..., axis].gather(1, order)
        order = order.gather(1, column.argsort(dim=1, stable=True))
    return order


def squared_distances(query: Tensor, support: Tensor) -> Tensor:
    """Squared Euclidean distances (B, M, N) between query (B, M, D) and support (B, N, D).

    Direct differences: the expansion |x|^2 + |y|^2 - 2xy loses every digit for clouds far from the origin.
    """
    distances = query.new_zeros(query.shape[0], query.shape[1], support.shape[1])
    for axis in range(query.shape[2]):
        difference = query[:, :, None, axis] - support[:, None, :, axis]
        distances.addcmul_(difference, difference)
    return distances


def knn(query: Tensor, support: Tensor, k: int) -> Tensor:
    """Indices (B, M, k) of the k nearest support points of every query, nearest first."""
    batch, num_points, _ = support.shape
    # On points in lexicographic order a stable sort by distance breaks ties by coordinates.
    order = lexicographic_order(support)
    support = support.gather(1, order[..., None].expand_as(support))
    rows = max(1, _BLOCK_ELEMENTS // (batch * num_points))
    blocks = [_smallest(squared_distances(block, support), k) for block in query.split(rows, dim=1)]
    ranks = torch.cat(blocks, dim=1)
    return order.gather(1, ranks.flatten(1)).view_as(ranks)


def _smallest(distances: Tensor, k: int) -> Tensor:
    """Indices of the k smallest entries along the last dimension, ascending, the lower index first among equals."""
    if distances.dtype != torch.float32:
        return distances.sort(dim=-1, stable=True).indices[..., :k]
    # The bits of a non-negative float are ordered as the float is, so (distance, index) packs into one integer
    # key without ties, and a partial selection replaces the full stable sort.
    index = torch.arange(distances.shape[-1], device=distances.device)
    keys = (distances.view(torch.int32).long() << 32) | index
    return keys.topk(k, largest=False, sorted=True).values & 0xFFFFFFFF


def farthest_point_sample(pos: Tensor, num_samples: int) -> Tensor:
    """Indices (B, num_samples): the point farthest from the centroid, then always the point farthest from those chosen.

    Ties go to the lexicographically smaller point; no point is chosen twice.
    """
    order = lexicographic_order(pos)
    pos = pos.gather(1, order[..., None].expand_as(pos))
    chosen = order.new_empty(pos.shape[0], num_samples)
    current = (pos - pos.mean(dim=1, keepdim=True)).square().sum(-1).argmax(dim=1, keepdim=True)
    nearest = pos.new_full(pos.shape[:2], torch.inf)
    for i in range(num_samples):
        chosen[:, i : i + 1] = current
        centre = pos.gather(1, current[..., None].expand(-1, -1, pos.shape[2]))
        nearest = torch.minimum(nearest, (pos - centre).square().sum(-1)).scatter(1, current, -1.0)
        current = nearest.argmax(dim=1, keepdim=True)
    return order.gather(1, chosen)


def farthest_point_sample_pointnet2(pos: Tensor, num_samples: int) -> Tensor:
    """The rule of pointnet2_ops, used by PCT's released code: starts at point 0, skips points near the origin.

    It depends on the order of the points and on where the origin is; offered for comparison with released weights.
    """
    chosen = torch.zeros(pos.shape[0], num_samples, dtype=torch.long, device=pos.device)
    allowed = pos.square().sum(-1) > _POINTNET2_MIN_SQUARED_NORM
    nearest = pos.new_full(pos.shape[:2], torch.inf).masked_fill(~allowed, -1.0)
    for i in range(1, num_samples):
        centre = pos.gather(1, chosen[:, i - 1 : i, None].expand(-1, -1, pos.shape[2]))
        nearest = torch.minimum(nearest, (pos - centre).square().sum(-1))
        chosen[:, i] = nearest.argmax(dim=1)
    return chosen
