"""What the columns of point files mean: the same names under every format."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from pcattn.utils.errors import InputError

#: Columns of a table at most: each becomes an array of its own.
MAX_COLUMNS = 10_000

# A table with fewer rows and at least so many columns is transposed: (3, N), or (6, N) with normals.
_FEW_ROWS, _MANY_COLUMNS = 10, 32

# Rows of a table that are looked at once.
_ROWS = 1 << 18

#: Attribute of several columns, and the names that its columns go by (in lower case).
GROUPS: dict[str, tuple[tuple[str, ...], ...]] = {
    "normals": (("nx", "ny", "nz"), ("normal_x", "normal_y", "normal_z")),
    "colors": (("red", "green", "blue"), ("r", "g", "b"), ("diffuse_red", "diffuse_green", "diffuse_blue")),
}


def assemble(columns: Mapping[str, np.ndarray]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Positions (N, 3) and attributes from named columns (N,) or (N, C).

    Raises:
        InputError: there is no x, y, z, or the columns differ in length or are not numbers.
    """
    by_name = check_columns(columns)
    axes = [columns[by_name[axis]] for axis in "xyz"]
    single = all(axis.dtype.newbyteorder("=") == np.float32 for axis in axes)
    pos = _stack(axes, np.dtype(np.float32 if single else np.float64))
    used = {by_name[axis] for axis in "xyz"}
    attributes: dict[str, np.ndarray] = {}
    for group in GROUPS:
        if members := _members(group, by_name):
            attributes[group] = _stack([columns[name] for name in members])
            used |= set(members)
    for name, values in columns.items():
        if name not in used:
            attributes[name] = np.ascontiguousarray(values, values.dtype.newbyteorder("="))
    return pos, attributes


def check_columns(columns: Mapping[str, np.ndarray]) -> dict[str, str]:
    """The names of columns (N,) or (N, C) by these names in lower case.

    Raises:
        InputError: there is no x, y, z, or the columns differ in length or are not numbers.
    """
    by_name = {name.lower(): name for name in columns}
    if missing := [axis for axis in "xyz" if axis not in by_name]:
        raise InputError(f"expected x, y and z, but got no {missing[0]} among {', '.join(columns) or 'no columns'}")
    first = columns[by_name["x"]]
    for name, values in columns.items():
        if not (np.issubdtype(values.dtype, np.number) or values.dtype == bool):
            raise InputError(f"expected numbers in {name}, but got {values.dtype}")
        if values.ndim not in (1, 2) or len(values) != len(first):
            raise InputError(f"expected {name} of {len(first)} points, but got an array of {values.shape}")
    if any(columns[by_name[axis]].ndim != 1 for axis in "xyz"):
        raise InputError("expected x, y and z to be one number each")
    return by_name


def color_scale(columns: Mapping[str, np.ndarray]) -> Callable[[np.ndarray], np.ndarray]:
    """What makes colors tell their scale by their type: integers that span it, or floats in [0, 1].

    Text, and arrays of one type, hold colors of 0 to 255 as floats or wide integers. Whole ones become uint8, others
    are divided by 255. Asked of a whole file and then done to its blocks: a dark block by itself does not tell.
    """
    by_name = check_columns(columns)
    colors = [columns[name] for name in (["colors"] if "colors" in columns else _members("colors", by_name))]
    kind = np.result_type(*colors) if colors else np.dtype(np.uint8)
    parts = [values[row : row + _ROWS] for values in colors for row in range(0, len(values), _ROWS)]
    if kind.kind == "f" and any((part > 1).any() for part in parts):
        return _to_bytes if all(map(_is_color, parts)) else _divide
    if kind.kind in "iu" and kind.itemsize > 2 and all(map(_is_color, parts)):
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
        intensity: whether a fourth column on its own, or before colors, is an intensity (`.pts`).

    Raises:
        InputError: there are fewer than three columns, or more than `MAX_COLUMNS`; or points are columns and not rows.
    """
    count = table.shape[1]
    if count < 3:
        raise InputError(f"expected at least three columns (x, y, z), but got {count}")
    if 3 <= len(table) < _FEW_ROWS and count >= _MANY_COLUMNS:
        raise InputError(f"expected one row a point, (N, C), but got {table.shape}: transpose it")
    if count > MAX_COLUMNS:
        raise InputError(f"expected at most {MAX_COLUMNS} columns, one line a point, but got {count}")
    names = [*"xyz", *(f"column_{number}" for number in range(4, count + 1))]
    if intensity and count in (4, 7):
        names[3] = "intensity"
    start = {6: 3, 7: 4 if intensity else 3}.get(count, 3)
    if count >= start + 3 and len(table):
        # Part by part: the table may be a mapped file.
        parts = [table[row : row + _ROWS, start : start + 3] for row in range(0, len(table), _ROWS)]
        if sum(int((np.abs(np.linalg.norm(part, axis=1) - 1) < 0.02).sum()) for part in parts) > 0.9 * len(table):
            names[start : start + 3] = ["nx", "ny", "nz"]
        elif all(map(_is_color, parts)) and any(part.max() > 1 for part in parts):
            names[start : start + 3] = ["red", "green", "blue"]
    return names


def _is_color(values: np.ndarray) -> bool:
    return bool(((values >= 0) & (values <= 255) & (values == np.floor(values))).all())


def _members(group: str, by_name: Mapping[str, str]) -> list[str]:
    """The columns that a group consists of, by their names in lower case; none if there is a column of its name."""
    spellings = () if group in by_name else GROUPS[group]
    return next(([by_name[name] for name in names] for names in spellings if all(n in by_name for n in names)), [])


def check_names(names: Sequence[str], count: int) -> list[str]:
    """The names given for `count` columns.

    Raises:
        InputError: there are more or fewer, or one twice.
    """
    if len(names) != count:
        raise InputError(f"expected {len(names)} columns ({', '.join(names)}), but got {count}")
    if len({name.lower() for name in names}) != count:
        raise InputError(f"expected different names of columns, but got {', '.join(names)}")
    return list(names)


def _stack(columns: Sequence[np.ndarray], dtype: np.dtype | None = None) -> np.ndarray:
    """(N, C) from columns (N,), filled one by one: nothing but the result is allocated."""
    dtype = dtype or np.result_type(*columns)
    stacked = np.empty((len(columns[0]), len(columns)), dtype.newbyteorder("="))
    for index, column in enumerate(columns):
        stacked[:, index] = column
    return stacked
