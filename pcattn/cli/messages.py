"""What the command line says on standard error: errors and warnings in one line each."""

from __future__ import annotations

import logging
import os
import sys
import traceback
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import NoReturn

from pcattn.utils.text import printable

# Where the files of this package lie, whose warnings are told as its errors are.
_HOMES = tuple(
    f"{Path(spec.origin).parent}{os.sep}"
    for spec in map(find_spec, ("pcattn", "pcattn.datasets"))
    if spec is not None and spec.origin is not None
)
_PYTHONS_FORMAT = warnings.formatwarning


def tell_plainly() -> None:
    """Warnings of this package in one line from now on; none of Lightning's about what is as it should be."""
    warnings.formatwarning = format_warning
    for message in (
        ".*treespec, LeafSpec.*",  # Lightning's own business with torch
        ".*does not have many workers.*",  # batches are read from memory by index: workers would only copy them
        "LightningCLI's args parameter.*",
        ".*Precision bf16-mixed is not supported by the model summary.*",
        ".*directory .* exists and is not empty.*",  # a resumed run's own
    ):
        warnings.filterwarnings("ignore", message=message)
    logging.getLogger("pytorch_lightning.utilities.rank_zero").addFilter(
        lambda record: "Tip:" not in record.getMessage()
    )


def is_told(error: ValueError) -> bool:
    """Whether an error says what a user gave wrong: one of this package in its words, or one of Lightning's own."""
    raised_in = traceback.extract_tb(error.__traceback__)[-1].filename
    if raised_in.startswith(_HOMES):
        return str(error).startswith("expected ")
    return any(f"{os.sep}{package}{os.sep}" in raised_in for package in ("pytorch_lightning", "lightning_fabric"))


def fail(message: str, cause: Exception | None = None) -> NoReturn:
    """Print one line and exit with status 2."""
    print(f"pcattn: error: {printable(message)}", file=sys.stderr)
    raise SystemExit(2) from cause


def format_warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    """Warnings of this package in one line, as its errors; those of others as Python shows them."""
    if filename.startswith(_HOMES):
        return f"pcattn: warning: {printable(message)}\n"
    return _PYTHONS_FORMAT(message, category, filename, lineno, line)
