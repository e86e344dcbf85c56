"""The layouts of ShapeNetPart, which your own labeled clouds may have as well."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pcattn.data.files import is_file_name, read_each, read_lines
from pcattn.data.splits import SPLITS, hash_split
from pcattn.io.cache import ArrayWriter, Cached, cached
from pcattn.utils.errors import DatasetBrokenError, DatasetError, DatasetNotFoundError

VERSION = 1
"""Part of the key of the cache; grows whenever the same files are read differently."""

#: The official categories: folder, name, and number of parts. Parts are numbered through in this order.
OFFICIAL = (
    ("02691156", "Airplane", 4),
    ("02773838", "Bag", 2),
    ("02954340", "Cap", 2),
    ("02958343", "Car", 4),
    ("03001627", "Chair", 4),
    ("03261776", "Earphone", 3),
    ("03467517", "Guitar", 3),
    ("03624134", "Knife", 2),
    ("03636649", "Lamp", 4),
    ("03642806", "Laptop", 2),
    ("03790512", "Motorbike", 6),
    ("03797390", "Mug", 2),
    ("03948459", "Pistol", 3),
    ("04099429", "Rocket", 3),
    ("04225987", "Skateboard", 3),
    ("04379243", "Table", 3),
)
_FIRST_PART = np.cumsum([0, *(count for *_, count in OFFICIAL)]).tolist()

#: Part ids of the official categories, by folder.
OFFICIAL_PARTS: dict[str, list[int]] = {
    folder: list(range(_FIRST_PART[number], _FIRST_PART[number + 1])) for number, (folder, *_) in enumerate(OFFICIAL)
}

_CATEGORIES = "synsetoffset2category.txt"
HINT = (
    "`pcattn download shapenetpart --root data` fetches it (root is then `data`). "
    "By hand, the archives are shapenetcore_partanno_segmentation_benchmark_v0_normal.zip (text with normals), "
    "shapenetcore_partanno_segmentation_benchmark_v0.zip (.pts and .seg) and shapenet_part_seg_hdf5_data.zip "
    "(hdf5_data): unpack one, and name its folder as root. "
    "For clouds of your own see datasets/README.md in the repository."
)


class Source(NamedTuple):
    """One cloud on disk."""

    path: Path  #: its positions
    labels: Path | None  #: its labels, if they are in a separate file
    category: int
    name: str  #: name of the cloud, unique in its category
    split: str = ""  #: its split


class Category(NamedTuple):
    """A line of `synsetoffset2category.txt`."""

    name: str
    folder: str


class Layout:
    """Files of one layout in one folder.

    Attributes:
        folder: the folder that holds them.
        categories: the categories by their labels.
        local_from: the first label within each category; 0 if labels are global.
    """

    name: ClassVar[str]
    local_from: ClassVar[int] = 0

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.categories = self.read_categories()

    def read_categories(self) -> list[Category]:
        """The lines of `synsetoffset2category.txt`."""
        path = self.folder / _CATEGORIES
        lines = [line.split() for line in read_lines(path).splitlines() if line.strip()]
        for words in lines:
            if len(words) < 2 or not is_file_name(words[-1]):
                raise DatasetBrokenError(path, f"expected lines of a name and a folder, but got {' '.join(words)!r}")
        categories = [Category(" ".join(words[:-1]), words[-1]) for words in lines]
        for values in zip(*categories, strict=True):
            if repeated := [value for value in values if values.count(value) > 1]:
                raise DatasetBrokenError(
                    path, f"expected every name and folder once, but {repeated[0]!r} is there twice"
                )
        if not categories:
            raise DatasetBrokenError(path, "expected lines of a name and a folder, but got none")
        return categories

    def read(self, files: list[Path], skip: bool, split_seed: int) -> Cached:
        """The content of `files()`, from the cache if they were read before."""
        options = ["shapenetpart", VERSION, self.name, skip, split_seed]
        return cached(
            f"shapenetpart-{self.name}", self.folder, files, lambda out: self.build(out, skip, split_seed), options
        )

    def files(self) -> list[Path]:
        """All files that are read."""
        raise NotImplementedError

    def build(self, out: ArrayWriter, skip: bool, split_seed: int) -> None:
        """Read them."""
        raise NotImplementedError

    def finish(self, out: ArrayWriter, counts: dict[str, int], seen: list[set[int]], skipped: list[str]) -> None:
        """Store what is not in the arrays: splits, categories, parts."""
        bounds = np.cumsum([0, *counts.values()]).tolist()
        out.info = {
            "splits": {split: bounds[i : i + 2] for i, split in enumerate(counts) if counts[split]},
            "class_names": [category.name for category in self.categories],
            "parts": [
                OFFICIAL_PARTS.get(category.folder) or sorted(parts)
                for category, parts in zip(self.categories, seen, strict=True)
            ],
            "skipped": skipped,
        }
        for category, parts in zip(self.categories, out.info["parts"], strict=True):
            if not parts:
                hint = f"Remove its line from {_CATEGORIES}, or put its clouds there."
                raise DatasetNotFoundError(
                    f"category {category.name}", self.folder / category.folder, "its clouds", hint
                )
        for first, second in combinations(range(len(self.categories)), 2):
            if common := sorted(set(out.info["parts"][first]) & set(out.info["parts"][second])):
                labels, names = ", ".join(map(str, common)), out.info["class_names"]
                raise DatasetError(
                    f"expected labels of its own for each category, but {labels} occur in {names[first]} and in "
                    f"{names[second]} of {self.folder}"
                )


class FileLayout(Layout):
    """One file per cloud, or two."""

    def sources(self) -> Iterator[Source]:
        """All clouds, sorted."""
        raise NotImplementedError

    def parse(self, source: Source) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Columns (N, 3) or (N, 6) of positions and normals, and labels (N,) as they are in the file."""
        raise NotImplementedError

    def first_parts(self) -> list[int]:
        """The global label of local label 0 of each category; 0 where labels are global."""
        return [0] * len(self.categories)

    def files(self) -> list[Path]:
        """Clouds, labels, categories and lists."""
        clouds = [path for source in self.sources() for path in (source.path, source.labels) if path is not None]
        lists = sorted((self.folder / "train_test_split").glob("shuffled_*_file_list.json"))
        return [*clouds, self.folder / _CATEGORIES, *lists]

    def build(self, out: ArrayWriter, skip: bool, split_seed: int) -> None:
        """Read all clouds, split by split."""
        skipped: list[str] = []
        splits = self.split(list(self.sources()), skipped if skip else None, split_seed)
        sources = [source._replace(split=split) for split, members in splits.items() for source in members]
        offsets = self.first_parts()
        seen: list[set[int]] = [set() for _ in self.categories]
        counts = dict.fromkeys(splits, 0)

        def read(source: Source) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
            columns, labels = self.parse(source)
            labels = labels + offsets[source.category]
            self.check(source, labels)
            return columns, labels

        description = f"reading {self.folder.name}"
        for source, columns, labels in read_each(sources, read, skipped if skip else None, description):
            out.append("pos", columns[:, :3])
            if columns.shape[1] == 6:
                out.append("normals", columns[:, 3:])
            out.append("part", labels)
            out.append("sizes", np.array([len(labels)]))
            out.append("category", np.array([source.category]))
            seen[source.category].update(np.unique(labels).tolist())
            counts[source.split] += 1
        if not any(counts.values()):
            raise DatasetError("; ".join([f"expected clouds in {self.folder}, but got none", *skipped[:3]]))
        self.finish(out, counts, seen, skipped)

    def check(self, source: Source, labels: NDArray[np.int64]) -> None:
        """Refuse a cloud with these global labels if it cannot be used."""
        if len(labels) < 2:
            raise DatasetBrokenError(source.path, f"expected at least two points, but got {len(labels)}")
        category = self.categories[source.category]
        allowed = OFFICIAL_PARTS.get(category.folder)
        low, high = int(labels.min()), int(labels.max())
        if allowed is not None and not allowed[0] <= low <= high <= allowed[-1]:
            local = self.local_from - (allowed[0] if self.local_from else 0)  # as the file counts
            raise DatasetBrokenError(
                source.labels or source.path,
                f"expected labels in [{allowed[0] + local}, {allowed[-1] + local}], the parts of {category.name} "
                f"({category.folder}), but got [{low + local}, {high + local}]; "
                "categories of your own need a folder name of their own",
            )

    def split(self, sources: list[Source], skipped: list[str] | None, seed: int) -> dict[str, list[Source]]:
        """The clouds of each split, by the lists, or without lists by a hash of their names.

        `skipped` gets a message about clouds that are listed but missing; None raises it.
        """
        folder = self.folder / "train_test_split"
        lists = {split: folder / f"shuffled_{split}_file_list.json" for split in SPLITS}
        if not any(path.is_file() for path in lists.values()):
            return carve(sources, [category.folder for category in self.categories], seed)
        known = {(self.categories[source.category].folder, source.name): source for source in sources}
        splits: dict[str, list[Source]] = {}
        for split, path in lists.items():
            if not path.is_file():
                continue
            try:
                entries = [_listed(entry) for entry in json.loads(read_lines(path))]
            except (ValueError, AttributeError, TypeError, RecursionError) as error:
                raise DatasetBrokenError(
                    path, f"expected a list of shape_data/<folder>/<id>, but got: {error}"
                ) from None
            listed = {category.folder for category in self.categories}
            missing = sorted("/".join(entry) for entry in entries if entry[0] in listed and entry not in known)
            if missing:
                reason = f"expected the clouds it lists, but {len(missing)} are missing, such as {missing[0]}"
                if skipped is None:
                    raise DatasetBrokenError(path, reason)
                skipped.append(f"{path}: {reason}")
            splits[split] = [known[entry] for entry in sorted(set(entries) & set(known))]
        return splits


