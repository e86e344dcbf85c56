"""The levels of a hierarchy: ever fewer points, with the neighbor lists that lead from one level to the next."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from pcattn.attention import Geometry
from pcattn.attention.geometry import spacing_of
from pcattn.ops import farthest_point_sample, gather, knn


class Level(NamedTuple):
    """One level: M points out of the N of the level before."""

    geometry: Geometry  #: of its points, (B, M, 3)
    centers: Tensor | None  #: (B, M), its points among those of the level before; None: they are the same
    neighbors: Tensor  #: (B, M, k), the nearest points of the level before, the center itself first
    spacing: Tensor  #: (B, 1, 1), root mean square distance of the centers to their neighbors


def build_levels(pos: Tensor, strides: Sequence[int], k: int) -> list[Level]:
    """Sample a cloud level by level, each with N / stride of the N points of the level before, at least one.

    The first M of a farthest point sample are the farthest point sample of M points. So a cloud is sampled once: every
    further level is the beginning of the one before it.

    Args:
        pos: (B, N, 3).
        strides: of each level; 1 leaves a level all points.
        k: length of the neighbor lists, clipped to the number of points.
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
