"""Arrays of HDF5 files, checked."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from .errors import DatasetBrokenError


def read_arrays(
    path: Path,
    wanted: Mapping[str, DTypeLike],
    optional: Mapping[str, DTypeLike] | None = None,
    finite: bool = True,
) -> dict[str, NDArray[Any]]:
    """Whole arrays of a file, which is opened read-only.

    Args:
        path: the file.
        wanted: the type of each array that has to be there, by name.
        optional: the same of those that may be there.
        finite: refuse NaN and infinity.

    Raises:
        DatasetBrokenError: the file is truncated or none of HDF5, an array is missing, or holds NaN or
            infinity where `finite`.
    """
    import h5py  # imported here: only this format needs it

    arrays = {}
    try:
        with h5py.File(path, "r") as file:
            for name, dtype in (*wanted.items(), *(optional or {}).items()):
                if name in file or name in wanted:
                    arrays[name] = file[name][:].astype(dtype, copy=False)
    except (OSError, KeyError, TypeError, ValueError, RuntimeError) as error:
        names = " and ".join(f"`{name}`" for name in wanted)
        raise DatasetBrokenError(path, f"expected an HDF5 file with {names}, but got: {error}") from error
    for name, array in arrays.items():
        if finite and array.dtype.kind == "f" and not np.isfinite(array).all():
            cloud = int(np.argmin(np.isfinite(array.reshape(len(array), -1)).all(axis=1)))
            raise DatasetBrokenError(path, f"expected finite numbers in {name}, but cloud {cloud} has NaN or infinity")
    return arrays
