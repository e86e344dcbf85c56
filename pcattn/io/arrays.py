"""Points in tables: text of any separator, numpy arrays, and LAS."""

from __future__ import annotations

import re
import struct
import zipfile
import zlib
from collections.abc import Sequence
from math import prod
from pathlib import Path
from typing import IO

import numpy as np

from pcattn.io.columns import check_names, name_columns
from pcattn.io.limits import check_expansion
from pcattn.utils.errors import InputError

Columns = dict[str, np.ndarray]

_COMMENTS = ("#", "//")
_MAX_HEADER = 10_000  # bytes of a `.npy` header, as in numpy


def read_text(path: Path, columns: Sequence[str] | None) -> Columns:
    """Columns of a text file, one point a line, separated by blanks, commas, semicolons or tabs.

    A line of names is understood, also behind `#` or `//`; and the line with the number of points of a `.pts` file,
    which is then checked.

    Raises:
        InputError: a line lacks a column or is no row of numbers, or the file is shorter than it says.
    """
    with path.open("rb") as file:
        start = file.read(1 << 16)
    lines = start.decode("utf-8-sig", errors="replace").splitlines()
    skipped, names, count = 0, None, None
    for number, line in enumerate(lines):
        words = _split(line)
        if words and not line.lstrip().startswith(_COMMENTS):
            if _are_numbers(words):
                following = next((_split(later) for later in lines[number + 1 :] if later.strip()), [])
                if len(words) == 1 and words[0].isdecimal() and len(following) > 1:
                    count, skipped = int(words[0]), number + 1
                    continue
                break
            if names is not None or not _are_names(words):
                raise InputError(f"expected numbers in line {number + 1}, but got {line.strip()[:60]!r}")
        commented = [word for word in _split(line.strip().lstrip("#/")) if word]
        if _are_names(commented):
            names = [word.strip("\"'") for word in commented]
        skipped = number + 1
    else:
        raise InputError("expected lines of numbers, but got none")
    separator = next((mark for mark in ",;" if mark in line), None)
    with path.open("rb") as file:
        for _ in range(skipped):
            file.readline()
        try:
            table = np.loadtxt(file, np.float64, comments=list(_COMMENTS), delimiter=separator, ndmin=2)
        except ValueError as error:
            raise InputError(_with_line(str(error), skipped)) from error
    if count is not None and len(table) != count:
        raise InputError(f"expected {count} points as its first line says, but got {len(table)}")
    if columns is not None:
        names = check_names(columns, table.shape[1])
    elif names is None or len(names) != table.shape[1]:
        names = name_columns(table, intensity=path.suffix.lower() == ".pts")
    return {name: table[:, index] for index, name in enumerate(names)}


def read_npy(path: Path, columns: Sequence[str] | None) -> Columns:
    """Columns of an array (N, C) or of a structured one (N,).

    Raises:
        InputError: it is pickled, or has another shape.
    """
    with path.open("rb") as file:
        expected = _promised_size(file)
    if expected > path.stat().st_size:
        raise InputError(f"expected {expected} bytes as the header says, but got {path.stat().st_size}")
    return _from_array(np.lib.format.open_memmap(path, mode="r"), columns)


