"""`PointCloudFolder`: your own files as a data set, without writing Python."""

from __future__ import annotations

import multiprocessing
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from itertools import compress
from os import cpu_count
from pathlib import Path
from typing import Any, NamedTuple
from warnings import warn

import numpy as np
import torch
from tqdm import tqdm

from pcattn.data.dataset import FileDataset
from pcattn.data.preprocessing import apply_placement, placement
from pcattn.data.splits import SPLITS
from pcattn.datasets.folder_layout import Entry, assign_splits, find_layout
from pcattn.io.cache import ArrayWriter, cached
from pcattn.io.channels import find, name_members
from pcattn.io.cloud import check_finite, read_cloud
from pcattn.utils.errors import (
    DatasetBrokenError,
    DatasetError,
    DatasetNotFoundError,
    InputError,
    first_few,
)

VERSION = 3
"""Part of the key of the cache; grows whenever the same files give other clouds."""


class _Options(NamedTuple):
    """How files become clouds; plain data, and part of the cache's key."""

    label: str | None
    columns: list[str] | None
    mesh_points: int
    max_points: int | None
    drop_invalid: bool
    seed: int
    mesh: str


class PointCloudFolder(FileDataset):
    """The clouds and meshes in a folder, with one folder per class, or in a list.

    Any of these layouts, found automatically (`<split>` is train, val or test):

    - `<class>/*`, `<split>/<class>/*` or `<class>/<split>/*`, in any format that `read_cloud` reads;
    - `*` or `<split>/*` without classes, if points are labeled;
    - a CSV file, given as `root`, with lines `path,label[,split]` and paths relative to its folder.

    If no splits are given, `test_fraction` of each class is the test split, chosen by a hash of the file names. Classes
    are sorted by name, files by path. Files are read in parallel and cached below `processed/`; later starts map the
    cache.

    Meshes are sampled uniformly by area. Colors become numbers in [0, 1]. Everything that all clouds have besides their
    positions becomes a channel of `x`, named in `feature_names`: `nx, ny, nz`, `red, green, blue`, and every other
    property under its own name. A cloud so far from the origin that float32 would blur it (more than 100 times its
    extent) is moved to its centroid.

    Args:
        root: the folder, or the CSV file.
        split: `"train"`, `"val"` or `"test"`.
        label: the property or column that labels points. Labels may be any integers >= 0; parts are those that occur,
            numbered from 0, category by category.
        columns: names of the columns of text files and (N, C) arrays, see `read_cloud`.
        mesh: `"sample"` draws points from the faces of meshes; `"vertices"` takes their vertices, with their labels.
        mesh_points: points sampled from a mesh.
        max_points: larger clouds are reduced to this many random points; None keeps all.
        test_fraction: share of each class for the test split if no splits are given; 0 uses all for training.
        seed: seed of the split, the sampling of meshes and the reduction.
        on_error: `"raise"` an error about the files that cannot be used, or `"skip"` them all with one warning.
        drop_invalid: leave out points with NaN or infinite coordinates.
        transform: see `FileDataset`.
        pre_transform: see `FileDataset`.
        pre_filter: see `FileDataset`.

    Attributes:
        class_names: names of the classes (`["all"]` where there are none).
        feature_names: channels of `x`.
        parts: with `label`, the part ids of each category; else None.
        part_names: with `label`, `"<class>/<value in the files>"` for each part.
        splits: the splits found.
        names: path of each cloud, relative to `root`.

    Each item is a `Data` with `pos` (N, 3), `x` (N, F) if there are channels, and the class `y` (1,); with `label`, `y`
    (N,) are the parts of the points and `category` (1,) the class.

    Raises:
        DatasetNotFoundError: there are no clouds.
        DatasetBrokenError: a file cannot be used.
        DatasetError: the layout is ambiguous, or lacks the split.
    """

    def __init__(
        self,
        root: str,
        split: str = "train",
        label: str | None = None,
        columns: list[str] | None = None,
        mesh_points: int = 10_000,
        max_points: int | None = 100_000,
        test_fraction: float = 0.2,
        seed: int = 0,
        on_error: str = "raise",
        drop_invalid: bool = False,
        mesh: str = "sample",
        transform: Callable[..., Any] | None = None,
        pre_transform: Callable[..., Any] | None = None,
        pre_filter: Callable[..., Any] | None = None,
    ) -> None:
        if not 0 <= test_fraction < 1:
            raise InputError(f"expected 0 <= test_fraction < 1, but got {test_fraction}")
        for name, value in (("mesh_points", mesh_points), ("max_points", max_points)):
            if value is not None and value < 1:
                raise InputError(f"expected {name} >= 1, but got {value}")
        super().__init__(root, split, transform, pre_transform, pre_filter, on_error)
        layout = find_layout(Path(root))
        self._folder = layout.root
        if layout.empty:
            self._refuse_or_skip(
                [f"{path}: expected clouds in the folder of a class, but got none" for path in layout.empty]
            )
        empty = {path.name for path in layout.empty}
        self.class_names = [name for name in layout.class_names if name not in empty] or ["all"]
        entries = assign_splits(layout, test_fraction, seed)
        self.splits = [name for name in SPLITS if any(entry.split == name for entry in entries)]
        if split not in self.splits:
            raise DatasetError(f"expected a {split} split in {root}, but got only {' and '.join(self.splits)}")
        # Split after split, so that each is one range of the cached arrays.
        entries.sort(key=lambda entry: (SPLITS.index(entry.split or "train"), entry.path))
        options = _Options(label, columns, mesh_points, max_points, drop_invalid, seed, mesh)
        result = cached(
            "folder",
            layout.root,
            [entry.path for entry in _present(entries, on_error)],
            partial(_build, entries, layout.root, self.class_names, options, on_error),
            [VERSION, *options, [(str(e.path.relative_to(layout.root)), e.label, e.split) for e in entries]],
        )
        with result.reading():
            skipped = list(result.info["skipped"])
            dropped = dict(result.info.get("dropped", {}))  # caches of earlier versions do not have it
            self._take(result.arrays, result.info)
        self.preprocess()
        for channel, (count, example) in dropped.items():
            warn(
                f"channel {channel} is left out: it has NaN or infinite values in {count} files, such as {example}",
                stacklevel=2,
            )
        if skipped:
            self._refuse_or_skip(skipped)  # the cache may have been made with `skip`

    def _take(self, arrays: dict[str, np.ndarray], info: dict[str, Any]) -> None:
        """Store the clouds of the split, a range of the arrays."""
        clouds = np.flatnonzero(arrays["split"] == SPLITS.index(self.split))
        if not len(clouds):
            raise DatasetError(f"expected clouds in the {self.split} split, but none of its files can be used")
        first, last = int(clouds[0]), int(clouds[-1]) + 1
        sizes = arrays["size"].astype(np.int64)
        begin = int(sizes[:first].sum())
        rows = slice(begin, begin + int(sizes[first:last].sum()))
        self.names = info["names"][first:last]
        self.raw_files = [self._folder / name for name in self.names]
        self.feature_names = list(info["feature_names"])
        self.parts = info["parts"] and list(map(list, info["parts"]))
        self.part_names = info["part_names"] and list(info["part_names"])
        classes = arrays["class"][first:last]
        points = {"pos": arrays["pos"][rows], "x": arrays["x"][rows] if self.feature_names else None}
        if self.parts is None:
            self.store(sizes[first:last], points, {"y": classes})
        else:
            self.store(sizes[first:last], {**points, "y": arrays["part"][rows]}, {"category": classes})

    def _refuse_or_skip(self, reasons: Sequence[str]) -> None:
        if not self.skips:
            raise DatasetError(first_few(reasons))
        self.report_skipped(reasons, "files and folders")

    @property
    def raw_dir(self) -> str:
        """The folder of the files, also where `root` is a list."""
        return str(self._folder)

    @classmethod
    def recognizes(cls, root: str) -> bool:
        """Whether clouds lie under `root` in one of the layouts."""
        try:
            return bool(find_layout(Path(root)).entries)
        except DatasetNotFoundError:
            return False
        except DatasetError:  # nearly: the constructor says what is wrong
            return True

    @property
    def label_hint(self) -> str:  # type: ignore[override]  # follows from the files
        """How to get labels of points, for messages."""
        there = f" (they have {', '.join(self.feature_names)})" if self.feature_names else ""
        return f"; --data.dataset_kwargs '{{label: NAME}}' names the property of the files that labels points{there}"


