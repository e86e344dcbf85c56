"""What took long to read is kept as raw arrays, which later starts map instead of reading."""

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
"""Part of the key of every cache; grows with this file's own format."""

_INDEX = "index.json"
_STALE = 24 * 3600  # seconds after which an unfinished cache belongs to no living process


class CacheElsewhereWarning(UserWarning):
    """The folder of a data set cannot be written: where its cache goes. Nothing is wrong with the data."""


class Cached(NamedTuple):
    """What a cache holds."""

    arrays: dict[str, NDArray[Any]]  #: mapped copy-on-write: read on access, never written back
    info: dict[str, Any]  #: plain data
    folder: Path  #: where it lies

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Within it, what is missing or does not fit is told of the cache, which may have come from a stranger.

        Raises:
            DatasetBrokenError: something else than a `DatasetError` went wrong.
        """
        try:
            yield
        except DatasetError:
            raise
        except MemoryError as error:
            raise DatasetBrokenError(self.folder, "it is too large for the memory of this machine") from error
        except Exception as error:  # whatever wrong names, types and sizes make numpy and torch raise
            reason = f"this cache holds something else than it should ({type(error).__name__}: {error}): delete it"
            raise DatasetBrokenError(self.folder, reason) from error


class ArrayWriter:
    """Arrays that grow on disk, so that they need not fit in memory.

    Attributes:
        info: plain data to keep beside the arrays.
        folder: the unfinished cache; files that `build` removes again may lie there.
    """

    def __init__(self, folder: Path) -> None:
        self.info: dict[str, Any] = {}
        self.folder = folder
        self._files: dict[str, Any] = {}
        self._arrays: dict[str, dict[str, Any]] = {}

    def append(self, name: str, rows: NDArray[Any]) -> None:
        """Add rows (n, ...) to the array `name`, whose type and further sizes are those of its first rows."""
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
        """Finish the files; the index, which makes the cache valid, is written last."""
        for file in self._files.values():
            file.close()
        (self.folder / _INDEX).write_text(json.dumps({"arrays": self._arrays, "info": self.info}))


def cached(
    name: str, root: Path, files: Sequence[Path], build: Callable[[ArrayWriter], None], options: Any = None
) -> Cached:
    """The arrays that `build` makes of some files, built once.

    They lie in `<root>/processed/<name>-<key>/`, or where that cannot be written in `pcattn/` of the user's cache
    folder. The key covers names, sizes and times of the files, and the options; in the user's cache folder, which all
    data sets share, also where the data lies. A cache appears at once and complete: it is built under another name, so
    a killed process leaves none, and of two that build at once the first one's counts. It may be deleted at any time.

    Args:
        name: of the cache; tells a person what it is.
        root: folder of the data set.
        files: everything that is read, below `root`.
        build: writes the arrays.
        options: plain data that the arrays depend on, the version of their format included.

    Raises:
        DatasetError: no folder can be written.
    """
    key = _key(root, files, options)
    places = {
        root / "processed": f"{name}-{key}",  # the same when the data is moved
        user_cache(): f"{name}-{sha256(os.fsencode(root.resolve()) + key.encode()).hexdigest()[:16]}",
    }
    own, shared = places
    for place, folder_name in places.items():
        if (found := _open(place / folder_name)) is not None:
            return found
    for place, folder_name in places.items():
        try:
            if place == own and not root.stat().st_mode & 0o222:
                continue  # meant to stay as it is, also by a superuser, whom nothing would stop
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
            if error.filename is None:  # of what is read the system tells the name, not so where a disk is full
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
    """The folder for caches of data that lie where nothing can be written: `$XDG_CACHE_HOME/pcattn`.

    Without that variable it is in the user's home, and for a user without one among the temporary files.
    """
    if folder := os.environ.get("XDG_CACHE_HOME"):
        return Path(folder) / "pcattn"
    try:
        return Path.home() / ".cache" / "pcattn"
    except RuntimeError:  # a user that the system does not know, as in a container
        return Path(tempfile.gettempdir()) / f"pcattn-{os.getuid()}"


def _key(root: Path, files: Sequence[Path], options: Any) -> str:
    entries = []
    for file in files:
        state = file.stat()
        entries.append((os.path.relpath(file, root), state.st_size, state.st_mtime_ns))
    return sha256(json.dumps([VERSION, options, sorted(entries)]).encode()).hexdigest()[:16]


def _open(folder: Path) -> Cached | None:
    """The cache in a folder, if it is complete."""
    try:
        index = json.loads((folder / _INDEX).read_text())
        arrays = {}
        for name, layout in index["arrays"].items():
            shape, dtype = tuple(map(operator.index, layout["shape"])), np.dtype(layout["dtype"])
            path = folder / f"{name}.bin"
            # It may have come with the data, from a stranger: neither pointers nor files elsewhere.
            if not name.isidentifier() or dtype.kind not in "biuf" or min(shape) < 0:
                return None
            if path.stat().st_size != dtype.itemsize * prod(shape):
                return None
            # An empty file cannot be mapped.
            arrays[name] = np.memmap(path, dtype, "c", shape=shape) if 0 not in shape else np.empty(shape, dtype)
        return Cached(arrays, dict(index["info"]), folder)
    except Exception:  # whatever damaged text makes json and numpy raise
        return None


def _publish(unfinished: Path, folder: Path) -> None:
    """Give a finished cache its name, unless another process was faster."""
    try:
        unfinished.rename(folder)
    except OSError:
        if _open(folder) is not None:
            return
        folder.rename(unfinished.with_suffix(".broken.tmp"))  # cut short by whoever copied it
        unfinished.rename(folder)
        shutil.rmtree(unfinished.with_suffix(".broken.tmp"), ignore_errors=True)


def _remove_stale(place: Path, name: str) -> None:
    """Remove what killed processes began long ago."""
    for folder in place.glob(f"{name}-*.tmp"):
        newest = max((path.stat().st_mtime for path in (folder, *folder.glob("*"))), default=0.0)
        if newest < time.time() - _STALE:
            shutil.rmtree(folder, ignore_errors=True)
