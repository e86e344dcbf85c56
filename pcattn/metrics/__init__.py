"""Metrics of per-point predictions: part IoU, as a function and as a torchmetrics `Metric`, and errors of normals."""

from pcattn.metrics.functional import PROTOCOLS, PartIoUResult, part_iou, predict_parts
from pcattn.metrics.metric import PartIoU
from pcattn.metrics.normals import angle_error, cosine_distance

__all__ = [
    "PROTOCOLS",
    "PartIoU",
    "PartIoUResult",
    "angle_error",
    "cosine_distance",
    "part_iou",
    "predict_parts",
]
