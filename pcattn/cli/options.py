"""Options that several commands share. All long options are spelled with underscores, as Lightning spells them."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Sequence
from typing import Any

from pcattn.cli.messages import hint


def normalize(args: Sequence[str]) -> list[str]:
    """Accept dashes for the underscores of long options: `--top-k=3` becomes `--top_k=3`. Values stay as they are."""
    end = args.index("--") if "--" in args else len(args)

    def spell(word: str) -> str:
        return re.sub(r"^--\w[\w.-]*", lambda option: "--" + option[0][2:].replace("-", "_"), word)

    return [*map(spell, args[:end]), *args[end:]]


def add_ckpt_path(parser: argparse.ArgumentParser, help: str, **kwargs: Any) -> None:
    """Add `--ckpt_path`, which Lightning's commands have too. Its old name `--checkpoint` is accepted with a hint."""
    parser.add_argument("--ckpt_path", "--checkpoint", action=_RenamedOption, help=help, **kwargs)


class _RenamedOption(argparse.Action):
    """Stores a value under the first name of the option, with a hint if the user typed another name."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option: str | None = None
    ) -> None:
        if option != self.option_strings[0]:
            hint(f"{option} is now {self.option_strings[0]}")
        setattr(namespace, self.dest, values)


def add_device(parser: argparse.ArgumentParser) -> None:
    """Add `--device`, by default a GPU if torch sees one."""
    import torch

    def device(name: str) -> str:
        if name == "cuda" and not torch.cuda.is_available():
            raise argparse.ArgumentTypeError("expected a CUDA device, but torch sees none")
        return name

    default = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", type=device, choices=("cpu", "cuda"), default=default, help="default: %(default)s")


def at_least(minimum: int) -> Callable[[str], int]:
    """A `type` for argparse: integers from `minimum` on."""

    def convert(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"expected an integer, but got {text!r}") from None
        if value < minimum:
            raise argparse.ArgumentTypeError(f"expected at least {minimum}, but got {value}")
        return value

    return convert
