"""Standard output and error that survive their reader: the end of `| tee log`, or a closed terminal."""

from __future__ import annotations

import errno
import io
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from typing import Any


class BrokenPipeStream:
    """A text stream that discards its output once nobody reads it.

    Ctrl-C ends every program of `pcattn fit | tee log`, tee at once, while the training still has to save.
    """

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write the text, or discard it."""
        with self._discarding():
            self._stream.write(text)
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        """Write several texts."""
        self.write("".join(lines))

    def flush(self) -> None:
        """Flush the stream, or discard what is in its buffer."""
        with self._discarding():
            self._stream.flush()

    @contextmanager
    def _discarding(self) -> Iterator[None]:
        """Ignore a broken pipe (EPIPE) or a closed terminal (EIO), and send all further output to the null device."""
        try:
            yield
        except OSError as error:
            if error.errno not in (errno.EPIPE, errno.EIO):
                raise
            with suppress(AttributeError, io.UnsupportedOperation):  # not a file: it fails again at every write
                null = os.open(os.devnull, os.O_WRONLY)
                try:
                    os.dup2(null, self._stream.fileno())
                finally:
                    os.close(null)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def ignore_broken_pipes() -> Iterator[None]:
    """Replace `sys.stdout` and `sys.stderr` by `BrokenPipeStream`s.

    They are flushed at the end: a broken pipe that Python finds when it exits changes the exit status to 120.
    """
    out, err = (stream and BrokenPipeStream(stream) for stream in (sys.stdout, sys.stderr))
    with redirect_stdout(out), redirect_stderr(err):
        try:
            yield
        finally:
            for stream in (out, err):
                if stream:
                    with suppress(OSError):  # Python flushes once more and reports the error
                        stream.flush()
