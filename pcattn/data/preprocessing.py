"""From a raw cloud to what a network sees: normalized to the unit sphere or box, with the chosen features.

Training, evaluation and use of a network do the same: the data module stores the arguments in the checkpoint, as
`datamodule_hyper_parameters["preprocessing"]`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from pcattn.data.normals import estimate_normals
from pcattn.io.channels import GROUPS, canonical, find, members
from pcattn.utils.errors import DatasetError, InputError

NORMALIZATIONS = ("sphere", "box", "none")

# Float32 blurs a cloud that is this many times its extent from the origin.
_FAR = 100

# Points computed in float64 at once, to bound memory.
_PART = 1 << 18

#: Features that are computed: height above the lowest point of the cloud, along the up axis, and estimated normals.
HEIGHT = "height"
ESTIMATED_NORMALS = "estimated_normals"
COMPUTED = {HEIGHT: (HEIGHT,), ESTIMATED_NORMALS: GROUPS["normals"]}


class Placement(NamedTuple):
    """Position and size of a cloud: `(pos - center) / radius` is normalized."""

    center: Tensor  #: (3,), float64
    radius: Tensor  #: (), float64
    lowest: Tensor  #: (), float64, the smallest coordinate along the up axis


def preprocess(
    pos: Tensor,
    channels: Tensor | None = None,
    channel_names: Sequence[str] = (),
    *,
    features: Sequence[str] = (),
    normalize: str = "sphere",
    up_axis: str = "z",
    place: Placement | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Normalize one whole cloud, or some points of one, and choose their features.

    Args:
        pos: (N, 3), in any unit.
        channels: (N, F) other channels of the points; normals of unit length, colors in [0, 1].
        channel_names: F names, see `pcattn.io.channels`.
        features: the chosen features: `"normals"`, `"color"`, `"height"`, or the name of any other channel. Instead of
            `"normals"`, `"estimated_normals"` are computed from the positions (`estimate_normals`), whether or not the
            cloud has normals.
        normalize: `"sphere"`: centroid at the origin, the farthest point at distance 1; `"box"`: the center of the
            bounding box at the origin, the largest coordinate 1; `"none"`: unchanged, except that a cloud in float64
            more than 100 times its extent from the origin is moved to its centroid, because float32 would blur it.
        up_axis: `"x"`, `"y"` or `"z"`; the axis that height is measured along.
        place: placement of the complete cloud if these are only some of its points; None if they are all.

    Shape:
        pos (N, 3), and features (N, C) with the normals first, then the others as listed; None if none is chosen.

    Raises:
        DatasetError: a feature is not among the channels.
        InputError: positions have another shape or type, there are none, or some are NaN or infinite.
    """
    if pos.dim() != 2 or pos.shape[1] != 3 or len(pos) == 0:
        raise InputError(f"expected pos (N, 3) and at least one point, but got shape {tuple(pos.shape)}")
    if not pos.is_floating_point():
        raise InputError(f"expected pos to be floating point, but got {pos.dtype}")
    check(features, normalize, up_axis)
    columns = [find_channels(name, channel_names) for name in in_order(features) if name != ESTIMATED_NORMALS]
    place = placement([pos], normalize, up_axis) if place is None else place
    height = height_of(pos, place, up_axis) if HEIGHT in features else None
    chosen = select(channels, columns, height)
    if ESTIMATED_NORMALS in features:
        normals = estimate_normals(pos[None])[0]
        chosen = normals if chosen is None else torch.cat((normals, chosen), dim=1)
    return apply_placement(pos, place), chosen


def check(features: Sequence[str], normalize: str, up_axis: str) -> None:
    """Raise `InputError` if an argument is out of range."""
    if misspelled := [name for name in features if canonical(name) == "normals" != name]:
        raise InputError(f"expected the feature normals, but got {misspelled[0]}")
    if len(set(features)) < len(features):
        raise InputError(f"expected features without repetition, but got {list(features)}")
    if {"normals", ESTIMATED_NORMALS} <= set(features):
        raise InputError(f"expected normals or {ESTIMATED_NORMALS}, but got {list(features)}")
    if normalize not in NORMALIZATIONS:
        raise InputError(f"expected normalize to be one of {', '.join(NORMALIZATIONS)}, but got {normalize!r}")
    if up_axis not in ("x", "y", "z"):
        raise InputError(f"expected up_axis to be x, y or z, but got {up_axis!r}")


