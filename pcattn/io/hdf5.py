"""Arrays of HDF5 files, checked: a file may name others, and promise more than any memory holds."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from pcattn.io.limits import check_expansion
from pcattn.utils.errors import DatasetBrokenError, InputError


def read_arrays(
    path: Path,
    wanted: Mapping[str, DTypeLike],
    optional: Mapping[str, DTypeLike] | None = None,
    finite: bool = True,
) -> dict[str, NDArray[Any]]:
    """Whole arrays of a file, which is opened read-only. What lies outside of it is not read.

    Args:
        path: the file.
        wanted: the type of each array that has to be there, by name.
        optional: the same of those that may be there.
        finite: refuse NaN and infinity.

    Raises:
        DatasetBrokenError: the file is truncated or none of HDF5; an array is missing, lies in another file (external
            and soft links, external storage, virtual data sets), is larger than its bytes can hold, is none of
            numbers, holds others than integers where those are wanted, or NaN or infinity where `finite`.
    """
    import h5py  # imported here: only this format needs it

    arrays = {}
    try:
        with h5py.File(path, "r") as file:
            for name, dtype in (*wanted.items(), *(optional or {}).items()):
                if name in wanted or name in file:
                    arrays[name] = _convert(name, _read(file, name, path.stat().st_size), np.dtype(dtype))
    except MemoryError as error:
        raise DatasetBrokenError(path, "it is too large for the memory of this machine") from error
    except (OSError, KeyError, TypeError, ValueError, RuntimeError, OverflowError) as error:
        names = " and ".join(f"`{name}`" for name in wanted)
        raise DatasetBrokenError(path, f"expected an HDF5 file with {names}, but got: {error}") from error
    for name, array in arrays.items():
        if finite and array.dtype.kind == "f" and not np.isfinite(array).all():
            cloud = int(np.argmin(np.isfinite(array.reshape(len(array), -1)).all(axis=1)))
            raise DatasetBrokenError(path, f"expected finite numbers in {name}, but cloud {cloud} has NaN or infinity")
    return arrays


def _convert(name: str, array: NDArray[Any], dtype: np.dtype) -> NDArray[Any]:
    """In the wanted type; integers are not made by rounding."""
    with np.errstate(invalid="ignore"):
        converted = array.astype(dtype, copy=False)
    if dtype.kind == "i" and array.dtype.kind == "f" and (changed := converted != array).any():
        raise InputError(f"{array[changed][0]} in {name}, which is to hold integers")
    return converted


def _read(file: Any, name: str, file_size: int) -> NDArray[Any]:
    """An array that lies in the file itself."""
    import h5py

    if name in file and not isinstance(file.get(name, getlink=True), h5py.HardLink):
        raise InputError(f"a link in place of {name}")
    array = file[name]
    if not isinstance(array, h5py.Dataset) or not array.shape or array.dtype.kind not in "biuf":
        raise InputError(f"something else than numbers in {name}")
    if array.is_virtual or array.external:
        raise InputError(f"{name} in another file")
    stored = min(array.id.get_storage_size(), file_size)
    if array.size:  # a chunk is decompressed as a whole, however little of it belongs to the array
        check_expansion(name, max(array.size, prod(array.chunks or ())) * array.dtype.itemsize, stored, file_size)
    return array[:]
