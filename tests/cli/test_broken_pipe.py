"""Output goes on when its reader has gone; any other error of the output is raised."""

import errno
import io
import os
import subprocess
import sys

import pytest

from pcattn.cli.broken_pipe import BrokenPipeStream, ignore_broken_pipes


def test_closed_pipe() -> None:
    read, write = os.pipe()
    with open(write, "w") as pipe:
        stream = BrokenPipeStream(pipe)
        assert stream.write("one\n") == 4
        stream.flush()
        assert os.read(read, 10) == b"one\n"
        os.close(read)
        for _ in range(2):
            assert stream.write("two\n") == 4
            stream.writelines(["three\n", "four\n"])
            stream.flush()
        assert stream.fileno() == write  # closing the file, which flushes it, raises nothing either


def test_stream_without_descriptor() -> None:
    """Such as one that writes to two other streams."""

    class Gone:
        def write(self, text: str) -> int:
            raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))

    assert [BrokenPipeStream(Gone()).write("text") for _ in range(2)] == [4, 4]


@pytest.mark.parametrize("name", ["stdout", "stderr"])
def test_buffered_output_at_exit(name: str) -> None:
    code = "import sys; from pcattn.cli.broken_pipe import ignore_broken_pipes\n"
    code += f"with ignore_broken_pipes(): sys.{name}.write('text')"
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
        BrokenPipeStream(Broken()).write("text")


def test_no_output(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a process that was started with standard output closed."""
    monkeypatch.setattr(sys, "stdout", None)
    with ignore_broken_pipes():
        assert sys.stdout is None
        print("nowhere")
