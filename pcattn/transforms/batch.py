"""What all transforms share: their type, random numbers from a given generator, and selection of points."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Generator, Tensor

from pcattn.utils.checks import check_count, check_points
from pcattn.utils.errors import InputError

if TYPE_CHECKING:
    from pcattn.data import PointBatch

Transform = Callable[["PointBatch", Generator], "PointBatch"]


def uniform(shape: tuple[int, ...], low: float, high: float, like: Tensor, generator: Generator) -> Tensor:
    """Random numbers from U[low, high), with the device and dtype of the positions `like`."""
    check_positions(like, generator)
    return torch.empty(shape, device=like.device, dtype=like.dtype).uniform_(low, high, generator=generator)


def normal(shape: tuple[int, ...], like: Tensor, generator: Generator) -> Tensor:
    """Standard normal random numbers, with the device and dtype of the positions `like`."""
    check_positions(like, generator)
    return torch.empty(shape, device=like.device, dtype=like.dtype).normal_(generator=generator)


def beta(size: int, concentration: float, like: Tensor, generator: Generator) -> Tensor:
    """Random numbers (size,) from Beta(concentration, concentration), with the device and dtype of `like`."""
    # `torch.distributions` draws by the same operator, but has no way to name a generator.
    gamma = torch._standard_gamma(
        torch.full((2, size), concentration, device=like.device, dtype=torch.float64), generator=generator
    ).clamp(min=torch.finfo(torch.float64).tiny)
    return (gamma[0] / gamma.sum(dim=0)).to(like.dtype)


def check_positions(pos: Tensor, generator: Generator) -> None:
    """Refuse positions of a wrong shape or device. Values are not checked: NaN stays NaN, and the task stops at it.

    Raises:
        InputError: positions of another shape or type, or a generator of another device.
    """
    check_points("pos", pos)
    if pos.shape[2] != 3:
        raise InputError(f"expected pos to be (B, N, 3), but got shape {tuple(pos.shape)}")
    if generator.device.type != pos.device.type:
        raise InputError(f"expected a generator on {pos.device}, as pos is, but got one on {generator.device}")


def point_fields(batch: PointBatch) -> dict[str, Tensor]:
    """The fields of a batch that hold a value for every point, by name."""
    fields = {"pos": batch.pos}
    for name in ("normals", "features", "point_indices"):
        if (field := getattr(batch, name)) is not None:
            fields[name] = field
    if batch.label.dim() == 2:
        fields["label"] = batch.label
    return fields


def take(batch: PointBatch, indices: Tensor) -> PointBatch:
    """The points `indices` (B, M) of every cloud, with all their fields."""
    taken: dict[str, Any] = {name: take_rows(field, indices) for name, field in point_fields(batch).items()}
    return batch._replace(**taken)


def take_rows(field: Tensor, indices: Tensor) -> Tensor:
    """Rows (B, M, ...) of a field (B, N) or (B, N, C)."""
    if field.dim() == 2:
        return field.gather(1, indices)
    return field.gather(1, indices[..., None].expand(-1, -1, field.shape[2]))


def subsample(batch: PointBatch, num_points: int, generator: Generator | None = None) -> PointBatch:
    """`num_points` points of every cloud: random ones, drawn for each cloud, or the first ones without a generator.

    Raises:
        InputError: the clouds have fewer points.
    """
    check_points("pos", batch.pos)
    batch_size, available, _ = batch.pos.shape
    num_points = check_count("num_points", num_points, available, "the points of a cloud")
    if num_points == available:
        return batch
    if generator is None:
        keep = torch.arange(num_points, device=batch.pos.device).expand(batch_size, -1)
    else:
        keep = uniform((batch_size, available), 0.0, 1.0, batch.pos, generator).argsort(dim=1)[:, :num_points]
    chosen = take(batch, keep)
    return chosen if batch.point_indices is not None else chosen._replace(point_indices=keep)


def expect_not_negative(name: str, value: float) -> None:
    """Refuse a negative value, and NaN."""
    if not value >= 0:
        raise InputError(f"expected {name} to be at least 0, but got {value}")


def expect_positive(name: str, value: float) -> None:
    """Refuse zero, a negative value, and NaN."""
    if not value > 0:
        raise InputError(f"expected {name} to be positive, but got {value}")


def expect_probability(name: str, value: float) -> None:
    """Refuse what does not lie in [0, 1]."""
    if not 0 <= value <= 1:
        raise InputError(f"expected {name} to be a probability in [0, 1], but got {value}")
