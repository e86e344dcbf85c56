"""A comparison that is stopped or killed stops its training."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.waiting import wait_until

#: Takes the place of the Python interpreter: a training that writes when it begins, and when it is asked to stop.
TRAINING = """#!/bin/sh
trap 'echo saved > saved; exit 143' TERM
echo $$ > began.tmp; mv began.tmp began
while true; do sleep 0.05; done
"""

#: The comparison. Background jobs of a shell ignore SIGINT, and so would this process.
COMPARISON = """
import signal, sys
from pcattn.cli.main import main

signal.signal(signal.SIGINT, signal.default_int_handler)
sys.executable = "./training"
main(["compare", "-c", "some.yaml", "--seeds", "0", "--attentions", "self", "--out", "out"])
"""

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a killed comparison leaves its training")


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (signal.SIGINT, 130),
        pytest.param(signal.SIGTERM, 143, marks=pytest.mark.slow),
        pytest.param(signal.SIGKILL, -9, marks=pytest.mark.slow),
    ],
)
def test_its_training_stops_with_it(sent: signal.Signals, status: int, tmp_path: Path) -> None:
    (tmp_path / "training").write_text(TRAINING)
    (tmp_path / "training").chmod(0o755)
    (tmp_path / "some.yaml").write_text("{}")
    with subprocess.Popen([sys.executable, "-c", COMPARISON], cwd=tmp_path) as process:
        wait_until((tmp_path / "began").exists, process)
        process.send_signal(sent)
    assert process.returncode == status
    wait_until((tmp_path / "saved").exists)
    training = Path("/proc", (tmp_path / "began").read_text().strip())
    wait_until(lambda: not training.exists())
