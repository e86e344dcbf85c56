"""Neighbor search in torch: the definition that every faster backend must equal, index for index.

Distances are computed in float64 and summed axis by axis, and each product and sum is rounded once. In that form every
backend gets the same bits, and for float32 clouds the result is that of float64 brute force.
"""

import torch
from torch import Tensor

# Elements of one block of the distance matrix: bounds memory for any number of points.
_BLOCK_ELEMENTS = 1 << 21


def lexicographic_order(points: Tensor) -> Tensor:
    """Indices (B, N) that sort the points (B, N, D) by their first coordinate, then the second, and so on.

    Points that are equal in all coordinates keep their order. Equal distances are ordered this way, so that results do
    not depend on the order of the points.
    """
    points = points.nan_to_num()  # a comparison sort has no answer for NaN
    # unique sorts rows lexicographically for any D at once and gives equal rows the same number.
    ranks = [torch.unique(cloud, dim=0, return_inverse=True)[1] for cloud in points]
    return torch.stack(ranks).argsort(dim=1, stable=True)


def distances(query: Tensor, support: Tensor, metric: str = "l2") -> Tensor:
    """Squared Euclidean or maximum distances (B, M, N), float64, between query (B, M, D) and support (B, N, D).

    Computed from differences: the expansion |x|^2 + |y|^2 - 2xy loses every digit for clouds far from the origin.
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

    Missing neighbors have distance inf and repeat the index of the nearest one (0 if there is none).
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
            # The query's own point comes first, also among copies of it.
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
    """The k smallest values along the last dimension and their indices, ascending; ties by the lower index."""
    last = values.topk(k, dim=-1, largest=False).values.amax(-1, keepdim=True)
    below, tied = values < last, values == last
    # topk takes any of several equal values; take the first ones instead.
    tied &= tied.cumsum(-1) <= k - below.sum(-1, keepdim=True)
    indices = (below | tied).nonzero()[:, -1].view(*values.shape[:-1], k)
    values, order = values.gather(-1, indices).sort(dim=-1, stable=True)
    return values, indices.gather(-1, order)
