"""The entry of the command line: a table of the commands, and the function that runs one of them.

Only the module of the command is imported: help answers at once, while torch and Lightning take seconds to import.
"""

from __future__ import annotations

import difflib
import importlib
import signal
import sys
from collections.abc import Sequence
from typing import NamedTuple

import pcattn
from pcattn.cli.broken_pipe import ignore_broken_pipes
from pcattn.cli.messages import configure_warnings, fail
from pcattn.cli.options import normalize
from pcattn.utils.errors import InputError

LIGHTNING = "pcattn.cli.lightning"


class Command(NamedTuple):
    """What a command does, and the module whose `main(args)` runs it and returns the exit status."""

    summary: str
    module: str


COMMANDS = {
    "fit": Command("train a network, test it once, draw what it finds", LIGHTNING),
    "validate": Command("measure a checkpoint on the validation split", LIGHTNING),
    "test": Command("measure a checkpoint on the test split", LIGHTNING),
    "predict": Command("write the predictions for the test split", LIGHTNING),
    "compare": Command("train several attentions and seeds: one table, one plot", "pcattn.cli.compare"),
    "predict-files": Command("classes or parts of your own files", "pcattn.cli.predict_files"),
    "show": Command("pictures, a page or a window: clouds, parts, attention", "pcattn.cli.show"),
    "report": Command("one page about a run", "pcattn.cli.report"),
    "robustness": Command("accuracy under 15 corruptions at 5 severities", "pcattn.cli.robustness"),
    "data": Command("what lies in a folder, and what is suspicious", "pcattn.cli.data"),
    "download": Command("fetch a data set and check it", "pcattn.cli.download"),
    "export": Command("a network as ONNX, torch program or safetensors", "pcattn.cli.export"),
    "convert": Command("weights of a released PCT network for use here", "pcattn.cli.convert"),
    "bundle": Command("a network's weights as one small file", "pcattn.cli.bundle"),
    "bench": Command("time and memory of operations, attentions and networks", "pcattn.cli.bench"),
}


def main(args: Sequence[str] | None = None) -> None:
    """Run the command line `args` (default: `sys.argv[1:]`).

    A command that fails raises `SystemExit` with its status: 2 for an error of the user, 130 for Ctrl-C.
    """
    with ignore_broken_pipes():
        try:
            _run(normalize(sys.argv[1:] if args is None else args))
        except (InputError, OSError) as error:
            fail(" ".join(str(error).split()), error)
        except KeyboardInterrupt:
            print("\ninterrupted", file=sys.stderr)
            raise SystemExit(128 + signal.SIGINT) from None


def _run(args: list[str]) -> None:
    if not args or args in (["-h"], ["--help"]):
        print(_overview())
        return
    if args == ["--version"]:
        print(f"pcattn {pcattn.__version__}")
        return
    configure_warnings()
    name = "fit" if args[0].startswith("-") else args[0]  # Lightning also takes options before the subcommand
    if name not in COMMANDS:
        close = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f" (did you mean {close[0]!r}?)" if close else ""
        fail(f"expected one of {', '.join(COMMANDS)}, but got {name!r}{hint}")
    module = COMMANDS[name].module
    status = importlib.import_module(module).main(args if module == LIGHTNING else args[1:])
    if status is not None:
        raise SystemExit(status)


def _overview() -> str:
    width = max(map(len, COMMANDS))
    usage = "usage: pcattn COMMAND ...   options of a command: pcattn COMMAND --help   version: pcattn --version"
    return "\n".join([usage, "", *(f"  {name:{width}}   {command.summary}" for name, command in COMMANDS.items())])
