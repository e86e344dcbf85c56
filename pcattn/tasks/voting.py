"""Evaluation by more than one look at a cloud: votes over scaled resamplings, and predictions carried to all points."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pcattn.ops import interpolate

if TYPE_CHECKING:
    from pcattn.data import PointBatch

#: The scales of PCT's multi-scale testing (section 4.4), one a vote, over and over.
SCALES = (0.7, 0.8, 0.9, 1.0, 1.1, 1.2, 1.3, 1.4)


def draw_votes(cloud: PointBatch, own: Tensor, votes: int) -> PointBatch:
    """Several looks at one cloud as a batch: the first is the usual one, the others are votes beside it.

    Each of the others takes as many points, drawn at random from the complete cloud, times the next of `SCALES`. They
    are a function of the cloud's index in its data set: neither the batch nor the order of evaluation matters.

    Args:
        cloud: a complete cloud of n points, a batch of one.
        own: (N,) the points that evaluation looks at.
        votes: V, number of looks.

    Shape:
        a batch (V, N), with `point_indices` among the n points.
    """
    size, wanted = cloud.pos.shape[1], len(own)
    generator = torch.Generator().manual_seed(int(cloud.indices[0]))
    chosen = [own.cpu()]
    for _ in range(votes - 1):
        drawn = torch.randperm(size, generator=generator)[:wanted]
        again = torch.randint(size, (max(0, wanted - size),), generator=generator)
        chosen.append(torch.cat((drawn, again)))
    points = torch.stack(chosen).to(cloud.pos.device)  # (V, N)
    factors = cloud.pos.new_tensor([1.0, *(SCALES[vote % len(SCALES)] for vote in range(votes - 1))])
    return cloud._replace(
        pos=cloud.pos[0][points] * factors[:, None, None],
        normals=None if cloud.normals is None else cloud.normals[0][points],
        features=None if cloud.features is None else cloud.features[0][points],
        label=cloud.label[0][points] if cloud.label.dim() == 2 else cloud.label.expand(votes),
        category=None if cloud.category is None else cloud.category.expand(votes),
        indices=cloud.indices.expand(votes),
        point_indices=points,
    )


def carry(cloud: PointBatch, looks: PointBatch, probabilities: Tensor) -> tuple[Tensor, Tensor]:
    """Probabilities at all points of a cloud, from those at the points of each look.

    Args:
        cloud: a complete cloud of n points, a batch of one.
        looks: what `draw_votes` made of it, with V looks.
        probabilities: (V, N, P).

    Returns:
        (1, n, P) of the first look alone, and of all looks together.

    A point that was looked at keeps what was found there, in the mean over its looks; all others take the mean of the
    three nearest of those (`pcattn.ops.interpolate`). The same as `pcattn.inference.model` does.
    """
    points: Any = looks.point_indices
    first = interpolate(cloud.pos, cloud.pos[:, points[0]], probabilities[:1])
    drawn, known = mean_of_looks(points, probabilities)
    return first, interpolate(cloud.pos, cloud.pos[:, drawn], known[None])


def mean_of_looks(points: Tensor, probabilities: Tensor) -> tuple[Tensor, Tensor]:
    """The points (S,) of a cloud that were looked at, and the mean (S, P) of what was found there.

    Args:
        points: (V, N), indices of the points of V looks, on any device.
        probabilities: (V, N, P).
    """
    drawn, slots = points.flatten().unique(return_inverse=True)
    slots = slots.to(probabilities.device)
    sums = probabilities.new_zeros(len(drawn), probabilities.shape[2]).index_add(0, slots, probabilities.flatten(0, 1))
    return drawn, sums / slots.bincount(minlength=len(drawn))[:, None]