def read_npz(path: Path, columns: Sequence[str] | None) -> Columns:
    """Columns of the array `pos`, `points`, `xyz` or `data` (or the only one of two axes), and the others by name.

    Raises:
        InputError: there is no such array, or one is pickled or larger than the archive can hold.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            # Members may share their bytes.
            file_size = path.stat().st_size
            check_expansion("of all members", sum(member.file_size for member in members), file_size, file_size)
            for member in members:
                with archive.open(member) as file:
                    _check_member(member, file, file_size)
        with np.load(path, allow_pickle=False) as arrays:
            loaded = {name: arrays[name] for name in arrays.files}
    except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError, zlib.error) as error:
        raise InputError(f"expected an archive of numpy arrays, but got: {error}") from error
    main = next((name for name in ("pos", "points", "xyz", "data") if name in loaded), None)
    if main is None:
        tables = [name for name, array in loaded.items() if array.ndim == 2 and array.shape[1] >= 3]
        if len(tables) != 1:
            raise InputError(f"expected an array pos (N, 3), but got {', '.join(loaded) or 'no arrays'}")
        main = tables[0]
    result = _from_array(loaded.pop(main), columns)
    num_points = len(result["x"]) if "x" in result else -1
    # What is not about points, such as a name or a class, is left out.
    result |= {name: array for name, array in loaded.items() if array.ndim in (1, 2) and len(array) == num_points}
    return result


def read_las(path: Path, columns: Sequence[str] | None) -> Columns:
    """Columns of a LAS or LAZ file, with coordinates in its own unit as float64.

    Raises:
        ImportError: laspy is not installed.
        InputError: the file is broken.
    """
    import laspy  # imported here: an optional dependency, `pip install pcattn[las]`

    parts: dict[str, list[np.ndarray]] = {}
    try:
        _check_las_header(path)
        # One thread: files are read side by side anyway, and a process forked from one with threads would wait forever.
        with laspy.open(path, laz_backend=laspy.LazBackend.Lazrs) as file:
            expected, size = file.header.point_count, file.header.point_format.size
            available = path.stat().st_size - file.header.offset_to_point_data
            if not file.header.are_points_compressed and expected * size > available:
                raise InputError(f"expected {expected} points of {size} bytes, but got {available} bytes")
            names = [name for name in file.header.point_format.dimension_names if name not in ("X", "Y", "Z")]
            # Bit by bit: the header of a compressed file cannot be checked, and nothing is allocated for what it says.
            for points in file.chunk_iterator(max(1, (1 << 25) // size)):
                for name in ("x", "y", "z", *names):
                    parts.setdefault(name, []).append(np.array(points[name]))
    except (ValueError, OSError, KeyboardInterrupt):
        raise
    except BaseException as error:  # a panic of the decompressor, which is written in Rust, is no Exception
        raise InputError(f"expected a LAS file, but reading it failed: {error}") from error
    result = {name: np.concatenate(arrays) for name, arrays in parts.items()}
    if len(result.get("x", ())) != expected:
        raise InputError(f"expected {expected} points as the header says, but got {len(result.get('x', ()))}")
    return result


def _check_las_header(path: Path) -> None:
    """Refuse counts of records before the points that the file cannot hold: laspy would read on for hours."""
    size = path.stat().st_size
    with path.open("rb") as file:
        header = file.read(255)
    if len(header) < 227:
        raise InputError(f"expected a LAS header of 227 bytes, but got {len(header)}")
    offset, records = struct.unpack_from("<II", header, 96)
    extended = struct.unpack_from("<I", header, 243)[0] if header[25] >= 4 and len(header) == 255 else 0
    if 54 * records > offset or offset > size or 60 * extended > size:
        raise InputError(
            f"expected a LAS header that fits {size} bytes, but got {records} records before byte {offset}"
        )
    if header[104] & 0x80:
        _check_chunks(path, offset, size)


def _check_chunks(path: Path, offset: int, size: int) -> None:
    """Refuse a number of compressed chunks that the file cannot hold: the decompressor allocates for them, and where
    that fails it ends the process."""
    with path.open("rb") as file:
        file.seek(offset)
        (table,) = struct.unpack("<q", file.read(8).ljust(8, b"\0"))
        if table == -1:  # written as a stream: it stands at the end
            file.seek(-8, 2)
            (table,) = struct.unpack("<q", file.read(8))
        if not offset <= table <= size - 8:
            raise InputError(f"expected a table of chunks in {size} bytes, but got one at byte {table}")
        file.seek(table + 4)
        (chunks,) = struct.unpack("<I", file.read(4))
    if chunks > size:
        raise InputError(f"expected chunks that fit {size} bytes, but got {chunks} of them")


def _from_array(array: np.ndarray, columns: Sequence[str] | None) -> Columns:
    if array.dtype.names and array.ndim == 1:
        return {name: array[name] for name in array.dtype.names}
    if array.ndim != 2 or not np.issubdtype(array.dtype, np.number):
        raise InputError(f"expected an array of numbers (N, C), but got {array.dtype} of {array.shape}")
    names = check_names(columns, array.shape[1]) if columns is not None else name_columns(array)
    return {name: array[:, index] for index, name in enumerate(names)}


def _check_member(member: zipfile.ZipInfo, file: IO[bytes], file_size: int) -> None:
    """Refuse an array whose header says another size than the archive does, and one too small to hold either."""
    size = _promised_size(file)
    if size != member.file_size:
        raise InputError(f"expected {size} bytes of {member.filename} as its header says, but got {member.file_size}")
    check_expansion(member.filename, size, member.compress_size, file_size)


def _promised_size(file: IO[bytes]) -> int:
    """Bytes of a `.npy` file as its header says.

    Raises:
        InputError: the header is none of numpy's, too long, or one of pickled objects.
    """
    version = np.lib.format.read_magic(file)
    if version not in ((1, 0), (2, 0), (3, 0)):
        raise InputError(f"expected version 1, 2 or 3 of the format of numpy, but got {version[0]}.{version[1]}")
    length = file.read(2 if version == (1, 0) else 4)
    if (size := int.from_bytes(length, "little")) > _MAX_HEADER:  # numpy would make room for it first
        raise InputError(f"expected a header of at most {_MAX_HEADER} bytes, but got {size}")
    file.seek(-len(length), 1)
    read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read_header(file)
    if dtype.hasobject:
        raise InputError("expected numbers, but got pickled objects, which are never unpickled")
    return file.tell() + prod(shape) * dtype.itemsize


def _split(line: str) -> list[str]:
    separator = next((mark for mark in ",;" if mark in line), None)
    return [word.strip() for word in line.split(separator)] if line.strip() else []


def _are_numbers(words: list[str]) -> bool:
    try:
        return bool([float(word) for word in words])
    except ValueError:
        return False


def _are_names(words: list[str]) -> bool:
    return {"x", "y", "z"} <= {word.strip("\"'").lower() for word in words}


def _with_line(message: str, skipped: int) -> str:
    """numpy's message with the number of the line, which it counts from the first row of numbers."""
    line = re.search(r"at row (\d+)", message)
    reason = message.partition(";")[0]
    # Conversion errors count from 0 and changes of width from 1; both name the row and not the line of the file.
    first = 1 if "could not convert" in message else 0
    return f"line {int(line[1]) + skipped + first}: {reason[: reason.find(' at row')]}" if line else reason
