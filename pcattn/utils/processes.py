"""Child processes that end with their parent."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

_PR_SET_PDEATHSIG = 1  # <linux/prctl.h>


@contextmanager
def child_process(
    command: Sequence[str], stop: signal.Signals = signal.SIGTERM, **options: Any
) -> Iterator[subprocess.Popen[Any]]:
    """A child process in its own process group, so that Ctrl-C reaches this process alone.

    If the block ends before the child does, the group gets the signal `stop`, and the block waits for the child. On
    Linux, the child also gets the signal when this process is killed.

    Args:
        command: the program and its arguments.
        stop: signal that ends the child.
        **options: of `subprocess.Popen`.
    """
    # The context of Popen closes its pipes.
    with subprocess.Popen(command, process_group=0, preexec_fn=_signal_with_parent(stop), **options) as process:
        try:
            yield process
        finally:
            if process.poll() is None:
                os.killpg(process.pid, stop)
                process.wait()


def _signal_with_parent(number: signal.Signals) -> Callable[[], None] | None:
    """A function for the child to run first, so that the kernel sends it a signal when its parent ends."""
    if sys.platform != "linux":
        return None
    prctl, parent = ctypes.CDLL(None).prctl, os.getpid()  # loaded before the fork

    def run() -> None:
        prctl(_PR_SET_PDEATHSIG, number)
        if os.getppid() != parent:  # the parent has already ended
            os._exit(1)

    return run
