"""Augmentation of whole batches, on the device the batch is on.

Every transform maps a `PointBatch` to a new one and leaves the stored clouds as they are. Randomness comes from the
generator it is given alone. In a configuration they are written by name, in the order in which they run:

.. code-block:: yaml

    augmentation:
      - scale: {low: 0.667, high: 1.5}
      - translate: {max_offset: 0.2}
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Generator, Tensor
from torch.nn.functional import normalize

from pcattn.registry import construct, resolve

if TYPE_CHECKING:
    from pcattn.datasets import PointBatch

Transform = Callable[["PointBatch", Generator], "PointBatch"]


def _uniform(shape: tuple[int, ...], low: float, high: float, like: Tensor, generator: Generator) -> Tensor:
    return torch.empty(shape, device=like.device, dtype=like.dtype).uniform_(low, high, generator=generator)


@dataclass(frozen=True)
class Scale:
    """Scale each cloud by a factor from U[low, high], a separate one for each axis unless `isotropic`.

    Normals are transformed by the inverse factors, as a surface's are. PCT's recipe: U[2/3, 3/2], anisotropic.
    """

    low: float = 2 / 3
    high: float = 3 / 2
    isotropic: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.low <= self.high:
            raise ValueError(f"expected 0 < low <= high in scale, but got low={self.low}, high={self.high}")

    def __call__(self, batch: PointBatch, generator: Generator) -> PointBatch:
        """Scale every cloud of the batch."""
        axes = 1 if self.isotropic else 3
        factor = _uniform((len(batch.pos), 1, axes), self.low, self.high, batch.pos, generator)
        normals = batch.normals if batch.normals is None else normalize(batch.normals / factor, dim=2)
        return batch._replace(pos=batch.pos * factor, normals=normals)


@dataclass(frozen=True)
class Translate:
    """Move each cloud by an offset from U[-max_offset, max_offset] on each axis. PCT's recipe: 0.2."""

    max_offset: float = 0.2

    def __post_init__(self) -> None:
        _expect_not_negative("max_offset in translate", self.max_offset)

    def __call__(self, batch: PointBatch, generator: Generator) -> PointBatch:
        """Move every cloud of the batch."""
        shape = (len(batch.pos), 1, 3)
        return batch._replace(pos=batch.pos + _uniform(shape, -self.max_offset, self.max_offset, batch.pos, generator))


@dataclass(frozen=True)
class Rotate:
    """Turn each cloud, and its normals, about one axis by an angle from U[-max_degrees, max_degrees]."""

    axis: str = "z"
    max_degrees: float = 180.0

    def __post_init__(self) -> None:
        if self.axis not in ("x", "y", "z"):
            raise ValueError(f"expected axis to be x, y or z in rotate, but got {self.axis!r}")
        _expect_not_negative("max_degrees in rotate", self.max_degrees)

    def __call__(self, batch: PointBatch, generator: Generator) -> PointBatch:
        """Turn every cloud of the batch."""
        limit = math.radians(self.max_degrees)
        angle = _uniform((len(batch.pos),), -limit, limit, batch.pos, generator)
        axis = "xyz".index(self.axis)
        second, third = (axis + 1) % 3, (axis + 2) % 3
        rotation = torch.eye(3, device=angle.device, dtype=angle.dtype).repeat(len(angle), 1, 1)
        rotation[:, second, second] = rotation[:, third, third] = angle.cos()
        rotation[:, third, second] = angle.sin()
        rotation[:, second, third] = -angle.sin()
        turned = rotation.transpose(1, 2)  # points are rows
        normals = batch.normals if batch.normals is None else batch.normals @ turned
        return batch._replace(pos=batch.pos @ turned, normals=normals)


@dataclass(frozen=True)
class Jitter:
    """Add Gaussian noise of standard deviation `std`, clipped at `clip`, to every coordinate (PointNet's recipe)."""

    std: float = 0.01
    clip: float = 0.05

    def __post_init__(self) -> None:
        _expect_not_negative("std in jitter", self.std)
        _expect_not_negative("clip in jitter", self.clip)

    def __call__(self, batch: PointBatch, generator: Generator) -> PointBatch:
        """Shift every point of the batch."""
        noise = torch.empty_like(batch.pos).normal_(0, 1, generator=generator) * self.std
        return batch._replace(pos=batch.pos + noise.clamp_(-self.clip, self.clip))


