"""Child processes end with the block that started them, and with their parent."""

import signal
import subprocess
import sys

import pytest

from pcattn.utils.processes import child_process

WAIT = [sys.executable, "-c", "print('ready', flush=True); import signal; signal.pause()"]
PARENT = f"""
import signal
from pcattn.utils.processes import child_process
with child_process({WAIT!r}):
    signal.pause()
"""


def test_an_error_ends_the_child() -> None:
    started: list[subprocess.Popen] = []

    def fail() -> None:
        with child_process(WAIT, stdout=subprocess.PIPE) as process:
            assert process.stdout.readline() == b"ready\n"
            started.append(process)
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert started[0].returncode == -signal.SIGTERM


def test_a_finished_child_keeps_its_status() -> None:
    with child_process([sys.executable, "-c", "raise SystemExit(3)"]) as process:
        process.wait()
    assert process.returncode == 3


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux signals a child when its parent is killed")
def test_a_killed_parent_ends_the_child() -> None:
    """The child holds the other end of the pipe, which is closed when the child ends."""
    with subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == b"ready\n"
        parent.kill()
        assert parent.stdout.read() == b""
