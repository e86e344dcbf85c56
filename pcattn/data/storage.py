"""From arrays to the storage of a torch-geometric data set: all clouds behind one another, and where each begins."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch_geometric.data import Data, InMemoryDataset

from pcattn.utils.errors import DatasetBrokenError, SkippedWarning


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
    """Read many files side by side: each item with its table and what else `read` returns, in order.

    Args:
        items: what to read.
        read: returns a table (N, C), with as many columns for every item, and anything else.
        skipped: gets the messages about files that cannot be used, which are passed over; None raises them.
        description: of the progress bar.

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
        DatasetBrokenError: it is no text in UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DatasetBrokenError(path, f"expected text in UTF-8, but byte {error.start} is none") from error


def is_file_name(name: str) -> bool:
    """Whether this is the name of something in a folder, and no way out of it."""
    return name not in (".", "..") and not set(name) & set("/\\:\0")


def install(
    dataset: InMemoryDataset,
    sizes: NDArray[np.int64],
    points: dict[str, NDArray[Any] | None],
    clouds: dict[str, NDArray[Any]],
    pre_filter: Callable | None = None,
    pre_transform: Callable | None = None,
) -> None:
    """Make these clouds the content of a data set. Arrays are not copied, mapped ones stay mapped.

    Args:
        dataset: whose content this is to be.
        sizes: (M,), points of each cloud.
        points: arrays (P, ...) of what belongs to the points, by attribute; None is left out.
        clouds: arrays (M,) of what belongs to the clouds, likewise.
        pre_filter: which clouds to keep, see torch-geometric.
        pre_transform: what to make of each, likewise.
    """
    starts = torch.from_numpy(np.concatenate(([0], np.cumsum(sizes))))
    data, slices = Data(), {}
    for name, array in points.items():
        if array is not None:
            data[name], slices[name] = torch.from_numpy(array), starts
    for name, array in clouds.items():
        data[name], slices[name] = torch.from_numpy(np.array(array)), torch.arange(len(sizes) + 1)
    dataset._data, dataset.slices = data, slices
    if pre_filter is not None or pre_transform is not None:
        kept = [cloud for cloud in dataset if pre_filter is None or pre_filter(cloud)]
        dataset._data, dataset.slices = dataset.collate(
            [pre_transform(cloud) if pre_transform else cloud for cloud in kept]
        )
        dataset._data_list = None


def report_skipped(name: str, skipped: Sequence[str], what: str = "files") -> None:
    """One warning about the files, or what else, that were passed over (`on_error: skip`)."""
    if skipped:
        warnings.warn(SkippedWarning(f"{name}: {len(skipped)} {what} left out", skipped), stacklevel=2)
