"""From torch-geometric data sets to dense batches: base class, `PointBatch`, loaders, preprocessing."""

from pcattn.data.batch import PointBatch
from pcattn.data.dataset import PointCloudDataset
from pcattn.data.dense import DenseClouds
from pcattn.data.loader import EpochLoader, EpochSampler
from pcattn.data.normals import estimate_normals
from pcattn.data.preprocessing import preprocess
from pcattn.data.splits import SPLITS, hash_split, stratified_split

__all__ = [
    "SPLITS",
    "DenseClouds",
    "EpochLoader",
    "EpochSampler",
    "PointBatch",
    "PointCloudDataset",
    "estimate_normals",
    "hash_split",
    "preprocess",
    "stratified_split",
]