class TextLayout(FileLayout):
    """`<folder>/<id>.txt` with lines `x y z [nx ny nz] label`."""

    name = "text"

    def sources(self) -> Iterator[Source]:
        """All `.txt` files of the categories."""
        for number, category in enumerate(self.categories):
            for path in sorted((self.folder / category.folder).glob("*.txt")):
                yield Source(path, None, number, path.stem)

    def parse(self, source: Source) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Four or seven columns."""
        from pcattn.io.text import read_table

        table = read_table(source.path, 4)
        if table.shape[1] not in (4, 7):
            raise DatasetBrokenError(
                source.path, f"expected lines `x y z label` or `x y z nx ny nz label`, but got {table.shape[1]} numbers"
            )
        return table[:, :-1], _integers(source.path, table[:, -1], 0)


class PointsLayout(FileLayout):
    """`<folder>/points/<id>.pts` and `<folder>/points_label/<id>.seg`."""

    name = "points"
    local_from = 1

    def sources(self) -> Iterator[Source]:
        """All `.pts` files of the categories."""
        for number, category in enumerate(self.categories):
            folder = self.folder / category.folder
            for path in sorted((folder / "points").glob("*.pts")):
                yield Source(path, folder / "points_label" / f"{path.stem}.seg", number, path.stem)

    def files(self) -> list[Path]:
        """Clouds, labels, categories and lists. Every cloud must have labels."""
        files = super().files()
        for path in files:
            if not path.is_file():
                raise DatasetBrokenError(path, "expected the labels of the points, but there is no such file")
        return files

    def parse(self, source: Source) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Positions, and labels from 1, returned from 0."""
        from pcattn.io.text import read_table

        table = read_table(source.path, 3)
        if table.shape[1] not in (3, 6):
            raise DatasetBrokenError(
                source.path, f"expected lines `x y z` or `x y z nx ny nz`, but got {table.shape[1]} numbers"
            )
        assert source.labels is not None
        labels = _integers(source.labels, read_table(source.labels, 1)[:, 0], 1)
        if len(labels) != len(table):
            reason = f"expected a label for each of the {len(table)} points, but got {len(labels)}"
            raise DatasetBrokenError(source.labels, reason)
        return table, labels - 1

    def first_parts(self) -> list[int]:
        """Official categories have fixed labels. All others follow after those, with as many parts as occur."""
        from pcattn.io.text import read_table

        official = [category.folder in OFFICIAL_PARTS for category in self.categories]
        free = _FIRST_PART[-1] if any(official) else 0
        firsts = []
        for number, category in enumerate(self.categories):
            if official[number]:
                firsts.append(OFFICIAL_PARTS[category.folder][0])
                continue
            firsts.append(free)
            for path in sorted((self.folder / category.folder / "points_label").glob("*.seg")):
                try:
                    free = max(free, firsts[-1] + int(_integers(path, read_table(path, 1)[:, 0], 1).max()))
                except DatasetBrokenError:
                    continue  # reported or skipped when the cloud is read
        return firsts


