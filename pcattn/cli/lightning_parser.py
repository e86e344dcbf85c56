"""The parser of Lightning's commands, which reports errors as one line each."""

from __future__ import annotations

import difflib
import inspect
import re
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from jsonargparse import set_loader
from pytorch_lightning import Trainer
from pytorch_lightning.cli import LightningArgumentParser

from pcattn.cli import config_files
from pcattn.cli.messages import fail
from pcattn.tasks import TASKS
from pcattn.training import PointCloudDataModule


def configure_loader(folder: Path) -> None:
    """Let parsers load YAML by `pcattn.cli.config_files.load`, with classes from `folder`.

    The folder is fixed because jsonargparse enters the folder of a configuration while it reads it.
    """
    set_loader("pcattn", partial(config_files.load, folder=folder), config_files.LOAD_ERRORS)


#: Options by names that users of other libraries try.
_OTHER_NAMES = {
    "learning_rate": "lr",
    "epochs": "max_epochs",
    "num_epochs": "max_epochs",
    "model": "variant",
    "attn": "attention",
    "data_dir": "root",
}


class Parser(LightningArgumentParser):
    """Lightning's parser with `pcattn.cli.config_files.load` for values and configurations, and short messages."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"parser_mode": "pcattn", **kwargs})

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Print the message as one line and exit with status 2."""
        fail(shorten(message), ex)


def shorten(message: str) -> str:
    """Reduce a message of jsonargparse to what is wrong, without the list of types that it tried.

    jsonargparse hands over text alone: neither the option nor the reasons of a union are available otherwise.
    """
    where, union, details = message.partition("Does not validate against any of the Union subtypes")
    if union:
        reasons = re.findall(r"^ *- (.*)$", details, flags=re.MULTILINE)
        relevant = [reason for reason in reasons if "NoneType" not in reason] or reasons
        value = re.search(r"Given value: (?!Namespace)(.*)", details)
        got = f", but got {value[1]}" if value and "but got" not in relevant[0] else ""
        message = f"{where}{' or '.join(dict.fromkeys(relevant))}{got}"
    if "required" in message:  # "arguments are required", or in older versions "is required but not"
        configs = ", ".join(config_files.bundled_configs())
        message += f"; start from a configuration: pcattn fit -c smoke (or {configs})"
    misspelled = re.search(r"'([\w.]+)' is not (?:accepted|expected)|nrecognized arguments: --([\w.]+)", message)
    if misspelled:
        name = (misspelled[1] or misspelled[2]).rpartition(".")[2]
        close = [_OTHER_NAMES[name]] if name in _OTHER_NAMES else difflib.get_close_matches(name, _option_names(), n=1)
        message += f" (did you mean {close[0]!r}?)" if close else ""
    return " ".join(message.partition(", but got Namespace(")[0].split())


def _option_names() -> set[str]:
    """Options of the trainer, the data module, and the tasks."""
    owners = (Trainer, PointCloudDataModule, *TASKS.values())
    return {name for owner in owners for name in inspect.signature(owner).parameters}
