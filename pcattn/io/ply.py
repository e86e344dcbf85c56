"""PLY: ascii and binary of both byte orders, with any properties of the vertices.

Own code: plyfile is under the GPL, and trimesh stores positions in single precision and refuses faces with different
numbers of corners.

Source: Greg Turk, The PLY Polygon File Format, 1994.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from pcattn.io.channels import name_members
from pcattn.io.columns import Content
from pcattn.io.mesh import triangulate
from pcattn.io.text import spell_nan
from pcattn.utils.errors import InputError

_TYPES = {
    **{"char": "i1", "uchar": "u1", "short": "i2", "ushort": "u2", "int": "i4", "uint": "u4"},
    **{"float": "f4", "double": "f8"},
    **{"int8": "i1", "uint8": "u1", "int16": "i2", "uint16": "u2", "int32": "i4", "uint32": "u4"},
    **{"float32": "f4", "float64": "f8", "int64": "i8", "uint64": "u8"},
}
_NAMES = {"i1": "char", "u1": "uchar", "i2": "short", "u2": "ushort", "i4": "int", "u4": "uint"} | {
    "f4": "float",
    "f8": "double",
}
_ORDER = {"ascii": "=", "binary_little_endian": "<", "binary_big_endian": ">"}
_MAX_HEADER = 1 << 20
_ROWS = 1 << 20  # written at a time


class _Element(NamedTuple):
    name: str
    size: int
    properties: list[tuple[str, str, str | None]]  # name, type, type of the count in front of a list

    def add(self, name: str, kind: str, counter: str | None) -> None:
        if any(name == other for other, _, _ in self.properties):
            raise InputError(f"expected properties of {self.name} with different names, but got {name!r} twice")
        self.properties.append((name, kind, counter))

    @property
    def is_plain(self) -> bool:
        return all(counter is None for _, _, counter in self.properties)

    def dtype(self, order: str) -> np.dtype:
        return np.dtype([(name, order + kind) for name, kind, _ in self.properties])


def read(path: Path, columns: Sequence[str] | None) -> Content:
    """Columns of the vertices, and the triangles (T, 3) if there are faces. Lists at vertices are passed over.

    Raises:
        InputError: the file is not a PLY file, or holds less than its header says.
    """
    with path.open("rb") as file:
        encoding, elements = _read_header(file)
        size = path.stat().st_size
        vertices, num_vertices, faces = None, 0, None
        for element in elements:
            _check_size(element, encoding, size - file.tell())
            if element.name == "vertex":
                vertices, num_vertices = _read_vertices(file, element, encoding), element.size
            elif element.name == "face" and element.size and vertices is not None:
                faces = _read_faces(file, element, encoding, num_vertices)
            elif element.is_plain and encoding != "ascii":
                file.seek(element.size * element.dtype("<").itemsize, 1)
            else:
                _skip(file, element, encoding)
            if vertices is not None and (faces is not None or element.name == "face"):
                break
            if vertices is not None and not any(other.name == "face" and other.size for other in elements):
                break
    if vertices is None:
        raise InputError("expected an element vertex in the PLY header")
    return Content(vertices, faces)


def write(path: Path, num_points: int, blocks: Iterable[tuple[np.ndarray, dict[str, np.ndarray]]]) -> None:
    """Write binary little-endian PLY, block by block.

    Args:
        path: the file.
        num_points: number of points of all blocks together.
        blocks: positions (N, 3) and attributes (N,) or (N, C) each.

    Raises:
        InputError: an attribute has another length, is not numeric, does not fit into 32 bits, or has a name that PLY
            cannot hold; or the blocks differ in their attributes, or have more or fewer points than `num_points`.
    """
    dtype, written = None, 0
    with path.open("wb") as file:
        for pos, attributes in blocks:
            columns = _columns(pos, attributes)
            own = np.dtype([(name, values.dtype.newbyteorder("<")) for name, values in columns.items()])
            if dtype is None:
                dtype = own
                lines = ["ply", "format binary_little_endian 1.0", f"element vertex {num_points}"]
                lines += [f"property {_NAMES[values.dtype.str[1:]]} {name}" for name, values in columns.items()]
                file.write("\n".join([*lines, "end_header", ""]).encode())
            if own != dtype:
                raise InputError(f"expected blocks with the attributes {dtype}, but got {own}")
            for start in range(0, len(pos), _ROWS):
                rows = np.empty(min(_ROWS, len(pos) - start), dtype)
                for name, values in columns.items():
                    rows[name] = values[start : start + _ROWS]
                file.write(rows.data)  # the errors of `tofile` give no reason
            written += len(pos)
    if written != num_points:
        raise InputError(f"expected {num_points} points, but got {written}")


def _columns(pos: np.ndarray, attributes: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Columns (N,) by name, in types that PLY has."""
    if pos.ndim != 2 or pos.shape[1] != 3:
        raise InputError(f"expected pos (N, 3), but got {pos.shape}")
    columns = {axis: _storable(axis, pos[:, index]) for index, axis in enumerate("xyz")}
    for name, values in attributes.items():
        if len(values) != len(pos) or values.ndim not in (1, 2):
            raise InputError(f"expected {name} of {len(pos)} points, but got an array of {values.shape}")
        names = [name] if values.ndim == 1 else name_members(name, values.shape[1])
        for column, part in zip(names, values.reshape(len(pos), -1).T, strict=True):
            if column in ("x", "y", "z"):  # as torch-geometric calls labels y
                column = f"attribute_{column}"
            if column in columns or not column.isprintable() or len(column.split()) != 1:
                raise InputError(f"expected attributes with different names, without spaces, but got {column!r}")
            columns[column] = _storable(column, part)
    return columns


