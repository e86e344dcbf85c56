"""The base classes of data sets: what a data set declares, and how arrays become its clouds."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch_geometric.data import Data, InMemoryDataset

from pcattn.data.splits import SPLITS
from pcattn.io.channels import GROUPS
from pcattn.utils.errors import DatasetError, DatasetNotFoundError, InputError, SkippedWarning


class PointCloudDataset(InMemoryDataset):
    """A torch-geometric data set that declares what the data module needs to know.

    Each item is a `Data` with `pos` (N, 3) and `y`, a class (1,) or the part of each point (N,); optionally with
    features `x` (N, F) and, where `y` holds parts, `category` (1,).

    Subclasses set the attributes below on the class where they are known without reading files, else in the
    constructor. Everything of `InMemoryDataset` works as its documentation says: `transform`, `pre_transform`,
    `pre_filter`, `raw_file_names`, `processed_file_names`, `download`, `process`.

    Args:
        root: folder of the data set.
        split: one of `splits`.
        transform: applied to each `Data` whenever it is read.
        pre_transform: applied to each `Data` once, before it is stored.
        pre_filter: tells which `Data` to store.
        force_reload: whether to process the raw files again, see torch-geometric.

    Attributes:
        splits: the splits that the data set has, of train, val and test. Without val, the data module holds out a part
            of train.
        class_names: names of the classes by their labels; None numbers them.
        parts: part ids of each category, if points are labeled; None finds them in the training split.
        part_names: names of the parts by their ids.
        numbers_parts: whether these names are only numbers that follow from `parts`.
        feature_names: names of the channels of `x`: `nx, ny, nz` for normals, `red, green, blue` in [0, 1] for color,
            or any others.
        normalized: how the clouds are normalized as they come, `"sphere"` or `"box"`; None if they are not.
        up_axis: the axis that points up, `"x"`, `"y"` or `"z"`.
        shuffled: whether the points of each cloud are in random order, so that the first ones cover the shape.
        names: name of each cloud for messages, such as its path; None numbers them.
        label_hint: how to get labels of points, appended to the message that says they are missing.

    Raises:
        InputError: `split` is not one of `splits`.
    """

    splits: Sequence[str] = SPLITS
    class_names: Sequence[str] | None = None
    parts: Sequence[Sequence[int]] | None = None
    part_names: Sequence[str] | None = None
    numbers_parts: bool = False
    feature_names: Sequence[str] = ()
    normalized: str | None = None
    up_axis: str = "z"
    shuffled: bool = False
    names: Sequence[str] | None = None
    label_hint: str = ""

    def __init__(
        self,
        root: str | None = None,
        split: str = "train",
        transform: Callable[..., Any] | None = None,
        pre_transform: Callable[..., Any] | None = None,
        pre_filter: Callable[..., Any] | None = None,
        force_reload: bool = False,
    ) -> None:
        if split not in self.splits:
            raise InputError(f"expected split to be one of {', '.join(self.splits)}, but got {split!r}")
        self.split = split
        super().__init__(root, transform, pre_transform, pre_filter, force_reload=force_reload)

    @classmethod
    def wrap(cls, dataset: InMemoryDataset) -> PointCloudDataset:
        """Any `InMemoryDataset` as a `PointCloudDataset` on the same storage.

        Attributes that it lacks get their defaults. Three features without names are taken for normals.
        """
        if isinstance(dataset, PointCloudDataset):
            return dataset
        wrapped = PointCloudDataset()
        declare(wrapped, dataset)
        wrapped.take(dataset)
        return wrapped

    def take(self, dataset: InMemoryDataset) -> None:
        """Use the storage and the transform of another data set."""
        self._data, self.slices, self._indices = dataset._data, dataset.slices, dataset._indices
        self.transform = dataset.transform
        self.name_normals()

    def name_normals(self) -> None:
        """Take three features that have no names for normals."""
        x, pos = self._data.get("x"), self._data.get("pos")
        if not self.feature_names and x is not None and pos is not None and x.shape == pos.shape:
            self.feature_names = GROUPS["normals"]

    @classmethod
    def recognizes(cls, root: str) -> bool:
        """Whether this data set lies under `root`, whole or broken. By default, a split is read to find out."""
        for split in cls.splits:
            try:
                cls(root, split=split)
            except DatasetNotFoundError:
                continue
            except DatasetError:
                return True
            return True
        return False

    @classmethod
    def read_class_names(cls, root: str) -> Sequence[str] | None:
        """Names of the classes, if they are known without reading clouds; else None."""
        return cls.class_names

    @property
    def num_classes(self) -> int:
        """Number of classes of clouds, also where this split lacks some."""
        known = self.class_names or self.parts
        if known:
            return len(known)
        category = self._data.get("category")
        return super().num_classes if category is None else int(category.max()) + 1

    @property
    def bounds(self) -> Tensor:
        """(M + 1,) where each of M clouds begins among all points, and the end."""
        if self.slices is None:  # torch-geometric keeps a single cloud without them
            return torch.tensor([0, len(self._data.pos)])
        return torch.as_tensor(self.slices["pos"])


DECLARED = tuple(name for name in PointCloudDataset.__annotations__ if name != "split")
"""The attributes by which a data set describes itself."""


def declare(target: Any, source: Any) -> None:
    """Copy to `target` the attributes of `DECLARED` that `source`, a data set or class of another kind, has."""
    for name in DECLARED:
        value = getattr(source, name, None)
        if value is not None and not isinstance(value, property):
            setattr(target, name, value)


class FileDataset(PointCloudDataset):
    """A data set whose files are read where the user has them, without torch-geometric's `raw/` and `processed/`.

    Large sets are cached by `pcattn.io.cache`. A subclass reads its files in the constructor, sets `raw_files`,
    and calls `store`, then `preprocess`.

    Args:
        root: folder of the files.
        split: one of `splits`.
        transform: see `PointCloudDataset`.
        pre_transform: applied whenever the data set is opened. The cache holds clouds as they are in the files.
        pre_filter: see `pre_transform`.
        on_error: `"raise"`, or `"skip"` to leave out what cannot be used, with a warning.
    """

    raw_files: Sequence[Path] = ()

    def __init__(
        self,
        root: str,
        split: str = "train",
        transform: Callable[..., Any] | None = None,
        pre_transform: Callable[..., Any] | None = None,
        pre_filter: Callable[..., Any] | None = None,
        on_error: str = "raise",
    ) -> None:
        if on_error not in ("raise", "skip"):
            raise InputError(f"expected on_error to be raise or skip, but got {on_error!r}")
        self.skips = on_error == "skip"
        super().__init__(str(root), split, transform, pre_transform, pre_filter)

    @property
    def raw_dir(self) -> str:
        """The folder of the files."""
        return str(self.root)

    @property
    def raw_file_names(self) -> list[str]:
        """The files this split is read from, relative to `raw_dir`."""
        return [os.path.relpath(path, self.raw_dir) for path in self.raw_files]

    @property
    def processed_file_names(self) -> list[str]:
        """None: the cache has its own place and names, see `pcattn.io.cache`."""
        return []

    def store(
        self, sizes: NDArray[np.int64], points: dict[str, NDArray[Any] | None], clouds: dict[str, NDArray[Any]]
    ) -> None:
        """Make these clouds the content of the data set. Arrays are not copied, and mapped ones stay mapped.

        Args:
            sizes: (M,) number of points of each cloud.
            points: arrays (P, ...) of attributes of all points; None is left out.
            clouds: arrays (M,) of attributes of clouds.
        """
        starts = torch.from_numpy(np.concatenate(([0], np.cumsum(sizes))))
        data, slices = Data(), {}
        for name, array in points.items():
            if array is not None:
                data[name], slices[name] = torch.from_numpy(array), starts
        for name, array in clouds.items():
            data[name], slices[name] = torch.from_numpy(np.array(array)), torch.arange(len(sizes) + 1)
        self._data, self.slices = data, slices

    def preprocess(self) -> None:
        """Apply `pre_filter` and `pre_transform` if they are given, as `process` functions of torch-geometric do."""
        if self.pre_filter is None and self.pre_transform is None:
            return
        clouds = [self.get(index) for index in range(self.len())]
        kept = [index for index, cloud in enumerate(clouds) if self.pre_filter is None or self.pre_filter(cloud)]
        if not kept:
            raise InputError(f"expected pre_filter to keep some of {len(clouds)} clouds, but got none")
        self._data, self.slices = self.collate(
            [clouds[index] if self.pre_transform is None else self.pre_transform(clouds[index]) for index in kept]
        )
        self._data_list = None
        if self.names is not None:
            self.names = [self.names[index] for index in kept]

    def report_skipped(self, skipped: Sequence[str], what: str = "files") -> None:
        """Warn once about everything that was left out."""
        if skipped:
            title = f"{type(self).__name__}: skipped {len(skipped)} {what}"
            warnings.warn(SkippedWarning(title, skipped), stacklevel=3)
