"""The clouds under a folder with their classes and splits, found by their layout."""

from __future__ import annotations

import csv
import os
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from pcattn.data.splits import SPLITS, hash_split
from pcattn.io.cloud import SUFFIXES
from pcattn.utils.errors import DatasetBrokenError, DatasetError, DatasetNotFoundError

#: Names of the folders of splits, and of splits in a list.
_SPELLINGS = {"training": "train", "valid": "val", "validation": "val", "testing": "test"} | {s: s for s in SPLITS}

_NOTES = (".txt", ".csv", ".asc")  # beside folders of classes, these are lists and notes
_CACHE = "processed"  # where caches are kept
_DEPTH = 6  # maximum depth of folders


class Entry(NamedTuple):
    """One cloud."""

    path: Path
    label: str | None  #: name of its class; None if there are no classes
    split: str | None  #: train, val or test; None if there are no splits


class Layout(NamedTuple):
    """All clouds under a root."""

    root: Path  #: the folder that paths are relative to
    description: str  #: the pattern of the layout
    entries: list[Entry]  #: sorted by path
    class_names: list[str]  #: sorted; empty where there are no classes
    empty: list[Path]  #: folders of classes without a cloud


def find_layout(root: Path) -> Layout:
    """Find the clouds in `<class>/*`, `<split>/<class>/*`, `<class>/<split>/*` or `*`, or in a list in a CSV file.

    Raises:
        DatasetNotFoundError: there are no clouds.
        DatasetError: only some clouds lie in folders of splits or classes.
    """
    if root.is_file() and root.suffix.lower() == ".csv":
        return _read_list(root)
    if not root.is_dir():
        raise _not_found(root)
    top = _folders(root)
    loose = _clouds(root)
    if top and all(folder.name.lower() in _SPELLINGS for folder in top):
        if loose:
            raise DatasetError(
                f"expected all clouds in the folders of splits of {root}, but got {loose[0].name} beside them"
            )
        parts = [(_SPELLINGS[folder.name.lower()], _in_classes(folder)) for folder in top]
        if len({bool(classes) for _, (classes, _) in parts}) > 1:
            raise DatasetError(f"expected folders of classes in every split of {root}, but some have none")
        entries = [Entry(path, label, split) for split, (_, found) in parts for path, label in found]
        names = {name for _, (classes, _) in parts for name in classes}
        # A class may well be missing from a small split, but not from all.
        used = {entry.label for entry in entries}
        empty = [root / name for name in sorted(names - used)]
        description = "<split>/<class>/*" if names else "<split>/*"
    else:
        below = [folder for folder in top if _is_split_in_two(folder)]
        if below and len(below) < len(top):
            other = next(folder for folder in top if folder not in below)
            raise DatasetError(f"expected train/ and test/ in every class folder of {root}, but {other.name}/ has none")
        names = {folder.name for folder in top}
        if below:
            entries = [
                Entry(path, folder.name, _SPELLINGS[inner.name.lower()])
                for folder in top
                for inner in _folders(folder)
                for path in _clouds_below(inner)
            ]
            description = "<class>/<split>/*"
        else:
            classes, found = _in_classes(root)
            entries = [Entry(path, label, None) for path, label in found]
            description = "<class>/*" if classes else "*"
        used = {entry.label for entry in entries}
        empty = [folder for folder in top if folder.name not in used]
    if not entries:
        raise _not_found(root)
    return Layout(root, description, sorted(entries), sorted(names), empty)


def assign_splits(layout: Layout, test_fraction: float, seed: int) -> list[Entry]:
    """Choose the test clouds of each class by a hash of their paths (`hash_split`), unless splits are given."""
    if any(entry.split is not None for entry in layout.entries):
        return layout.entries
    by_class: dict[str | None, list[Entry]] = defaultdict(list)
    for entry in layout.entries:
        by_class[entry.label].append(entry)
    result = []
    for entries in by_class.values():
        names = [entry.path.relative_to(layout.root).as_posix() for entry in entries]
        for entry, is_test in zip(entries, hash_split(names, test_fraction, seed), strict=True):
            result.append(entry._replace(split="test" if is_test else "train"))
    return sorted(result)


