"""`pcattn data`: what lies in a folder, in numbers and in a picture, and what is suspicious about it."""

from __future__ import annotations

import argparse
import inspect
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import yaml
from torch_geometric.data import InMemoryDataset
from tqdm import tqdm

from pcattn.cli.messages import fail
from pcattn.datasets import DATASETS
from pcattn.io.channels import GROUPS, LABELS, canonical
from pcattn.io.cloud import SUFFIXES
from pcattn.utils.errors import DatasetError, DatasetNotFoundError, InputError, SkippedWarning
from pcattn.utils.registry import construct, resolve
from pcattn.utils.text import escape_unprintable

SPLITS = ("train", "val", "test")

#: Fewer different points than this in a cloud are suspicious.
FEW_POINTS = 16


class CloudFacts(NamedTuple):
    """What is counted of one cloud."""

    split: str
    name: str
    label: int  # its class
    num_points: int
    fingerprint: tuple[int, int]  # number and sum of hashes of its points, whatever their order
    distinct: int  # points that differ
    extent: float  # longest side of the bounding box
    flat: bool  # without extent along an axis


class Report(NamedTuple):
    """What `describe` found."""

    title: str
    class_names: list[str]
    splits: dict[str, InMemoryDataset]
    clouds: list[CloudFacts]
    channels: dict[str, tuple[float, float, float]]  #: least, mean and greatest value of each
    parts: Mapping[str, Mapping[int, int]]  #: points by part, in each split, where points are labeled
    problems: list[str]


def recognize(root: str) -> list[str]:
    """Names of the data sets that know the files under `root`, the most particular one first.

    A class tells by `recognizes(root)`; one without it is asked to read a split. `folder` counts where
    nothing else does: any folder of point files fits it.
    """
    fitting: list[str] = []
    for name, dataset_class in sorted(DATASETS.items(), key=lambda item: item[0] == "folder"):
        if name == "pyg":
            continue  # needs to be told which
        known = getattr(dataset_class, "recognizes", None)
        fits = known(root) if known is not None else _can_be_read(dataset_class, root)
        if fits and (name != "folder" or not fitting):
            fitting.append(name)
    return fitting


def describe(root: str, dataset: str | None = None, options: dict[str, Any] | None = None) -> Report:
    """Read every split under `root` and count.

    Args:
        root: a folder, or a list in a CSV file.
        dataset: name of a data set or import path; None finds out.
        options: its arguments, as `data.dataset_kwargs` in a configuration.

    Raises:
        DatasetError: nothing there can be read; the message says what was looked for.
    """
    options = options or {}
    fitting = [dataset] if dataset else recognize(root)
    if not fitting:
        path = Path(root)
        if not path.exists():
            raise DatasetError(f"expected a folder of point clouds or a list of them, but {root} does not exist")
        if path.is_file():
            hint = ": `pcattn show` draws a single cloud" if path.suffix.lower() in SUFFIXES else ""
            raise DatasetError(
                "expected a folder of point clouds, or a list of them (lines path,label[,split]) in a CSV file, "
                f"but {root} is a file{hint}"
            )
        if not any(path.iterdir()):
            raise DatasetError(f"expected point clouds in the folder {root}, but it is empty")
        raise DatasetError(
            f"{root} holds no point clouds that one of these data sets knows: {', '.join(DATASETS)}. "
            "Name one with --dataset to learn what it expects"
        )
    name = str(fitting[0])
    dataset_class = resolve("dataset", name, DATASETS)
    problems: list[str] = []
    splits: dict[str, InMemoryDataset] = {}
    if "on_error" in inspect.signature(dataset_class).parameters:
        options = {"on_error": "skip", **options}
    for split, which in _calls(dataset_class).items():
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                found = construct("dataset", name, dataset_class, root, **which, **options)
                splits[split] = found if found._indices is None else found.copy()  # a selection is gathered
            except DatasetError as error:
                if not splits and split == "test":
                    raise
                if split != "val":
                    problems.append(f"no {split} split: {error}")
        # Those about the data are of these very categories, unlike that about the place of a cache.
        told = [_in_full(w.message) for w in caught if w.category in (UserWarning, SkippedWarning)]
        problems += [problem for problem in dict.fromkeys(told) if problem not in problems]
    first = next(iter(splits.values()))
    class_names = _class_names(first)
    clouds: list[CloudFacts] = []
    channels = _Channels(_channel_names(first))
    parts: dict[str, Counter[int]] = {}
    for split, clouds_of_split in splits.items():
        labeled = _labels_points(clouds_of_split)
        data, x = clouds_of_split._data, clouds_of_split._data.get("x")
        classes = (data.category if "category" in data else data.y).reshape(-1)
        bounds = torch.as_tensor(clouds_of_split.slices["pos"]).tolist()
        for index in tqdm(range(len(bounds) - 1), desc=f"looking at {split}", leave=False, disable=None):
            points = slice(bounds[index], bounds[index + 1])
            pos = data.pos[points].numpy()
            bad = int((~np.isfinite(pos).all(axis=1)).sum())
            title = _name(clouds_of_split, split, index)
            if bad:
                problems.append(f"{title}: {bad} of {len(pos)} points have NaN or infinite coordinates")
            clouds.append(_facts(split, title, int(classes[index]), pos))
            channels.add(pos, None if x is None else x[points].numpy())
            if labeled:
                values, counts = np.unique(data.y[points].numpy(), return_counts=True)
                parts.setdefault(split, Counter()).update(dict(zip(values.tolist(), counts.tolist(), strict=True)))
    problems += [
        *_duplicates(clouds),
        *_missing_classes(clouds, class_names),
        *_odd_clouds(clouds),
        *channels.problems(),
    ]
    also = f" (also fits: {', '.join(map(str, fitting[1:]))})" if fitting[1:] else ""
    title = f"{root}: {dataset_class.__name__}, --data.dataset {name}{also}"
    return Report(title, class_names, splits, clouds, channels.ranges(), parts, problems)


