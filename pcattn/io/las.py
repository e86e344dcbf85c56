"""LAS and LAZ, read by laspy."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pcattn.io.columns import Content
from pcattn.utils.errors import InputError

_CHUNK = 1 << 25  # bytes of points that are read at a time


def read(path: Path, columns: Sequence[str] | None) -> Content:
    """All dimensions by name, with coordinates in the file's unit as float64.

    Raises:
        ImportError: laspy is not installed, or lazrs for a LAZ file.
        InputError: the file is broken.
    """
    import laspy  # an optional dependency: pip install pcattn[las]

    if _check_header(path):
        import lazrs  # noqa: F401  laspy's error for a missing decompressor does not say what to install
    parts: dict[str, list[np.ndarray]] = {}
    try:
        # One thread: files are read side by side anyway, and a process forked from one with threads waits forever.
        with laspy.open(path, laz_backend=laspy.LazBackend.Lazrs) as file:
            expected, size = file.header.point_count, file.header.point_format.size
            available = path.stat().st_size - file.header.offset_to_point_data
            if not file.header.are_points_compressed and expected * size > available:
                raise InputError(f"expected {expected} points of {size} bytes, but got {available} bytes")
            names = [name for name in file.header.point_format.dimension_names if name not in ("X", "Y", "Z")]
            # In chunks: the header of a compressed file cannot be checked, so nothing is allocated for its count.
            for points in file.chunk_iterator(max(1, _CHUNK // size)):
                for name in ("x", "y", "z", *names):
                    parts.setdefault(name, []).append(np.array(points[name]))
    except (ValueError, OSError, KeyboardInterrupt):
        raise
    except BaseException as error:  # a panic of the decompressor, which is written in Rust, is not an Exception
        raise InputError(f"expected a LAS file, but reading it failed: {error}") from error
    result = {name: np.concatenate(arrays) for name, arrays in parts.items()}
    if len(result.get("x", ())) != expected:
        raise InputError(f"expected {expected} points as the header says, but got {len(result.get('x', ()))}")
    return Content(result)


def _check_header(path: Path) -> bool:
    """Whether the points are compressed.

    Counts of records that the file cannot hold are refused: laspy would read on for hours.
    """
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
    compressed = bool(header[104] & 0x80)
    if compressed:
        _check_chunks(path, offset, size)
    return compressed


def _check_chunks(path: Path, offset: int, size: int) -> None:
    """Refuse a number of compressed chunks that the file cannot hold.

    The decompressor allocates memory for all of them, and a failure there ends the process.
    """
    with path.open("rb") as file:
        file.seek(offset)
        (table,) = struct.unpack("<q", file.read(8).ljust(8, b"\0"))
        if table == -1:  # written as a stream: it is at the end
            file.seek(-8, 2)
            (table,) = struct.unpack("<q", file.read(8))
        if not offset <= table <= size - 8:
            raise InputError(f"expected a table of chunks in {size} bytes, but got one at byte {table}")
        file.seek(table + 4)
        (chunks,) = struct.unpack("<I", file.read(4))
    if chunks > size:
        raise InputError(f"expected chunks that fit {size} bytes, but got {chunks} of them")
