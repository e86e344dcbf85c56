"""Trainings that are killed or stopped go on as if nothing had been; `kill.py` does it more often."""

import signal
import sys
from pathlib import Path

import pytest
import torch

from pcattn.training import run_folder

if sys.platform == "win32":
    pytest.skip("Windows has other signals", allow_module_level=True)

from tests.faults import kill

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return kill.prepare(tmp_path_factory.mktemp("kill"))


def test_killed(config: Path) -> None:
    outcome = kill.kill_and_resume(config, kills=3, seed=1, moments=["epoch", "checkpoint", "cache"])
    assert outcome.findings == []
    assert outcome.kills == {"epoch": 1, "checkpoint": 1, "cache": 1}
    assert outcome.resumed >= 1


@pytest.mark.parametrize(
    ("sent", "status", "moment", "call", "step"),
    [
        (signal.SIGINT, 130, "validation", 1, 5),
        (signal.SIGTERM, 143, "epoch", 12, 12),
        (signal.SIGHUP, 129, "epoch", 3, 3),
    ],
)
def test_stopped(sent: signal.Signals, status: int, moment: str, call: int, step: int, config: Path) -> None:
    """It saves where it is, within an epoch; and where the next checkpoint finds the disk full, that one is left."""
    run = config.parent / sent.name
    log = Path(f"{run}.log")
    assert kill.run(config, run, kill.Plan(moment, call, signal=sent)) == status
    assert "saving after this step" in log.read_text()
    last = run_folder.checkpoint_path(run, "last")
    assert torch.load(last, weights_only=True)["global_step"] == step
    if sent == signal.SIGTERM:
        before = last.read_bytes()
        assert kill.run(config, run, resume=True, largest_file=1_000_000) == 2
        assert last.read_bytes() == before
        assert {path.name for path in last.parent.iterdir()} == {"best.ckpt", "last.ckpt"}
        error = log.read_text().splitlines()[-1]
        assert error.startswith(f"pcattn: error: expected to write {last}, but File too large (")
        assert error.endswith("; the previous checkpoint is unchanged")
        assert "Traceback" not in log.read_text()
    assert kill.run(config, run, resume=True) == 0
    assert kill.differences(config.parent / "whole", run) == []
