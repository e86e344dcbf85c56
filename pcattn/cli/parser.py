"""The parser of Lightning's commands, whose errors are one line each."""

from __future__ import annotations

import difflib
import inspect
import re
from typing import NoReturn

from pytorch_lightning import Trainer
from pytorch_lightning.cli import LightningArgumentParser

from pcattn.cli.config_files import bundled
from pcattn.cli.messages import fail
from pcattn.tasks import TASKS
from pcattn.training import PointCloudDataModule


class Parser(LightningArgumentParser):
    """Says what is wrong with a command line or a configuration in one line."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Print the message and exit with status 2."""
        fail(concise(message), ex)


def concise(message: str) -> str:
    """A message of the parser in one line: what it found wrong, without a listing of the types that it tried."""
    where, union, details = message.partition("Does not validate against any of the Union subtypes")
    if union:
        reasons = re.findall(r"^ *- (.*)$", details, flags=re.MULTILINE)
        told = [reason for reason in reasons if "NoneType" not in reason] or reasons
        value = re.search(r"Given value: (?!Namespace)(.*)", details)
        got = f", but got {value[1]}" if value and "but got" not in told[0] else ""
        message = f"{where}{' or '.join(dict.fromkeys(told))}{got}"
    if "required" in message:  # "arguments are required", or in older versions of the parser "is required but not"
        message += f"; start from a configuration: pcattn fit -c smoke (or {', '.join(bundled())})"
    misspelt = re.search(r"'([\w.]+)' is not (?:accepted|expected)|nrecognized arguments: --([\w.]+)", message)
    if misspelt:
        name = (misspelt[1] or misspelt[2]).rpartition(".")[2]
        close = difflib.get_close_matches(name, _option_names(), n=1)
        message += f" (did you mean {close[0]!r}?)" if close else ""
    return " ".join(message.partition(", but got Namespace(")[0].split())


def _option_names() -> set[str]:
    """Of the trainer, the data and the tasks."""
    owners = (Trainer, PointCloudDataModule, *TASKS.values())
    return {name for owner in owners for name in inspect.signature(owner).parameters}
