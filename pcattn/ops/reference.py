"""The operations in short, pure torch: the definition that every faster back-end must equal, index for index.

All functions take dense batches, run on any device, and leave gradients to the callers in `pcattn.ops`. Distances that
decide anything are computed in float64 and summed axis by axis, each product and sum rounded once: in that form every
back-end gets the same bits, and for float32 clouds the result is that of float64 brute force.
"""

import torch
from torch import Tensor

# Scratch memory of one block of the distance computation, in elements: bounds memory whatever the number of points.
_BLOCK_ELEMENTS = 1 << 21

# Points closer to the origin than this (squared) are never chosen by the rule of pointnet2_ops.
POINTNET2_MIN_SQUARED_NORM = 1e-3

# Bits of the fixed-point numbers that the centroid is summed in; of 2^21 points and more fewer fit into an int64.
_CENTROID_BITS = 42


def lexicographic_order(points: Tensor) -> Tensor:
    """Indices (B, N) that sort the points (B, N, D) by their first coordinate, then the second, and so on.

    Points that are equal in all coordinates keep their order. Ties of distances are broken by this order, so that
    results do not depend on the order of the points.
    """
    points = points.nan_to_num()  # a comparison sort has no answer for NaN
    # unique sorts rows lexicographically, for any D in one go, and numbers equal rows alike.
    ranks = [torch.unique(cloud, dim=0, return_inverse=True)[1] for cloud in points]
    return torch.stack(ranks).argsort(dim=1, stable=True)


