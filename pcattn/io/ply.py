"""PLY: ascii and binary of both byte orders, with any properties of the vertices.

Read here and not by a library: plyfile is under the GPL, and trimesh stores positions in single precision and refuses
faces with different numbers of corners.

Source: Greg Turk, The PLY Polygon File Format, 1994.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, NamedTuple

import numpy as np

from pcattn.utils.errors import InputError

if TYPE_CHECKING:
    from pcattn.io.cloud import Cloud

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

    @property
    def is_plain(self) -> bool:
        return all(counter is None for _, _, counter in self.properties)

    def dtype(self, order: str) -> np.dtype:
        return np.dtype([(name, order + kind) for name, kind, _ in self.properties])


def read(path: Path, columns: Sequence[str] | None) -> tuple[dict[str, np.ndarray], np.ndarray | None]:
    """Columns of the vertices, and the triangles (T, 3) if there are faces.

    Raises:
        InputError: the file is no PLY, or holds less than its header says.
    """
    with path.open("rb") as file:
        encoding, elements = _read_header(file)
        size = path.stat().st_size
        vertices, faces = None, None
        for element in elements:
            _check_size(element, encoding, size - file.tell())
            if element.name == "vertex":
                if not element.is_plain:
                    raise InputError("expected vertices with plain properties, but got a list property")
                vertices = _read_plain(file, element, encoding)
            elif element.name == "face" and element.size and vertices is not None:
                faces = _read_faces(file, element, encoding, len(vertices))
            elif element.is_plain and encoding != "ascii":
                file.seek(element.size * element.dtype("<").itemsize, 1)
            else:
                _skip(file, element, encoding)
            if vertices is not None and (faces is not None or element.name == "face"):
                break
            if vertices is not None and not any(other.name == "face" and other.count for other in elements):
                break
    if vertices is None:
        raise InputError("expected an element vertex in the PLY header")
    names = vertices.dtype.names or ()
    return {name: vertices[name] for name in names}, faces


def write(path: Path, num_points: int, blocks: Iterable[Cloud]) -> None:
    """Binary little-endian PLY of positions (N, 3) and attributes (N,) or (N, C), which come block by block.

    Raises:
        InputError: an attribute has another length, is not numeric, does not fit into 32 bits, or has a name that PLY
            cannot hold; the blocks differ in this, or do not have `num_points` together.
    """
    dtype, written = None, 0
    with path.open("wb") as file:
        for block in blocks:
            columns = _columns(block.pos, block.attributes)
            own = np.dtype([(name, values.dtype.newbyteorder("<")) for name, values in columns.items()])
            if dtype is None:
                dtype = own
                lines = ["ply", "format binary_little_endian 1.0", f"element vertex {num_points}"]
                lines += [f"property {_NAMES[values.dtype.str[1:]]} {name}" for name, values in columns.items()]
                file.write("\n".join([*lines, "end_header", ""]).encode())
            if own != dtype:
                raise InputError(f"expected blocks with the attributes {dtype}, but got {own}")
            for start in range(0, len(block.pos), _ROWS):
                rows = np.empty(min(_ROWS, len(block.pos) - start), dtype)
                for name, values in columns.items():
                    rows[name] = values[start : start + _ROWS]
                file.write(rows.data)  # `tofile` does not tell why it could not
            written += len(block.pos)
    if written != num_points:
        raise InputError(f"expected {num_points} points, but got {written}")


def _columns(pos: np.ndarray, attributes: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Columns (N,) in types that PLY has, by their names there."""
    if pos.ndim != 2 or pos.shape[1] != 3:
        raise InputError(f"expected pos (N, 3), but got {pos.shape}")
    columns = {axis: _storable(axis, pos[:, index]) for index, axis in enumerate("xyz")}
    for name, values in attributes.items():
        if len(values) != len(pos) or values.ndim not in (1, 2):
            raise InputError(f"expected {name} of {len(pos)} points, but got an array of {values.shape}")
        for column, part in zip(_column_names(name, values), values.reshape(len(pos), -1).T, strict=True):
            if column in columns or not column.isprintable() or len(column.split()) != 1:
                raise InputError(f"expected attributes with names of their own, without spaces, but got {column!r}")
            columns[column] = _storable(column, part)
    return columns


def _read_header(file: BinaryIO) -> tuple[str, list[_Element]]:
    def line() -> list[str]:
        raw = file.readline(_MAX_HEADER)
        if not raw.endswith(b"\n") or file.tell() > _MAX_HEADER:
            raise InputError("expected a PLY header that ends with end_header")
        try:
            return raw.decode("utf-8").split()
        except UnicodeDecodeError as error:
            raise InputError("expected a PLY header of text") from error

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
                elements[-1].properties.append((name, _TYPES[kind], _TYPES[counter]))
            case ["property", kind, name] if elements and kind in _TYPES:
                elements[-1].properties.append((name, _TYPES[kind], None))
            case _:
                raise InputError(f"expected a line of a PLY header, but got {' '.join(words)[:80]!r}")
    if encoding is None:
        raise InputError("expected a line `format` in the PLY header")
    return encoding, elements