@dataclass(frozen=True)
class Dropout:
    """Random input dropout of PointNet++: in each cloud, a share from U[0, max_ratio] of the points is dropped.

    A dropped point is replaced by the first point of its cloud, normal and part label with it, which keeps the number
    of points and tells the network nothing new. PCT's recipe: 0.875.
    """

    max_ratio: float = 0.875

    def __post_init__(self) -> None:
        if not 0 <= self.max_ratio < 1:
            raise ValueError(f"expected 0 <= max_ratio < 1 in dropout, but got {self.max_ratio}")

    def __call__(self, batch: PointBatch, generator: Generator) -> PointBatch:
        """Drop points of every cloud of the batch."""
        ratio = _uniform((len(batch.pos), 1), 0.0, self.max_ratio, batch.pos, generator)
        dropped = _uniform(tuple(batch.pos.shape[:2]), 0.0, 1.0, batch.pos, generator) < ratio
        label, normals, features, points = batch.label, batch.normals, batch.features, batch.point_indices
        if label.dim() == 2:
            label = torch.where(dropped, label[:, :1], label)
        if normals is not None:
            normals = torch.where(dropped[..., None], normals[:, :1], normals)
        if features is not None:
            features = torch.where(dropped[..., None], features[:, :1], features)
        if points is not None:
            points = torch.where(dropped, points[:, :1], points)
        pos = torch.where(dropped[..., None], batch.pos[:, :1], batch.pos)
        return batch._replace(pos=pos, normals=normals, label=label, features=features, point_indices=points)


#: Every transform by the name it has in a configuration.
TRANSFORMS: dict[str, Callable[..., Transform]] = {
    "scale": Scale,
    "translate": Translate,
    "rotate": Rotate,
    "jitter": Jitter,
    "dropout": Dropout,
}


def build_transforms(steps: list[dict[str, dict[str, Any] | None]] | None) -> list[Transform]:
    """The transforms of a configuration: a list of `{name: arguments}`.

    Raises:
        ValueError: no such transform, or it does not take these arguments.
    """
    transforms = []
    for step in steps or []:
        if len(step) != 1:
            raise ValueError(f"expected each augmentation step to be one {{name: arguments}}, but got {step}")
        ((name, arguments),) = step.items()
        if not isinstance(arguments, dict | None):
            raise ValueError(f"expected arguments {{name: value}} of augmentation step {name!r}, but got {arguments}")
        factory = resolve("augmentation step", name, TRANSFORMS)
        transforms.append(construct("augmentation step", name, factory, **(arguments or {})))
    return transforms


def subsample(batch: PointBatch, num_points: int, generator: Generator | None = None) -> PointBatch:
    """`num_points` points of every cloud: a random choice of its own for each, or the first ones without a generator.

    Raises:
        ValueError: the clouds have fewer points.
    """
    batch_size, available, _ = batch.pos.shape
    if num_points > available:
        raise ValueError(f"expected num_points to be at most {available} (the points of a cloud), but got {num_points}")
    if num_points == available:
        return batch
    if generator is None:
        keep = torch.arange(num_points, device=batch.pos.device).expand(batch_size, -1)
    else:
        noise = _uniform((batch_size, available), 0.0, 1.0, batch.pos, generator)
        keep = noise.argsort(dim=1)[:, :num_points]
    return batch._replace(
        pos=_rows(batch.pos, keep),
        normals=None if batch.normals is None else _rows(batch.normals, keep),
        label=batch.label.gather(1, keep) if batch.label.dim() == 2 else batch.label,
        features=None if batch.features is None else _rows(batch.features, keep),
        point_indices=keep if batch.point_indices is None else batch.point_indices.gather(1, keep),
    )


def _rows(field: Tensor, indices: Tensor) -> Tensor:
    """Rows (B, M, C) of a field (B, N, C)."""
    return field.gather(1, indices[..., None].expand(-1, -1, field.shape[2]))


def _expect_not_negative(name: str, value: float) -> None:
    if not value >= 0:
        raise ValueError(f"expected {name} to be at least 0, but got {value}")