def to_text(report: Report, limit: int = 20) -> str:
    """The report as lines; at most `limit` problems are listed."""
    lines = [report.title, ""]
    rows = [["split", "clouds", "points a cloud: min", "median", "max"]]
    for split in report.splits:
        sizes = np.array([cloud.num_points for cloud in report.clouds if cloud.split == split])
        rows.append([split, *map(str, (len(sizes), sizes.min(), int(np.median(sizes)), sizes.max()))])
    lines += _table(rows)
    counts = Counter((cloud.label, cloud.split) for cloud in report.clouds)
    rows = [["class", *report.splits]]
    rows += [[name, *(str(counts[label, s]) for s in report.splits)] for label, name in enumerate(report.class_names)]
    lines += ["", *_table(rows)]
    rows = [["channel", "min", "mean", "max"]]
    rows += [[name, *(f"{value:.4g}" for value in values)] for name, values in report.channels.items()]
    lines += ["", *_table(rows)]
    if not report.parts and (found := [name for name in report.channels if canonical(name) in LABELS]):
        lines += [
            "",
            f"if {found[0]} is what labels the points: --option label={found[0]} counts them here, and "
            f"--data.dataset_kwargs '{{label: {found[0]}}}' trains on them",
        ]
    if report.parts:
        every = sorted({part for counter in report.parts.values() for part in counter})
        names = getattr(next(iter(report.splits.values())), "part_names", None)
        rows = [["points of part", *report.parts]]
        for part in every:
            name = names[part] if names is not None and part < len(names) else str(part)
            rows.append([name, *(str(counter.get(part, 0)) for counter in report.parts.values())])
        lines += ["", *_table(rows)]
    if not report.problems:
        return "\n".join([*lines, "", "nothing suspicious"])
    lines += ["", f"suspicious ({len(report.problems)}):", *(f"- {problem}" for problem in report.problems[:limit])]
    if len(report.problems) > limit:
        lines.append(f"  and {len(report.problems) - limit} more")
    return "\n".join(lines)


