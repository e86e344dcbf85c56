"""From the columns of a file to positions and attributes, the same way for every format."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from pcattn.io.channels import GROUPS, canonical, find
from pcattn.utils.errors import InputError

#: Most columns of a table: each becomes an array.
MAX_COLUMNS = 10_000

# A table with fewer rows than columns is transposed if it also passes these: (3, N), or (6, N) with normals.
_FEW_ROWS, _MANY_COLUMNS = 10, 32

# Rows of a table that are looked at in one step.
_ROWS = 1 << 18

# A last column of 0 to 255 with larger values than this may be blue; with none, it is taken for a label.
_MAX_LABEL = 63


class Content(NamedTuple):
    """What a reader finds in a file."""

    columns: dict[str, np.ndarray]  #: (N,) or (N, C) by name
    faces: np.ndarray | None = None  #: (T, 3) indices of the points, of a mesh


def assemble(columns: Mapping[str, np.ndarray]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Positions (N, 3) and attributes from named columns (N,) or (N, C).

    Groups such as `normals` are made of their channels; see `pcattn.io.channels`. Other attributes keep their names.

    Raises:
        InputError: there are no positions, or the columns differ in length or are not numbers.
    """
    check_columns(columns)
    found = {group: _members(group, columns) for group in GROUPS}
    if not found["pos"]:
        missing = next(axis for axis in "xyz" if find(axis, columns) is None)
        raise InputError(f"expected x, y and z, but got no {missing} among {', '.join(columns) or 'no columns'}")
    axes = [columns[name] for name in found["pos"]]
    single = all(axis.dtype.newbyteorder("=") == np.float32 for axis in axes)
    pos = _stack(axes, np.dtype(np.float32 if single else np.float64))
    attributes = {
        group: _stack([columns[name] for name in names]) for group, names in found.items() if names and group != "pos"
    }
    used = {name for names in found.values() for name in names}
    for name, values in columns.items():
        if name not in used:
            attributes[name] = np.ascontiguousarray(values, values.dtype.newbyteorder("="))
    return pos, attributes


def check_columns(columns: Mapping[str, np.ndarray]) -> None:
    """Refuse columns that are not numbers or differ in length.

    Raises:
        InputError: one of them is.
    """
    num_points = len(next(iter(columns.values()), ()))
    for name, values in columns.items():
        if not (np.issubdtype(values.dtype, np.number) or values.dtype == bool):
            raise InputError(f"expected numbers in {name}, but got {values.dtype}")
        if values.ndim not in (1, 2) or len(values) != num_points:
            raise InputError(f"expected {name} of {num_points} points, but got an array of {values.shape}")


def color_scale(columns: Mapping[str, np.ndarray]) -> Callable[[np.ndarray], np.ndarray]:
    """A function that gives colors a type that tells their scale: integers that span the type, or floats in [0, 1].

    Files hold colors of 0 to 255 as floats and in wide integers, too. Whole ones become uint8, others are divided by
    255. The whole file decides, and the function is then applied to its blocks: a dark block says nothing by itself.
    """
    colors = [columns[name] for name in _members("colors", columns)]
    kind = np.result_type(*colors) if colors else np.dtype(np.uint8)
    parts = [values[row : row + _ROWS] for values in colors for row in range(0, len(values), _ROWS)]
    if kind.kind == "f" and any((part > 1).any() for part in parts):
        return _to_bytes if all(map(_is_color, parts)) else _divide
    if kind.kind in "iu" and kind.itemsize > 1 and all(map(_is_color, parts)):
        return _to_bytes
    return lambda values: values


def _to_bytes(values: np.ndarray) -> np.ndarray:
    return values.astype(np.uint8)


def _divide(values: np.ndarray) -> np.ndarray:
    return values / 255


