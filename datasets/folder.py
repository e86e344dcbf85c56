"""`PointCloudFolder`: a user's own files as a data set, without a line of Python."""

from __future__ import annotations

import multiprocessing
import os
import sys
import threading
import time
import warnings
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
from torch_geometric.data import Data, InMemoryDataset
from tqdm import tqdm

from pcattn.data.preprocessing import apply_placement, placement
from pcattn.datasets.folder_layout import SPLITS, Entry, assign_splits, find_layout
from pcattn.io.cache import ArrayWriter, cached
from pcattn.io.channels import find, name_members
from pcattn.io.cloud import check_finite, read_cloud
from pcattn.utils.errors import (
    DatasetBrokenError,
    DatasetError,
    DatasetNotFoundError,
    InputError,
    SkippedWarning,
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


class PointCloudFolder(InMemoryDataset):
    """The clouds and meshes in a folder of a user, one folder a class, or in a list.

    Any of these, recognized by looking (`<split>` is train, val or test):

    - `<class>/*`, `<split>/<class>/*` or `<class>/<split>/*`, in any format that `read_cloud` reads;
    - `*` or `<split>/*` without classes, where points are labeled;
    - a CSV file, named as `root`, with lines `path,label[,split]` and paths told from its folder.

    Where no split is given, `test_fraction` of each class is for test, chosen by a hash of the file name. Classes are
    sorted by name, files by path. Files are read side by side and cached below `processed/`; later starts map that.

    Meshes are sampled uniformly by area. Colors become numbers in [0, 1]. What all clouds have besides their positions
    are the channels of `x`, named in `feature_names`: `nx, ny, nz`, `red, green, blue`, and every other property under
    its own name. A cloud so far from the origin that float32 would blur it (more than 100 times its extent) is moved
    to its centroid.

    Args:
        root: the folder, or the CSV file.
        split: `"train"`, `"val"` or `"test"`.
        label: the property or column that labels points. Labels may be any integers >= 0; parts are those that occur,
            numbered from 0, category by category.
        columns: names of the columns of text files and (N, C) arrays, see `read_cloud`.
        mesh: `"sample"` draws points from the faces of meshes; `"vertices"` takes their vertices, with their labels.
        mesh_points: points sampled from a mesh.
        max_points: a larger cloud is reduced to so many of its points, at random; None keeps all.
        test_fraction: share of each class that is for test where no split is given; 0 keeps all for training.
        seed: of the split, the sampling of meshes and the reduction.
        on_error: `"raise"` an error about the files that cannot be used, or `"skip"` them all with one warning.
        drop_invalid: leave out points with NaN or infinite coordinates.
        transform: see torch-geometric.

    Attributes:
        class_names: names of the classes (`["all"]` where there are none).
        feature_names: channels of `x`.
        parts: with `label`, the part ids of each category; else None.
        part_names: with `label`, `"<class>/<value in the files>"` of each part.
        splits: the splits that there are.
        names: path of each cloud from `root`.

    Each item is a `Data` with `pos` (N, 3), `x` (N, F) if there are channels, and the class `y` (1,); with `label`, `y`
    (N,) are the parts of the points and `category` (1,) the class.

    Raises:
        DatasetNotFoundError: there are no clouds.
        DatasetBrokenError: a file cannot be used.
        DatasetError: the layout makes no sense, or lacks the split.
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
        transform: Callable | None = None,
    ) -> None:
        if split not in SPLITS:
            raise InputError(f"expected split to be one of {', '.join(SPLITS)}, but got {split!r}")
        if on_error not in ("raise", "skip"):
            raise InputError(f"expected on_error to be raise or skip, but got {on_error!r}")
        if not 0 <= test_fraction < 1:
            raise InputError(f"expected 0 <= test_fraction < 1, but got {test_fraction}")
        for name, value in (("mesh_points", mesh_points), ("max_points", max_points)):
            if value is not None and value < 1:
                raise InputError(f"expected {name} >= 1, but got {value}")
        super().__init__(None, transform)
        layout = find_layout(Path(root))
        if layout.empty:
            _refuse_or_warn(
                [f"{path}: expected clouds in the folder of a class, but got none" for path in layout.empty], on_error
            )
        empty = {path.name for path in layout.empty}
        self.class_names = [name for name in layout.class_names if name not in empty] or ["all"]
        entries = assign_splits(layout, test_fraction, seed)
        self.splits = [name for name in SPLITS if any(entry.split == name for entry in entries)]
        if split not in self.splits:
            raise DatasetError(f"expected a {split} split in {root}, but got {' and '.join(self.splits)} alone")
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
            self._take(split, result.arrays, result.info)
            skipped = list(result.info["skipped"])
        if skipped:
            _refuse_or_warn(skipped, on_error)  # the cache may be one of `skip`

    def _take(self, split: str, arrays: dict[str, np.ndarray], info: dict[str, Any]) -> None:
        """The range of the arrays that is this split."""
        number = SPLITS.index(split)
        clouds = np.flatnonzero(arrays["split"] == number)
        if not len(clouds):
            raise DatasetError(f"expected clouds in the {split} split, but none of its files can be used")
        first, last = int(clouds[0]), int(clouds[-1]) + 1
        starts = torch.from_numpy(np.concatenate(([0], np.cumsum(arrays["size"], dtype=np.int64))))
        points = slice(int(starts[first]), int(starts[last]))
        per_point = starts[first : last + 1] - starts[first]
        per_cloud = torch.arange(last - first + 1)
        self.names: list[str] = info["names"][first:last]
        self.feature_names: list[str] = list(info["feature_names"])
        self.parts: list[list[int]] | None = info["parts"] and list(map(list, info["parts"]))
        self.part_names: list[str] | None = info["part_names"] and list(info["part_names"])
        classes = torch.from_numpy(arrays["class"][first:last])
        self._data = Data(pos=torch.from_numpy(arrays["pos"][points]))
        self.slices = {"pos": per_point}
        if self.feature_names:
            self._data.x, self.slices["x"] = torch.from_numpy(arrays["x"][points]), per_point
        if self.parts is None:
            self._data.y, self.slices["y"] = classes, per_cloud
        else:
            self._data.y, self.slices["y"] = torch.from_numpy(arrays["part"][points]), per_point
            self._data.category, self.slices["category"] = classes, per_cloud

    @staticmethod
    def recognizes(root: str) -> bool:
        """Whether clouds lie under `root` in one of the layouts."""
        try:
            return bool(find_layout(Path(root)).entries)
        except DatasetNotFoundError:
            return False
        except DatasetError:  # almost: the message of the constructor tells what is wrong
            return True

    @property
    def label_hint(self) -> str:
        """How to have labels of points, for messages."""
        there = f" (they have {', '.join(self.feature_names)})" if self.feature_names else ""
        return f"; --data.dataset_kwargs '{{label: NAME}}' names the property of the files that labels points{there}"

    @property
    def num_classes(self) -> int:
        """Number of classes, also where a split lacks one."""
        return len(self.class_names)


class PyGPointClouds(InMemoryDataset):
    """Any data set of torch-geometric whose items have `pos` and `y`, in memory or not.

    Args:
        root: passed on as `root`.
        train: passed on as `train`, where the data set has such an argument.
        path: import path of the data set, such as `torch_geometric.datasets.ModelNet`.
        kwargs: its further arguments.
        train_kwargs: arguments for the training split alone, where it has no argument `train`, such as
            `{split: train}`.
        test_kwargs: likewise for the test split.

    Each item has what the data set's items have of `pos`, `y`, `x` and `category`.

    Raises:
        DatasetError: it cannot be imported or made, or its items lack `pos` or `y`.
    """

    def __init__(
        self,
        root: str,
        train: bool = True,
        path: str = "",
        kwargs: dict[str, Any] | None = None,
        train_kwargs: dict[str, Any] | None = None,
        test_kwargs: dict[str, Any] | None = None,
    ) -> None:
        from inspect import signature

        from pcattn.utils.registry import construct, resolve

        if not path:
            raise InputError("expected the import path of a torch-geometric data set in dataset_kwargs.path")
        super().__init__(None)
        factory: Callable[..., Any] = resolve("data set", path, {})
        own = (train_kwargs if train else test_kwargs) or {}
        if "train" in signature(factory).parameters:
            own = {"train": train, **own}
        elif not own:
            which = "train_kwargs" if train else "test_kwargs"
            raise DatasetError(f"expected {which} for {path}, such as {{split: ...}}: it takes no argument train")
        dataset = construct("data set", path, factory, root=root, **{**(kwargs or {}), **own})
        items = []
        for index in range(len(dataset)):
            item = dataset[index]
            if item.get("pos") is None or item.get("y") is None:
                raise DatasetError(f"expected pos and y in every item of {path}, but item {index} has {item.keys()}")
            fields = {name: item[name] for name in ("pos", "y", "x", "category") if item.get(name) is not None}
            labels = torch.as_tensor(fields["y"]).reshape(-1)
            if not bool((labels == labels.long()).all()):
                raise DatasetError(f"expected integer labels y in {path}, but item {index} has {labels[0].item()}")
            fields["y"] = labels.long()
            items.append(Data(**fields))
        if not items:
            raise DatasetError(f"expected clouds in {path}, but it is empty")
        self._data, self.slices = self.collate(items)
        names = getattr(dataset, "class_names", None) or getattr(dataset, "classes", None)
        if names is not None:
            self.class_names = list(names)


def _present(entries: Sequence[Entry], on_error: str) -> list[Entry]:
    """Those whose files are there; a list may name others."""
    there = [entry.path.exists() for entry in entries]
    missing = there.count(False)
    if missing and on_error == "raise":
        more = f" ({missing - 1} more files of the list are missing)" if missing > 1 else ""
        raise DatasetBrokenError(entries[there.index(False)].path, f"there is no such file{more}")
    return list(compress(entries, there))


def _build(
    entries: Sequence[Entry], root: Path, class_names: list[str], options: _Options, on_error: str, writer: ArrayWriter
) -> None:
    """Read all clouds side by side into files of their own, and write those behind one another."""
    jobs = [(entry.path, writer.folder / f"part-{index}.npz", options) for index, entry in enumerate(entries)]
    kept: list[tuple[Entry, Path, dict[str, Any]]] = []
    broken: list[DatasetError] = []
    for entry, job, outcome in zip(entries, jobs, _in_processes(jobs), strict=True):
        if isinstance(outcome, DatasetError):
            broken.append(outcome)
        else:
            kept.append((entry, job[1], outcome))
    skipped = [str(error) for error in broken]
    if broken and on_error == "raise":  # all of them at once: one after the other would take as many readings
        if len(broken) == 1:
            raise broken[0]
        advice = "dataset_kwargs.on_error: skip leaves them out"
        raise DatasetError(f"{len(broken)} of {len(entries)} files cannot be used ({advice}): {first_few(skipped)}")
    if not kept:
        raise DatasetError(f"expected clouds in {root}, but none of {len(entries)} files can be used: {skipped[0]}")
    _warn_of_channels(kept)
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
    )


def _in_processes(jobs: Sequence[tuple]) -> Iterator[dict[str, Any] | DatasetError]:
    """`_prepare` of all jobs, in order, with a progress bar."""
    bar = partial(tqdm, total=len(jobs), desc="reading clouds", leave=False, disable=None)
    # As torch's data loaders do: forked, where a process starts in no time; elsewhere few files do not pay for others.
    if len(jobs) < 16 or not sys.platform.startswith("linux"):
        yield from bar(map(_prepare, jobs))
        return
    try:
        with ProcessPoolExecutor(cpu_count(), multiprocessing.get_context("fork"), _end_with, (os.getpid(),)) as pool:
            yield from bar(pool.map(_prepare, jobs, chunksize=min(8, len(jobs) // 16)))
    except BrokenProcessPool as error:
        raise DatasetError("a process that read clouds was killed, most often for lack of memory") from error


def _end_with(parent: int) -> None:
    """Make this process end when its parent was killed: it would wait for further work for ever."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _prepare(job: tuple[Path, Path, _Options]) -> dict[str, Any] | DatasetError:
    """Read one cloud, write its arrays to a file, and tell its channels and labels; or what is wrong with it."""
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
        names, columns, invalid = _channels({name: values[keep] for name, values in attributes.items()})
        arrays = {"pos": _in_float32(pos)[keep], "x": columns}
        if label is not None:
            arrays["label"] = label[keep]
        np.savez(target, **arrays)  # type: ignore[arg-type]
    except DatasetError as error:
        return error
    return {
        "channels": names,
        "invalid": invalid,
        "color_type": str(attributes["colors"].dtype) if "colors" in attributes else None,
        "labels": [] if label is None else np.unique(arrays["label"]).tolist(),
    }


def _labels(path: Path, values: np.ndarray | None, name: str) -> np.ndarray:
    """Labels (N,) as integers."""
    if values is None:
        raise DatasetBrokenError(path, f"expected the labels of its points in {name!r}, but it has no such property")
    if values.ndim != 1:
        raise DatasetBrokenError(path, f"expected one label a point in {name}, but got {values.shape[1]}")
    check_finite(path, name, values)
    labels = values.astype(np.int64)
    if (labels != values).any() or labels.min() < 0:
        wrong = values[(labels != values) | (labels < 0)][0]
        raise DatasetBrokenError(path, f"expected integers >= 0 in {name}, but got {wrong}")
    return labels


def _warn_of_channels(kept: Sequence[tuple[Entry, Path, dict[str, Any]]]) -> None:
    """Say which channels are left out, and where colors of 8 and of 16 bits meet."""
    for channel in sorted({name for _, _, about in kept for name in about["invalid"]}):
        found = [entry.path for entry, _, about in kept if channel in about["invalid"]]
        warn(
            f"the channel {channel} is left out: it has NaN or infinity in {len(found)} of {len(kept)} files, "
            f"such as {found[0]}",
            stacklevel=2,
        )
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
    invalid: list[str] = []
    columns: list[np.ndarray] = []
    for name, values in attributes.items():
        if name == "colors":
            values = values / (np.iinfo(values.dtype).max if values.dtype.kind in "iu" else 1)
        table = values.reshape(len(values), -1).astype(np.float32)
        own = [name] if values.ndim == 1 else name_members(name, table.shape[1])
        finite = np.flatnonzero(np.isfinite(table).all(axis=0))
        names += [own[index] for index in finite]
        invalid += [own[index] for index in range(len(own)) if index not in finite]
        columns += [table[:, index] for index in finite]
    num_points = len(next(iter(attributes.values()), ()))
    return names, np.stack(columns, axis=1) if columns else np.empty((num_points, 0), np.float32), invalid


def _in_float32(pos: np.ndarray) -> np.ndarray:
    """Positions in float32, moved to their centroid where it lies too far away for that, as `preprocess` does it."""
    points = torch.from_numpy(pos)
    return apply_placement(points, placement([points], "none", "z")).float().numpy()


def _refuse_or_warn(reasons: Sequence[str], on_error: str) -> None:
    if on_error == "raise":
        raise DatasetError(first_few(reasons))
    warnings.warn(SkippedWarning(f"skipped {len(reasons)} of the files and folders", reasons), stacklevel=3)
