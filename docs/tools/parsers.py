"""The parser of every command of `pcattn`, without running the command."""

import argparse
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any
from unittest import mock

import jsonargparse

from pcattn.cli.main import main


def parse(words: Sequence[str]) -> tuple[argparse.ArgumentParser, Any]:
    """Parse a command line, without the word `pcattn`: the parser that understood it, and what it returned.

    Raises:
        SystemExit: it was not understood; the reason is on standard error.
    """
    depth = 0
    parsed: list[tuple[argparse.ArgumentParser, Any]] = []

    def stop_after(original: Any) -> Any:
        def parse_args(self: argparse.ArgumentParser, *args: Any, **kwargs: Any) -> Any:
            nonlocal depth
            depth += 1
            try:
                result = original(self, *args, **kwargs)
            finally:
                depth -= 1
            if depth:  # a parser that asks another one, or itself
                return result
            parsed.append((self, result))
            raise SystemExit

        return parse_args

    with ExitStack() as stack:
        for owner in (argparse.ArgumentParser, jsonargparse.ArgumentParser):
            for name in ("parse_args", "parse_known_args"):
                stack.enter_context(mock.patch.object(owner, name, stop_after(getattr(owner, name))))
        try:
            main(list(words))
        except SystemExit:
            if not parsed:
                raise
    return parsed[0]
