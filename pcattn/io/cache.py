"""Caches: what is slow to read is kept as raw arrays, which later runs map into memory."""

from __future__ import annotations

import json
import operator
import os
import shutil
import tempfile
import time
import uuid
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from hashlib import sha256
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pcattn.utils.errors import DatasetBrokenError, DatasetError, InputError

VERSION = 1
"""Part of the key of every cache; increase it when the format of this file changes."""

_INDEX = "index.json"
_STALE = 24 * 3600  # seconds after which no process can still be writing a cache


class CacheElsewhereWarning(UserWarning):
    """The folder of a data set is read-only, so its cache is stored elsewhere. The data is fine."""


class Cached(NamedTuple):
    """The content of a cache."""

    arrays: dict[str, NDArray[Any]]  #: mapped copy-on-write: read on access, never written back
    info: dict[str, Any]  #: plain data
    folder: Path  #: the folder of the cache

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Turn errors into ones that name the cache, which may come from a stranger and hold anything.

        Raises:
            DatasetBrokenError: anything but a `DatasetError` was raised in the block.
        """
        try:
            yield
        except DatasetError:
            raise
        except MemoryError as error:
            raise DatasetBrokenError(self.folder, "it is too large for the memory of this machine") from error
        except Exception as error:  # whatever wrong names, types and sizes make NumPy and PyTorch raise
            reason = f"expected a cache of this version, but got {type(error).__name__}: {error}; delete the folder"
            raise DatasetBrokenError(self.folder, reason) from error


class ArrayWriter:
    """Arrays that grow on disk, so that they do not have to fit in memory.

    Attributes:
        info: plain data to keep beside the arrays.
        folder: the unfinished cache; `build` may keep temporary files there and has to remove them.
    """

    def __init__(self, folder: Path) -> None:
        self.info: dict[str, Any] = {}
        self.folder = folder
        self._files: dict[str, Any] = {}
        self._arrays: dict[str, dict[str, Any]] = {}

    def append(self, name: str, rows: NDArray[Any]) -> None:
        """Add rows (n, ...) to the array `name`; the first rows set its type and its other sizes."""
        layout = {"dtype": rows.dtype.str, "shape": list(rows.shape)}
        if name not in self._files:
            self._files[name] = (self.folder / f"{name}.bin").open("wb")
            self._arrays[name] = layout
        else:
            known = self._arrays[name]
            if (known["dtype"], known["shape"][1:]) != (layout["dtype"], layout["shape"][1:]):
                raise InputError(f"expected rows of {name} like {known}, but got {layout}")
            known["shape"][0] += len(rows)
        self._files[name].write(np.ascontiguousarray(rows).data)

    def close(self) -> None:
        """Finish the files. The index is written last, because it makes the cache valid."""
        for file in self._files.values():
            file.close()
        (self.folder / _INDEX).write_text(json.dumps({"arrays": self._arrays, "info": self.info}))


def cached(
    name: str, root: Path, files: Sequence[Path], build: Callable[[ArrayWriter], None], options: Any = None
) -> Cached:
    """The arrays that `build` makes of some files; later calls find them on disk.

    They are stored in `<root>/processed/<name>-<key>/`, or if that is not writable, in `pcattn/` of the user's cache
    folder. The key covers the names, sizes and times of the files, and the options; in the user's cache folder, which
    all data sets share, it also covers the path of the data. A cache is built under another name and renamed when it
    is complete, so a killed process leaves none, and if two processes build the same one, the first one to finish wins.
    A cache may be deleted at any time.

    Args:
        name: of the cache, for people who look at the folder.
        root: folder of the data set.
        files: all files that are read, below `root`.
        build: writes the arrays.
        options: plain data that the arrays depend on, including the version of their format.

    Raises:
        DatasetError: no folder can be written.
    """
    key = _key(root, files, options)
    places = {
        root / "processed": f"{name}-{key}",  # stays valid when the data is moved
        user_cache(): f"{name}-{sha256(os.fsencode(root.resolve()) + key.encode()).hexdigest()[:16]}",
    }
    own, shared = places
    for place, folder_name in places.items():
        if (found := _open(place / folder_name)) is not None:
            return found
    for place, folder_name in places.items():
        try:
            if place == own and not root.stat().st_mode & 0o222:
                continue  # respected for a superuser as well, who could write there
            place.mkdir(parents=True, exist_ok=True)
            unfinished = place / f"{folder_name}.{uuid.uuid4().hex}.tmp"
            unfinished.mkdir()
        except OSError:
            continue
        if place == shared:
            message = f"{root} cannot be written: its cache goes to {place / folder_name}"
            warnings.warn(message, CacheElsewhereWarning, stacklevel=2)
        _remove_stale(place, name)
        try:
            writer = ArrayWriter(unfinished)
            try:
                build(writer)
            finally:
                writer.close()
            _publish(unfinished, place / folder_name)
        except OSError as error:
            if error.filename is None:  # reading errors name a file, a full disk does not
                reason = error.strerror or str(error)
                raise DatasetError(f"expected to write the cache {place / folder_name}, but {reason}") from error
            raise
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
        result = _open(place / folder_name)
        if result is None:
            raise DatasetError(
                f"expected the cache just written to {place / folder_name} to be complete, but it is not"
            )
        return result
    raise DatasetError(
        f"expected a folder to cache {name} in, but neither {own} nor {shared} can be written: "
        "name another one in the environment variable XDG_CACHE_HOME"
    )


def user_cache() -> Path:
    """The folder for the caches of data in read-only folders: `$XDG_CACHE_HOME/pcattn`.

    Without that variable it is in the user's home, or for a user without a home, among the temporary files.
    """
    if folder := os.environ.get("XDG_CACHE_HOME"):
        return Path(folder) / "pcattn"
    try:
        return Path.home() / ".cache" / "pcattn"
    except RuntimeError:  # a user that the system does not know, as in some containers
        return Path(tempfile.gettempdir()) / f"pcattn-{os.getuid()}"


def _key(root: Path, files: Sequence[Path], options: Any) -> str:
    entries = []
    for file in files:
        state = file.stat()
        entries.append((os.path.relpath(file, root), state.st_size, state.st_mtime_ns))
    return sha256(json.dumps([VERSION, options, sorted(entries)]).encode()).hexdigest()[:16]


def _open(folder: Path) -> Cached | None:
    """The cache in a folder, or None if it is not complete."""
    try:
        index = json.loads((folder / _INDEX).read_text())
        arrays = {}
        for name, layout in index["arrays"].items():
            shape, dtype = tuple(map(operator.index, layout["shape"])), np.dtype(layout["dtype"])
            path = folder / f"{name}.bin"
            # It may come from a stranger, along with the data: no pointers, and no files elsewhere.
            if not name.isidentifier() or dtype.kind not in "biuf" or min(shape) < 0:
                return None
            if path.stat().st_size != dtype.itemsize * prod(shape):
                return None
            # An empty file cannot be mapped.
            arrays[name] = np.memmap(path, dtype, "c", shape=shape) if 0 not in shape else np.empty(shape, dtype)
        return Cached(arrays, dict(index["info"]), folder)
    except Exception:  # whatever damaged text makes json and NumPy raise
        return None


def _publish(unfinished: Path, folder: Path) -> None:
    """Give a finished cache its name, unless another process was faster."""
    try:
        unfinished.rename(folder)
    except OSError:
        if _open(folder) is not None:
            return
        folder.rename(unfinished.with_suffix(".broken.tmp"))  # an incomplete copy
        unfinished.rename(folder)
        shutil.rmtree(unfinished.with_suffix(".broken.tmp"), ignore_errors=True)


def _remove_stale(place: Path, name: str) -> None:
    """Remove the unfinished caches of processes that were killed long ago."""
    for folder in place.glob(f"{name}-*.tmp"):
        newest = max((path.stat().st_mtime for path in (folder, *folder.glob("*"))), default=0.0)
        if newest < time.time() - _STALE:
            shutil.rmtree(folder, ignore_errors=True)