def main(args: Sequence[str]) -> int:
    """Run `pcattn data`."""
    parser = argparse.ArgumentParser(prog="pcattn data", description=__doc__)
    parser.add_argument("root", help="folder of a data set, or a list path,label[,split] in a CSV file")
    parser.add_argument("--dataset", help=f"one of {', '.join(DATASETS)}, or an import path; default: by looking")
    parser.add_argument(
        "--option",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="argument of the data set, such as label=part",
    )
    parser.add_argument(
        "--picture", type=Path, help="where the picture goes; default: <name of the folder>_samples.png"
    )
    parser.add_argument("--no_picture", action="store_true", help="numbers alone")
    parsed = parser.parse_args(args)
    try:
        if any("=" not in option for option in parsed.option):
            raise InputError(f"expected --option NAME=VALUE, but got {' '.join(parsed.option)}")
        pairs = (option.split("=", 1) for option in parsed.option)
        report = describe(parsed.root, parsed.dataset, {name: yaml.safe_load(value) for name, value in pairs})
        print("\n".join(map(escape_unprintable, to_text(report).split("\n"))))
        if not parsed.no_picture:
            from pcattn.visualize.samples import draw_samples

            up_axis = getattr(next(iter(report.splits.values())), "up_axis", "z")
            path = parsed.picture or _free(Path(f"{Path(parsed.root).resolve().stem}_samples.png"))
            draw_samples(report.splits, report.class_names, path, up=up_axis)
            print(f"\nsamples of every class: {path}")
    except (ValueError, OSError) as error:
        fail(str(error), error)
    return 0


class _Channels:
    """Ranges of positions and features over all clouds."""

    def __init__(self, names: list[str]) -> None:
        self.names = names
        self.low = np.full(3 + len(names), np.inf)
        self.high = np.full(3 + len(names), -np.inf)
        self.total = np.zeros(3 + len(names))
        self.count = 0
        self.lengths: list[float] = []  # mean length of the normals of a cloud

    def add(self, pos: np.ndarray, x: np.ndarray | None) -> None:
        """Count a cloud."""
        table = pos if x is None or not self.names else np.hstack([pos, x.reshape(len(pos), -1)])
        if table.shape[1] != len(self.low):
            return  # its channels have no names that could be told
        self.low = np.fmin(self.low, table.min(axis=0))
        self.high = np.fmax(self.high, table.max(axis=0))
        self.total += table.sum(axis=0, dtype=np.float64)
        self.count += len(table)
        if x is not None and self.names[:3] == list(GROUPS["normals"]):
            self.lengths.append(float(np.linalg.norm(x[:, :3], axis=1).mean()))

    def ranges(self) -> dict[str, tuple[float, float, float]]:
        """Least, mean and greatest value by channel."""
        values = zip(self.low, self.total / max(self.count, 1), self.high, strict=True)
        return {
            name: (float(low), float(mean), float(high))
            for name, (low, mean, high) in zip(["x", "y", "z", *self.names], values, strict=True)
        }

    def problems(self) -> Iterator[str]:
        """Channels that tell nothing, and normals that are none."""
        for name, (low, mean, high) in self.ranges().items():
            if not np.isfinite(mean):
                yield f"channel {name} has NaN or infinite values"
            elif low == high:
                yield f"channel {name} is {low:.4g} everywhere"
        odd = sum(abs(length - 1) > 0.05 for length in self.lengths)
        if odd:
            yield f"normals of {odd} of {len(self.lengths)} clouds are not of unit length"


def _facts(split: str, name: str, label: int, pos: np.ndarray) -> CloudFacts:
    bits = np.ascontiguousarray(pos, np.float32).view(np.uint32).astype(np.uint64)
    # Any mixing of the bits of a point into one number does; the sum over points forgets their order.
    mixed = (bits * np.array([0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9], np.uint64)).sum(axis=1)
    mixed ^= mixed >> np.uint64(29)
    mixed *= np.uint64(0xBF58476D1CE4E5B9)
    mixed ^= mixed >> np.uint64(32)
    size = np.ptp(pos, axis=0)
    fingerprint = (len(pos), int(mixed.sum(dtype=np.uint64)))
    distinct = len(np.unique(mixed))
    return CloudFacts(split, name, label, len(pos), fingerprint, distinct, float(size.max()), bool((size == 0).any()))


def _in_full(message: Warning | str) -> str:
    """What a warning says; of files that were passed over all, a line each."""
    if isinstance(message, SkippedWarning):
        return "\n  ".join([f"{message.title}:", *map(escape_unprintable, message.reasons)])
    return str(message)


