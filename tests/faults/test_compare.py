"""A comparison that is stopped or killed stops its training."""

import multiprocessing
import os
import signal
import sys
import time
from pathlib import Path

import pytest

from pcattn.cli import compare

#: In place of the interpreter: a training that tells when it begins, and that it was asked to stop.
TRAINING = """#!/bin/sh
trap 'echo saved > saved; exit 143' TERM
echo $$ > began.tmp; mv began.tmp began
while true; do sleep 0.05; done
"""

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a killed comparison leaves its training")


def wait_for(path: Path) -> str:
    for _ in range(600):
        if path.exists() and (text := path.read_text()):
            return text
        time.sleep(0.05)
    raise AssertionError(f"{path.name} did not appear in half a minute")


@pytest.mark.parametrize(("sent", "status"), [("SIGINT", 130), ("SIGTERM", 143), ("SIGKILL", -9)])
def test_its_training_stops_with_it(
    sent: str, status: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("training").write_text(TRAINING)
    Path("training").chmod(0o755)
    Path("some.yaml").write_text("{}")
    monkeypatch.setattr(sys, "executable", str(tmp_path / "training"))

    def run() -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell's background jobs ignore
        os._exit(exit_status(["-c", "some.yaml", "--seeds", "0", "--attentions", "self", "--out", "out"]))

    process = multiprocessing.get_context("fork").Process(target=run)
    process.start()
    training = int(wait_for(tmp_path / "began"))
    os.kill(int(process.pid or 0), signal.Signals[sent])
    process.join(30)
    assert process.exitcode == status
    assert wait_for(tmp_path / "saved") == "saved\n"
    for _ in range(100):
        if not Path(f"/proc/{training}").exists():
            break
        time.sleep(0.05)
    assert not Path(f"/proc/{training}").exists()


def exit_status(args: list[str]) -> int:
    try:
        return compare.main(args)
    except SystemExit as stop:
        return int(stop.code or 0)
