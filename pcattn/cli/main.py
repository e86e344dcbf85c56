"""The commands of `pcattn`: what each does, and the module that runs it.

Only that module is imported, so that help is there at once: torch, Lightning and torch-geometric take seconds.
"""

from __future__ import annotations

import difflib
import importlib
import signal
import sys
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import pcattn
from pcattn.cli.messages import fail, tell_plainly
from pcattn.cli.output import lasting_output


class Command(NamedTuple):
    """What a command does in a line, and the module whose `main(args)` runs it."""

    summary: str
    module: str


#: Lightning's commands, all of `pcattn.cli.lightning`, which gets all words of the command line; what each does.
TRAINING = {
    "fit": "train a network, test it once, draw what it finds",
    "validate": "measure a checkpoint on the validation split",
    "test": "measure a checkpoint on the test split",
    "predict": "write the predictions for the test split",
}

#: The others, which get the words after their name and return their status.
OTHERS = {
    "compare": Command("train several attentions and seeds: one table, one plot", "pcattn.cli.compare"),
    "predict-files": Command("classes or parts of your own files", "pcattn.cli.predict_files"),
    "show": Command("pictures, a page or a window: clouds, parts, attention", "pcattn.cli.show"),
    "report": Command("one page about a run", "pcattn.cli.report"),
    "robustness": Command("accuracy under 15 corruptions at 5 severities", "pcattn.cli.robustness"),
    "data": Command("what lies in a folder, and what is suspicious", "pcattn.cli.data"),
    "download": Command("fetch a data set and check it", "pcattn.cli.download"),
    "export": Command("a network as ONNX, torch program or safetensors", "pcattn.cli.export"),
    "bundle": Command("a network's weights as one small file", "pcattn.cli.bundle"),
    "bench attention": Command("time, memory and multiply-adds of the attentions", "pcattn.bench.attention"),
    "bench ops": Command("neighbor search and sampling beside other libraries", "pcattn.bench.ops"),
    "bench train": Command("a training step beside the textbook PCT", "pcattn.bench.train"),
    "bench networks": Command("a segmenter's step, up to 100,000 points", "pcattn.bench.networks"),
}

#: What each of all of them does.
COMMANDS = TRAINING | {name: command.summary for name, command in OTHERS.items()}


def main(args: Sequence[str] | None = None) -> None:
    """Run the command line `args` (default: that of the process); one that fails exits with its status."""
    with lasting_output():
        try:
            _run(list(sys.argv[1:] if args is None else args))
        except KeyboardInterrupt:
            print("\ninterrupted", file=sys.stderr)
            raise SystemExit(128 + signal.SIGINT) from None


def _run(words: list[str]) -> None:
    if not words or words in (["-h"], ["--help"]):
        print(_overview(COMMANDS))
        return
    if words == ["--version"]:
        print(f"pcattn {pcattn.__version__}")
        return
    if words in (["bench"], ["bench", "-h"], ["bench", "--help"]):
        print(_overview({name: summary for name, summary in COMMANDS.items() if name.startswith("bench ")}))
        return
    tell_plainly()
    for name, command in OTHERS.items():
        length = len(name.split())
        if words[:length] == name.split():
            raise SystemExit(importlib.import_module(command.module).main(words[length:]))
    # Lightning's parser takes a configuration before the name of the command, too.
    if words[0] not in TRAINING and not words[0].startswith("-"):
        given = " ".join(words[:2]) if words[0] == "bench" else words[0]
        close = difflib.get_close_matches(given, (*COMMANDS, "bench"), n=1)
        meant = f" (did you mean {close[0]!r}?)" if close else ""
        fail(f"expected one of {', '.join(COMMANDS)}, but got {given!r}{meant}")
    importlib.import_module("pcattn.cli.lightning").main(words)


def _overview(commands: Mapping[str, str]) -> str:
    width = max(map(len, commands))
    usage = "usage: pcattn COMMAND ...   options of a command: pcattn COMMAND --help   version: pcattn --version"
    return "\n".join([usage, "", *(f"  {name:{width}}   {summary}" for name, summary in commands.items())])
