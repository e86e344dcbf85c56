"""Data sets of torch-geometric that do not declare what `PointCloudDataset` does: the one place that adapts them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch_geometric.data import Data, InMemoryDataset

from pcattn.data.dataset import PointCloudDataset, declare
from pcattn.data.splits import SPLITS
from pcattn.utils.errors import DatasetError, InputError
from pcattn.utils.registry import construct, resolve

#: What is read of an item.
FIELDS = ("pos", "y", "x", "category")


class PyGPointClouds(PointCloudDataset):
    """Any data set of torch-geometric whose items have `pos` and `y`, in memory or not.

    Its items are read once, with the transform that `kwargs` may give it. Each item has `pos`, `y` and, if all items
    have them, `x` and `category`.

    Args:
        root: passed on as `root`.
        split: `"train"`, `"test"`, or `"val"` with `val_kwargs`. A data set with an argument `train` gets
            `train=True` for the training split and `train=False` otherwise.
        path: import path of the data set, such as `torch_geometric.datasets.ModelNet`.
        kwargs: its further arguments.
        train_kwargs: arguments for the training split alone, such as `{split: train}`. They are required unless the
            data set has an argument `train`.
        val_kwargs: arguments for the validation split. None holds out a part of the training split.
        test_kwargs: arguments for the test split.
        transform: applied to each `Data` whenever it is read.
        pre_transform: applied to each `Data` once.
        pre_filter: tells which `Data` to keep.

    Raises:
        DatasetError: the data set cannot be imported or created, or its items lack `pos` or `y`.
    """

    def __init__(
        self,
        root: str,
        split: str = "train",
        path: str = "",
        kwargs: dict[str, Any] | None = None,
        train_kwargs: dict[str, Any] | None = None,
        val_kwargs: dict[str, Any] | None = None,
        test_kwargs: dict[str, Any] | None = None,
        transform: Callable[..., Any] | None = None,
        pre_transform: Callable[..., Any] | None = None,
        pre_filter: Callable[..., Any] | None = None,
    ) -> None:
        if not path:
            raise InputError("expected the import path of a torch-geometric data set in dataset_kwargs.path")
        self.splits = SPLITS if val_kwargs else ("train", "test")
        super().__init__(root, split, transform, pre_transform, pre_filter)
        factory: Callable[..., Any] = resolve("data set", path, {})
        own = {"train": train_kwargs, "val": val_kwargs, "test": test_kwargs}[split] or {}
        if "train" in inspect.signature(factory).parameters:
            own = {"train": split == "train", **own}
        elif not own:
            raise DatasetError(
                f"expected {split}_kwargs for {path}, such as {{split: ...}}, because it has no argument train"
            )
        dataset = construct("data set", path, factory, root=root, **{**(kwargs or {}), **own})
        declare(self, dataset)
        self.class_names = self.class_names or getattr(dataset, "classes", None)
        items = _items(dataset, path)
        kept = [item for item in items if pre_filter is None or pre_filter(item)]
        if not kept:
            raise DatasetError(f"expected clouds in {path}, but it is empty")
        self._data, self.slices = self.collate([pre_transform(item) if pre_transform else item for item in kept])
        self.name_normals()

    @classmethod
    def recognizes(cls, root: str) -> bool:
        """No: only its arguments say what to look for."""
        return False


def _items(dataset: Any, path: str) -> list[Data]:
    """The items of a data set with the fields that all have, and labels as integers."""
    items: list[Data] = []
    for index in range(len(dataset)):
        item = dataset[index]
        if item.get("pos") is None or item.get("y") is None:
            raise DatasetError(f"expected pos and y in every item of {path}, but item {index} has {item.keys()}")
        fields = {name: torch.as_tensor(item[name]) for name in FIELDS if item.get(name) is not None}
        if items and (differing := sorted(set(fields) ^ set(items[0].keys()))):
            raise DatasetError(
                f"expected {differing[0]} in all items of {path} or in none, but item {index} "
                f"{'has it' if differing[0] in fields else 'lacks it'}"
            )
        labels = fields["y"].reshape(-1)
        if not bool((labels == labels.long()).all()):
            raise DatasetError(f"expected integer labels y in {path}, but item {index} has {labels[0].item()}")
        fields["y"] = labels.long()
        items.append(Data(**fields))
    return items


class AdaptedDataset(PointCloudDataset):
    """A plain data set class behind the interface of `PointCloudDataset`, see `adapt`."""

    factory: ClassVar[Callable[..., InMemoryDataset]]
    path: ClassVar[str]
    takes_split: ClassVar[bool]

    def __init__(self, root: str, split: str = "train", **kwargs: Any) -> None:
        super().__init__(root, split)
        which: dict[str, Any] = {"split": split} if self.takes_split else {"train": split == "train"}
        dataset = construct("dataset", self.path, type(self).factory, root, **which, **kwargs)
        if not isinstance(dataset, InMemoryDataset):
            raise DatasetError(
                f"expected {self.path} to be an InMemoryDataset of torch-geometric, but got {type(dataset).__name__} "
                "(the data set `pyg` takes one that is not in memory)"
            )
        declare(self, dataset)
        self.take(dataset)

    @classmethod
    def recognizes(cls, root: str) -> bool:
        """No: the class is not registered, so it is only used by name."""
        return False


def adapt(path: str, dataset_class: Any) -> type[PointCloudDataset]:
    """The class as a `PointCloudDataset`: itself if it is one, else a class that reads the same clouds.

    Args:
        path: import path of the class.
        dataset_class: called with `(root, split=...)` if it has an argument `split`, else with `(root, train=...)`.
    """
    if isinstance(dataset_class, type) and issubclass(dataset_class, PointCloudDataset):
        return dataset_class
    takes_split = "split" in inspect.signature(dataset_class).parameters
    splits: Sequence[str] = SPLITS if takes_split else ("train", "test")
    fields = {"factory": staticmethod(dataset_class), "path": path, "takes_split": takes_split, "splits": splits}
    adapted = type(path.rpartition(".")[2], (AdaptedDataset,), fields)
    declare(adapted, dataset_class)
    return adapted
