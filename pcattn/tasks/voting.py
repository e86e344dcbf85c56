"""Votes: predictions for several views of one cloud, averaged.

A network takes a fixed number of points. A *view* is one draw of that many points from the complete cloud. The first
view is the usual one, at scale 1. Every further view is drawn at random and scaled by the next of `SCALES`, as in PCT's
multi-scale testing (section 4.4): published figures of part segmentation scale, and clouds with more points than the
network takes gain from resampling as well. Validation, `pcattn.load`, `predict-files` and `show` share this definition.

A point that several views drew has the mean of their predictions. All others interpolate (`pcattn.ops.interpolate`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from pcattn.utils.errors import InputError

if TYPE_CHECKING:
    from pcattn.data import PointBatch

#: Scales of the views after the first, in this order, over and over.
SCALES = (0.7, 0.8, 0.9, 1.0, 1.1, 1.2, 1.3, 1.4)

# A draw of less than one of `_SPARSE` points of a cloud with more than `_LARGE` points is made without a permutation of
# the whole cloud, which would take 8 bytes per point.
_LARGE = 1 << 22
_SPARSE = 64


def draw_views(size: int, num_points: int, votes: int, seed: int, first: Tensor | None = None) -> Tensor:
    """Indices of the points of each view.

    A draw takes no point twice unless the cloud has fewer points than the network takes.

    Args:
        size: number of points of the complete cloud.
        num_points: N, points of a view.
        votes: V, number of views.
        seed: of the draws.
        first: (N,) points of the first view. None: a random draw, or all points, repeated, if there are at most N.

    Shape:
        (V, N), in [0, size).

    Raises:
        InputError: `votes` is less than 1.
    """
    if votes < 1:
        raise InputError(f"expected votes >= 1, but got {votes}")
    generator = torch.Generator().manual_seed(seed)
    sparse = np.random.default_rng(seed % (1 << 64)) if size > _LARGE and _SPARSE * num_points < size else None

    def draw() -> Tensor:
        if sparse is not None:
            return torch.from_numpy(sparse.choice(size, num_points, replace=False))
        drawn = torch.randperm(size, generator=generator)[:num_points]
        repeated = torch.randint(size, (max(0, num_points - size),), generator=generator)
        return torch.cat((drawn, repeated))

    if first is None:
        first = torch.arange(num_points) % size if size <= num_points else draw()
    return torch.stack([first.cpu(), *(draw() for _ in range(votes - 1))])


def view_scales(votes: int) -> Tensor:
    """The factor (V,) that each view of a cloud is scaled by."""
    return torch.tensor([1.0, *(SCALES[vote % len(SCALES)] for vote in range(votes - 1))])


def resample(cloud: PointBatch, own: Tensor, votes: int) -> PointBatch:
    """The views of one cloud as a batch. They depend on the cloud's index alone, not on the order of evaluation.

    Args:
        cloud: a complete cloud of n points, a batch of one.
        own: (N,) points of the first view, those that are evaluated without votes.
        votes: V, number of views.

    Shape:
        a batch (V, N), with `point_indices` among the n points.
    """
    points = draw_views(cloud.pos.shape[1], len(own), votes, int(cloud.indices[0]), own).to(cloud.pos.device)
    return cloud._replace(
        pos=cloud.pos[0][points] * view_scales(votes).to(cloud.pos)[:, None, None],
        normals=None if cloud.normals is None else cloud.normals[0][points],
        features=None if cloud.features is None else cloud.features[0][points],
        label=cloud.label[0][points] if cloud.label.dim() == 2 else cloud.label.expand(votes),
        category=None if cloud.category is None else cloud.category.expand(votes),
        indices=cloud.indices.expand(votes),
        point_indices=points,
    )


def average_votes(points: Tensor, predictions: Tensor) -> tuple[Tensor, Tensor]:
    """The points (S,) of a cloud that were drawn, in ascending order, and the mean prediction (S, K) at each.

    Args:
        points: (V, N), indices of the points of V views, on any device.
        predictions: (V, N, K).
    """
    drawn, slots = points.flatten().unique(return_inverse=True)
    slots = slots.to(predictions.device)
    sums = predictions.new_zeros(len(drawn), predictions.shape[2]).index_add(0, slots, predictions.flatten(0, 1))
    return drawn, sums / slots.bincount(minlength=len(drawn))[:, None]