def _duplicates(clouds: Sequence[CloudFacts]) -> Iterator[str]:
    """Clouds that are there more than once; across splits first, for they are leakage."""
    groups: dict[tuple[int, int], list[CloudFacts]] = {}
    for cloud in clouds:
        groups.setdefault(cloud.fingerprint, []).append(cloud)
    repeated = [group for group in groups.values() if len(group) > 1]
    for kind, chosen in (
        ("in several splits (leakage)", [g for g in repeated if len({cloud.split for cloud in g}) > 1]),
        ("with different classes", [g for g in repeated if len({cloud.label for cloud in g}) > 1]),
        ("more than once in a split", [g for g in repeated if len({cloud.split for cloud in g}) == 1]),
    ):
        if chosen:
            examples = "; ".join(" = ".join(cloud.name for cloud in group[:3]) for group in chosen[:3])
            yield f"{len(chosen)} identical clouds {kind}, such as {examples}"


def _missing_classes(clouds: Sequence[CloudFacts], class_names: Sequence[str]) -> Iterator[str]:
    for split in dict.fromkeys(cloud.split for cloud in clouds):
        present = {cloud.label for cloud in clouds if cloud.split == split}
        missing = [name for label, name in enumerate(class_names) if label not in present]
        if missing:
            shown = ", ".join(missing[:5]) + (f" and {len(missing) - 5} more" if len(missing) > 5 else "")
            yield f"no clouds of {shown} in {split}"


def _odd_clouds(clouds: Sequence[CloudFacts]) -> Iterator[str]:
    """Clouds that are hardly clouds, or in another unit than the others."""
    usual = float(np.median([cloud.extent for cloud in clouds]))
    checks = {
        f"fewer than {FEW_POINTS} different points": [c for c in clouds if c.distinct < FEW_POINTS],
        "more than half of the points repeated": [c for c in clouds if FEW_POINTS <= c.distinct < c.num_points / 2],
        "no extent along an axis": [c for c in clouds if c.flat and c.distinct >= FEW_POINTS],
        "an extent more than 100 times the usual or less than a hundredth of it (another unit?)": [
            c for c in clouds if c.extent > 100 * usual or 0 < 100 * c.extent < usual
        ],
    }
    for what, found in checks.items():
        if found:
            yield f"{len(found)} clouds with {what}, such as {', '.join(cloud.name for cloud in found[:3])}"


def _can_be_read(dataset_class: Any, root: str) -> bool:
    """Whether one of the splits is there, whole or broken."""
    for which in _calls(dataset_class).values():
        try:
            dataset_class(root, **which)
        except DatasetNotFoundError:
            continue
        except DatasetError:
            return True
        return True
    return False


def _calls(dataset_class: Any) -> dict[str, dict[str, Any]]:
    """The splits that a data set may have, and the argument that asks for each."""
    if "split" in inspect.signature(dataset_class).parameters:
        return {split: {"split": split} for split in SPLITS}
    return {"train": {"train": True}, "test": {"train": False}}


def _class_names(dataset: InMemoryDataset) -> list[str]:
    names = getattr(dataset, "class_names", None)
    return list(names) if names is not None else [str(label) for label in range(dataset.num_classes)]


def _channel_names(dataset: InMemoryDataset) -> list[str]:
    x = dataset._data.get("x")
    if x is None:
        return []
    names = getattr(dataset, "feature_names", None)
    width = x.shape[1] if x.dim() == 2 else 1
    if names is not None and len(names) == width:
        return list(names)
    return list(GROUPS["normals"]) if width == 3 else [f"x{index}" for index in range(width)]


def _labels_points(dataset: InMemoryDataset) -> bool:
    return dataset._data.y.numel() == len(dataset._data.pos) and len(dataset) != len(dataset._data.pos)


def _name(dataset: InMemoryDataset, split: str, index: int) -> str:
    names = getattr(dataset, "names", None)
    return f"{split} {names[index] if names is not None else index}"


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines with aligned columns: the first to the left, figures to the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join([row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))])
        for row in rows
    ]


def _free(path: Path) -> Path:
    """This path, or with a number where it is taken."""
    number = 1
    candidate = path
    while candidate.exists():
        number += 1
        candidate = path.with_stem(f"{path.stem}.{number}")
    return candidate
