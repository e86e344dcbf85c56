"""What a Lightning `Trainer` is given: the data module, callbacks, loggers and run folders."""

from pcattn.training.datamodule import PointCloudDataModule
from pcattn.training.pictures import Pictures

__all__ = ["Pictures", "PointCloudDataModule"]
