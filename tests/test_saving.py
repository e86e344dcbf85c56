"""Checkpoints as files; that trainings go on from them is tested in `tests/faults`."""

import errno
import os
import shutil
from pathlib import Path

import pytest
import torch

from pcattn.saving import AtomicCheckpointIO


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
            OSError, match=r"write .*last\.ckpt, but No space left on device \(0\.0 MB\); the one before"
        ):
            AtomicCheckpointIO().save_checkpoint({"a": 2}, path)
        assert torch.load(path) == {"a": 1}
        assert list(tmp_path.iterdir()) == [path]

    def test_nothing_before(self, tmp_path: Path) -> None:
        with pytest.raises(OSError, match="there is none before it"):
            AtomicCheckpointIO().save_checkpoint({"a": 2}, tmp_path / "new" / "last.ckpt")
        assert list((tmp_path / "new").iterdir()) == []


def test_not_by_way_of_another_file_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A move between file systems is a copy, which a kill leaves half done."""
    monkeypatch.delattr(shutil, "move")
    monkeypatch.setattr("tempfile.mkstemp", None)
    AtomicCheckpointIO().save_checkpoint({"a": torch.ones(2)}, tmp_path / "a.ckpt")
    assert torch.load(tmp_path / "a.ckpt", weights_only=True)["a"].tolist() == [1, 1]
