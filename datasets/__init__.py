"""Data sets of point clouds by name, in the interface of torch-geometric."""

from torch_geometric.data import InMemoryDataset

from pcattn.datasets.folder import PointCloudFolder, PyGPointClouds
from pcattn.datasets.modelnet import ModelNet10, ModelNet40
from pcattn.datasets.scanobjectnn import ScanObjectNN
from pcattn.datasets.shapenet import ShapeNetPart
from pcattn.datasets.shapes import Shapes

__all__ = [
    "DATASETS",
    "ModelNet10",
    "ModelNet40",
    "PointCloudFolder",
    "PyGPointClouds",
    "ScanObjectNN",
    "ShapeNetPart",
    "Shapes",
]

#: Every data set by its name. A class that takes `split` is called with `(root, split="train" | "val" | "test")`, any
#: other with `(root, train=True | False)`, and with `dataset_kwargs`.
DATASETS: dict[str, type[InMemoryDataset]] = {
    "modelnet10": ModelNet10,
    "modelnet40": ModelNet40,
    "scanobjectnn": ScanObjectNN,
    "shapenetpart": ShapeNetPart,
    "shapes": Shapes,
    "folder": PointCloudFolder,
    "pyg": PyGPointClouds,
}
