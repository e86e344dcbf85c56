"""Checkpoints of a training: complete or not there, up to date, and saved before it stops."""

from __future__ import annotations

import os
import signal
import threading
import time
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any

from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.plugins.io import TorchCheckpointIO

from pcattn.training.runs import CHECKPOINTS
from pcattn.utils.files import write_bytes
from pcattn.utils.tensors import pack

# A terminal is closed; Windows does not tell.
_HANG_UP = getattr(signal, "SIGHUP", None)

#: Signals that ask a training to stop.
_REQUESTS = (signal.SIGINT, signal.SIGTERM, *([_HANG_UP] if _HANG_UP else []))

#: Several processes have to agree that it is time to save, which holds all of them up: they ask only now and then.
_STEPS_BETWEEN_QUESTIONS = 32


class AtomicCheckpointIO(TorchCheckpointIO):
    """Checkpoints that take their name when they are complete and on disk.

    Lightning writes to the system's folder of temporary files and moves the result. Where that is another file system
    the move is a copy, which a killed process leaves half done in place of the checkpoint before.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write a checkpoint.

        Raises:
            OSError: it cannot be written; the one before is as it was.
        """
        path, content = Path(path), pack(checkpoint)
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            write_bytes(path, content)
        except OSError as error:
            before = "the one before is as it was" if path.is_file() else "there is none before it"
            raise OSError(f"{error} ({len(content) / 1e6:.1f} MB); {before}") from error


class RunCheckpoint(ModelCheckpoint):
    """A checkpoint under one name in the run, replaced whenever a newer one counts.

    A run may be moved, or be named by another path: what is restored on resumption refers to where it lies now.
    """

    def __init__(self, run: Path, name: str, monitor: str | None = None, mode: str = "max") -> None:
        super().__init__(
            dirpath=str((run / CHECKPOINTS).absolute()),
            filename=name,
            monitor=monitor,
            mode=mode,
            save_top_k=1,
            enable_version_counter=False,
            # The best is chosen at validation. The last is the end of an epoch, validation included.
            save_on_train_epoch_end=monitor is None,
        )

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the best score, with paths of the present folder.

        A training that goes on in another folder has no best checkpoint of its own yet.
        """

        def here(path: str) -> str:
            return os.path.join(str(self.dirpath), os.path.basename(path)) if path else path

        if not os.path.isfile(here(state_dict["best_model_path"])):
            return
        state = {**state_dict, "dirpath": self.dirpath}
        for key in ("best_model_path", "kth_best_model_path", "last_model_path"):
            state[key] = here(state[key])
        state["best_k_models"] = {here(path): score for path, score in state["best_k_models"].items()}
        super().load_state_dict(state)


class LastCheckpoint(RunCheckpoint):
    """`last.ckpt`: at the end of every epoch, within a long one every some minutes, and when the training has to stop.

    Within an epoch it is saved where a resumed training repeats exactly what this one goes on with: after a step of the
    optimizer, and after the validation where one is due.

    On SIGINT (Ctrl-C), SIGTERM or SIGHUP (a closed terminal) the training saves at the next such point and stops; a
    second SIGINT or SIGTERM is Lightning's to handle, which stops without saving. Of several processes any may get the
    signal. They look at it together, and at the time, every `_STEPS_BETWEEN_QUESTIONS` steps and at the end of an
    epoch.

    Args:
        run: folder of the run.
        minutes: time between two checkpoints within an epoch; 0 saves after every step.

    Attributes:
        requested: the signal that asked to stop, if any.
    """

    def __init__(self, run: Path, minutes: float) -> None:
        super().__init__(run, "last")
        self.interval = 60 * minutes
        self.requested: signal.Signals | None = None
        self._saved = time.monotonic()
        self._handlers: dict[signal.Signals, Any] = {}
        self._notice = b""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin to listen; Lightning restores the handlers of before when the training ends."""
        super().on_train_start(trainer, pl_module)
        self._saved = time.monotonic()
        if threading.current_thread() is not threading.main_thread():
            return
        when = "after this step" if trainer.world_size == 1 else f"within {_STEPS_BETWEEN_QUESTIONS} steps"
        self._notice = f"\nsaving {when}; Ctrl-C once more stops without\n".encode()
        self._handlers = {number: signal.getsignal(number) for number in _REQUESTS}
        for number, handler in self._handlers.items():
            if handler != signal.SIG_IGN:  # as in jobs that a shell runs in the background
                signal.signal(number, self._request)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save if it is time, unless validation is next: it ends with a checkpoint of its own."""
        if not _validates_next(trainer, batch_idx):
            self._save_within_epoch(trainer, batch_idx)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save if it is time, unless the epoch ends here: so does this."""
        if not trainer.is_last_batch:
            self._save_within_epoch(trainer, trainer.fit_loop.batch_idx)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save."""
        super().on_train_epoch_end(trainer, pl_module)
        self._saved = time.monotonic()
        if self._is_requested(trainer):
            raise KeyboardInterrupt

    def _save_within_epoch(self, trainer: Trainer, batch_idx: int) -> None:
        if trainer.world_size > 1 and (batch_idx + 1) % _STEPS_BETWEEN_QUESTIONS:
            return
        stepped = (batch_idx + 1) % trainer.accumulate_grad_batches == 0
        if not stepped or self._should_skip_saving_checkpoint(trainer):
            return
        requested = self._is_requested(trainer)
        # All processes save together, when it is time by the clock of the first.
        if requested or trainer.strategy.broadcast(time.monotonic() - self._saved >= self.interval):
            trainer.save_checkpoint(self.format_checkpoint_name({}), weights_only=False)
            self._saved = time.monotonic()
            if requested:
                raise KeyboardInterrupt

    def _is_requested(self, trainer: Trainer) -> bool:
        """Whether any of the processes was asked to stop; all of them get the same answer."""
        return bool(trainer.strategy.reduce_boolean_decision(self.requested is not None, all=False))

    def _request(self, number: int, frame: FrameType | None) -> None:
        self.requested = signal.Signals(number)
        with suppress(OSError):  # who read it may have been stopped as well
            os.write(2, self._notice)  # print may be what was interrupted
        for known, handler in self._handlers.items():
            if known != _HANG_UP:  # which comes twice where a terminal is closed: from the system and from the shell
                signal.signal(known, handler)


def _validates_next(trainer: Trainer, batch_idx: int) -> bool:
    """Whether this batch may be followed by a validation or the end of the epoch."""
    if trainer.is_last_batch or trainer.val_check_batch is None:  # None: by the clock
        return True
    number = trainer.fit_loop.total_batch_idx if trainer.check_val_every_n_epoch is None else batch_idx
    return (number + 1) % trainer.val_check_batch == 0
