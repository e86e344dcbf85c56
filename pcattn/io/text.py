"""Tables of numbers in text files (`.txt`, `.xyz`, `.pts`, `.csv` and their like), parsed by compiled code in threads.

Measured against the readers of numpy, pandas, pyarrow and polars: README.md of this folder.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from os import cpu_count
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from pcattn.ops.threads import jit
from pcattn.utils.errors import DatasetBrokenError

T = TypeVar("T")
S = TypeVar("S")

_OK, _COLUMNS, _NUMBER, _FINITE = range(4)

#: Exact in double precision.
_POWERS = 10.0 ** np.arange(23)
_MANY = 10**17  # beyond this a further digit may not fit an integer, and tells a float nothing


def read_table(path: Path, min_columns: int = 3) -> NDArray[np.float32]:
    """The numbers of a text file, one row a line.

    Numbers are separated by spaces, tabs, commas or semicolons. Empty lines, and what follows a `#`, are passed over.
    The parser is compiled and runs without the interpreter's lock, so that threads read files side by side.

    Args:
        path: the file.
        min_columns: least number of columns; further ones are read as well.

    Shape:
        (rows, columns), at least one row.

    Raises:
        DatasetBrokenError: the file is empty, a line has too few numbers or another number of them than the first one,
            or holds something else than finite numbers. The message names the line.
    """
    if not path.is_file():
        raise DatasetBrokenError(path, "expected a file, but there is none, or a folder or a device")
    try:
        text = np.fromfile(path, dtype=np.uint8)
    except OSError as error:
        raise DatasetBrokenError(path, error.strerror or str(error)) from error
    returns = np.flatnonzero(text[:-1] == ord("\r"))
    if not np.isin(text[returns + 1], (ord("\r"), ord("\n"))).all():  # its lines would run into each other
        raise DatasetBrokenError(path, "expected lines that end in LF or CR LF, but some end in CR alone")
    columns = _count_columns(text)
    if columns == 0:
        raise DatasetBrokenError(path, "expected lines of numbers, but got none")
    if columns < min_columns:
        raise DatasetBrokenError(path, f"expected lines of at least {min_columns} numbers, but got {columns}")
    # No more rows than there are lines, and than so many bytes can hold; one more, which a broken one may begin.
    rows = min(np.count_nonzero(text == ord("\n")) + 1, (len(text) + 1) // (2 * columns) + 1)
    table = np.empty((rows, columns), dtype=np.float32)
    status, rows, line, found = _parse(text, table)
    if status == _COLUMNS:
        reason = f"expected {columns} numbers on every line as on the first, but got {found} on line {line}"
        raise DatasetBrokenError(path, reason)
    if status != _OK:
        start = int(found)
        word = re.split(rb"[ \t\r\n]", bytes(text[start : start + 40]))[0].decode("utf-8", "replace")
        kind = "finite numbers" if status == _FINITE else "numbers"
        raise DatasetBrokenError(path, f"expected {kind}, but got {word!r} on line {line}")
    return table[:rows]


def in_threads(function: Callable[[T], S], items: Sequence[T], description: str | None = None) -> Iterator[S]:
    """`function` of every item, in order, computed side by side, with a progress bar if there is a description.

    No more results than a few for each core wait for the caller: what comes of many files need not fit in memory.
    """
    from tqdm import tqdm

    workers = cpu_count() or 1
    with ThreadPoolExecutor(workers) as pool, tqdm(total=len(items), desc=description, disable=not description) as bar:
        left: Iterable[T] = iter(items)
        waiting: list[Future[Any]] = [pool.submit(function, item) for item in islice(left, 4 * workers)]
        try:
            while waiting:
                yield waiting.pop(0).result()
                waiting.extend(pool.submit(function, item) for item in islice(left, 1))
                bar.update()
        finally:  # the caller stopped, or a file is broken: what has not begun is not begun
            for future in waiting:
                future.cancel()


@jit
def _is_separator(byte):  # type: ignore[no-untyped-def]
    # Space, comma, tab, carriage return, semicolon: the most frequent first.
    return byte == 32 or byte == 44 or byte == 9 or byte == 13 or byte == 59


@jit
def _count_columns(text):  # type: ignore[no-untyped-def]
    """Words on the first line that has any."""
    count, inside, comment = 0, False, False
    for byte in text:
        if byte == 10:
            if count:
                return count
            comment = inside = False
        elif byte == 35:
            comment = True
        elif comment:
            continue
        elif _is_separator(byte):
            inside = False
        elif not inside:
            count, inside = count + 1, True
    return count


@jit
def _parse(text, table):  # type: ignore[no-untyped-def]
    """Fill the table: status, rows, and in case of an error the line and the number of words or where the word is."""
    columns, end = table.shape[1], text.size
    i, line, row, column = 0, 1, 0, 0
    while True:
        while i < end and _is_separator(text[i]):
            i += 1
        if i < end and text[i] == 35:  # '#': a comment
            while i < end and text[i] != 10:
                i += 1
        if i == end or text[i] == 10:
            if column:
                if column != columns:
                    return _COLUMNS, row, line, column
                row, column = row + 1, 0
            if i == end:
                return _OK, row, line, 0
            i, line = i + 1, line + 1
            continue
        # A number: sign, digits with at most one point, exponent.
        start = i
        negative = text[i] == 45
        if text[i] in (43, 45):
            i += 1
        mantissa, exponent, digits = 0, 0, 0
        point = False
        while i < end:
            byte = text[i]
            if 48 <= byte <= 57:
                digits += 1
                if mantissa < _MANY:
                    mantissa = mantissa * 10 + (byte - 48)
                    if point:
                        exponent -= 1
                elif not point:  # further digits than a float can tell
                    exponent += 1
            elif byte == 46 and not point:
                point = True
            else:
                break
            i += 1
        if digits and i < end and text[i] in (69, 101):  # 'E', 'e'
            i += 1
            down = i < end and text[i] == 45
            if i < end and text[i] in (43, 45):
                i += 1
            power, first = 0, i
            while i < end and 48 <= text[i] <= 57:
                power = min(power * 10 + (text[i] - 48), 9999)
                i += 1
            if i == first:
                digits = 0
            exponent += -power if down else power
        if not digits or (i < end and text[i] != 10 and text[i] != 35 and not _is_separator(text[i])):
            word = text[start : start + 4]
            if word.size and word[0] in (43, 45):
                word = word[1:]
            named = word.size >= 3 and word[0] | 32 in (105, 110)  # i(nf), n(an)
            return _FINITE if named else _NUMBER, row, line, start
        # Exact up to 10^22, within an ulp of a double beyond; a float of half that precision is kept.
        value = float(mantissa)
        while exponent < 0 and value != 0.0:
            step = min(-exponent, 22)
            value /= _POWERS[step]
            exponent += step
        while exponent > 0 and 0.0 < value <= 1e39:
            step = min(exponent, 22)
            value *= _POWERS[step]
            exponent -= step
        if value > 3.4028234e38:
            return _FINITE, row, line, start
        if column < columns:
            table[row, column] = -value if negative else value
        column += 1
