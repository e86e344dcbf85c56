"""A reader that goes away stops nothing; whatever else goes wrong with the output does."""

import errno
import io
import os
import subprocess
import sys

import pytest

from pcattn.cli.output import LastingStream, lasting_output


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


def test_a_stream_that_is_no_file() -> None:
    """As one that writes to two others."""

    class Gone:
        def write(self, text: str) -> int:
            raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))

    assert [LastingStream(Gone()).write("text") for _ in range(2)] == [4, 4]


@pytest.mark.parametrize("name", ["stdout", "stderr"])
def test_nobody_reads_what_is_written_last(name: str) -> None:
    """It is in a buffer until the end."""
    code = f"import sys; from pcattn.cli.output import lasting_output\nwith lasting_output(): sys.{name}.write('text')"
    read, write = os.pipe()
    os.close(read)
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONUNBUFFERED"}
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, name: write}
    done = subprocess.run([sys.executable, "-c", code], **streams, env=environment, check=False)
    os.close(write)
    assert done.returncode == 0
    assert not done.stdout
    assert not done.stderr


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
