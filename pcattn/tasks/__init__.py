"""Lightning modules: networks with their losses, metrics and optimizers.

To add a task, write a module with a subclass of `PointCloudTask` under `@register_task`, and import it here.
"""

from pcattn.tasks.base import MetricInfo, PointCloudTask
from pcattn.tasks.classification import Classification
from pcattn.tasks.normal_estimation import NormalEstimation
from pcattn.tasks.part_segmentation import PartSegmentation
from pcattn.tasks.registry import TASKS, register_task

__all__ = [
    "TASKS",
    "Classification",
    "MetricInfo",
    "NormalEstimation",
    "PartSegmentation",
    "PointCloudTask",
    "register_task",
]