def name_columns(table: np.ndarray, intensity: bool = False) -> list[str]:
    """Names for the columns of an (N, C) table that has none: see `read_cloud`.

    Args:
        table: the numbers.
        intensity: whether a fourth column alone, or before colors, is an intensity (`.pts`).

    Raises:
        InputError: there are fewer than three columns or more than `MAX_COLUMNS`, points are columns and not rows, or
            two choices of three columns may be the colors.
    """
    count = table.shape[1]
    if count < 3:
        raise InputError(f"expected at least three columns (x, y, z), but got {count}")
    if 3 <= len(table) < _FEW_ROWS and count >= _MANY_COLUMNS:
        raise InputError(f"expected one row per point, (N, C), but got {table.shape}: transpose it")
    if count > MAX_COLUMNS:
        raise InputError(f"expected at most {MAX_COLUMNS} columns, one line per point, but got {count}")
    names = [*"xyz", *(f"column_{number}" for number in range(4, count + 1))]
    if intensity and count in (4, 7):
        names[3] = "intensity"
    start = 4 if intensity and count == 7 else 3
    if count < start + 3 or not len(table):
        return names
    if _is_normals(table[:, start : start + 3]):
        names[start : start + 3] = GROUPS["normals"]
    elif _is_colors(table[:, start : start + 3]):
        if start == 3 and count > 6 and _is_colors(table[:, 4:7]) and table[:, 6].max() > _MAX_LABEL:
            raise InputError(
                f"expected columns with names, because columns 4 to 6 and 5 to 7 of {count} may both be colors, "
                "but got none; `columns` names them"
            )
        names[start : start + 3] = GROUPS["colors"]
    return names


def _is_normals(table: np.ndarray) -> bool:
    """Whether nearly all rows (N, 3) are unit vectors."""
    return sum(int((np.abs(np.linalg.norm(part, axis=1) - 1) < 0.02).sum()) for part in _parts(table)) > 0.9 * len(
        table
    )


def _is_colors(table: np.ndarray) -> bool:
    """Whether the values (N, 3) are whole numbers of 0 to 255, beyond 1."""
    return all(map(_is_color, _parts(table))) and any(part.max() > 1 for part in _parts(table))


def _parts(table: np.ndarray) -> list[np.ndarray]:
    """Blocks of rows: the table may be a mapped file."""
    return [table[row : row + _ROWS] for row in range(0, len(table), _ROWS)]


def _is_color(values: np.ndarray) -> bool:
    return bool(((values >= 0) & (values <= 255) & (values == np.floor(values))).all())


def _members(group: str, columns: Mapping[str, np.ndarray]) -> list[str]:
    """The columns that a group consists of: one (N, 3), or three (N,); none if it is not there."""
    widths = (3, 4) if group == "colors" else (3,)  # colors may have an alpha
    whole = [
        n for n, values in columns.items() if canonical(n) == group and values.ndim == 2 and values.shape[1] in widths
    ]
    if whole:
        return [group if group in whole else whole[0]]
    single = {name: values for name, values in columns.items() if values.ndim == 1}
    found = [find(channel, single) for channel in GROUPS[group]]
    return [name for name in found if name is not None] if None not in found else []


def check_names(names: Sequence[str], count: int) -> list[str]:
    """The names given for `count` columns.

    Raises:
        InputError: there are more or fewer, or two are the same.
    """
    if len(names) != count:
        raise InputError(f"expected {len(names)} columns ({', '.join(names)}), but got {count}")
    if len({name.lower() for name in names}) != count:
        raise InputError(f"expected columns with different names, but got {', '.join(names)}")
    return list(names)


def _stack(columns: Sequence[np.ndarray], dtype: np.dtype | None = None) -> np.ndarray:
    """A new array (N, C) from columns (N,), or from one (N, C); nothing else is allocated."""
    dtype = dtype or np.result_type(*columns)
    if columns[0].ndim == 2:
        return np.array(columns[0], dtype.newbyteorder("="), order="C")
    stacked = np.empty((len(columns[0]), len(columns)), dtype.newbyteorder("="))
    for index, column in enumerate(columns):
        stacked[:, index] = column
    return stacked