def _read_list(path: Path) -> Layout:
    """A list of `path,label[,split]`, with paths relative to its folder."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = [[cell.strip() for cell in row] for row in csv.reader(file)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DatasetBrokenError(path, f"expected a list of path,label[,split], but got: {error}") from error
    entries: list[Entry] = []
    for number, row in enumerate(rows, start=1):
        if not any(row) or (not entries and [cell.lower() for cell in row[:2]] == ["path", "label"]):
            continue
        if len(row) not in (2, 3) or not row[0] or not row[1]:
            raise DatasetBrokenError(path, f"expected path,label[,split] in line {number}, but got {','.join(row)!r}")
        split = _SPELLINGS.get(row[2].lower()) if len(row) == 3 else None
        if len(row) == 3 and split is None:
            raise DatasetBrokenError(path, f"expected train, val or test in line {number}, but got {row[2]!r}")
        if os.path.isabs(row[0]) or Path(os.path.normpath(row[0])).parts[:1] == ("..",):
            raise DatasetBrokenError(
                path, f"expected paths inside the folder of the list, but got {row[0]!r} in line {number}"
            )
        # Not resolved, so that names and splits stay the same when the folder is moved.
        entries.append(Entry(path.parent / row[0], row[1], split))
    if not entries:
        raise DatasetBrokenError(path, "expected lines path,label[,split], but got none")
    occurrences = Counter(entry.path for entry in entries)
    if repeated := [cloud for cloud, count in occurrences.items() if count > 1]:
        raise DatasetBrokenError(
            path, f"expected every cloud once, but got {repeated[0]} {occurrences[repeated[0]]} times"
        )
    if len({entry.split is None for entry in entries}) > 1:
        raise DatasetBrokenError(path, "expected a split in every line or in none")
    labels = {str(entry.label) for entry in entries}
    names = sorted(labels, key=int) if all(label.isdecimal() for label in labels) else sorted(labels)
    return Layout(path.parent, f"list {path.name}", sorted(entries), names, [])


def _in_classes(folder: Path) -> tuple[list[str], list[tuple[Path, str | None]]]:
    """Names of the class folders in a folder, and its clouds with their classes."""
    classes, loose = _folders(folder), _clouds(folder)
    inside = [(path, sub.name) for sub in classes for path in _clouds_below(sub)]
    if inside and (loose := [path for path in loose if path.suffix.lower() not in _NOTES]):
        raise DatasetError(f"expected all clouds in the class folders of {folder}, but got {loose[0].name} beside them")
    if loose and not inside:
        return [], [(path, None) for path in loose]
    return [sub.name for sub in classes], list(inside)


def _is_split_in_two(folder: Path) -> bool:
    inner = _folders(folder)
    return bool(inner) and not _clouds(folder) and all(sub.name.lower() in _SPELLINGS for sub in inner)


def _folders(folder: Path) -> list[Path]:
    return sorted(
        sub for sub in folder.iterdir() if sub.is_dir() and not sub.name.startswith(".") and sub.name != _CACHE
    )


def _clouds(folder: Path) -> list[Path]:
    files = (path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES and not path.name.startswith("."))
    return sorted(path for path in files if not path.is_dir())


def _clouds_below(folder: Path, depth: int = _DEPTH, above: tuple[str, ...] = ()) -> Iterable[Path]:
    here = os.path.realpath(folder)
    if here in above:  # a link to a folder that we are in
        return
    yield from _clouds(folder)
    if depth:
        for sub in _folders(folder):
            yield from _clouds_below(sub, depth - 1, (*above, here))


def _not_found(root: Path) -> DatasetNotFoundError:
    expected = (
        f"<class>/*.{{{','.join(suffix[1:] for suffix in SUFFIXES)}}}, or a list path,label[,split] in a CSV file,"
    )
    return DatasetNotFoundError("clouds", root, expected, "Name the folder that holds the folders of the classes.")