def _read_header(file: BinaryIO) -> tuple[str, list[_Element]]:
    def line() -> list[str]:
        raw = file.readline(_MAX_HEADER)
        if not raw.endswith(b"\n") or file.tell() > _MAX_HEADER:
            raise InputError("expected a PLY header that ends with end_header")
        return raw.decode("utf-8", "replace").split()  # comments come in any alphabet

    if file.readline(16).strip() != b"ply":
        raise InputError("expected a PLY file, whose first line is `ply`")
    encoding: str | None = None
    elements: list[_Element] = []
    while (words := line()) != ["end_header"]:
        match words:
            case [] | ["comment" | "obj_info", *_]:
                pass
            case ["format", kind, _] if kind in _ORDER:
                encoding = kind
            case ["element", name, count] if count.isdecimal():
                elements.append(_Element(name, int(count), []))
            case ["property", "list", counter, kind, name] if (
                elements and kind in _TYPES and _TYPES.get(counter, "")[:1] in ("i", "u")
            ):
                elements[-1].add(name, _TYPES[kind], _TYPES[counter])
            case ["property", kind, name] if elements and kind in _TYPES:
                elements[-1].add(name, _TYPES[kind], None)
            case _:
                raise InputError(f"expected a line of a PLY header, but got {' '.join(words)[:80]!r}")
    if encoding is None:
        raise InputError("expected a line `format` in the PLY header")
    return encoding, elements


def _check_size(element: _Element, encoding: str, available: int) -> None:
    """Refuse a count that the rest of the file cannot hold, before anything is allocated for it."""
    kinds = [counter or kind for _, kind, counter in element.properties]
    # A value in text takes a digit and a separator; the last line may end without one.
    each = 2 * len(kinds) if encoding == "ascii" else sum(np.dtype(kind).itemsize for kind in kinds)
    least = element.size * each - (encoding == "ascii" and element.size > 0)
    if least > available or (element.size and not kinds):
        raise InputError(
            f"expected {element.size} x {element.name} as the header says ({least} bytes at least), "
            f"but got {available} bytes"
        )


def _read_plain(file: BinaryIO, element: _Element, encoding: str) -> np.ndarray:
    dtype = element.dtype(_ORDER[encoding])
    if not element.size:
        return np.empty(0, dtype)
    if encoding == "ascii":
        try:
            rows = np.loadtxt(map(spell_nan, file), dtype, comments=None, max_rows=element.size, ndmin=1)
        except ValueError as error:
            reason = str(error).partition(";")[0]
            raise InputError(
                f"expected {element.size} x {element.name} as the header says, but got: {reason}"
            ) from error
        if len(rows) != element.size:
            raise InputError(f"expected {element.size} x {element.name} as the header says, but got {len(rows)}")
        return rows
    start = file.tell()
    rows = np.memmap(file, dtype, "r", start, element.size)  # moves the position
    file.seek(start + rows.nbytes)
    return rows


def _read_vertices(file: BinaryIO, element: _Element, encoding: str) -> dict[str, np.ndarray]:
    """The plain properties by name."""
    if element.is_plain or not element.size:
        plain = element._replace(properties=[entry for entry in element.properties if entry[2] is None])
        rows = _read_plain(file, plain, encoding)
        return {name: rows[name] for name, _, _ in plain.properties}
    columns = _read_lists(file, element, encoding)
    return {
        name: np.concatenate(values)
        for (name, _, counter), values in zip(element.properties, columns, strict=True)
        if counter is None
    }


