"""A lock between processes."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pcattn.utils.errors import InputError


@contextmanager
def exclusive_lock(path: Path, timeout: float = 10.0) -> Iterator[int | None]:
    """Hold a file or folder so that no other process can take this lock.

    The lock lives in the operating system: it leaves no file behind, ends with the process, and a child process that
    inherits the descriptor keeps it. Windows and some network file systems have no such locks; there it does nothing.

    Args:
        path: an existing file or folder.
        timeout: seconds to wait for a process that holds the lock.

    Yields:
        The file descriptor that holds the lock; None on Windows.

    Raises:
        InputError: another process still holds the lock after `timeout` seconds.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        yield None
        return
    descriptor = os.open(path, os.O_RDONLY)
    deadline = time.monotonic() + timeout
    try:
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                if time.monotonic() > deadline:
                    raise InputError(f"expected {path} to be unused, but another process uses it") from error
                time.sleep(0.05)
                continue
            except OSError:  # a file system without locks
                pass
            break
        yield descriptor
    finally:
        os.close(descriptor)
