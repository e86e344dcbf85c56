"""Errors, warnings and hints on standard error, one line each."""

from __future__ import annotations

import logging
import os
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import NoReturn

from pcattn.utils.text import escape_unprintable

# Folders of this package. In a checkout of the repository, `pcattn.datasets` lies beside `pcattn`.
_PACKAGE_FOLDERS = tuple(
    f"{Path(spec.origin).parent}{os.sep}"
    for spec in map(find_spec, ("pcattn", "pcattn.datasets"))
    if spec is not None and spec.origin is not None
)
_python_format = warnings.formatwarning


def configure_warnings() -> None:
    """Show warnings of this package as one line, and hide those of Lightning that do not apply here."""
    warnings.formatwarning = format_warning
    for message in (
        ".*treespec, LeafSpec.*",  # deprecated in torch, used by Lightning
        ".*does not have many workers.*",  # batches are read from memory by index; workers would only copy them
        "LightningCLI's args parameter.*",
        ".*Precision bf16-mixed is not supported by the model summary.*",
        ".*directory .* exists and is not empty.*",  # expected for a resumed run
    ):
        warnings.filterwarnings("ignore", message=message)
    logging.getLogger("pytorch_lightning.utilities.rank_zero").addFilter(
        lambda record: "Tip:" not in record.getMessage()
    )


def fail(message: str, cause: Exception | None = None) -> NoReturn:
    """Print an error and exit with status 2."""
    print(f"pcattn: error: {escape_unprintable(message)}", file=sys.stderr)
    raise SystemExit(2) from cause


def hint(message: str) -> None:
    """Print a hint."""
    print(f"pcattn: hint: {escape_unprintable(message)}", file=sys.stderr)


@contextmanager
def announce_compilation(delay: float = 3.0) -> Iterator[None]:
    """Say that kernels are being compiled if the first call of a network takes longer than `delay` seconds."""
    timer = threading.Timer(delay, hint, ["compiling kernels for this machine, once; later starts are faster"])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def format_warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    """Format a warning: one line if it comes from this package, else as Python does."""
    if filename.startswith(_PACKAGE_FOLDERS):
        return f"pcattn: warning: {escape_unprintable(message)}\n"
    return _python_format(message, category, filename, lineno, line)
