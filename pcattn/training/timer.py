"""How long a training has validated, which its speed is measured without."""

import time
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer


class ValidationTime(Callback):
    """Adds up the validations of a training, those before a resumption included; Lightning's `Timer` has the last one.

    Attributes:
        seconds: of all validations so far.
    """

    def __init__(self) -> None:
        self.seconds = self._started = 0.0

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start."""
        self._started = time.monotonic()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop, and add; what is looked at before the training is no part of it."""
        if not trainer.sanity_checking:
            self.seconds += time.monotonic() - self._started

    def state_dict(self) -> dict[str, Any]:
        """For checkpoints: the seconds so far."""
        return {"seconds": self.seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with them."""
        self.seconds = state_dict["seconds"]
