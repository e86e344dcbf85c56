"""Reading the files of a data set: many clouds in parallel, lists, and names that must not leave a folder."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from pcattn.utils.errors import DatasetBrokenError


class File(Protocol):
    """Something that is read from a file."""

    @property
    def path(self) -> Path:
        """The file."""


F = TypeVar("F", bound=File)
T = TypeVar("T")


def read_each(
    items: Sequence[F],
    read: Callable[[F], tuple[NDArray[np.float32], T]],
    skipped: list[str] | None,
    description: str,
) -> Iterator[tuple[F, NDArray[np.float32], T]]:
    """Read many files in parallel, and yield each item with its table and the other result of `read`, in order.

    Args:
        items: what to read.
        read: returns a table (N, C), with the same number of columns for every item, and anything else.
        skipped: collects the messages about files that cannot be used. None raises the first error instead.
        description: text of the progress bar.

    Raises:
        DatasetBrokenError: a file cannot be used.
    """
    from pcattn.utils.threads import in_threads

    def attempt(item: F) -> tuple[NDArray[np.float32], T] | DatasetBrokenError:
        try:
            return read(item)
        except DatasetBrokenError as error:
            return error

    width = None
    results = in_threads(attempt, items, description if len(items) > 100 else None)
    for item, result in zip(items, results, strict=True):
        if not isinstance(result, DatasetBrokenError):
            table, rest = result
            width = width or table.shape[1]
            if table.shape[1] == width:
                yield item, table, rest
                continue
            reason = f"expected {width} coordinates a line as in the files before it, but got {table.shape[1]}"
            result = DatasetBrokenError(item.path, reason)
        if skipped is None:
            raise result
        skipped.append(str(result))


def read_lines(path: Path) -> str:
    """The text of a list.

    Raises:
        DatasetBrokenError: it is not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DatasetBrokenError(path, f"expected text in UTF-8, but byte {error.start} is invalid") from error


def is_file_name(name: str) -> bool:
    """Whether this names something inside a folder, and cannot lead out of it."""
    return name not in (".", "..") and not set(name) & set("/\\:\0")
