"""Point cloud data sets in the interface of torch-geometric, and the way from them to dense batches."""

from .datamodule import DATASETS, PointCloudDataModule
from .dense import DenseClouds, EpochSampler, PointBatch, stratified_split
from .errors import DatasetBrokenError, DatasetError, DatasetNotFoundError
from .files import Cloud, read_cloud, write_ply
from .folder import PointCloudFolder, PyGPointClouds
from .modelnet import ModelNet10, ModelNet40
from .normals import estimate_normals
from .preprocess import preprocess
from .scanobjectnn import ScanObjectNN
from .shapenet import ShapeNetPart
from .shapes import Shapes

__all__ = [
    "DATASETS",
    "Cloud",
    "DatasetBrokenError",
    "DatasetError",
    "DatasetNotFoundError",
    "DenseClouds",
    "EpochSampler",
    "ModelNet10",
    "ModelNet40",
    "PointBatch",
    "PointCloudDataModule",
    "PointCloudFolder",
    "PyGPointClouds",
    "ScanObjectNN",
    "ShapeNetPart",
    "Shapes",
    "estimate_normals",
    "preprocess",
    "read_cloud",
    "stratified_split",
    "write_ply",
]
