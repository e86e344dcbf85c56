"""NumPy arrays: `.npy` and `.npz`."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Sequence
from math import prod
from pathlib import Path
from typing import IO

import numpy as np

from pcattn.io.channels import canonical
from pcattn.io.columns import Content, check_names, name_columns
from pcattn.io.limits import check_expansion
from pcattn.utils.errors import InputError

_MAX_HEADER = 10_000  # bytes of a `.npy` header, as in numpy


def read_npy(path: Path, columns: Sequence[str] | None) -> Content:
    """Columns of an array (N, C) or of a structured one (N,).

    Raises:
        InputError: it is pickled, or has another shape.
    """
    with path.open("rb") as file:
        expected = _promised_size(file)
    if expected > path.stat().st_size:
        raise InputError(f"expected {expected} bytes as the header says, but got {path.stat().st_size}")
    return Content(_from_array(np.lib.format.open_memmap(path, mode="r"), columns))


def read_npz(path: Path, columns: Sequence[str] | None) -> Content:
    """Columns of the array of positions, and the other arrays by name.

    The array of positions is called `pos`, `points`, `xyz`, `coord` (see `pcattn.io.channels`) or `data`, or it is the
    only table. Arrays of another length, such as the name or class of a shape, are left out.

    Raises:
        InputError: there is no such array, or one is pickled or larger than the archive can hold.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            file_size = path.stat().st_size
            # Members may share their bytes.
            check_expansion("of all members", sum(m.file_size for m in archive.infolist()), file_size, file_size)
            for member in archive.infolist():
                with archive.open(member) as file:
                    _check_member(member, file, file_size)
        with np.load(path, allow_pickle=False) as arrays:
            loaded = {name: arrays[name] for name in arrays.files}
    except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError, zlib.error) as error:
        raise InputError(f"expected an archive of numpy arrays, but got: {error}") from error
    result = _from_array(loaded.pop(_find_positions(loaded)), columns)
    num_points = len(next(iter(result.values()), ()))
    for name, array in loaded.items():
        if array.ndim in (1, 2) and len(array) == num_points:
            if name in result:
                raise InputError(f"expected one array {name}, but got a column of that name as well")
            result[name] = array
    return Content(result)


def _find_positions(arrays: dict[str, np.ndarray]) -> str:
    named = [name for name in arrays if canonical(name) == "pos"]
    tables = [name for name, array in arrays.items() if array.ndim == 2 and array.shape[1] >= 3]
    for candidates in (["pos"] if "pos" in arrays else named, ["data"] if "data" in arrays else tables):
        if len(candidates) == 1:
            return candidates[0]
    raise InputError(f"expected an array pos (N, 3), but got {', '.join(arrays) or 'no arrays'}")


def _from_array(array: np.ndarray, columns: Sequence[str] | None) -> dict[str, np.ndarray]:
    if array.dtype.names and array.ndim == 1:
        return {name: array[name] for name in array.dtype.names}
    if array.ndim != 2 or not np.issubdtype(array.dtype, np.number):
        raise InputError(f"expected an array of numbers (N, C), but got {array.dtype} of {array.shape}")
    if columns is not None:
        return {name: array[:, i] for i, name in enumerate(check_names(columns, array.shape[1]))}
    names = name_columns(array)
    return {"pos": array[:, :3], **{name: array[:, i] for i, name in enumerate(names) if i >= 3}}


def _check_member(member: zipfile.ZipInfo, file: IO[bytes], file_size: int) -> None:
    """Refuse an array whose size differs between its header and the archive, or that its bytes cannot hold."""
    size = _promised_size(file)
    if size != member.file_size:
        raise InputError(f"expected {size} bytes of {member.filename} as its header says, but got {member.file_size}")
    check_expansion(member.filename, size, member.compress_size, file_size)


def _promised_size(file: IO[bytes]) -> int:
    """Bytes of a `.npy` file according to its header.

    Raises:
        InputError: the header is not one of numpy's, is too long, or describes pickled objects.
    """
    version = np.lib.format.read_magic(file)
    if version not in ((1, 0), (2, 0), (3, 0)):
        raise InputError(f"expected version 1, 2 or 3 of numpy's file format, but got {version[0]}.{version[1]}")
    length = file.read(2 if version == (1, 0) else 4)
    if (size := int.from_bytes(length, "little")) > _MAX_HEADER:  # numpy would allocate it first
        raise InputError(f"expected a header of at most {_MAX_HEADER} bytes, but got {size}")
    file.seek(-len(length), 1)
    read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read_header(file)
    if dtype.hasobject:
        raise InputError("expected numbers, but got pickled objects, which are never unpickled")
    return file.tell() + prod(shape) * dtype.itemsize
