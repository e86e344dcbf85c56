"""`pcattn data`: what lies in a folder, in numbers and in a picture, and what is suspicious about it."""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from pcattn.data.dataset import FileDataset, PointCloudDataset
from pcattn.data.inspect import Report, inspect_clouds, to_text
from pcattn.datasets import DATASETS, find_dataset, open_dataset, recognize
from pcattn.io.cloud import SUFFIXES
from pcattn.utils.errors import DatasetError, InputError, SkippedWarning
from pcattn.utils.text import escape_unprintable


def describe(root: str, dataset: str | None = None, options: dict[str, Any] | None = None) -> Report:
    """Read every split under `root` and inspect its clouds.

    Args:
        root: a folder, or a list in a CSV file.
        dataset: name of a data set or import path; None recognizes it.
        options: its arguments, as `data.dataset_kwargs` in a configuration.

    Raises:
        DatasetError: nothing there can be read; the message says what was looked for.
    """
    fitting = [dataset] if dataset else recognize(root)
    if not fitting:
        raise _not_recognized(Path(root))
    name = fitting[0]
    splits, problems = _read_splits(name, root, options or {})
    also = f" (also fits: {', '.join(fitting[1:])})" if fitting[1:] else ""
    return inspect_clouds(splits, f"{root}: {find_dataset(name).__name__}, --data.dataset {name}{also}", problems)


def _read_splits(name: str, root: str, options: dict[str, Any]) -> tuple[dict[str, PointCloudDataset], list[str]]:
    """The splits that can be read, and what went wrong."""
    dataset_class = find_dataset(name)
    if issubclass(dataset_class, FileDataset):
        options = {"on_error": "skip", **options}
    splits: dict[str, PointCloudDataset] = {}
    problems: list[str] = []
    for split in dataset_class.splits:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                found = open_dataset(name, root, split, **options)
                splits[split] = found if found._indices is None else found.copy()  # a selection is gathered
            except DatasetError as error:
                if not splits and split == dataset_class.splits[-1]:
                    raise
                if split != "val":
                    problems.append(f"no {split} split: {error}")
        # Warnings about the data are of exactly these categories; the one about the place of a cache is not.
        texts = [_in_full(w.message) for w in caught if w.category in (UserWarning, SkippedWarning)]
        problems += [text for text in dict.fromkeys(texts) if text not in problems]
    if name == "folder" and (labels := next(Path(root).rglob("*.seg"), None)):
        problems.append(f"labels in .seg files, such as {labels}, are not read: shapenetpart reads them in its layout")
    return splits, problems


def _not_recognized(path: Path) -> DatasetError:
    if not path.exists():
        return DatasetError(f"expected a folder of point clouds or a list of them, but {path} does not exist")
    if path.is_file():
        hint = ": `pcattn show` draws a single cloud" if path.suffix.lower() in SUFFIXES else ""
        return DatasetError(
            "expected a folder of point clouds, or a list of them (lines path,label[,split]) in a CSV file, "
            f"but {path} is a file{hint}"
        )
    if not any(path.iterdir()):
        return DatasetError(f"expected point clouds in the folder {path}, but it is empty")
    return DatasetError(
        f"{path} holds no point clouds that one of these data sets recognizes: {', '.join(DATASETS)}. "
        "Name one with --dataset to learn what it expects"
    )


def _in_full(message: Warning | str) -> str:
    """The text of a warning; for skipped files, one line for each."""
    if isinstance(message, SkippedWarning):
        return "\n  ".join([f"{message.title}:", *map(escape_unprintable, message.reasons)])
    return str(message)


def main(args: Sequence[str]) -> int:
    """Run `pcattn data`."""
    parser = argparse.ArgumentParser(prog="pcattn data", description=__doc__)
    parser.add_argument("root", help="folder of a data set, or a list path,label[,split] in a CSV file")
    parser.add_argument(
        "--dataset", help=f"one of {', '.join(DATASETS)}, or an import path; default: recognized by its files"
    )
    parser.add_argument(
        "--option",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="argument of the data set, such as label=part",
    )
    parser.add_argument("--picture", type=Path, help="path of the picture; default: <name of the folder>_samples.png")
    parser.add_argument("--no_picture", action="store_true", help="print numbers only")
    parsed = parser.parse_args(args)
    report = describe(parsed.root, parsed.dataset, dict(map(_parse_option, parsed.option)))
    print("\n".join(map(escape_unprintable, to_text(report).split("\n"))))
    if not parsed.no_picture:
        from pcattn.visualize.samples import draw_samples

        up_axis = next(iter(report.splits.values())).up_axis
        path = parsed.picture or _free(Path(f"{Path(parsed.root).resolve().stem}_samples.png"))
        draw_samples(report.splits, report.class_names, path, up=up_axis)
        print(f"\nsamples of every class: {path}")
    return 0


def _parse_option(option: str) -> tuple[str, Any]:
    """Name and value of an argument of the data set."""
    name, equals, value = option.partition("=")
    try:
        parsed = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise InputError(f"expected --option NAME=VALUE with a value in YAML, but got {option}") from error
    if not equals:
        raise InputError(f"expected --option NAME=VALUE, but got {option}")
    return name, parsed


def _free(path: Path) -> Path:
    """This path, with a number if it exists."""
    number = 1
    candidate = path
    while candidate.exists():
        number += 1
        candidate = path.with_stem(f"{path.stem}.{number}")
    return candidate
