"""Output that nobody may be left to read: a pipe (`| tee log`) that is closed, a terminal that has gone."""

from __future__ import annotations

import errno
import io
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from typing import Any


class LastingStream:
    """A text stream which goes on without a word when its reader has gone: a training is worth more than its output.

    Ctrl-C ends all of `pcattn fit | tee log`, tee at once, and the training still has to save.
    """

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write, as long as anyone reads."""
        try:
            self._stream.write(text)
        except OSError as error:
            self._give_up(error)
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        """Write them one after the other, likewise."""
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        """Flush, likewise."""
        try:
            self._stream.flush()
        except OSError as error:
            self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        """Let all that is still to come go nowhere, what Python itself writes at its end included."""
        if error.errno not in (errno.EPIPE, errno.EIO):
            raise error
        with suppress(AttributeError, io.UnsupportedOperation):  # no file of the system: it is asked again each time
            place = self._stream.fileno()
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, place)
            os.close(nowhere)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def lasting_output() -> Iterator[None]:
    """Within it, standard output and standard error are `LastingStream`s, where there are any.

    They are flushed at its end: Python, which does it at its own, would complain of a reader that has gone.
    """
    out, err = (stream and LastingStream(stream) for stream in (sys.stdout, sys.stderr))
    with redirect_stdout(out), redirect_stderr(err):
        try:
            yield
        finally:
            for stream in (out, err):
                if stream:
                    with suppress(OSError):  # Python tries once more, and tells
                        stream.flush()