def _present(entries: Sequence[Entry], on_error: str) -> list[Entry]:
    """The entries whose files exist; a list may name others."""
    there = [entry.path.exists() for entry in entries]
    missing = there.count(False)
    if missing and on_error == "raise":
        more = f" ({missing - 1} more files of the list are missing)" if missing > 1 else ""
        raise DatasetBrokenError(entries[there.index(False)].path, f"there is no such file{more}")
    return list(compress(entries, there))


def _build(
    entries: Sequence[Entry], root: Path, class_names: list[str], options: _Options, on_error: str, writer: ArrayWriter
) -> None:
    """Read all clouds in parallel into separate files, then append these to the arrays of the cache."""
    jobs = [(entry.path, writer.folder / f"part-{index}.npz", options) for index, entry in enumerate(entries)]
    kept: list[tuple[Entry, Path, dict[str, Any]]] = []
    broken: list[DatasetError] = []
    for entry, job, outcome in zip(entries, jobs, _in_processes(jobs), strict=True):
        if isinstance(outcome, DatasetError):
            broken.append(outcome)
        else:
            kept.append((entry, job[1], outcome))
    skipped = [str(error) for error in broken]
    if broken and on_error == "raise":  # report all at once, or each would take another reading
        if len(broken) == 1:
            raise broken[0]
        advice = "dataset_kwargs.on_error: skip leaves them out"
        raise DatasetError(f"{len(broken)} of {len(entries)} files cannot be used ({advice}): {first_few(skipped)}")
    if not kept:
        raise DatasetError(f"expected clouds in {root}, but none of {len(entries)} files can be used: {skipped[0]}")
    _warn_of_colors(kept)
    dropped: dict[str, list[Any]] = {}
    for entry, _, about in kept:
        for name in about["dropped"]:
            dropped.setdefault(name, [0, entry.path.name])[0] += 1
    channels = [name for name in kept[0][2]["channels"] if all(name in about["channels"] for _, _, about in kept)]
    labels = [class_names.index(entry.label or "all") for entry, _, _ in kept]
    values = {(label, value) for label, (_, _, about) in zip(labels, kept, strict=True) for value in about["labels"]}
    ids = {pair: number for number, pair in enumerate(sorted(values))}
    for label, (entry, path, about) in zip(labels, kept, strict=True):
        with np.load(path) as arrays:
            writer.append("pos", arrays["pos"])
            if channels:
                writer.append("x", arrays["x"][:, [about["channels"].index(name) for name in channels]])
            if options.label:
                table = np.array([ids[label, value] for value in about["labels"]])
                writer.append("part", table[np.searchsorted(about["labels"], arrays["label"])])
            writer.append("size", np.array([len(arrays["pos"])]))
        path.unlink()
        writer.append("class", np.array([label]))
        writer.append("split", np.array([SPLITS.index(entry.split or "train")]))
    of_category = [[ids[pair] for pair in sorted(values) if pair[0] == c] for c in range(len(class_names))]
    writer.info.update(
        names=[entry.path.relative_to(root).as_posix() for entry, _, _ in kept],
        feature_names=channels,
        parts=of_category if options.label else None,
        part_names=[f"{class_names[c]}/{value}" for c, value in sorted(values)] if options.label else None,
        skipped=skipped,
        dropped=dropped,
    )


