"""Checkpoints as files; that trainings go on from them is tested in `tests/faults`."""

import errno
import os
import shutil
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from pytorch_lightning import LightningModule, Trainer
from torch.utils.data import DataLoader

from pcattn.training.checkpointing import AtomicCheckpointIO, LastCheckpoint, RunCheckpoint


class Scripted(LightningModule):
    """Logs given validation metrics, one pair of accuracy and loss an epoch."""

    def __init__(self, metrics: list[tuple[float, float]]) -> None:
        super().__init__()
        self.metrics, self.weight = metrics, torch.nn.Parameter(torch.zeros(()))

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        return self.weight**2

    def validation_step(self, batch: torch.Tensor, batch_idx: int) -> None:
        accuracy, loss = self.metrics[self.current_epoch]
        self.log_dict({"val/oa": accuracy, "val/loss": loss})

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.parametrize(
    ("metrics", "best"),
    [
        ([(0.5, 1.0), (0.5, 0.4), (0.5, 0.6)], 1),  # the lower loss
        ([(0.5, 0.4), (0.5, 0.4), (0.4, 0.1)], 1),  # the later one
        ([(0.5, 1.0), (0.6, 2.0), (0.5, 0.1)], 1),  # the score comes first
    ],
)
@pytest.mark.parametrize("resumed", [False, True])
def test_ties_of_the_best_checkpoint(
    metrics: list[tuple[float, float]], best: int, resumed: bool, tmp_path: Path
) -> None:
    batches, last = DataLoader(torch.zeros(2)), tmp_path / "checkpoints" / "last.ckpt"
    for epochs in (2, 3) if resumed else (3,):
        callbacks = [RunCheckpoint(tmp_path, "best", "val/oa"), RunCheckpoint(tmp_path, "last")]
        options = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False, "accelerator": "cpu"}
        trainer = Trainer(max_epochs=epochs, callbacks=callbacks, num_sanity_val_steps=0, **options)
        trainer.fit(Scripted(metrics), batches, batches, ckpt_path=str(last) if epochs == 3 and resumed else None)
    assert torch.load(tmp_path / "checkpoints" / "best.ckpt", weights_only=False)["epoch"] == best


class TestFullDisk:
    @pytest.fixture(autouse=True)
    def _full(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(*args: object) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(os, "fsync", refuse)

    def test_the_one_before_stays(self, tmp_path: Path) -> None:
        path = tmp_path / "last.ckpt"
        torch.save({"a": 1}, path)
        with pytest.raises(
            OSError, match=r"write .*last\.ckpt, but No space left on device \(0\.0 MB\); the previous checkpoint"
        ):
            AtomicCheckpointIO().save_checkpoint({"a": 2}, path)
        assert torch.load(path) == {"a": 1}
        assert list(tmp_path.iterdir()) == [path]

    def test_nothing_before(self, tmp_path: Path) -> None:
        with pytest.raises(OSError, match="there is no previous checkpoint"):
            AtomicCheckpointIO().save_checkpoint({"a": 2}, tmp_path / "new" / "last.ckpt")
        assert list((tmp_path / "new").iterdir()) == []


class TestRequests:
    def test_nobody_reads_the_notice(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Ctrl-C has ended the `tee` behind it as well: the training still saves."""

        def refuse(*args: object) -> None:
            raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))

        last = LastCheckpoint(tmp_path, minutes=1)
        monkeypatch.setattr(os, "write", refuse)
        last._request(signal.SIGINT, None)
        assert last.requested == signal.SIGINT

    @pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="no terminal is closed on Windows")
    def test_a_closed_terminal_tells_twice(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """The system does, and the shell: the second must not end what the first has asked for."""
        last = LastCheckpoint(tmp_path, minutes=1)
        restored = []
        # As in a terminal; the tests themselves may run where signals are ignored.
        monkeypatch.setattr(signal, "getsignal", lambda number: signal.SIG_DFL)
        monkeypatch.setattr(signal, "signal", lambda number, handler: restored.append(number))
        last.on_train_start(SimpleNamespace(world_size=1), SimpleNamespace())  # type: ignore[arg-type]
        assert restored == [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]
        last._request(signal.SIGHUP, None)
        assert restored[3:] == [signal.SIGINT, signal.SIGTERM]


def test_not_by_way_of_another_file_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A move between file systems is a copy, which a kill leaves half done."""
    monkeypatch.delattr(shutil, "move")
    monkeypatch.setattr("tempfile.mkstemp", None)
    AtomicCheckpointIO().save_checkpoint({"a": torch.ones(2)}, tmp_path / "a.ckpt")
    assert torch.load(tmp_path / "a.ckpt", weights_only=True)["a"].tolist() == [1, 1]
