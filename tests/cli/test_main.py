"""The table of commands: help, misspelled names, errors, and the ways to call the program."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import pytest

import pcattn
from pcattn.cli.main import COMMANDS, LIGHTNING, main
from pcattn.cli.messages import format_warning
from pcattn.tasks.watch import NonFiniteError
from pcattn.utils.errors import DatasetError, InputError

BENCHMARKS = ("attention", "ops", "train", "networks")


@pytest.mark.parametrize("words", [[], ["--help"], ["-h"]], ids=str)
def test_help_names_every_command(words: list[str], capsys: pytest.CaptureFixture) -> None:
    main(words)
    output = capsys.readouterr()
    assert not output.err
    lines = output.out.splitlines()
    assert [line.strip().split("   ")[0] for line in lines[2:]] == list(COMMANDS)
    assert max(map(len, lines)) <= 100


def test_help_waits_for_nothing() -> None:
    """Neither help nor the version imports torch."""
    code = "import sys; from pcattn.cli.main import main; main([]); main(['--version']); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.endswith(f"pcattn {pcattn.__version__}\nFalse\n")


@pytest.mark.parametrize(
    "name",
    [*(name for name in COMMANDS if COMMANDS[name].module != LIGHTNING), *(f"bench {name}" for name in BENCHMARKS)],
)
def test_help_of_a_command(name: str, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit, match="0"):
        main([*name.split(), "--help"])
    help = capsys.readouterr().out
    assert f"usage: pcattn {name} " in help
    assert not re.search(r"--\w+-\w", help)  # long options have underscores


@pytest.mark.parametrize(("args", "meant"), [(["predict-file", "x.ply"], "predict-files"), (["bnech", "ops"], "bench")])
def test_misspelled_command(args: list[str], meant: str, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(args)
    error = capsys.readouterr().err
    assert error.startswith(f"pcattn: error: expected one of {', '.join(COMMANDS)}, but got")
    assert error.endswith(f"(did you mean {meant!r}?)\n")


def test_misspelled_benchmark(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["bench", "tain"])
    error = capsys.readouterr().err
    assert all(name in error for name in BENCHMARKS)


class TestErrors:
    """Errors of the user are one line; any other exception is a bug and keeps its traceback."""

    @pytest.fixture
    def command(self, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
        module = SimpleNamespace()
        monkeypatch.setattr("importlib.import_module", lambda name: module)
        return module

    @pytest.mark.parametrize("error", [InputError, DatasetError, NonFiniteError, OSError])
    def test_one_line(self, error: type[Exception], command: SimpleNamespace, capsys: pytest.CaptureFixture) -> None:
        def run(args: list[str]) -> int:
            raise error("expected a, but got \x1b[31m")

        command.main = run
        with pytest.raises(SystemExit, match="2"):
            main(["data"])
        assert capsys.readouterr().err == "pcattn: error: expected a, but got \\x1b[31m\n"

    @pytest.mark.parametrize("error", [ValueError, TypeError, RuntimeError])
    def test_bug(self, error: type[Exception], command: SimpleNamespace) -> None:
        def run(args: list[str]) -> int:
            raise error("expected something else")

        command.main = run
        with pytest.raises(error):
            main(["data"])

    def test_interrupted(self, command: SimpleNamespace, capsys: pytest.CaptureFixture) -> None:
        def run(args: list[str]) -> int:
            raise KeyboardInterrupt

        command.main = run
        with pytest.raises(SystemExit, match="130"):
            main(["data"])
        assert capsys.readouterr().err == "\ninterrupted\n"


def test_three_ways_to_call_it() -> None:
    repository = Path(__file__).parents[2]
    script = Path(sys.executable).with_name("pcattn")
    for call in ([sys.executable, str(repository / "train.py")], [sys.executable, "-m", "pcattn"], [str(script)]):
        done = subprocess.run([*call, "fti"], capture_output=True, text=True, check=False, cwd=repository)
        assert done.returncode == 2
        assert "did you mean 'fit'?" in done.stderr


@pytest.mark.parametrize("module", ["pcattn", "pcattn.datasets"])
def test_warnings_of_the_package_are_one_line(module: str) -> None:
    file = str(import_module(module).__file__)
    assert format_warning("careful", UserWarning, file, 1) == "pcattn: warning: careful\n"
    assert ":1: UserWarning: careful" in format_warning("careful", UserWarning, "/elsewhere/module.py", 1)
