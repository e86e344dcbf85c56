"""Files that appear at once and complete."""

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
def naming(path: Path) -> Iterator[None]:
    """Errors of the system while a file is written that tell which one; a full disk does not."""
    try:
        yield
    except OSError as error:
        raise OSError(f"expected to write {path}, but {error.strerror or error}") from error


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary file beside `path`, with its suffix, which takes its name when the block ends without an error.

    A killed process leaves at most the temporary file, and whoever reads `path` meanwhile finds the one before.

    Raises:
        OSError: it cannot be written (the disk is full); the message names `path`, of which the one before is left.
    """
    # Names of files end at 255 bytes: of a long one the beginning is enough.
    temporary = path.with_name(f".{path.stem[:50]}.{uuid.uuid4().hex[:8]}.tmp{path.suffix}")
    try:
        with naming(path):
            yield temporary
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_bytes(path: Path, content: bytes | memoryview) -> None:
    """Write a file, at once, complete and on disk, in place of one of this name.

    For libraries that write in memory as well: on a full disk, torch and safetensors raise errors of their own, and the
    former ends the process where it finds the disk full for a second time.
    """
    with replacing(path) as temporary, temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def write_text(path: Path, text: str) -> None:
    """Write a text file in UTF-8, at once and complete, in place of one of this name.

    Names of files in it that are no UTF-8 are written as the bytes that they are.
    """
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="surrogateescape")


def write_figure(path: Path, figure: Figure, dpi: int) -> None:
    """Write a picture, at once and complete, in place of one of this name; its format is that of the suffix."""
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=dpi)
