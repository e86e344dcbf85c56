"""Lightning modules: networks with their losses, metrics and optimizers."""

from pcattn.tasks.classification import Classification
from pcattn.tasks.part_segmentation import PartSegmentation

__all__ = ["Classification", "PartSegmentation"]