class HDF5Layout(Layout):
    """`ply_data_{train,val,test}*.h5`."""

    name = "hdf5"

    def read_categories(self) -> list[Category]:
        """The official ones."""
        return [Category(name, folder) for folder, name, _ in OFFICIAL]

    def files(self) -> list[Path]:
        """All of the three splits."""
        return [path for split in SPLITS for path in self.split_files(split)]

    def split_files(self, split: str) -> list[Path]:
        """The files of a split, sorted by number."""
        return sorted(self.folder.glob(f"ply_data_{split}*.h5"), key=lambda path: (len(path.name), path.name))

    def build(self, out: ArrayWriter, skip: bool, split_seed: int) -> None:
        """Read all files, split by split."""
        counts, skipped = dict.fromkeys(SPLITS, 0), []
        for split in SPLITS:
            for path in self.split_files(split):
                try:
                    pos, category, part, normals = self.parse(path)
                except DatasetBrokenError as error:
                    if not skip:
                        raise
                    skipped.append(str(error))
                    continue
                out.append("pos", pos.reshape(-1, 3))
                if normals is not None:
                    out.append("normals", normals.reshape(-1, 3))
                out.append("part", part.reshape(-1))
                out.append("sizes", np.full(len(pos), pos.shape[1]))
                out.append("category", category)
                counts[split] += len(pos)
        self.finish(out, counts, [set() for _ in self.categories], skipped)

    def parse(self, path: Path) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any], NDArray[Any] | None]:
        """Positions (n, P, 3), categories (n,), parts (n, P), and normals if the file has them."""
        from pcattn.io.hdf5 import read_arrays

        arrays = read_arrays(path, {"data": np.float32, "label": np.int64, "pid": np.int64}, {"normal": np.float32})
        pos, category, part = arrays["data"], arrays["label"].reshape(-1), arrays["pid"]
        if pos.ndim != 3 or pos.shape[2] != 3 or len(category) != len(pos) or part.shape != pos.shape[:2]:
            got = f"{pos.shape}, {category.shape} and {part.shape}"
            raise DatasetBrokenError(path, f"expected data (n, P, 3), label (n,) and pid (n, P), but got {got}")
        if len(category) and not 0 <= category.min() <= category.max() < len(OFFICIAL):
            reason = f"expected labels in [0, {len(OFFICIAL)}), but got [{category.min()}, {category.max()}]"
            raise DatasetBrokenError(path, reason)
        first, last = np.array(_FIRST_PART[:-1])[category, None], np.array(_FIRST_PART[1:])[category, None]
        wrong = ((part < first) | (part >= last)).any(axis=1)
        if wrong.any():
            cloud = int(wrong.argmax())
            name = OFFICIAL[category[cloud]][1]
            reason = f"expected the parts of {name} in pid of cloud {cloud}, but got {np.unique(part[cloud]).tolist()}"
            raise DatasetBrokenError(path, reason)
        return pos, category, part, arrays.get("normal")


