"""Transforms of single points: jitter, dropout, dropout of features."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Generator

from pcattn.transforms.batch import check_positions, expect_not_negative, expect_probability, normal, take, uniform
from pcattn.utils.errors import InputError

if TYPE_CHECKING:
    from pcattn.data import PointBatch


@dataclass(frozen=True)
class Jitter:
    """Add Gaussian noise of standard deviation `std`, clipped at `clip`, to every coordinate.

    Source: PointNet, Qi et al. 2017, https://arxiv.org/abs/1612.00593, whose code has these values.
    """

    std: float = 0.01
    clip: float = 0.05

    def __post_init__(self) -> None:
        expect_not_negative("std in jitter", self.std)
        expect_not_negative("clip in jitter", self.clip)

    def __call__(self, batch: PointBatch, generator: Generator) -> PointBatch:
        """Shift every point of the batch."""
        noise = normal(tuple(batch.pos.shape), batch.pos, generator) * self.std
        return batch._replace(pos=batch.pos + noise.clamp_(-self.clip, self.clip))


@dataclass(frozen=True)
class Dropout:
    """Random input dropout: in each cloud, a share from U[0, max_ratio] of the points is dropped.

    A dropped point, with all its fields, is replaced by the first point of its cloud. That keeps the number of points
    and adds no information. PCT's recipe: 0.875.

    Source: PointNet++, Qi et al. 2017, https://arxiv.org/abs/1706.02413, section 3.3.
    """

    max_ratio: float = 0.875

    def __post_init__(self) -> None:
        if not 0 <= self.max_ratio < 1:
            raise InputError(f"expected 0 <= max_ratio < 1 in dropout, but got {self.max_ratio}")

    def __call__(self, batch: PointBatch, generator: Generator) -> PointBatch:
        """Drop points of every cloud of the batch."""
        ratio = uniform((len(batch.pos), 1), 0.0, self.max_ratio, batch.pos, generator)
        dropped = uniform(tuple(batch.pos.shape[:2]), 0.0, 1.0, batch.pos, generator) < ratio
        return take(batch, torch.arange(batch.pos.shape[1], device=batch.pos.device).masked_fill(dropped, 0))


@dataclass(frozen=True)
class FeatureDropout:
    """Set the features of a cloud, normals and colors, to zero with this probability; positions stay.

    With `per_point`, points lose their features independently.

    Source: the "color drop" of PointNeXt, Qian et al. 2022, https://arxiv.org/abs/2206.04670, section 4.1, there with
        probability 0.2.
    """

    probability: float = 0.2
    per_point: bool = False

    def __post_init__(self) -> None:
        expect_probability("probability in feature_dropout", self.probability)

    def __call__(self, batch: PointBatch, generator: Generator) -> PointBatch:
        """Drop the features of some clouds, or points, of the batch."""
        if batch.normals is None and batch.features is None:
            raise InputError(
                "expected features for feature_dropout (features: [normals]), but the clouds have only positions"
            )
        check_positions(batch.pos, generator)
        batch_size, num_points, _ = batch.pos.shape
        shape = (batch_size, num_points if self.per_point else 1, 1)
        dropped = uniform(shape, 0.0, 1.0, batch.pos, generator) < self.probability
        normals, features = (
            field if field is None else field.masked_fill(dropped, 0.0) for field in (batch.normals, batch.features)
        )
        return batch._replace(normals=normals, features=features)
