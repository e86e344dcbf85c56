"""A reader that goes away stops nothing; whatever else goes wrong with the output does."""

import errno
import io
import os
import sys

import pytest

from pcattn.lasting import LastingStream, lasting_output


def test_a_pipe_that_is_closed() -> None:
    read, write = os.pipe()
    with open(write, "w") as pipe:
        stream = LastingStream(pipe)
        assert stream.write("one\n") == 4
        stream.flush()
        assert os.read(read, 10) == b"one\n"
        os.close(read)
        for _ in range(2):
            assert stream.write("two\n") == 4
            stream.flush()
        assert stream.fileno() == write  # and what Python flushes when the file is closed goes nowhere, too


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EBADF])
def test_other_errors(number: int) -> None:
    class Broken(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError(number, os.strerror(number))

    with pytest.raises(OSError, match=os.strerror(number)):
        LastingStream(Broken()).write("text")


def test_where_there_is_no_output(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a process that was started with it closed."""
    monkeypatch.setattr(sys, "stdout", None)
    with lasting_output():
        assert sys.stdout is None
        print("nowhere")
