"""Which command runs what, and what is said where there is none."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import pcattn
from pcattn.cli.main import COMMANDS, OTHERS, main
from pcattn.cli.messages import format_warning


@pytest.mark.parametrize("words", [[], ["--help"], ["-h"]], ids=str)
def test_help_names_every_command(words: list[str], capsys: pytest.CaptureFixture) -> None:
    main(words)
    output = capsys.readouterr()
    assert not output.err
    lines = output.out.splitlines()
    assert [line.strip().split("   ")[0] for line in lines[2:]] == list(COMMANDS)
    assert max(map(len, lines)) <= 100


def test_help_of_bench(capsys: pytest.CaptureFixture) -> None:
    main(["bench", "--help"])
    named = [line.strip().split("   ")[0] for line in capsys.readouterr().out.splitlines()[2:]]
    assert named == ["bench attention", "bench ops", "bench train", "bench networks"]


def test_help_waits_for_nothing() -> None:
    """Neither help nor the version imports torch."""
    code = "import sys; from pcattn.cli.main import main; main([]); main(['--version']); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.endswith(f"pcattn {pcattn.__version__}\nFalse\n")


@pytest.mark.parametrize("name", OTHERS)
def test_help_of_a_command(name: str, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit, match="0"):
        main([*name.split(), "--help"])
    assert f"usage: pcattn {name} " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "meant"),
    [(["predict-file", "x.ply"], "predict-files"), (["bench", "tain"], "bench train"), (["bnech", "ops"], "bench")],
    ids=str,
)
def test_a_misspelt_command(words: list[str], meant: str, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(words)
    error = capsys.readouterr().err
    assert error.startswith(f"pcattn: error: expected one of {', '.join(COMMANDS)}, but got")
    assert error.endswith(f"(did you mean {meant!r}?)\n")


def test_three_ways_to_call_it_are_one() -> None:
    repository = Path(__file__).parents[2]
    script = Path(sys.executable).with_name("pcattn")
    calls = [[sys.executable, str(repository / "train.py")], [sys.executable, "-m", "pcattn"], [str(script)]]
    outputs = [
        subprocess.run([*call, "fit"], capture_output=True, text=True, check=False, cwd=repository) for call in calls
    ]
    assert {output.returncode for output in outputs} == {2}
    assert len({output.stderr for output in outputs}) == 1


@pytest.mark.parametrize("module", ["pcattn", "pcattn.datasets"])
def test_warnings_of_the_package_are_one_line(module: str) -> None:
    file = str(import_module(module).__file__)
    assert format_warning("careful", UserWarning, file, 1) == "pcattn: warning: careful\n"
    assert ":1: UserWarning: careful" in format_warning("careful", UserWarning, "/elsewhere/module.py", 1)