def _read_faces(file: BinaryIO, element: _Element, encoding: str, num_vertices: int) -> np.ndarray | None:
    """Triangles (T, 3); polygons become fans."""
    which = next((i for i, (name, _, _) in enumerate(element.properties) if name.startswith("vertex_ind")), None)
    if which is None or element.properties[which][2] is None:
        return None  # faces of another kind, such as triangle strips: only the vertices can be used
    return triangulate(_read_lists(file, element, encoding)[which], num_vertices)


def _read_lists(file: BinaryIO, element: _Element, encoding: str) -> list[Any]:
    """The values of every property: one array per row, or an array (N, S) of all."""
    rows = _read_uniform(file, element, encoding)
    if rows is not None:
        return [rows[f"value{index}"] for index in range(len(element.properties))]
    return list(zip(*_rows(file, element, encoding), strict=True))


def _read_uniform(file: BinaryIO, element: _Element, encoding: str) -> np.ndarray | None:
    """Rows whose lists are as long as those of the first row: a single read. None if other rows differ."""
    start = file.tell()
    order = _ORDER[encoding]
    try:
        first = next(iter(_rows(file, element._replace(size=1), encoding)))
    finally:
        file.seek(start)
    fields: list[tuple[Any, ...]] = []
    for index, (_, kind, counter) in enumerate(element.properties):
        if counter is not None:
            fields.append((f"count{index}", order + counter))
        fields.append((f"value{index}", order + kind, (len(first[index]),)))
    dtype = np.dtype(fields)
    if encoding != "ascii" and element.size * dtype.itemsize > _left(file):
        return None
    try:
        if encoding == "ascii":
            rows = np.loadtxt(map(spell_nan, file), dtype, comments=None, max_rows=element.size, ndmin=1)
        else:
            rows = np.fromfile(file, dtype, element.size)
    except ValueError:
        rows = np.empty(0, dtype)
    uniform = len(rows) == element.size and all(
        (rows[f"count{index}"] == len(first[index])).all()
        for index, (_, _, counter) in enumerate(element.properties)
        if counter is not None
    )
    file.seek(file.tell() if uniform else start)
    return rows if uniform else None


def _rows(file: BinaryIO, element: _Element, encoding: str) -> Iterator[list[np.ndarray]]:
    """The values of every property, row by row, for lists of different lengths."""
    order = _ORDER[encoding]
    for _ in range(element.size):
        words = spell_nan(file.readline()).split() if encoding == "ascii" else []
        row = []
        for _, kind, counter in element.properties:
            length = 1
            if counter is not None:
                length = int(_take(file, words, encoding, order + counter, 1)[0])
            row.append(_take(file, words, encoding, order + kind, length))
        yield row


def _take(file: BinaryIO, words: list[bytes], encoding: str, kind: str, count: int) -> np.ndarray:
    if count < 0:
        raise InputError("expected lists in the PLY file with a length >= 0, but got a negative one")
    if encoding == "ascii":
        values = np.array(words[:count], dtype=np.float64).astype(kind)
        del words[:count]
    else:
        dtype = np.dtype(kind)
        # No more is allocated than the file holds; most lists are too short to check.
        raw = file.read(count * dtype.itemsize if count < 256 else min(count * dtype.itemsize, _left(file)))
        values = np.frombuffer(raw, dtype, len(raw) // dtype.itemsize)
    if len(values) != count:
        raise InputError("expected a whole list of a PLY element, but the file ends within it")
    return values


def _left(file: BinaryIO) -> int:
    """Bytes from here to the end."""
    return os.fstat(file.fileno()).st_size - file.tell()


def _skip(file: BinaryIO, element: _Element, encoding: str) -> None:
    if encoding == "ascii":
        for _ in range(element.size):
            if not file.readline():
                raise InputError(f"expected {element.size} x {element.name}, but the file ends before")
    else:
        for _ in _rows(file, element, encoding):
            pass


def _storable(name: str, values: np.ndarray) -> np.ndarray:
    """A column in a type that PLY has."""
    kind = values.dtype.str[1:]
    if kind in _NAMES:
        return values
    if kind in ("b1", "f2"):
        return values.astype(np.uint8 if kind == "b1" else np.float32)
    if kind in ("i8", "u8"):
        target = np.int32 if kind == "i8" else np.uint32
        limits = np.iinfo(target)
        if len(values) and not limits.min <= values.min() <= values.max() <= limits.max:
            raise InputError(
                f"expected integers of at most 32 bits in {name}, but got {values.min()} to {values.max()}"
            )
        return values.astype(target)
    raise InputError(f"expected numbers in {name}, but got {values.dtype}")
