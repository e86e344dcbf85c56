"""Time spent in validation, which the training speed leaves out."""

import time
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer


class ValidationTime(Callback):
    """Sums the time of all validations, across resumptions. Lightning's `Timer` knows only the last validation.

    Attributes:
        seconds: total time of validation.
    """

    def __init__(self) -> None:
        self.seconds = self._started = 0.0

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self._started = time.monotonic()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop the clock. The sanity check before training does not count."""
        if not trainer.sanity_checking:
            self.seconds += time.monotonic() - self._started

    def state_dict(self) -> dict[str, Any]:
        """Store the total in checkpoints."""
        return {"seconds": self.seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from the total of a checkpoint."""
        self.seconds = state_dict["seconds"]
