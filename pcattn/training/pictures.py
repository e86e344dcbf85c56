"""Pictures of validation clouds during training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.loggers import TensorBoardLogger

from pcattn.training.selection import choose_clouds, read_batches, read_split
from pcattn.utils.errors import InputError
from pcattn.visualize.montage import montage
from pcattn.visualize.scene import shown_fields


class Pictures(Callback):
    """Writes a montage of validation clouds every few epochs, to the run and to TensorBoard.

    The clouds are always the same, so that you can watch the network learn. In a configuration:

    .. code-block:: yaml

        trainer:
          callbacks:
            - class_path: pcattn.training.Pictures
              init_args: {every_n_epochs: 5}

    Args:
        every_n_epochs: epochs between two pictures, starting with the first epoch.
        number: clouds in a picture.
        folder: folder of `epoch-001.png`, ...; None is `pictures` in the run.

    Raises:
        InputError: an argument is not positive.
    """

    def __init__(self, every_n_epochs: int = 1, number: int = 8, folder: str | None = None) -> None:
        if every_n_epochs < 1 or number < 1:
            raise InputError(f"expected every_n_epochs >= 1 and number >= 1, but got {every_n_epochs} and {number}")
        self.every_n_epochs, self.number, self.folder = every_n_epochs, number, folder

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw a picture if it is due."""
        epoch = trainer.current_epoch
        if trainer.sanity_checking or not trainer.is_global_zero or trainer.state.fn != "fit":
            return
        if epoch % self.every_n_epochs:
            return
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        task: Any = pl_module
        dense, indices = read_split(data, "val")
        chosen = choose_clouds(dense, indices, self.number)
        clouds = [cloud for batch in read_batches(dense, chosen) for cloud in task.evaluated_clouds(batch)]
        folder = Path(self.folder or Path(trainer.default_root_dir) / "pictures")
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"epoch-{epoch + 1:03d}.png"
        montage(
            clouds,
            path,
            shown_fields(clouds, task.FIELDS),
            up=data.up_axis,
            renderer="matplotlib",
            heading=f"epoch {epoch + 1}",
        )
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.add_image("validation", _read(path), epoch, dataformats="HWC")


def _read(path: Path) -> np.ndarray:
    from matplotlib.image import imread

    return (imread(path)[..., :3] * 255).astype(np.uint8)
