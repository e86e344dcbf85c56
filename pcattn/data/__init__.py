"""Dense batches of point clouds: `PointBatch`, loaders and samplers, preprocessing, normals."""

from pcattn.data.dense import DenseClouds, EpochSampler, PointBatch, stratified_split
from pcattn.data.normals import estimate_normals
from pcattn.data.preprocessing import preprocess

__all__ = ["DenseClouds", "EpochSampler", "PointBatch", "estimate_normals", "preprocess", "stratified_split"]
