"""Transforms that mix two clouds of a batch: PointMixup, PointCutMix, RSMix.

A mixed cloud is of two classes: `mixed_label` (B, L) lists them and `mixed_weight` (B, L) their shares, which add up to
1. Mixing again doubles L. Labels of points stay with their points, and clouds are mixed within their category. Points
of two clouds have no indices in one: `point_indices` is None.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Generator, Tensor
from torch.nn.functional import normalize

from pcattn.transforms.batch import (
    beta,
    check_positions,
    expect_not_negative,
    expect_positive,
    expect_probability,
    normal,
    point_fields,
    take,
    take_rows,
    uniform,
)
from pcattn.utils.errors import InputError

if TYPE_CHECKING:
    from pcattn.data import PointBatch


@dataclass(frozen=True)
class PointMixup:
    r"""Points on the way from one cloud to another: :math:`(1 - \lambda) x_i + \lambda y_{\phi(i)}`.

    :math:`\phi` assigns the points of the two clouds one to one at a small total distance. :math:`\lambda` is the
    smaller of the two numbers b and 1 - b with b from Beta(concentration, concentration).

    Differs from the paper in the assignment: not the optimal one, which takes seconds for a batch on a CPU, but the
    improvement of a random one by exchanges, see `assign`. Normals are interpolated and normalized.

    Args:
        concentration: of the Beta distribution; the paper's code has 0.4, and 1.0 for clouds that are not turned.
        probability: share of the clouds that are mixed.
        rounds: exchanges tried for every point.

    Source: Chen et al. 2020, https://arxiv.org/abs/2008.06374, sections 3.2 and 3.3.
    """

    concentration: float = 0.4
    probability: float = 1.0
    rounds: int = 64

    def __post_init__(self) -> None:
        expect_positive("concentration in point_mixup", self.concentration)
        expect_probability("probability in point_mixup", self.probability)
        expect_not_negative("rounds in point_mixup", self.rounds)

    def __call__(self, batch: PointBatch, generator: Generator) -> PointBatch:
        """Mix every cloud of the batch with another."""
        if batch.label.dim() == 2:
            raise InputError(
                "expected labels of clouds for point_mixup, but got labels of points: a point between two parts is of "
                "neither; point_cutmix and rsmix leave points where they are"
            )
        batch = batch._replace(point_indices=None)
        other = _select(batch, partners(batch, generator))
        other = take(other, assign(batch.pos, other.pos, self.rounds, generator))
        drawn = beta(len(batch.pos), self.concentration, batch.pos, generator)
        ratio = torch.minimum(drawn, 1 - drawn) * _chosen(batch, self.probability, generator)
        fields: dict[str, Any] = {
            name: field.lerp(point_fields(other)[name], ratio[:, None, None])
            for name, field in point_fields(batch).items()
        }
        if batch.normals is not None:
            fields["normals"] = normalize(fields["normals"], dim=2)
        return _mix_labels(batch._replace(**fields), other, ratio)


@dataclass(frozen=True)
class PointCutMix:
    r"""Points of one cloud replaced by the points of another that they are assigned to.

    A share from Beta(concentration, concentration) of the points is replaced: random ones (`kind: r`), or the nearest
    neighbors of a random point (`kind: k`). The share is the weight of the other class.

    Differs from the paper in the assignment, as `PointMixup` does, and in drawing a share of its own for every cloud
    instead of one for the batch.

    Args:
        kind: `"r"` or `"k"`.
        concentration: of the Beta distribution.
        probability: share of the clouds that are mixed.
        rounds: exchanges tried for every point in the assignment.

    Source: Zhang et al. 2022, https://arxiv.org/abs/2101.01461, sections 3.2 and 3.3.
    """

    kind: str = "r"
    concentration: float = 1.0
    probability: float = 0.5
    rounds: int = 64

    def __post_init__(self) -> None:
        if self.kind not in ("r", "k"):
            raise InputError(f"expected kind in point_cutmix to be r or k, but got {self.kind!r}")
        expect_positive("concentration in point_cutmix", self.concentration)
        expect_probability("probability in point_cutmix", self.probability)
        expect_not_negative("rounds in point_cutmix", self.rounds)

    def __call__(self, batch: PointBatch, generator: Generator) -> PointBatch:
        """Replace points of every cloud of the batch by those of another."""
        check_positions(batch.pos, generator)
        batch_size, num_points, _ = batch.pos.shape
        other = _select(batch, partners(batch, generator))
        other = take(other, assign(batch.pos, other.pos, self.rounds, generator))
        count = (beta(batch_size, self.concentration, batch.pos, generator) * num_points).long().clamp(min=1)
        count = count * _chosen(batch, self.probability, generator).long()
        if self.kind == "r":
            order = uniform((batch_size, num_points), 0.0, 1.0, batch.pos, generator)
        else:
            order = _distance_to_random_point(batch.pos, generator)[0]
        return _replace(batch, other, _smallest(order, count))


@dataclass(frozen=True)
class RSMix:
    r"""Rigid subset mix: the points in a ball of one cloud give way to those in a ball of another, moved as they are.

    The balls have the same radius, from Beta(concentration, concentration), and random points as their centers; the
    points of the second are moved to the center of the first. Where they are more than those that give way, a random
    choice of them is taken, and where they are fewer, they are repeated. At most half of a cloud is replaced. The share
    of replaced points is the weight of the other class. Clouds are meant to lie in the unit sphere.

    Args:
        concentration: of the Beta distribution.
        probability: share of the clouds that are mixed.

    Source: Lee et al. 2021, https://arxiv.org/abs/2102.01929, section 3.2.
    """

    concentration: float = 1.0
    probability: float = 0.5

    def __post_init__(self) -> None:
        expect_positive("concentration in rsmix", self.concentration)
        expect_probability("probability in rsmix", self.probability)

    def __call__(self, batch: PointBatch, generator: Generator) -> PointBatch:
        """Replace a ball of every cloud of the batch by one of another."""
        check_positions(batch.pos, generator)
        batch_size, num_points, _ = batch.pos.shape
        other = _select(batch, partners(batch, generator))
        radius = beta(batch_size, self.concentration, batch.pos, generator)[:, None]
        (distance, center), (other_distance, other_center) = (
            _distance_to_random_point(cloud.pos, generator) for cloud in (batch, other)
        )
        removed = (distance <= radius) & _smallest(distance, max(1, num_points // 2))
        removed &= _chosen(batch, self.probability, generator).bool()[:, None]
        inside = other_distance <= radius  # not empty: the center is a point
        # The points inside in a random order, then the others; the first that give way takes the first of them.
        order = (uniform((batch_size, num_points), 0.0, 1.0, batch.pos, generator) + (~inside)).argsort(dim=1)
        place = (removed.cumsum(dim=1) - 1).clamp(min=0) % inside.sum(dim=1, keepdim=True)
        other = take(other, order.gather(1, place))
        return _replace(batch, other._replace(pos=other.pos - other_center + center), removed)


def partners(batch: PointBatch, generator: Generator) -> Tensor:
    """(B,), another cloud for each: the next in a random order, of the same category where clouds have one.

    Unlike a random permutation it gives no cloud to itself, unless it is the only one of its category.
    """
    check_positions(batch.pos, generator)
    noise = torch.rand(len(batch.pos), generator=generator, device=batch.pos.device, dtype=torch.float64)
    category = torch.zeros_like(noise, dtype=torch.long) if batch.category is None else batch.category
    order = (category + noise).argsort()
    ordered = category[order]
    first, end = torch.searchsorted(ordered, ordered), torch.searchsorted(ordered, ordered, right=True)
    following = torch.arange(1, len(order) + 1, device=order.device)
    return torch.empty_like(order).scatter_(0, order, order[torch.where(following == end, first, following)])


def assign(pos: Tensor, other: Tensor, rounds: int, generator: Generator) -> Tensor:
    r"""A one-to-one assignment of the points of two clouds at a small sum of squared distances.

    From the order in which the points lie, every round pairs up points that are close to each other in a random
    direction, and exchanges the partners of a pair where that brings them nearer:
    :math:`(x_i - x_j) \cdot (y_{\phi(i)} - y_{\phi(j)}) < 0`. No distance matrix: :math:`O(N \log N)` a round.

    Args:
        pos: (B, N, 3).
        other: (B, N, 3).
        rounds: after 64 the mean distance of 1024 points is about 8 % above the optimum, after 128 about 3 %.
        generator: of the directions.

    Shape:
        (B, N), a permutation: point i of `pos` is assigned to this point of `other`.
    """
    batch_size, num_points, _ = pos.shape
    assigned = torch.arange(num_points, device=pos.device).expand(batch_size, -1)
    for step in range(rounds):
        stride = 2 ** (step // 2 % 4)  # partners at different distances in the order
        paired = num_points // (2 * stride) * 2 * stride
        # Neighbors among the points, then among the points that these are assigned to.
        cloud = pos if step % 2 == 0 else take_rows(other, assigned)
        direction = normal((batch_size, 3, 1), pos, generator)
        order = (cloud @ direction).squeeze(2).argsort(dim=1)[:, :paired].reshape(batch_size, -1, 2, stride)
        i, j = order[:, :, 0].flatten(1), order[:, :, 1].flatten(1)
        of_i, of_j = assigned.gather(1, i), assigned.gather(1, j)
        between = take_rows(pos, i) - take_rows(pos, j)
        better = (between * (take_rows(other, of_i) - take_rows(other, of_j))).sum(dim=2) < 0
        assigned = assigned.scatter(1, i, torch.where(better, of_j, of_i))
        assigned = assigned.scatter(1, j, torch.where(better, of_i, of_j))
    return assigned


def _select(batch: PointBatch, clouds: Tensor) -> PointBatch:
    """The batch with other clouds (B,) in the places of its own."""
    names = ("label", "mixed_label", "mixed_weight")
    fields = point_fields(batch) | {name: getattr(batch, name) for name in names}
    return batch._replace(**{name: field[clouds] for name, field in fields.items() if field is not None})


def _chosen(batch: PointBatch, probability: float, generator: Generator) -> Tensor:
    """(B,), 1 for the clouds that are mixed and 0 for the others."""
    return (uniform((len(batch.pos),), 0.0, 1.0, batch.pos, generator) < probability).to(batch.pos.dtype)


def _distance_to_random_point(pos: Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
    """Distances (B, N) to a random point of every cloud, and that point (B, 1, 3)."""
    batch_size, num_points, _ = pos.shape
    index = torch.randint(num_points, (batch_size, 1), generator=generator, device=pos.device)
    center = take_rows(pos, index)
    return (pos - center).norm(dim=2), center


def _smallest(values: Tensor, count: Tensor | int) -> Tensor:
    """(B, N), whether a value is among the `count` (B,) smallest of its row."""
    rank = values.argsort(dim=1).argsort(dim=1)
    return rank < (count if isinstance(count, int) else count[:, None])


def _replace(batch: PointBatch, other: PointBatch, replaced: Tensor) -> PointBatch:
    """The batch with the points `replaced` (B, N) taken from another, and labels in proportion."""
    batch = batch._replace(point_indices=None)
    fields: dict[str, Any] = {
        name: torch.where(replaced if field.dim() == 2 else replaced[..., None], point_fields(other)[name], field)
        for name, field in point_fields(batch).items()
    }
    mixed = batch._replace(**fields)
    if batch.label.dim() == 2:
        return mixed
    return _mix_labels(mixed, other, replaced.to(batch.pos.dtype).mean(dim=1))


def _mix_labels(batch: PointBatch, other: PointBatch, ratio: Tensor) -> PointBatch:
    """The batch with the classes of another added, at weight `ratio` (B,)."""

    def mixture(side: PointBatch) -> tuple[Tensor, Tensor]:
        if side.mixed_label is None or side.mixed_weight is None:
            return side.label[:, None], torch.ones_like(ratio)[:, None]
        return side.mixed_label, side.mixed_weight

    (label, weight), (other_label, other_weight) = mixture(batch), mixture(other)
    return batch._replace(
        mixed_label=torch.cat((label, other_label), dim=1),
        mixed_weight=torch.cat((weight * (1 - ratio[:, None]), other_weight * ratio[:, None]), dim=1),
    )
