"""Text tables: `.txt`, `.xyz`, `.csv`, `.pts` and their like, one point per line."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pcattn.io.channels import GROUPS, canonical
from pcattn.io.columns import Content, check_names, name_columns
from pcattn.utils.errors import DatasetBrokenError, InputError

_CHUNK = 1 << 20  # bytes that are cleaned at a time
_HEADER = 1 << 17  # bytes in which the first line of numbers must begin

_BOM = b"\xef\xbb\xbf"
_WINDOWS_NAN = re.compile(rb"[+-]?(?:1\.#(?:QNAN|SNAN|IND)\d*|nan\((?:ind|snan|qnan)\))", re.IGNORECASE)
_WINDOWS_INFINITY = re.compile(rb"1\.#INF\d*", re.IGNORECASE)
_COMMENT = re.compile(rb"(?:#|//)[^\r\n]*")
_UNIT = re.compile(r"\[[^\]]*\]|\([^)]*\)")
_SEPARATORS = bytes.maketrans(b",;", b"  ")


class _Header(NamedTuple):
    lines: int  # above the first line of numbers
    names: list[str] | None
    num_points: int | None  # as a `.pts` file says


def read(path: Path, columns: Sequence[str] | None) -> Content:
    """Columns of a text file, separated by blanks, tabs, commas or semicolons.

    A line of names is understood, also behind `#` or `//` and below a title, and so is the number of points at the top
    of a `.pts` file. With `columns`, all lines above the first number are passed over.

    Raises:
        InputError: a line is not a row of as many numbers as the first one, the names do not fit the columns, or the
            file holds another number of points than it says.
    """
    header = _read_header(path, titles_allowed=columns is not None)
    table = _parse(path, header.lines)
    if header.num_points is not None and len(table) != header.num_points:
        raise InputError(f"expected {header.num_points} points as its first line says, but got {len(table)}")
    if columns is not None:
        names = check_names(columns, table.shape[1])
    elif header.names is None:
        names = name_columns(table, intensity=path.suffix.lower() == ".pts")
    elif len(header.names) == table.shape[1]:
        names = check_names(header.names, table.shape[1])
    else:
        raise InputError(
            f"expected {table.shape[1]} names, one per column, but got {len(header.names)} "
            f"({', '.join(header.names)}); `columns` names them"
        )
    return Content({name: table[:, index] for index, name in enumerate(names)})


def read_table(path: Path, min_columns: int = 3) -> NDArray[np.float32]:
    """The numbers of a text file without names, one row per line.

    Empty lines and whatever follows `#` or `//` are passed over.

    Args:
        path: the file.
        min_columns: least number of columns; further ones are read as well.

    Shape:
        (rows, columns), at least one row.

    Raises:
        DatasetBrokenError: the file is empty, a line has too few numbers or not as many as the first one, or a value
            is not a finite number. The message names the line.
    """
    if not path.is_file():
        raise DatasetBrokenError(path, "expected a file, but it does not exist, or is a folder or a device")
    try:
        table = _parse(path, 0)
        if table.shape[1] < min_columns:
            raise InputError(f"expected lines of at least {min_columns} numbers, but got {table.shape[1]}")
        with np.errstate(over="ignore"):
            single = table.astype(np.float32)
        if not np.isfinite(single).all():
            row, column = np.argwhere(~np.isfinite(single))[0]
            number, words = next(islice(_rows(path, 0), int(row), None))
            raise InputError(f"expected finite numbers, but got {_shown(words[column])} on line {number}")
    except OSError as error:
        raise DatasetBrokenError(path, error.strerror or str(error)) from error
    except InputError as error:
        raise DatasetBrokenError(path, str(error)) from error
    return single


def parse_rows(lines: Sequence[bytes]) -> NDArray[np.float64]:
    """The numbers (N, C) of lines that are separated by blanks.

    Raises:
        InputError: a line is not a row of as many numbers as the first one.
    """
    try:
        return np.loadtxt(map(spell_nan, lines), np.float64, comments=None, ndmin=2)
    except ValueError as error:
        width = len(lines[0].split())
        wrong = next((line for line in lines if not _is_row(line, width)), lines[0])
        raise InputError(f"expected rows of {width} numbers, but got {_shown(wrong)}") from error


def _is_row(line: bytes, width: int) -> bool:
    words = spell_nan(line).split()
    return len(words) == width and all(_is_number(word.decode("utf-8", "replace")) for word in words)


def spell_nan(text: bytes) -> bytes:
    """The text with Windows' spellings of NaN and infinity, such as `-nan(ind)` and `1.#QNAN`, in the usual one."""
    if b"#" in text or b"(" in text:
        text = _WINDOWS_INFINITY.sub(b"inf", _WINDOWS_NAN.sub(b"nan", text))
    return text