def find_layout(root: Path) -> Layout:
    """The layout that lies in `root`, or in one folder of it."""
    if not root.is_dir():
        raise DatasetNotFoundError("ShapeNetPart", root, f"{_CATEGORIES} or ply_data_*.h5", HINT)
    for folders in ([root], sorted(path for path in root.iterdir() if path.is_dir())):
        found = [folder for folder in folders if _is_home(folder)]
        if len(found) > 1:
            names = ", ".join(folder.name for folder in found)
            raise DatasetError(f"expected one ShapeNetPart under {root}, but got {names}: name one of them as root")
        if found:
            return _layout_of(found[0])
    raise DatasetNotFoundError("ShapeNetPart", root, f"{_CATEGORIES} or ply_data_*.h5 with pid", HINT)


def _is_home(folder: Path) -> bool:
    if (folder / _CATEGORIES).is_file():
        return True
    # ModelNet40's files have the same names.
    return not (folder / "shape_names.txt").is_file() and any(folder.glob("ply_data_*.h5"))


def _layout_of(folder: Path) -> Layout:
    if not (folder / _CATEGORIES).is_file():
        return HDF5Layout(folder)
    for layout in (TextLayout(folder), PointsLayout(folder)):
        if next(layout.sources(), None) is not None:
            return layout
    folders = ", ".join(category.folder for category in TextLayout(folder).categories[:3])
    expected = f"<folder>/*.txt or <folder>/points/*.pts for the folders that {_CATEGORIES} lists ({folders}, ...)"
    raise DatasetNotFoundError("ShapeNetPart", folder, expected, HINT)


def carve(sources: Sequence[Source], folders: Sequence[str], seed: int) -> dict[str, list[Source]]:
    """Training and test clouds, with a fifth of each category for test, chosen by a hash of the file names."""
    splits: dict[str, list[Source]] = {"train": [], "test": []}
    for number, folder in enumerate(folders):
        members = sorted(source for source in sources if source.category == number)
        tested = hash_split([f"{folder}/{source.name}" for source in members], 1 / 5, seed)
        for source, is_test in zip(members, tested, strict=True):
            splits["test" if is_test else "train"].append(source)
    return splits


def _listed(entry: str) -> tuple[str, str]:
    """Folder and name of a cloud in a list, where some have the suffix of its file."""
    folder, name = entry.split("/")[-2:]
    return folder, name.removesuffix(".txt").removesuffix(".pts")


def _integers(path: Path, values: NDArray[np.float32], least: int) -> NDArray[np.int64]:
    """Labels read as floats."""
    labels = values.astype(np.int64)
    wrong = (labels != values) | (labels < least)
    if wrong.any():
        reason = f"expected part labels, integers of at least {least}, but got {values[wrong.argmax()]}"
        raise DatasetBrokenError(path, f"{reason} for point {int(wrong.argmax())}")
    return labels