def count_channels(features: Sequence[str]) -> int:
    """Number of channels of the chosen features."""
    return len(name_channels(features))


def name_channels(features: Sequence[str]) -> list[str]:
    """Names of the channels of the chosen features, in the order in which a network takes them."""
    return [channel for name in in_order(features) for channel in COMPUTED.get(name, members(name))]


def in_order(features: Sequence[str]) -> list[str]:
    """The features in the order in which a network takes them: normals first."""
    return sorted(features, key=lambda name: name not in ("normals", ESTIMATED_NORMALS))


def find_channels(feature: str, channel_names: Sequence[str], source: str = "the cloud") -> list[int] | None:
    """The columns of a feature; None if it is computed.

    Raises:
        DatasetError: the feature is missing; the message lists those that exist.
    """
    if feature in COMPUTED:
        return None
    found = [find(name, channel_names) for name in members(feature)]
    if None in found:
        groups = [name for name, names in GROUPS.items() if set(names) <= set(channel_names)]
        grouped = {channel for name in groups for channel in GROUPS[name]}
        there = [*groups, *(name for name in channel_names if name not in grouped), *COMPUTED]
        raise DatasetError(f"expected {feature} among the features of {source}, but it has {', '.join(there)}")
    return [list(channel_names).index(name) for name in found if name is not None]


def select(channels: Tensor | None, columns: Sequence[list[int] | None], height: Tensor | None) -> Tensor | None:
    """The chosen columns of channels (..., F), with the height (...) in place of None; None if none is chosen."""
    chosen = [height[..., None] if c is None else channels[..., c] for c in columns]  # type: ignore[index]
    return torch.cat(chosen, dim=-1) if chosen else None


def placement(blocks: Iterable[Tensor], normalize: str, up_axis: str) -> Placement:
    """Position and size of a cloud. A cloud whose points coincide is not scaled.

    Args:
        blocks: its points, in blocks (N, 3), which are iterated over twice.
        normalize: see `preprocess`.
        up_axis: see `preprocess`.
    """
    total, low, high = (torch.full((3,), value, dtype=torch.float64) for value in (0.0, torch.inf, -torch.inf))
    number, blurs = 0, False
    for part in _parts(blocks):
        total, low, high = (values.to(part.device) for values in (total, low, high))
        total = total + part.double().sum(dim=0)
        low, high = low.minimum(part.amin(dim=0).double()), high.maximum(part.amax(dim=0).double())
        number, blurs = number + len(part), part.dtype == torch.float64
    if not number:
        raise InputError("expected at least one block of points, but got none")
    center, radius = torch.zeros_like(total), torch.ones_like(total[0])
    if normalize == "sphere":
        center, radius = total / number, torch.zeros_like(radius)
        for part in _parts(blocks):
            radius = radius.maximum((part.double() - center).square().sum(dim=1).max())
        radius = radius.sqrt()
    elif normalize == "box":
        center, radius = (low + high) / 2, (high - low).max() / 2
    elif blurs and bool(torch.maximum(low.abs(), high.abs()).max() > _FAR * (high - low).max().clamp(min=1e-30)):
        center = total / number
    if not bool(radius.isfinite()):
        raise InputError("expected finite positions whose squares are in range, but got others")
    radius = torch.where(radius > 0, radius, 1.0)
    return Placement(center, radius, low["xyz".index(up_axis)])


def _parts(blocks: Iterable[Tensor]) -> Iterator[Tensor]:
    return (part for block in blocks for part in block.split(_PART))


def apply_placement(pos: Tensor, place: Placement) -> Tensor:
    """`(pos - center) / radius`, computed in float64, for clouds (..., N, 3) and their placements (..., 3)."""
    center, radius = place.center[..., None, :], place.radius[..., None, None]
    placed = torch.empty_like(pos)
    for part, target in zip(pos.split(_PART, dim=-2), placed.split(_PART, dim=-2), strict=True):
        target.copy_((part.double() - center) / radius)
    return placed


def height_of(pos: Tensor, place: Placement, up_axis: str) -> Tensor:
    """Heights (..., N) of points (..., N, 3) above the lowest one of their cloud, in the unit of normalized pos."""
    above = pos[..., "xyz".index(up_axis)].double() - place.lowest[..., None]
    return (above / place.radius[..., None]).to(pos.dtype)
