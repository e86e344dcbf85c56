"""Wait for events of other processes. There is no limit of time: a busy machine only takes longer."""

import subprocess
import time
from collections.abc import Callable


def wait_until(happened: Callable[[], bool], process: subprocess.Popen | None = None) -> None:
    """Return once something has happened; fail if the process that should cause it ends before."""
    while not happened():
        if process is not None and process.poll() is not None:
            assert happened(), f"the process ended with {process.returncode} before"
        time.sleep(0.05)
