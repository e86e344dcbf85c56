"""The names of what points carry: one table for all file formats, data sets and networks.

A channel is one number per point (`x`, `nx`, `red`, `intensity`). A group is several channels under one name (`pos`,
`normals`, `colors`). Files spell them in many ways; `canonical` gives the spelling used here.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

#: The channels of each group, in order.
GROUPS: dict[str, tuple[str, ...]] = {
    "pos": ("x", "y", "z"),
    "normals": ("nx", "ny", "nz"),
    "colors": ("red", "green", "blue"),
}

#: Names that label points in most files; `label` comes first.
LABELS = ("label", "part", "class", "classification")

#: Other spellings of groups and channels, in lower case.
_ALIASES = {
    "pos": ("points", "xyz", "coord", "coords", "coordinates", "position", "positions", "vertices"),
    "normals": ("normal",),
    "colors": ("color", "colour", "colours", "rgb"),
    "nx": ("normal_x", "normalx", "n_x"),
    "ny": ("normal_y", "normaly", "n_y"),
    "nz": ("normal_z", "normalz", "n_z"),
    "red": ("r", "rf", "diffuse_red"),
    "green": ("g", "gf", "diffuse_green"),
    "blue": ("b", "bf", "diffuse_blue"),
    "alpha": ("a", "diffuse_alpha"),
    "label": ("labels", "segment", "segments", "seg"),
    "classification": ("classifications",),
}
_CANONICAL = {alias: name for name, aliases in _ALIASES.items() for alias in aliases}

_UNIT = re.compile(r"\s*(\[[^\]]*\]|\([^)]*\))\s*$")


def canonical(name: str) -> str:
    """The spelling of a channel or group that this package uses, in lower case.

    Units (`x [m]`), the prefix `scalar_` of CloudCompare, and quotes are dropped. A name that the table does not list
    is its own spelling.

    >>> [canonical(name) for name in ("X [m]", "Rf", "Normal", "scalar_Intensity", "segment")]
    ['x', 'red', 'normals', 'intensity', 'label']
    """
    plain = _UNIT.sub("", name.strip().strip("\"'")).lower().removeprefix("scalar_")
    return _CANONICAL.get(plain, plain)


def members(name: str) -> tuple[str, ...]:
    """The channels of a group under any of its names; a channel is its own only member."""
    return GROUPS.get(canonical(name), (name,))


def find(name: str, names: Iterable[str]) -> str | None:
    """The one of `names` that means the channel `name`: spelled the same, or else the only other spelling of it."""
    names = list(names)
    if name in names:
        return name
    same = [other for other in names if canonical(other) == canonical(name)]
    return same[0] if len(same) == 1 else None


def name_members(name: str, width: int) -> list[str]:
    """Names for the columns of an attribute that is `width` numbers per point: `nx, ny, nz`, or `name_0`, `name_1`."""
    known = [*members(name), "alpha"] if canonical(name) == "colors" else list(members(name))
    if 3 <= width <= len(known):
        return known[:width]
    return [f"{name}_{index}" for index in range(width)]
