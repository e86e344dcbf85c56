"""Arrays of HDF5 files, checked: a file can refer to other files, and claim to hold more than fits in memory."""

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
    """Read whole arrays of a file, and nothing outside of it.

    Args:
        path: the file.
        wanted: the type of each required array, by name.
        optional: the type of each array that may be missing, by name.
        finite: whether to refuse NaN and infinity.

    Raises:
        DatasetBrokenError: the file is truncated or is not HDF5; or an array is missing, is stored in another file
            (external and soft links, external storage, virtual data sets), is larger than its bytes can hold, does not
            hold numbers, or holds NaN, infinity or fractions where they are refused.
    """
    import h5py  # only this format needs it

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
    """The array in the wanted type; fractions are not rounded to integers."""
    with np.errstate(invalid="ignore"):
        converted = array.astype(dtype, copy=False)
    if dtype.kind == "i" and array.dtype.kind == "f" and (changed := converted != array).any():
        raise InputError(f"{array[changed][0]} in {name}, which must hold integers")
    return converted


def _read(file: Any, name: str, file_size: int) -> NDArray[Any]:
    """An array that is stored in the file itself."""
    import h5py

    if name in file and not isinstance(file.get(name, getlink=True), h5py.HardLink):
        raise InputError(f"a link in place of {name}")
    array = file[name]
    if not isinstance(array, h5py.Dataset) or not array.shape or array.dtype.kind not in "biuf":
        raise InputError(f"something other than numbers in {name}")
    if array.is_virtual or array.external:
        raise InputError(f"{name} in another file")
    stored = min(array.id.get_storage_size(), file_size)
    if array.size:  # a chunk is decompressed as a whole, even if little of it belongs to the array
        check_expansion(name, max(array.size, prod(array.chunks or ())) * array.dtype.itemsize, stored, file_size)
    return array[:]
