"""Checkpoints of a training: written atomically, up to date, and saved before the training stops."""

from __future__ import annotations

import math
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
from torch import Tensor

from pcattn.training.run_folder import CHECKPOINTS
from pcattn.utils.files import write_bytes
from pcattn.utils.tensors import pack

# Sent when a terminal is closed; Windows does not have it.
_HANG_UP = getattr(signal, "SIGHUP", None)

#: Signals that ask a training to stop.
_REQUESTS = (signal.SIGINT, signal.SIGTERM, *([_HANG_UP] if _HANG_UP else []))

#: Several processes must agree to save, which makes them wait for each other: they synchronize only every few steps.
_SYNC_EVERY_N_STEPS = 32


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes checkpoints atomically.

    Lightning writes to the system's temporary folder and moves the file. Across file systems that move is a copy, and a
    process that is killed during the copy leaves half a checkpoint in place of the previous one.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write a checkpoint.

        Raises:
            OSError: the file cannot be written. The previous checkpoint is unchanged.
        """
        path, content = Path(path), pack(checkpoint)
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            write_bytes(path, content)
        except OSError as error:
            previous = "the previous checkpoint is unchanged" if path.is_file() else "there is no previous checkpoint"
            raise OSError(f"{error} ({len(content) / 1e6:.1f} MB); {previous}") from error


class RunCheckpoint(ModelCheckpoint):
    """Keeps one checkpoint under a fixed name, `<run>/checkpoints/<name>.ckpt`.

    A run may be moved between two trainings: the paths that a checkpoint restores point to the present folder. Of equal
    scores the one with the lower `val/loss` is the better, then the later one: with few validation clouds scores are
    often equal, and the first epochs would win.

    Args:
        run: folder of the run.
        name: file name without suffix.
        monitor: metric that chooses the best checkpoint at validation; None saves at the end of every epoch.
        mode: "max" or "min".
    """

    def __init__(self, run: Path, name: str, monitor: str | None = None, mode: str = "max") -> None:
        super().__init__(
            dirpath=str((run / CHECKPOINTS).absolute()),
            filename=name,
            monitor=monitor,
            mode=mode,
            save_top_k=1,
            enable_version_counter=False,
            # The end of an epoch comes after its validation.
            save_on_train_epoch_end=monitor is None,
        )
        self._best_loss = math.nan

    def check_monitor_top_k(self, trainer: Trainer, current: Tensor | None = None) -> bool:
        """Whether the present checkpoint is better than the one on disk."""
        loss = float(trainer.callback_metrics.get("val/loss", math.nan))
        better = super().check_monitor_top_k(trainer, current)
        if not better and current is not None:
            equal = bool(current == self.best_k_models[self.kth_best_model_path])
            better = trainer.strategy.reduce_boolean_decision(equal and not loss > self._best_loss)
        if better:
            self._best_loss = loss
        return better

    def state_dict(self) -> dict[str, Any]:
        """The best score, its loss, and the paths."""
        return {**super().state_dict(), "best_loss": self._best_loss}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the best score with paths in the present folder.

        A training that continues in a new folder has no best checkpoint there yet, and starts without one.
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
        self._best_loss = state_dict.get("best_loss", math.nan)  # old checkpoints lack it


class LastCheckpoint(RunCheckpoint):
    """Saves `last.ckpt` after every epoch, every few minutes within an epoch, and when the training is asked to stop.

    Within an epoch it saves only where a resumed training continues exactly: after an optimizer step, and after the
    validation if one is due. Lightning's `ModelCheckpoint(train_time_interval=...)` and `OnExceptionCheckpoint` save
    anywhere, and the resumed training would differ.

    On SIGINT (Ctrl-C), SIGTERM, or SIGHUP (a closed terminal) the training saves at the next such point and stops. A
    second SIGINT or SIGTERM goes to Lightning, which stops without saving. Any process of a distributed training may
    get the signal: they synchronize every `_SYNC_EVERY_N_STEPS` steps and at the end of an epoch.

    Args:
        run: folder of the run.
        minutes: time between two checkpoints within an epoch; 0 saves after every step.

    Attributes:
        requested: the signal that asked the training to stop, if any.
    """

    def __init__(self, run: Path, minutes: float) -> None:
        super().__init__(run, "last")
        self.interval = 60 * minutes
        self.requested: signal.Signals | None = None
        self._saved = time.monotonic()
        self._handlers: dict[signal.Signals, Any] = {}
        self._notice = b""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Install the signal handlers. Lightning restores the previous ones when the training ends."""
        super().on_train_start(trainer, pl_module)
        self._saved = time.monotonic()
        if threading.current_thread() is not threading.main_thread():
            return
        when = "after this step" if trainer.world_size == 1 else f"within {_SYNC_EVERY_N_STEPS} steps"
        self._notice = f"\nsaving {when}; press Ctrl-C again to stop without saving\n".encode()
        self._handlers = {number: signal.getsignal(number) for number in _REQUESTS}
        for number, handler in self._handlers.items():
            if handler != signal.SIG_IGN:  # a shell ignores Ctrl-C for its background jobs
                signal.signal(number, self._request)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save if it is time, unless a validation comes next, which ends with a save."""
        if not _validates_next(trainer, batch_idx):
            self._save_within_epoch(trainer, batch_idx)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save if it is time, unless the epoch ends here, which ends with a save."""
        if not trainer.is_last_batch:
            self._save_within_epoch(trainer, trainer.fit_loop.batch_idx)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save, and stop if a signal asked for it."""
        super().on_train_epoch_end(trainer, pl_module)
        self._saved = time.monotonic()
        if self._is_requested(trainer):
            raise KeyboardInterrupt

    def _save_within_epoch(self, trainer: Trainer, batch_idx: int) -> None:
        if trainer.world_size > 1 and (batch_idx + 1) % _SYNC_EVERY_N_STEPS:
            return
        stepped = (batch_idx + 1) % trainer.accumulate_grad_batches == 0
        if not stepped or self._should_skip_saving_checkpoint(trainer):
            return
        requested = self._is_requested(trainer)
        # All processes save together, by the clock of rank 0.
        if requested or trainer.strategy.broadcast(time.monotonic() - self._saved >= self.interval):
            trainer.save_checkpoint(self.format_checkpoint_name({}), weights_only=False)
            self._saved = time.monotonic()
            if requested:
                raise KeyboardInterrupt

    def _is_requested(self, trainer: Trainer) -> bool:
        """Whether any process was asked to stop. All processes get the same answer."""
        return bool(trainer.strategy.reduce_boolean_decision(self.requested is not None, all=False))

    def _request(self, number: int, frame: FrameType | None) -> None:
        self.requested = signal.Signals(number)
        with suppress(OSError):  # Ctrl-C may have ended the reader of a pipe as well
            os.write(2, self._notice)  # not print(), which the signal may have interrupted
        for known, handler in self._handlers.items():
            if known != _HANG_UP:  # a closed terminal sends it twice: the system and the shell
                signal.signal(known, handler)


def _validates_next(trainer: Trainer, batch_idx: int) -> bool:
    """Whether a validation or the end of the epoch may follow this batch."""
    if trainer.is_last_batch or trainer.val_check_batch is None:  # None: validation is scheduled by time
        return True
    number = trainer.fit_loop.total_batch_idx if trainer.check_val_every_n_epoch is None else batch_idx
    return (number + 1) % trainer.val_check_batch == 0
