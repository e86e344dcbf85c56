"""Transforms that move a cloud as a whole: scale, translate, rotate, flip."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Generator, Tensor
from torch.nn.functional import normalize

from pcattn.transforms.batch import expect_not_negative, expect_probability, normal, uniform
from pcattn.utils.errors import InputError

if TYPE_CHECKING:
    from pcattn.data import PointBatch


@dataclass(frozen=True)
class Scale:
    """Scale each cloud by a factor from U[low, high], a separate one for each axis unless `isotropic`.

    Normals are transformed by the inverse factors, as a surface's are. PCT's recipe: U[2/3, 3/2], anisotropic.

    Source: Klokov and Lempitsky 2017, https://arxiv.org/abs/1704.01222, section 4.
    """

    low: float = 2 / 3
    high: float = 3 / 2
    isotropic: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.low <= self.high:
            raise InputError(f"expected 0 < low <= high in scale, but got low={self.low}, high={self.high}")

    def __call__(self, batch: PointBatch, generator: Generator) -> PointBatch:
        """Scale every cloud of the batch."""
        axes = 1 if self.isotropic else 3
        factor = uniform((len(batch.pos), 1, axes), self.low, self.high, batch.pos, generator)
        normals = batch.normals if batch.normals is None else normalize(batch.normals / factor, dim=2)
        return batch._replace(pos=batch.pos * factor, normals=normals)


@dataclass(frozen=True)
class Translate:
    """Move each cloud by an offset from U[-max_offset, max_offset] on each axis. PCT's recipe: 0.2.

    Source: as `Scale`.
    """

    max_offset: float = 0.2

    def __post_init__(self) -> None:
        expect_not_negative("max_offset in translate", self.max_offset)

    def __call__(self, batch: PointBatch, generator: Generator) -> PointBatch:
        """Move every cloud of the batch."""
        shape = (len(batch.pos), 1, 3)
        return batch._replace(pos=batch.pos + uniform(shape, -self.max_offset, self.max_offset, batch.pos, generator))


@dataclass(frozen=True)
class Rotate:
    """Rotate each cloud and its normals about one axis by an angle from U[-max_degrees, max_degrees].

    Source: PointNet, Qi et al. 2017, https://arxiv.org/abs/1612.00593, section 5.1: about the up axis, by any angle.
    """

    axis: str = "z"
    max_degrees: float = 180.0

    def __post_init__(self) -> None:
        if self.axis not in ("x", "y", "z"):
            raise InputError(f"expected axis to be x, y or z in rotate, but got {self.axis!r}")
        expect_not_negative("max_degrees in rotate", self.max_degrees)

    def __call__(self, batch: PointBatch, generator: Generator) -> PointBatch:
        """Rotate every cloud of the batch."""
        limit = math.radians(self.max_degrees)
        angle = uniform((len(batch.pos),), -limit, limit, batch.pos, generator)
        axis = "xyz".index(self.axis)
        second, third = (axis + 1) % 3, (axis + 2) % 3
        rotation = torch.eye(3, device=angle.device, dtype=angle.dtype).repeat(len(angle), 1, 1)
        rotation[:, second, second] = rotation[:, third, third] = angle.cos()
        rotation[:, third, second] = angle.sin()
        rotation[:, second, third] = -angle.sin()
        return _rotate(batch, rotation)


@dataclass(frozen=True)
class RotateSO3:
    """Rotate each cloud and its normals by a rotation drawn uniformly from SO(3).

    The normalized quaternion of four standard normal numbers is uniform on the sphere, hence the rotation on SO(3).
    Training and testing under it is the protocol "SO(3)/SO(3)" of Esteves et al. 2018.

    Source: Shoemake 1992, Graphics Gems III, "Uniform random rotations"; https://arxiv.org/abs/1711.06721.
    """

    def __call__(self, batch: PointBatch, generator: Generator) -> PointBatch:
        """Rotate every cloud of the batch."""
        w, x, y, z = normalize(normal((len(batch.pos), 4), batch.pos, generator), dim=1).unbind(dim=1)
        rows = (
            torch.stack((1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)), dim=1),
            torch.stack((2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)), dim=1),
            torch.stack((2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)), dim=1),
        )
        return _rotate(batch, torch.stack(rows, dim=1))


@dataclass(frozen=True)
class Flip:
    """Mirror each cloud and its normals at the plane through the origin across each of `axes`.

    Each axis is flipped independently with this probability. Leave out the up axis, and do not use it where mirror
    images are different classes.

    Source: Choy et al. 2019, https://arxiv.org/abs/1904.08755, whose code flips the horizontal axes.
    """

    axes: str = "xy"
    probability: float = 0.5

    def __post_init__(self) -> None:
        if not self.axes or set(self.axes) - set("xyz") or len(set(self.axes)) < len(self.axes):
            raise InputError(f"expected axes in flip to be some of x, y and z, like 'xy', but got {self.axes!r}")
        expect_probability("probability in flip", self.probability)

    def __call__(self, batch: PointBatch, generator: Generator) -> PointBatch:
        """Mirror some of the clouds of the batch."""
        flipped = uniform((len(batch.pos), 1, 3), 0.0, 1.0, batch.pos, generator) < self.probability
        allowed = torch.tensor([axis in self.axes for axis in "xyz"], device=batch.pos.device)
        sign = 1 - 2 * (flipped & allowed).to(batch.pos.dtype)
        normals = batch.normals if batch.normals is None else batch.normals * sign
        return batch._replace(pos=batch.pos * sign, normals=normals)


def _rotate(batch: PointBatch, rotation: Tensor) -> PointBatch:
    """Apply rotations (B, 3, 3) to positions and normals."""
    turned = rotation.transpose(1, 2)  # points are rows
    normals = batch.normals if batch.normals is None else batch.normals @ turned
    return batch._replace(pos=batch.pos @ turned, normals=normals)
