"""Pictures of the validation clouds while a network is trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.loggers import TensorBoardLogger

from pcattn.inference import evaluate as evaluated
from pcattn.utils.errors import InputError
from pcattn.visualize.montage import montage


class Pictures(Callback):
    """Writes a montage of validation clouds every few epochs, into the run and into TensorBoard.

    The clouds are the same every time, so that one can watch what the network learns. In a configuration:

    .. code-block:: yaml

        trainer:
          callbacks:
            - class_path: pcattn.visualize.Pictures
              init_args: {every_n_epochs: 5}

    Args:
        every_n_epochs: epochs from one picture to the next; the first epoch has one.
        number: clouds of a picture.
        folder: where `epoch-001.png`, ... go; None is `pictures` in the run.

    Raises:
        InputError: an argument is not positive.
    """

    def __init__(self, every_n_epochs: int = 1, number: int = 8, folder: str | None = None) -> None:
        if every_n_epochs < 1 or number < 1:
            raise InputError(f"expected every_n_epochs >= 1 and number >= 1, but got {every_n_epochs} and {number}")
        self.every_n_epochs, self.number, self.folder = every_n_epochs, number, folder

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw, where it is time."""
        epoch = trainer.current_epoch
        if trainer.sanity_checking or not trainer.is_global_zero or trainer.state.fn != "fit":
            return
        if epoch % self.every_n_epochs:
            return
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        dense, indices = evaluated.read_split(data, "val")
        chosen = evaluated.choose(dense, indices, self.number)
        task: Any = pl_module
        clouds = [cloud for batch in evaluated.batches(dense, chosen) for cloud in evaluated.evaluate(task, batch)]
        folder = Path(self.folder or Path(trainer.default_root_dir) / "pictures")
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"epoch-{epoch + 1:03d}.png"
        fields = evaluated.default_fields(clouds)
        montage(clouds, path, fields, up=data.up_axis, renderer="matplotlib", heading=f"epoch {epoch + 1}")
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.add_image("validation", _read(path), epoch, dataformats="HWC")


def _read(path: Path) -> np.ndarray:
    from matplotlib.image import imread

    return (imread(path)[..., :3] * 255).astype(np.uint8)
