"""The levels of a hierarchical network: samples of the points, and neighbors in the previous level."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from pcattn.attention import Geometry
from pcattn.attention.geometry import spacing_of
from pcattn.ops import farthest_point_sample, gather, knn


class Level(NamedTuple):
    """One level: M of the N points of the previous level."""

    geometry: Geometry  #: positions (B, M, 3) of its points
    centers: Tensor | None  #: (B, M), indices of its points in the previous level; None if it has all of them
    neighbors: Tensor  #: (B, M, k), nearest points of the previous level, the center itself first
    spacing: Tensor  #: (B, 1, 1), root mean square distance from the centers to their neighbors


def build_levels(pos: Tensor, strides: Sequence[int], k: int) -> list[Level]:
    """Sample a cloud level by level. Each level has N / stride of the N points of the previous level, at least one.

    The first M points of a farthest point sample are the farthest point sample of size M. The cloud is therefore
    sampled once, and every further level is the beginning of the previous one.

    Args:
        pos: (B, N, 3).
        strides: one per level; a level with stride 1 has all points of the previous level.
        k: number of neighbors, reduced to the number of points if necessary.
    """
    below, sampled = Geometry(pos, clip=True), False
    levels = []
    for stride in strides:
        num_points = below.pos.shape[1]
        num_samples = max(1, num_points // stride)
        if num_samples == num_points:
            levels.append(Level(below, None, below.neighbors(k), spacing_of(below.offsets(k))))
            continue
        if sampled:
            # shape, because len() would fix a batch that export leaves free.
            centers = torch.arange(num_samples, device=pos.device).expand(pos.shape[0], -1)
        else:
            centers, sampled = farthest_point_sample(below.pos, num_samples), True
        chosen = gather(below.pos, centers)
        if levels:
            lists = gather(below.neighbors(k), centers)  # the attention of that level needs all lists
        else:
            lists = knn(chosen, pos, min(k, num_points), query_indices=centers).indices
        spacing = spacing_of(gather(below.pos, lists) - chosen[:, :, None])
        below = Geometry(chosen, clip=True)
        levels.append(Level(below, centers, lists, spacing))
    return levels