def _read_header(path: Path, titles_allowed: bool) -> _Header:
    """What stands above the first line of numbers."""
    with path.open("rb") as file:
        start = file.read(_HEADER).removeprefix(_BOM)
    lines = spell_nan(start).splitlines()
    names, title, count = None, None, None
    for index, raw in enumerate(lines):
        line = raw.decode("utf-8", "replace").strip()
        commented = line.startswith(("#", "//"))
        words = _split(line.lstrip("#/").rpartition(":")[2] if commented else line.partition("#")[0].partition("//")[0])
        if {canonical(word) for word in words} >= set(GROUPS["pos"]):
            if names is not None and not commented:
                raise InputError(f"expected numbers on line {index + 1}, but got {line[:60]!r}")
            names = [word or f"column_{number}" for number, word in enumerate(words, start=1)]
        elif commented or not words:
            continue
        elif not all(map(_is_number, words)):
            if names is not None or _is_number(words[0]):
                raise InputError(f"expected numbers on line {index + 1}, but got {line[:60]!r}")
            title = title or f"on line {index + 1}, but got {line[:60]!r}"
        elif len(words) == 1 and words[0].isdecimal() and len(_following(lines, index)) > 1:
            count = int(words[0])
        else:
            if title and names is None and not titles_allowed:
                raise InputError(f"expected numbers, or names with x, y and z, {title}; `columns` names the columns")
            return _Header(index, names, count)
    raise InputError(f"expected numbers {title}" if title else "expected lines of numbers, but got none")


def _following(lines: Sequence[bytes], index: int) -> list[str]:
    return next((_split(line.decode("utf-8", "replace")) for line in lines[index + 1 :] if line.strip()), [])


def _split(line: str) -> list[str]:
    """The words of a line, without units and quotes; an empty word where a name is missing."""
    line = _UNIT.sub("", line).strip()
    separator = next((mark for mark in ";,\t" if mark in line), None)
    words = [word.strip().strip("\"'") for word in line.split(separator)]
    while words and not words[-1]:  # a separator at the end of the line
        words.pop()
    return words


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


def _parse(path: Path, skip: int) -> NDArray[np.float64]:
    """The numbers (N, C) below the first `skip` lines."""
    with path.open("rb") as file:
        lines = (line for line in islice(_lines(file), skip, None) if line.strip())
        first = next(lines, None)
        if first is None:
            raise InputError("expected lines of numbers, but got none")
        try:
            return np.loadtxt(chain((first,), lines), np.float64, comments=None, ndmin=2)
        except ValueError as error:
            raise InputError(_first_error(path, skip) or str(error)) from error


def _lines(file: BinaryIO) -> Iterator[bytes]:
    """All lines, with blanks as their only separators and without comments and quotes."""
    start = True
    while lines := file.readlines(_CHUNK):
        text = spell_nan(b"".join(lines))
        if start:
            text, start = text.removeprefix(_BOM), False
        if b"#" in text or b"//" in text:
            text = _COMMENT.sub(b"", text)
        yield from text.translate(_SEPARATORS, b'"').splitlines()


def _rows(path: Path, skip: int) -> Iterator[tuple[int, list[bytes]]]:
    """The words of every line that has some, and its number."""
    with path.open("rb") as file:
        for number, line in islice(enumerate(_lines(file), start=1), skip, None):
            if words := line.split():
                yield number, words


def _first_error(path: Path, skip: int) -> str | None:
    """What is wrong with a table that numpy refuses, by line."""
    width = None
    for number, words in _rows(path, skip):
        for word in words:
            if not _is_number(word.decode("utf-8", "replace")):
                return f"expected numbers, but got {_shown(word)} on line {number}"
        width = width or len(words)
        if len(words) != width:
            return f"expected {width} numbers on every line as on the first, but got {len(words)} on line {number}"
    return None


def _shown(word: bytes) -> str:
    return repr(word[:40].decode("utf-8", "replace"))
