"""Progress of a training without a terminal: a line per epoch, because progress bars would flood a log file."""

from __future__ import annotations

import time
from typing import Any

from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import ProgressBar


class EpochLines(ProgressBar):
    """Prints a line per epoch with its metrics and duration, in place of a progress bar.

    The line of an epoch comes when the next one starts, or the training ends, because all its metrics are known then.
    """

    def __init__(self) -> None:
        super().__init__()
        self._enabled, self._epoch, self._begin = True, -1, 0.0

    def disable(self) -> None:
        """Print nothing, as in all processes but the first."""
        self._enabled = False

    def enable(self) -> None:
        """Print again."""
        self._enabled = True

    def on_train_epoch_start(self, trainer: Trainer, *_: Any) -> None:
        """Print the line of the epoch before."""
        self._print(trainer)
        self._epoch, self._begin = trainer.current_epoch, time.monotonic()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the line of the last epoch."""
        self._print(trainer)

    def _print(self, trainer: Trainer) -> None:
        if self._enabled and self._epoch >= 0:
            of = f" of {trainer.max_epochs}" if trainer.max_epochs is not None and trainer.max_epochs > 0 else ""
            metrics = [f"{name} {float(value):.4f}" for name, value in sorted(trainer.callback_metrics.items())]
            line = ", ".join([*metrics, f"{time.monotonic() - self._begin:.0f} s"])
            print(f"epoch {self._epoch + 1}{of}: {line}", flush=True)
        self._epoch = -1