def _check_size(element: _Element, encoding: str, available: int) -> None:
    """Refuse a count that the bytes left in the file cannot hold, before anything is allocated for it."""
    kinds = [counter or kind for _, kind, counter in element.properties]
    # A value in text takes a digit and a separator; the last line may lack its separator.
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
            rows = np.loadtxt(file, dtype, comments=None, max_rows=element.size, ndmin=1)
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


def _read_faces(file: BinaryIO, element: _Element, encoding: str, num_vertices: int) -> np.ndarray | None:
    """Triangles (T, 3); polygons become fans."""
    which = [
        index for index, (name, _, _) in enumerate(element.properties) if name in ("vertex_indices", "vertex_index")
    ]
    if not which or element.properties[which[0]][2] is None:
        return None  # faces of another kind, such as triangle strips: the vertices are what can be used
    uniform = _uniform_faces(file, element, encoding, which[0])
    if uniform is None:
        by_size: dict[int, list[np.ndarray]] = {}
        for row in _rows(file, element, encoding):
            if len(polygon := row[which[0]]) >= 3:
                by_size.setdefault(len(polygon), []).append(polygon)
        groups = [np.array(polygons) for _, polygons in sorted(by_size.items())]
    else:
        groups = [uniform]
    return triangulate(groups, num_vertices)


def triangulate(groups: list[np.ndarray], num_vertices: int) -> np.ndarray:
    """Triangles (T, 3) from polygons, given as arrays (P, S) of vertex indices with one size S each.

    Raises:
        InputError: an index is not that of a vertex.
    """
    fans = [polygons[:, [0, i, i + 1]] for polygons in groups for i in range(1, polygons.shape[1] - 1)]
    triangles = np.concatenate(fans).astype(np.int64) if fans else np.empty((0, 3), np.int64)
    if len(triangles) and not 0 <= triangles.min() <= triangles.max() < num_vertices:
        raise InputError(f"expected faces of vertices 0 to {num_vertices - 1}, but got {triangles.max()}")
    return triangles


def _uniform_faces(file: BinaryIO, element: _Element, encoding: str, which: int) -> np.ndarray | None:
    """Polygons (P, S) where all lists have the length of the first one: a single read. None where they do not."""
    start = file.tell()
    order = _ORDER[encoding]
    try:
        first = next(iter(_rows(file, element._replace(size=1), encoding)))
    finally:
        file.seek(start)
    fields: list[tuple] = []
    for index, (_, kind, counter) in enumerate(element.properties):
        if counter is not None:
            fields.append((f"count{index}", order + counter))
        fields.append((f"value{index}", order + kind, (len(first[index]),)))
    dtype = np.dtype(fields)
    if encoding != "ascii" and element.size * dtype.itemsize > _left(file):
        return None
    try:
        if encoding == "ascii":
            rows = np.loadtxt(file, dtype, comments=None, max_rows=element.size, ndmin=1)
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
    return rows[f"value{which}"] if uniform else None


def _rows(file: BinaryIO, element: _Element, encoding: str) -> Iterator[list[np.ndarray]]:
    """The values of every property, row by row: lists of several lengths leave no other way."""
    order = _ORDER[encoding]
    for _ in range(element.size):
        words = file.readline().split() if encoding == "ascii" else []
        row = []
        for _, kind, counter in element.properties:
            length = 1
            if counter is not None:
                length = int(_take(file, words, encoding, order + counter, 1)[0])
            row.append(_take(file, words, encoding, order + kind, length))
        yield row


def _take(file: BinaryIO, words: list[bytes], encoding: str, kind: str, count: int) -> np.ndarray:
    if count < 0:
        raise InputError("expected lists of the PLY file with a length, but got a negative one")
    if encoding == "ascii":
        values = np.array(words[:count], dtype=np.float64).astype(kind)
        del words[:count]
    else:
        dtype = np.dtype(kind)
        # Only what is there is allocated; most lists are too short to ask.
        raw = file.read(count * dtype.itemsize if count < 256 else min(count * dtype.itemsize, _left(file)))
        values = np.frombuffer(raw, dtype, len(raw) // dtype.itemsize)
    if len(values) != count:
        raise InputError("it ends within a list of a PLY element")
    return values


def _left(file: BinaryIO) -> int:
    """Bytes between here and the end."""
    return os.fstat(file.fileno()).st_size - file.tell()


def _skip(file: BinaryIO, element: _Element, encoding: str) -> None:
    if encoding == "ascii":
        for _ in range(element.size):
            if not file.readline():
                raise InputError(f"expected {element.size} x {element.name}, but it ends before")
    else:
        for _ in _rows(file, element, encoding):
            pass


def _column_names(name: str, values: np.ndarray) -> list[str]:
    if values.ndim == 1:
        return [name]
    known = {"normals": ["nx", "ny", "nz"], "colors": ["red", "green", "blue", "alpha"]}.get(name, [])
    width = values.shape[1]
    return known[:width] if 3 <= width <= len(known) else [f"{name}_{index}" for index in range(width)]


def _storable(name: str, values: np.ndarray) -> np.ndarray:
    """The column in a type that PLY has."""
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
