"""Data sets of point clouds by name, in the interface of torch-geometric."""

from __future__ import annotations

from typing import Any

from pcattn.data.dataset import PointCloudDataset
from pcattn.datasets.folder import PointCloudFolder
from pcattn.datasets.modelnet import ModelNet10, ModelNet40
from pcattn.datasets.pyg import PyGPointClouds, adapt
from pcattn.datasets.scanobjectnn import ScanObjectNN
from pcattn.datasets.shapenet import ShapeNetPart
from pcattn.datasets.shapes import Shapes
from pcattn.transforms.pyg import build_pyg_transforms
from pcattn.utils.errors import DatasetError
from pcattn.utils.registry import Registry, construct

__all__ = [
    "DATASETS",
    "ModelNet10",
    "ModelNet40",
    "PointCloudDataset",
    "PointCloudFolder",
    "PyGPointClouds",
    "ScanObjectNN",
    "ShapeNetPart",
    "Shapes",
    "find_dataset",
    "open_dataset",
    "recognize",
]

#: Every data set by its name, called with `(root, split="train" | "val" | "test")` and `dataset_kwargs`.
#: `@DATASETS.register("screws")` adds one.
DATASETS: Registry[type[PointCloudDataset]] = Registry(
    "dataset",
    {
        "modelnet10": ModelNet10,
        "modelnet40": ModelNet40,
        "scanobjectnn": ScanObjectNN,
        "shapenetpart": ShapeNetPart,
        "shapes": Shapes,
        "folder": PointCloudFolder,
        "pyg": PyGPointClouds,
    },
)


def find_dataset(name: str) -> type[PointCloudDataset]:
    """The class of a data set by its name in `DATASETS` or its import path.

    A class that is not a `PointCloudDataset` is adapted: it is called with `(root, split=...)` if it has an argument
    `split`, else with `(root, train=True | False)`.

    Raises:
        InputError: there is no such data set.
    """
    return adapt(name, DATASETS.find(name))


def open_dataset(name: str, root: str, split: str, **kwargs: Any) -> PointCloudDataset:
    """Read a split of a data set.

    Args:
        name: key of `DATASETS`, or an import path.
        root: folder of the data set.
        split: `"train"`, `"val"` or `"test"`.
        kwargs: further arguments of the data set. `transform`, `pre_transform` and `pre_filter` may be written as in
            a configuration, see `build_pyg_transforms`.

    Raises:
        DatasetError: the data set cannot be read or does not take these arguments.
    """
    dataset_class = find_dataset(name)
    try:
        return construct("dataset", name, dataset_class, root, split=split, **build_pyg_transforms(kwargs))
    except DatasetError:
        raise
    except ValueError as error:
        raise DatasetError(str(error)) from error


def recognize(root: str) -> list[str]:
    """Names of the data sets that lie under `root`, the most specific one first.

    `folder` counts only if no other does, because any folder of point files fits it.
    """
    fitting = [name for name, dataset in DATASETS.items() if name != "folder" and dataset.recognizes(root)]
    return fitting or ["folder"] * DATASETS["folder"].recognizes(root)
