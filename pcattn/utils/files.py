"""Files that are written atomically: a reader finds the old file or the complete new one, never half of it."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@contextmanager
def naming_path(path: Path) -> Iterator[None]:
    """Add the path to errors of the operating system, which does not name the file when a disk is full.

    Raises:
        OSError: the block raised one; the message names `path`.
    """
    try:
        yield
    except OSError as error:
        raise OSError(f"expected to write {path}, but {error.strerror or error}") from error


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary file beside `path`, with the same suffix, that is renamed to `path` if the block succeeds.

    A process that is killed leaves at most the temporary file.

    Raises:
        OSError: the file cannot be written, for example because the disk is full. The old file is unchanged.
    """
    # A file name has at most 255 bytes, so only the beginning of a long one is used.
    temporary = path.with_name(f".{path.stem[:50]}.{uuid.uuid4().hex[:8]}.tmp{path.suffix}")
    try:
        with naming_path(path):
            yield temporary
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_bytes(path: Path, content: bytes | memoryview) -> None:
    """Write a binary file atomically and wait until it is on disk.

    Use it for libraries that can also write to memory: on a full disk, torch and safetensors raise other errors than
    OSError, and torch aborts the process when a second write fails.
    """
    with atomic_write(path) as temporary, temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 text file atomically. Bytes of file names that are not UTF-8 are kept."""
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="surrogateescape")


def write_figure(path: Path, figure: Figure, dpi: int) -> None:
    """Write a Matplotlib figure atomically, in the format of the suffix."""
    with atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=dpi)
