"""What the clouds of a data set are like, in numbers, and what is suspicious about them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from pcattn.data.dataset import PointCloudDataset
from pcattn.io.channels import LABELS, canonical

#: A cloud with fewer different points than this is suspicious.
FEW_POINTS = 16


class CloudFacts(NamedTuple):
    """What is counted of one cloud."""

    split: str
    name: str
    label: int  # its class
    num_points: int
    fingerprint: tuple[int, int]  # number of points and sum of their hashes, which does not depend on their order
    distinct: int  # number of different points
    extent: float  # longest side of the bounding box
    flat: bool  # without extent along an axis


class Report(NamedTuple):
    """What `inspect_clouds` found."""

    title: str
    class_names: list[str]
    splits: Mapping[str, PointCloudDataset]
    clouds: list[CloudFacts]
    channels: dict[str, tuple[float, float, float]]  #: smallest, mean and largest value of each
    parts: Mapping[str, Mapping[int, int]]  #: number of points of each part, by split, if points are labeled
    problems: list[str]


def inspect_clouds(splits: Mapping[str, PointCloudDataset], title: str, problems: Sequence[str] = ()) -> Report:
    """Count the clouds of every split, and look for what is suspicious.

    Args:
        splits: the data sets, at least one.
        title: first line of the report.
        problems: what was found before, while reading.
    """
    first = next(iter(splits.values()))
    class_names = list(first.class_names or map(str, range(first.num_classes)))
    channels = _Channels(_channel_names(first))
    clouds: list[CloudFacts] = []
    parts: dict[str, Counter[int]] = {}
    broken: list[str] = []
    for split, dataset in splits.items():
        data, x = dataset._data, dataset._data.get("x")
        labeled = data.y.numel() == len(data.pos) != len(dataset)
        classes = (data.category if "category" in data else data.y).reshape(-1)
        bounds = dataset.bounds.tolist()
        for index in tqdm(range(len(dataset)), desc=f"inspecting {split}", leave=False, disable=None):
            points = slice(bounds[index], bounds[index + 1])
            pos = data.pos[points].numpy()
            name = f"{split} {index if dataset.names is None else dataset.names[index]}"
            if bad := int((~np.isfinite(pos).all(axis=1)).sum()):
                broken.append(f"{name}: {bad} of {len(pos)} points have NaN or infinite coordinates")
            clouds.append(_facts(split, name, int(classes[index]), pos))
            channels.add(pos, None if x is None else x[points].numpy())
            if labeled:
                values, counts = np.unique(data.y[points].numpy(), return_counts=True)
                parts.setdefault(split, Counter()).update(dict(zip(values.tolist(), counts.tolist(), strict=True)))
    found = [
        *problems,
        *broken,
        *_duplicates(clouds),
        *_missing_classes(clouds, class_names),
        *_odd_clouds(clouds),
        *channels.problems(),
        *_single_part(parts),
        *_odd_class_names(class_names),
    ]
    return Report(title, class_names, splits, clouds, channels.ranges(), parts, found)


def to_text(report: Report, limit: int = 20) -> str:
    """The report as lines. At most `limit` problems are listed."""
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
            f"if {found[0]} labels the points: --option label={found[0]} counts them here, and "
            f"--data.dataset_kwargs '{{label: {found[0]}}}' trains on them",
        ]
    if report.parts:
        every = sorted({part for counter in report.parts.values() for part in counter})
        names = next(iter(report.splits.values())).part_names
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
            return  # its channels differ from those of the first cloud
        self.low = np.fmin(self.low, table.min(axis=0))
        self.high = np.fmax(self.high, table.max(axis=0))
        self.total += table.sum(axis=0, dtype=np.float64)
        self.count += len(table)
        if x is not None and self.names[:3] == ["nx", "ny", "nz"]:
            self.lengths.append(float(np.linalg.norm(x[:, :3], axis=1).mean()))

    def ranges(self) -> dict[str, tuple[float, float, float]]:
        """Smallest, mean and largest value by channel."""
        values = zip(self.low, self.total / max(self.count, 1), self.high, strict=True)
        return {
            name: (float(low), float(mean), float(high))
            for name, (low, mean, high) in zip(["x", "y", "z", *self.names], values, strict=True)
        }

    def problems(self) -> Iterator[str]:
        """Channels without information, and normals that are not of unit length."""
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


def _duplicates(clouds: Sequence[CloudFacts]) -> Iterator[str]:
    """Clouds that occur more than once; first those in several splits, which leak."""
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
    """Degenerate clouds, and clouds in another unit than the others."""
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


def _odd_class_names(class_names: Sequence[str]) -> Iterator[str]:
    """Folders of another layout that were taken for classes."""
    parts = [name for name in class_names if name.lower() in ("points", "points_label", "labels", "images")]
    splits = [
        name for name in class_names if re.match(r"(train|val|test)(ing|id|idation)?([_-]?(data|set))?$", name, re.I)
    ]
    areas = [name for name in class_names if re.match(r"area_\d+$", name, re.I)]
    for names, meaning in (
        (parts, "a part of another layout, such as ShapeNetPart's"),
        (splits, "a split; folders of splits are train, val and test, and all clouds lie in them"),
        (areas, "an area of S3DIS, which is a scene and not a class"),
    ):
        if names:
            yield f"class {', '.join(names)} is named like {meaning}"


def _single_part(parts: Mapping[str, Mapping[int, int]]) -> Iterator[str]:
    different = {part for counter in parts.values() for part in counter}
    if len(different) == 1:
        yield f"all points have the label {different.pop()}: with a single part, the IoU is 1 by definition"


def _channel_names(dataset: PointCloudDataset) -> list[str]:
    x = dataset._data.get("x")
    if x is None:
        return []
    width = x.shape[1] if x.dim() == 2 else 1
    if len(dataset.feature_names) == width:
        return list(dataset.feature_names)
    return [f"x{index}" for index in range(width)]


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines with aligned columns: the first to the left, numbers to the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join([row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))])
        for row in rows
    ]