def _in_processes(jobs: Sequence[tuple[Path, Path, _Options]]) -> Iterator[dict[str, Any] | DatasetError]:
    """Call `_prepare` on all jobs, in order, with a progress bar."""
    bar = partial(tqdm, total=len(jobs), desc="reading clouds", leave=False, disable=None)
    # As in torch's data loaders: forked on Linux, where processes start fast. Elsewhere starting them does not pay off.
    if len(jobs) < 16 or not sys.platform.startswith("linux"):
        yield from bar(map(_prepare, jobs))
        return
    try:
        with ProcessPoolExecutor(cpu_count(), multiprocessing.get_context("fork"), _end_with, (os.getpid(),)) as pool:
            yield from bar(pool.map(_prepare, jobs, chunksize=min(8, len(jobs) // 16)))
    except BrokenProcessPool as error:
        raise DatasetError("a process that read clouds was killed, usually for lack of memory") from error


def _end_with(parent: int) -> None:
    """End this process if its parent is killed; otherwise it would wait for work forever."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _prepare(job: tuple[Path, Path, _Options]) -> dict[str, Any] | DatasetError:
    """Read one cloud and write its arrays to a file. Returns its channels and labels, or what is wrong with it."""
    path, target, options = job
    try:
        cloud = read_cloud(
            path,
            columns=options.columns,
            num_points=options.mesh_points,
            mesh=options.mesh,
            seed=options.seed,
            drop_invalid=options.drop_invalid,
        )
        pos, attributes = cloud.pos, dict(cloud.attributes)
        label = None
        if options.label:
            label = _labels(path, attributes.pop(find(options.label, attributes) or "", None), options.label)
        for name in {"normals", "colors"} & attributes.keys():
            check_finite(path, name, attributes[name])
        keep: Any = slice(None)
        if options.max_points is not None and len(pos) > options.max_points:
            keep = np.random.default_rng([options.seed, len(pos)]).choice(len(pos), options.max_points, replace=False)
            keep.sort()
        names, columns, dropped = _channels({name: values[keep] for name, values in attributes.items()})
        arrays = {"pos": _in_float32(pos)[keep], "x": columns}
        if label is not None:
            arrays["label"] = label[keep]
        np.savez(target, **arrays)
    except DatasetError as error:
        return error
    return {
        "channels": names,
        "dropped": dropped,
        "color_type": str(attributes["colors"].dtype) if "colors" in attributes else None,
        "labels": [] if label is None else np.unique(arrays["label"]).tolist(),
    }


def _labels(path: Path, values: np.ndarray | None, name: str) -> np.ndarray:
    """Labels (N,) as integers."""
    if values is None:
        raise DatasetBrokenError(path, f"expected the labels of its points in {name!r}, but it has no such property")
    if values.ndim != 1:
        raise DatasetBrokenError(path, f"expected one label per point in {name}, but got {values.shape[1]}")
    check_finite(path, name, values)
    labels = values.astype(np.int64)
    if (labels != values).any() or labels.min() < 0:
        wrong = values[(labels != values) | (labels < 0)][0]
        raise DatasetBrokenError(path, f"expected integers >= 0 in {name}, but got {wrong}")
    return labels


def _warn_of_colors(kept: Sequence[tuple[Entry, Path, dict[str, Any]]]) -> None:
    """Warn if some files have colors of 8 bits and others of 16."""
    by_type = {about["color_type"]: entry.path for entry, _, about in kept}
    if {"uint8", "uint16"} <= by_type.keys():
        warn(
            f"some files have colors of 8 bits, such as {by_type['uint8']}, and others of 16, such as "
            f"{by_type['uint16']}: check that all colors are on the same scale",
            stacklevel=2,
        )


def _channels(attributes: dict[str, np.ndarray]) -> tuple[list[str], np.ndarray, list[str]]:
    """Names and values (N, F) of all channels whose values are finite, and the names of the others."""
    names: list[str] = []
    dropped: list[str] = []
    columns: list[np.ndarray] = []
    for name, values in attributes.items():
        if name == "colors":
            values = values / (np.iinfo(values.dtype).max if values.dtype.kind in "iu" else 1)
        table = values.reshape(len(values), -1).astype(np.float32)
        own = [name] if values.ndim == 1 else name_members(name, table.shape[1])
        finite = np.flatnonzero(np.isfinite(table).all(axis=0))
        names += [own[index] for index in finite]
        columns += [table[:, index] for index in finite]
        dropped += [own[index] for index in range(len(own)) if index not in finite]
    num_points = len(next(iter(attributes.values()), ()))
    return names, np.stack(columns, axis=1) if columns else np.empty((num_points, 0), np.float32), dropped


def _in_float32(pos: np.ndarray) -> np.ndarray:
    """Positions in float32, moved to their centroid if float32 would blur them, as in `preprocess`."""
    points = torch.from_numpy(pos)
    return apply_placement(points, placement([points], "none", "z")).float().numpy()