def distances(query: Tensor, support: Tensor, metric: str = "l2") -> Tensor:
    """Squared Euclidean or maximum distances (B, M, N), float64, between query (B, M, D) and support (B, N, D).

    Direct differences: the expansion |x|^2 + |y|^2 - 2xy loses every digit for clouds far from the origin.
    """
    query, support = query.double(), support.double()
    result = query.new_zeros(query.shape[0], query.shape[1], support.shape[1])
    for axis in range(query.shape[2]):
        difference = query[:, :, None, axis] - support[:, None, :, axis]
        result = result + difference.square_() if metric == "l2" else torch.maximum(result, difference.abs_())
    return result


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
    """Distances (B, M, k), float64, and indices (B, M, k) of the nearest support points within `limit`, nearest first.

    Missing neighbors have distance inf and repeat the index of the nearest one (0 where there is none).
    """
    batch, num_points, _ = support.shape
    # On points in lexicographic order a stable sort by distance breaks ties by coordinates.
    order = lexicographic_order(support)
    support = support.gather(1, order[..., None].expand_as(support))
    absent = order >= support_lengths[:, None] if support_lengths is not None else None
    rows = max(1, _BLOCK_ELEMENTS // (batch * num_points))
    blocks = []
    for start in range(0, query.shape[1], rows):
        block = slice(start, start + rows)
        d = distances(query[:, block], support, metric).nan_to_num_(nan=torch.inf, posinf=torch.inf)
        d = d.masked_fill_(d > limit, torch.inf)
        if absent is not None:
            d = d.masked_fill_(absent[:, None], torch.inf)
        if query_indices is None:
            blocks.append(_smallest(d, k))
        else:
            # The point that the query is comes first, whatever lies at the same place.
            own = (order[:, None] == query_indices[:, block, None]) & d.isfinite()
            _, ranks = _smallest(d.masked_fill(own, -1.0), k)
            blocks.append((d.gather(2, ranks), ranks))
    found, ranks = (torch.cat(parts, dim=1) for parts in zip(*blocks, strict=True))
    indices = order.gather(1, ranks.flatten(1)).view_as(ranks)
    if query_lengths is not None:
        padding = torch.arange(query.shape[1], device=query.device) >= query_lengths[:, None]
        found = found.masked_fill(padding[..., None], torch.inf)
    first = indices[..., :1].masked_fill(found[..., :1].isinf(), 0)
    return found, torch.where(found.isinf(), first, indices)


def _smallest(values: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k smallest values along the last dimension and where they are, ascending, the lower index first if equal."""
    last = values.topk(k, dim=-1, largest=False).values.amax(-1, keepdim=True)
    below, tied = values < last, values == last
    # topk chooses among ties as it likes: take the first ones, as many as are missing.
    tied &= tied.cumsum(-1) <= k - below.sum(-1, keepdim=True)
    indices = (below | tied).nonzero()[:, -1].view(*values.shape[:-1], k)
    values, order = values.gather(-1, indices).sort(dim=-1, stable=True)
    return values, indices.gather(-1, order)


def centroid(points: Tensor, lengths: Tensor | None = None) -> Tensor:
    """Mean (B, D), float64, of the points (B, N, D), the same bits for every order of the points and back-end.

    The sum of floats depends on their order in the last digits, which would decide between the corners of a cube. The
    sum of integers does not.
    """
    points = points.double().nan_to_num()
    count = torch.full_like(points[:, :1, 0], points.shape[1])
    if lengths is not None:
        absent = torch.arange(points.shape[1], device=points.device) >= lengths[:, None]
        points = points.masked_fill(absent[..., None], 0.0)
        count = lengths[:, None].clamp(min=1).double()
    bits = min(_CENTROID_BITS, 63 - points.shape[1].bit_length())
    # Powers of two scale without rounding; the limit keeps them finite.
    exponent = torch.frexp(points.abs().amax((1, 2), keepdim=True)).exponent.clamp(min=-900) - bits
    total = (points * torch.ldexp(torch.ones_like(exponent, dtype=points.dtype), -exponent)).round().long().sum(1)
    return torch.ldexp(total.double() / count, exponent[:, 0])


def farthest_point_sample(
    pos: Tensor, num_samples: int, rule: str = "centroid", lengths: Tensor | None = None
) -> Tensor:
    """Indices (B, num_samples) by the rule `"centroid"` or `"pointnet2"`; see `pcattn.ops.farthest_point_sample`."""
    pos = pos.double()
    present = None
    if lengths is not None:
        present = torch.arange(pos.shape[1], device=pos.device) < lengths[:, None]
    if rule == "pointnet2":
        return _farthest_point_sample_pointnet2(pos, num_samples, present)
    order = lexicographic_order(pos)
    present = present.gather(1, order) if present is not None else torch.ones_like(order, dtype=torch.bool)
    start = centroid(pos, lengths)
    pos = pos.gather(1, order[..., None].expand_as(pos))
    chosen = order.new_empty(pos.shape[0], num_samples)
    current = distances(start[:, None], pos)[:, 0].masked_fill(~present, -1.0).argmax(dim=1, keepdim=True)
    nearest = torch.full_like(pos[..., 0], torch.inf).masked_fill(~present, -1.0)
    for i in range(num_samples):
        # Once all points are chosen, the first one is repeated.
        current = torch.where(nearest.amax(1, keepdim=True) < 0, chosen[:, :1], current)
        chosen[:, i : i + 1] = current
        center = pos.gather(1, current[..., None].expand(-1, -1, pos.shape[2]))
        nearest = torch.minimum(nearest, distances(center, pos)[:, 0]).scatter(1, current, -1.0)
        current = nearest.argmax(dim=1, keepdim=True)
    return order.gather(1, chosen)


def _farthest_point_sample_pointnet2(pos: Tensor, num_samples: int, present: Tensor | None) -> Tensor:
    """The rule of pointnet2_ops, used by PCT's released code: starts at point 0, skips points near the origin.

    It depends on the order of the points and on where the origin is; offered for comparison with released weights.
    """
    chosen = torch.zeros(pos.shape[0], num_samples, dtype=torch.long, device=pos.device)
    allowed = distances(torch.zeros_like(pos[:, :1]), pos)[:, 0] > POINTNET2_MIN_SQUARED_NORM
    if present is not None:
        allowed &= present
    nearest = torch.full_like(pos[..., 0], torch.inf).masked_fill(~allowed, -1.0)
    for i in range(1, num_samples):
        center = pos.gather(1, chosen[:, i - 1 : i, None].expand(-1, -1, pos.shape[2]))
        nearest = torch.minimum(nearest, distances(center, pos)[:, 0])
        chosen[:, i] = nearest.argmax(dim=1)
    return chosen


def flat_indices(indices: Tensor, num_points: int) -> Tensor:
    """Indices (B, ...) into the points of each cloud as one vector of indices into the B * num_points points."""
    offsets = torch.arange(indices.shape[0], device=indices.device) * num_points
    return (indices + offsets.view(-1, *[1] * (indices.dim() - 1))).flatten()


def gather(features: Tensor, indices: Tensor) -> Tensor:
    """Rows of features (B, N, C) by indices (B, ...): (B, ..., C)."""
    # One flat index_select is faster than torch.gather in the forward and in the backward pass.
    rows = features.flatten(0, 1).index_select(0, flat_indices(indices, features.shape[1]))
    return rows.view(*indices.shape, features.shape[2])


def group(features: Tensor, neighbors: Tensor, centers: Tensor) -> Tensor:
    """[f_j - f_i, f_i], (B, M, k, 2C), for features (B, N, C), neighbors j (B, M, k) and centers i (B, M)."""
    own = gather(features, centers)[:, :, None]
    relative = gather(features, neighbors) - own
    return torch.cat((relative, own.expand_as(relative)), dim=-1)
