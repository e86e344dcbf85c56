"""PCD of the Point Cloud Library: ascii, binary and binary_compressed.

Source: https://pointclouds.org/documentation/tutorials/pcd_file_format.html
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from functools import cache
from itertools import islice
from pathlib import Path

import numpy as np

from pcattn.io.columns import Content
from pcattn.io.text import parse_rows
from pcattn.utils.errors import InputError

_MAX_HEADER = 1 << 16


def read(path: Path, columns: Sequence[str] | None) -> Content:
    """Fields by name; the packed `rgb` becomes `colors` (N, 3) uint8.

    Raises:
        InputError: the file is not a PCD file, or holds less than its header says.
    """
    with path.open("rb") as file:
        header = _read_header(file)
        dtype = _row_type(header)
        count = (
            _number(header, "POINTS") if "POINTS" in header else _number(header, "WIDTH") * _number(header, "HEIGHT")
        )
        body = path.stat().st_size - file.tell()
        encoding = header["DATA"][0]
        if encoding == "ascii":
            fields = _read_ascii(file, dtype, count, body)
        elif encoding == "binary":
            _check_size(count * dtype.itemsize, body)
            rows = np.memmap(file, dtype, "r", file.tell(), count) if count else np.empty(0, dtype)
            fields = {name: rows[name] for name in dtype.names or ()}
        elif encoding == "binary_compressed":
            fields = _read_compressed(file.read(), dtype, count)
        else:
            raise InputError(f"expected DATA ascii, binary or binary_compressed, but got {encoding!r}")
    for name in [name for name in fields if name.partition("#")[0] == "_"]:
        del fields[name]  # padding
    for name in ("rgb", "rgba"):
        if name in fields and fields[name].dtype.itemsize == 4 and fields[name].ndim == 1:
            packed = fields.pop(name)  # bytes blue, green, red, alpha: a view, not a copy
            octets = np.lib.stride_tricks.as_strided(packed.view("<u4"), (len(packed), 1), (packed.strides[0], 4))
            fields["colors"] = octets.view(np.uint8)[:, 2::-1]
    return Content(fields)


def _read_header(file: io.BufferedReader) -> dict[str, list[str]]:
    header: dict[str, list[str]] = {}
    while "DATA" not in header:
        raw = file.readline(_MAX_HEADER)
        if not raw.endswith(b"\n") or file.tell() > _MAX_HEADER:
            raise InputError("expected a PCD header that ends with a line DATA")
        words = raw.decode("latin-1").split()
        if words and not words[0].startswith("#"):
            header[words[0].upper()] = words[1:]
    for name in ("FIELDS", "SIZE", "TYPE", "DATA"):
        if not header.get(name):
            raise InputError(f"expected a line {name} in the PCD header")
    return header


def _row_type(header: dict[str, list[str]]) -> np.dtype:
    fields, sizes, types = header["FIELDS"], header["SIZE"], header["TYPE"]
    counts = header.get("COUNT", ["1"] * len(fields))
    if not len(fields) == len(sizes) == len(types) == len(counts):
        raise InputError(f"expected SIZE, TYPE and COUNT for {len(fields)} fields each")
    parts = []
    for index, (name, size, kind, count) in enumerate(zip(fields, sizes, types, counts, strict=True)):
        if (kind, size) not in {*((k, s) for k in "IU" for s in "1248"), ("F", "4"), ("F", "8")}:
            raise InputError(f"expected a type of PCD for {name}, but got TYPE {kind} SIZE {size}")
        if not count.isdecimal() or int(count) > 4096:
            raise InputError(f"expected COUNT of {name} from 0 to 4096, but got {count}")
        if int(count) == 0:  # some programs write fields that take no bytes
            continue
        shape = () if count == "1" else (int(count),)
        parts.append((f"_#{index}" if name == "_" else name, f"<{kind.lower()}{size}", shape))
    return np.dtype(parts)


def _number(header: dict[str, list[str]], name: str) -> int:
    words = header.get(name, [])
    if len(words) != 1 or not words[0].isdecimal():
        raise InputError(f"expected a number in line {name} of the PCD header, but got {' '.join(words)!r}")
    return int(words[0])


def _check_size(expected: int, available: int) -> None:
    if expected > available:
        raise InputError(f"expected {expected} bytes of points as the header says, but got {available}")


def _read_ascii(file: io.BufferedReader, dtype: np.dtype, count: int, body: int) -> dict[str, np.ndarray]:
    names = dtype.names or ()
    values = sum(max(int(np.prod(dtype[name].shape)), 1) for name in names)
    _check_size(2 * count * values - 1, body)
    # PCL writes integers without and floats with a point, and packed colors as either: text is read as numbers first.
    table = parse_rows(list(islice(file, count))) if count else np.empty((0, values))
    if table.shape != (count, values):
        raise InputError(f"expected {count} lines of {values} numbers, but got {table.shape[0]} of {table.shape[1]}")
    columns, start = {}, 0
    for name in names:
        base, shape = dtype[name].base, dtype[name].shape
        stop = start + max(int(np.prod(shape)), 1)
        columns[name] = table[:, start:stop].astype(base).reshape(count, *shape)
        start = stop
    return columns


def _read_compressed(body: bytes, dtype: np.dtype, count: int) -> dict[str, np.ndarray]:
    """Compressed by LZF, and stored field by field."""
    if len(body) < 8:
        raise InputError("expected compressed points, but the file ends before them")
    packed, size = (int(number) for number in np.frombuffer(body, "<u4", 2))
    if size != count * dtype.itemsize:
        raise InputError(f"expected {count * dtype.itemsize} bytes of points, but got {size}")
    _check_size(packed, len(body) - 8)
    if size > 264 * packed:  # the most that LZF makes of a few bytes
        raise InputError(f"expected compressed points, but {packed} bytes cannot hold {size}")
    raw = np.empty(size, np.uint8)
    if _lzf()(np.frombuffer(body, np.uint8, packed, 8), raw) != size:
        raise InputError("expected points compressed by LZF, but got damaged ones")
    columns, start = {}, 0
    for name in dtype.names or ():
        stop = start + count * dtype[name].itemsize
        columns[name] = raw[start:stop].view(dtype[name].base).reshape(count, *dtype[name].shape)
        start = stop
    return columns


@cache
def _lzf() -> Callable[[np.ndarray, np.ndarray], int]:
    """`(packed, out) -> number of bytes written`, or -1 for damaged input; compiled at the first use.

    Own code: there is no pure Python package for LZF, and the compiled ones lack wheels for many systems.
    """
    from pcattn.ops.threads import jit

    return jit(_lzf_decompress)


def _lzf_decompress(packed: np.ndarray, out: np.ndarray) -> int:
    read, written = 0, 0
    while read < len(packed):
        control = int(packed[read])
        read += 1
        if control < 32:  # literal bytes
            length = control + 1
            if read + length > len(packed) or written + length > len(out):
                return -1
            for _ in range(length):
                out[written] = packed[read]
                written += 1
                read += 1
            continue
        length = control >> 5
        if length == 7:
            if read >= len(packed):
                return -1
            length += int(packed[read])
            read += 1
        if read >= len(packed):
            return -1
        source = written - ((control & 31) << 8) - int(packed[read]) - 1
        read += 1
        length += 2
        if source < 0 or written + length > len(out):
            return -1
        for _ in range(length):  # byte by byte: the source may overlap what is being written
            out[written] = out[source]
            written += 1
            source += 1
    return written
