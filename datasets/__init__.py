"""Point cloud data sets in the interface of torch-geometric, and the way from them to dense batches."""

from .datamodule import DATASETS, PointCloudDataModule
from .dense import DenseClouds, EpochSampler, PointBatch, stratified_split
from .errors import DatasetBrokenError, DatasetError, DatasetNotFoundError
from .modelnet import ModelNet40
from .preprocess import preprocess
from .shapes import Shapes

__all__ = [
    "DATASETS",
    "DatasetBrokenError",
    "DatasetError",
    "DatasetNotFoundError",
    "DenseClouds",
    "EpochSampler",
    "ModelNet40",
    "PointBatch",
    "PointCloudDataModule",
    "Shapes",
    "preprocess",
    "stratified_split",
]
