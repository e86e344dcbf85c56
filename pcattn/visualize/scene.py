"""Clouds to draw in pictures, pages and the window, and the fields that color their points."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pcattn.visualize.colors import RIGHT, UNKNOWN, WRONG, Colors, palette, sequential

Color = tuple[int, int, int]


@dataclass(frozen=True)
class Field:
    """One value per point: one of several named entries, a quantity, or a color.

    Args:
        values: (N,) integers that index `entries`; or (N,) floats between `low` and `high`; or (N, 3) colors, `uint8`.
        entries: name and color of each value.
        low, high: quantities that the lightest and the darkest color stand for.
    """

    values: NDArray[Any]
    entries: tuple[tuple[str, Color], ...] = ()
    low: float = 0.0
    high: float = 1.0

    @property
    def is_quantity(self) -> bool:
        """Whether the values are a quantity."""
        return not self.entries and self.values.ndim == 1

    def normalized(self) -> NDArray[np.float64]:
        """A quantity as numbers in [0, 1]."""
        span = self.high - self.low
        return ((self.values - self.low) / span).clip(0, 1) if span > 0 else np.zeros(len(self.values))

    def colors(self) -> Colors:
        """Color of every point, (N, 3)."""
        if self.is_quantity:
            return sequential(self.normalized())
        if not self.entries:
            return self.values
        colors: Colors = np.array([color for _, color in self.entries], dtype=np.uint8)[self.values]
        return colors

    def present(self) -> list[tuple[str, Color]]:
        """The entries that occur."""
        return [self.entries[value] for value in np.unique(self.values)] if self.entries else []


@dataclass(frozen=True)
class Cloud:
    """A cloud with the fields that may color it.

    Args:
        pos: (N, 3).
        title: name of the cloud.
        fields: by name: `"truth"`, `"prediction"`, `"error"`, `"probability"`, ...
        note: a short line on the prediction.
        good: whether the prediction is right; None if that is not a yes or no.
        marked: the point whose attention is shown.
        index: index in its data set; None for a file.
        score: how good the prediction is; the worst clouds have the lowest score. NaN if the truth is not known.
    """

    pos: NDArray[np.float32]
    title: str
    fields: dict[str, Field] = field(default_factory=dict)
    note: str = ""
    good: bool | None = None
    marked: int | None = None
    index: int | None = None
    score: float = math.nan

    def thinned(self, num_points: int, seed: int = 0) -> Cloud:
        """The cloud with at most this many points, drawn at random; the marked one is kept."""
        if len(self.pos) <= num_points:
            return self
        keep = np.random.default_rng(seed).choice(len(self.pos), num_points, replace=False)
        marked = self.marked
        if marked is not None:
            keep[0], marked = marked, 0
        fields = {
            name: Field(each.values[keep], each.entries, each.low, each.high) for name, each in self.fields.items()
        }
        return replace(self, pos=self.pos[keep], fields=fields, marked=marked)


def name_clouds(clouds: Sequence[Cloud], names: Sequence[str] | None) -> list[Cloud]:
    """Clouds of a data set with the name of their file in the title, in place of the index: `chair scan_7.ply`.

    Args:
        clouds: with an `index`.
        names: path of each file by the index of the cloud; None leaves the titles as they are.
    """
    if names is None:
        return list(clouds)
    kinds = [cloud.title.removesuffix(f"{cloud.index}") for cloud in clouds]
    return [
        replace(cloud, title=kind + Path(names[cloud.index or 0]).name)
        for cloud, kind in zip(clouds, kinds, strict=True)
    ]


def labels(values: NDArray[Any], names: Sequence[str], ids: Sequence[int] | None = None) -> Field:
    """A field of labels (N,), colored by their position in `ids` (default: all of `names`).

    The parts of a category thus get the first colors of the palette, which differ most. Labels that are not in `ids`
    are gray.
    """
    ids = list(range(len(names))) if ids is None else list(ids)
    present, where = np.unique(values, return_inverse=True)
    others = [int(value) for value in present if value not in set(ids)]
    colors = [tuple(map(int, color)) for color in palette(len(ids))]
    entries = [(names[label], color) for label, color in zip(ids, colors, strict=True)]
    entries += [(names[label] if 0 <= label < len(names) else str(label), UNKNOWN) for label in others]
    place = {label: index for index, label in enumerate([*ids, *others])}
    index = np.array([place[int(value)] for value in present], dtype=np.int64)[where.reshape(-1)]
    return Field(index, tuple(entries))  # type: ignore[arg-type]


def errors(wrong: NDArray[np.bool_]) -> Field:
    """A field of right and wrong points (N,)."""
    return Field(wrong.astype(np.int64), (("right", RIGHT), ("wrong", WRONG)))


def quantity(values: NDArray[Any], low: float = 0.0, high: float = 1.0) -> Field:
    """A field of numbers (N,)."""
    return Field(np.asarray(values, dtype=np.float64), (), low, high)


def directions(vectors: NDArray[Any]) -> Field:
    """A field of unit vectors (N, 3), with x, y, z in [-1, 1] as red, green, blue."""
    return Field(((vectors + 1) * 127.5).round().clip(0, 255).astype(np.uint8))


def field_names(clouds: Sequence[Cloud]) -> list[str]:
    """Names of the fields of all clouds, in order of appearance."""
    return list(dict.fromkeys(name for cloud in clouds for name in cloud.fields))


def shown_fields(clouds: Sequence[Cloud], preferred: Sequence[str] = ()) -> list[str]:
    """The fields to show unless others are asked for: the preferred ones, else the first in alphabetical order."""
    known = field_names(clouds)
    return [name for name in preferred if name in known] or sorted(known)[:1]


def save(clouds: Sequence[Cloud], path: Path) -> None:
    """Write clouds to an `.npz` file for another process, without pickles."""
    arrays: dict[str, Any] = {}
    about: list[Any] = []
    for i, cloud in enumerate(clouds):
        arrays[f"{i}/pos"] = cloud.pos
        fields = []
        for j, (name, each) in enumerate(cloud.fields.items()):
            arrays[f"{i}/{j}"] = each.values
            fields.append([name, each.entries, each.low, each.high])
        about.append([cloud.title, fields, cloud.note, cloud.good, cloud.marked, cloud.index, cloud.score])
    np.savez(path, about=np.frombuffer(json.dumps(about).encode(), dtype=np.uint8), **arrays)


def load(path: Path) -> list[Cloud]:
    """Read what `save` wrote."""
    with np.load(path) as arrays:
        clouds = []
        for i, (title, about, *more) in enumerate(json.loads(arrays["about"].tobytes())):
            fields = {
                name: Field(arrays[f"{i}/{j}"], tuple((entry, tuple(color)) for entry, color in entries), low, high)
                for j, (name, entries, low, high) in enumerate(about)
            }
            clouds.append(Cloud(arrays[f"{i}/pos"], title, fields, *more))
    return clouds
