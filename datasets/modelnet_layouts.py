"""The layouts in which ModelNet10 and ModelNet40 are distributed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from pcattn.data.files import is_file_name, read_each, read_lines
from pcattn.io.cache import ArrayWriter, cached
from pcattn.io.hdf5 import read_arrays
from pcattn.utils.errors import DatasetBrokenError, DatasetError, DatasetNotFoundError

VERSION = 1
"""Part of the key of the cache; grows whenever the same files are read differently."""

#: Names of the archives' folders, which are looked for below `root`.
FOLDERS = ("modelnet40_ply_hdf5_2048", "modelnet40_normal_resampled", "ModelNet40", "ModelNet10")

#: What to do where there are none, by the number of classes.
HINTS = {
    40: "`pcattn download modelnet40 --root data` fetches it (root is then `data`); or unpack "
    "modelnet40_ply_hdf5_2048.zip (mirrored at "
    "https://github.com/ma-xu/pointMLP-pytorch/releases/tag/Modenet40_dataset), and name its folder as root.",
    10: "Unpack ModelNet10.zip of https://modelnet.cs.princeton.edu (meshes) or modelnet40_normal_resampled.zip "
    "(text), and name its folder as root.",
}


class ClassCountError(DatasetBrokenError):
    """A list of classes has another number of them than the data set."""


class Clouds(NamedTuple):
    """One split, with the points of all clouds in one array."""

    sizes: NDArray[np.int64]  #: (M,)
    pos: NDArray[np.float32]  #: (P, 3)
    normals: NDArray[np.float32] | None  #: (P, 3)
    labels: NDArray[np.int64]  #: (M,)
    skipped: list[str]  #: messages about files that were left out
    files: list[Path]  #: what was read


class Source(NamedTuple):
    """One cloud on disk."""

    path: Path
    label: int


class Layout:
    """Files of one layout in one folder.

    Args:
        folder: the folder that holds them.
        num_classes: 10 or 40.
    """

    #: Names of its files, for messages.
    expected: ClassVar[str]

    def __init__(self, folder: Path, num_classes: int) -> None:
        self.folder, self.num_classes = folder, num_classes

    @classmethod
    def is_home(cls, folder: Path, num_classes: int) -> bool:
        """Whether the folder holds this layout."""
        raise NotImplementedError

    def class_names(self) -> list[str]:
        """Names of the classes by their labels."""
        raise NotImplementedError

    def read(self, split: str, skip: bool) -> Clouds:
        """The `train` or the `test` split."""
        raise NotImplementedError

    def read_names(self, path: Path) -> list[str]:
        """The class names in a file, one for each class."""
        names = read_lines(path).split()
        if len(names) != self.num_classes:
            reason = f"expected {self.num_classes} class names, but got {len(names)}"
            raise ClassCountError(path, f"{reason}; the data set `folder` reads clouds of your own classes")
        if outside := [name for name in names if not is_file_name(name)]:
            raise DatasetBrokenError(path, f"expected names of classes, but got {outside[0]!r}")
        return names

    def missing(self, split: str, expected: str) -> DatasetNotFoundError:
        """The error for a split whose files are missing."""
        name = f"the {split} split of ModelNet{self.num_classes}"
        return DatasetNotFoundError(name, self.folder, expected, HINTS[self.num_classes])


class HDF5Layout(Layout):
    """`ply_data_{train,test}*.h5` with `data` (n, P, 3), `label` (n, 1) and optionally `normal`; ModelNet40 alone."""

    expected = f"shape_names.txt and ply_data_*.h5 (or {FOLDERS[0]}/)"

    @classmethod
    def is_home(cls, folder: Path, num_classes: int) -> bool:
        """Whether the folder has the list of class names."""
        return num_classes == 40 and (folder / "shape_names.txt").is_file()

    def class_names(self) -> list[str]:
        """The names in `shape_names.txt`."""
        return self.read_names(self.folder / "shape_names.txt")

    def read(self, split: str, skip: bool) -> Clouds:
        """All files of the split. Reading them takes about a second, so nothing is cached."""
        names = self.folder / f"{split}_files.txt"
        if names.is_file():
            # The folders in it are those of another machine.
            lines = [line.strip() for line in read_lines(names).splitlines() if line.strip()]
            files = [self.folder / Path(line).name for line in lines]
        else:
            files = sorted(self.folder.glob(f"ply_data_{split}*.h5"))
        absent = [file.name for file in files if not file.is_file()]
        if absent or not files:
            raise self.missing(split, ", ".join(absent) or f"ply_data_{split}*.h5")
        parts: list[dict[str, NDArray[Any]]] = []
        skipped = []
        for file in files:
            try:
                arrays = self.parse(file)
                shape = arrays["data"].shape[1:]
                if parts and shape != (before := parts[0]["data"].shape[1:]):
                    raise DatasetBrokenError(
                        file, f"expected clouds of {before} as in {files[0].name}, but got {shape}"
                    )
                parts.append(arrays)
            except DatasetBrokenError as error:
                if not skip:
                    raise
                skipped.append(str(error))
        if not parts:
            raise DatasetError(f"expected clouds in {self.folder}, but no file can be used: {'; '.join(skipped)}")
        pos = np.concatenate([arrays["data"] for arrays in parts])
        with_normals = all("normal" in arrays for arrays in parts)
        return Clouds(
            np.full(len(pos), pos.shape[1]),
            pos.reshape(-1, 3),
            np.concatenate([arrays["normal"] for arrays in parts]).reshape(-1, 3) if with_normals else None,
            np.concatenate([arrays["label"].reshape(-1) for arrays in parts]),
            skipped,
            files,
        )

    def parse(self, path: Path) -> dict[str, NDArray[Any]]:
        """The checked arrays of one file."""
        arrays = read_arrays(path, {"data": np.float32, "label": np.int64}, {"normal": np.float32})
        pos, label = arrays["data"], arrays["label"].reshape(-1)
        if pos.ndim != 3 or pos.shape[2] != 3 or len(label) != len(pos):
            reason = f"expected data (n, P, 3) and label (n,), but got {pos.shape} and {label.shape}"
            raise DatasetBrokenError(path, reason)
        if "normal" in arrays and arrays["normal"].shape != pos.shape:
            raise DatasetBrokenError(path, f"expected normal {pos.shape}, but got {arrays['normal'].shape}")
        if len(label) and not 0 <= label.min() <= label.max() < self.num_classes:
            reason = f"expected labels in [0, {self.num_classes}), but got [{label.min()}, {label.max()}]"
            raise DatasetBrokenError(path, reason)
        return arrays


class FileLayout(Layout):
    """One file per cloud, read once and cached."""

    def sources(self, split: str) -> list[Source]:
        """The files of a split."""
        raise NotImplementedError

    def parse(self, source: Source) -> NDArray[np.float32]:
        """Positions and normals (N, 6), or positions (N, 3)."""
        raise NotImplementedError

    def read(self, split: str, skip: bool) -> Clouds:
        """All files of the split, from the cache if they were read before."""
        sources = self.sources(split)
        absent = [source.path for source in sources if not source.path.is_file()]
        if skip:
            sources = [source for source in sources if source.path not in set(absent)]
        if not sources or (absent and not skip):
            names = ", ".join(str(path.relative_to(self.folder)) for path in absent[:3])
            raise self.missing(split, f"{names}{', ...' if len(absent) > 3 else ''}" if absent else self.expected)

        def build(out: ArrayWriter) -> None:
            skipped = [f"{path}: there is no such file" for path in absent]
            for source, table, _ in read_each(
                sources, lambda source: (self.parse(source), None), skipped if skip else None, f"reading {split} clouds"
            ):
                out.append("pos", table[:, :3])
                if table.shape[1] == 6:
                    out.append("normals", table[:, 3:])
                out.append("sizes", np.array([len(table)]))
                out.append("label", np.array([source.label]))
            out.info["skipped"] = skipped

        name = f"modelnet{self.num_classes}-{type(self).__name__.removesuffix('Layout').lower()}-{split}"
        options = ["modelnet", VERSION, skip, [source.label for source in sources], self.options()]
        found = cached(name, self.folder, [source.path for source in sources], build, options)
        with found.reading():
            arrays, skipped = found.arrays, list(found.info["skipped"])
            if "pos" not in arrays:
                reasons = "; ".join(skipped[:3])
                raise DatasetError(f"expected clouds in {self.folder}, but no file can be used: {reasons}")
            files = [source.path for source in sources]
            return Clouds(arrays["sizes"], arrays["pos"], arrays.get("normals"), arrays["label"], skipped, files)

    def options(self) -> list[Any]:
        """What the clouds depend on besides their files."""
        return []


class TextLayout(FileLayout):
    """`<class>/<class>_0001.txt` with lines `x,y,z,nx,ny,nz`, listed in `modelnet40_{train,test}.txt`."""

    expected = "modelnet40_shape_names.txt and <class>/*.txt (modelnet40_normal_resampled/)"

    @classmethod
    def is_home(cls, folder: Path, num_classes: int) -> bool:
        """Whether the folder has the list of class names."""
        return (folder / f"modelnet{num_classes}_shape_names.txt").is_file()

    def class_names(self) -> list[str]:
        """The names in `modelnet40_shape_names.txt`."""
        return self.read_names(self.folder / f"modelnet{self.num_classes}_shape_names.txt")

    def sources(self, split: str) -> list[Source]:
        """The files listed for the split. Their names begin with the class."""
        path = self.folder / f"modelnet{self.num_classes}_{split}.txt"
        if not path.is_file():
            raise self.missing(split, path.name)
        labels = {name: label for label, name in enumerate(self.class_names())}
        sources = []
        for line in read_lines(path).split():
            name = line.rpartition("_")[0]
            if name not in labels:
                raise DatasetBrokenError(path, f"expected names such as {next(iter(labels))}_0001, but got {line!r}")
            sources.append(Source(self.folder / name / f"{line}.txt", labels[name]))
        return sources

    def parse(self, source: Source) -> NDArray[np.float32]:
        """A table of three or six columns."""
        from pcattn.io.text import read_table

        table = read_table(source.path, 3)
        if table.shape[1] not in (3, 6):
            reason = f"expected lines `x,y,z` or `x,y,z,nx,ny,nz`, but got {table.shape[1]} numbers"
            raise DatasetBrokenError(source.path, reason)
        if len(table) < 2:
            raise DatasetBrokenError(source.path, "expected at least two points, but got 1")
        return table


class MeshLayout(FileLayout):
    """`<class>/{train,test}/*.off`: points are drawn from the faces uniformly by area, once, with a fixed seed."""

    expected = "<class>/train/*.off and <class>/test/*.off (ModelNet40/ or ModelNet10/)"
    #: Points drawn from each mesh, and the seed.
    num_points: int = 2048
    seed: int = 0

    @classmethod
    def is_home(cls, folder: Path, num_classes: int) -> bool:
        """Whether there is one folder with meshes for each class."""
        return len(_mesh_classes(folder)) == num_classes

    def class_names(self) -> list[str]:
        """The names of the folders, sorted."""
        return _mesh_classes(self.folder)

    def sources(self, split: str) -> list[Source]:
        """All meshes of the split, by class."""
        classes = enumerate(self.class_names())
        return [
            Source(path, label)
            for label, name in classes
            for path in sorted((self.folder / name / split).glob("*.off"))
        ]

    def parse(self, source: Source) -> NDArray[np.float32]:
        """Points in the unit sphere and the normals of their faces."""
        from pcattn.io.cloud import read_cloud

        cloud = read_cloud(
            source.path,
            num_points=self.num_points,
            seed=crc32(source.path.name.encode(errors="surrogateescape")) + self.seed,
        )
        if "normals" not in cloud.attributes:
            raise DatasetBrokenError(source.path, "expected a mesh with faces, but it has none")
        pos = cloud.pos - cloud.pos.mean(axis=0)
        pos /= max(np.linalg.norm(pos, axis=1).max(), 1e-12)
        return np.hstack((pos, cloud.attributes["normals"])).astype(np.float32)

    def options(self) -> list[Any]:
        """The number of points and the seed."""
        return [self.num_points, self.seed]


LAYOUTS: Sequence[type[Layout]] = (HDF5Layout, TextLayout, MeshLayout)


def find_layout(root: Path, num_classes: int) -> Layout:
    """The layout in `root`, or in a folder below it that is named like one of the archives."""
    for folders in ([root], [root / name for name in FOLDERS]):
        found = [
            layout(folder, num_classes)
            for folder in folders
            for layout in LAYOUTS
            if folder.is_dir() and layout.is_home(folder, num_classes)
        ]
        if len(found) > 1:
            names = " and ".join(f"{type(layout).__name__[:-6]} in {layout.folder.name}" for layout in found)
            raise DatasetError(f"expected one ModelNet{num_classes} under {root}, but got {names}: name one as root")
        if found:
            return found[0]
    expected = "; or ".join(layout.expected for layout in LAYOUTS if num_classes == 40 or layout is not HDF5Layout)
    raise DatasetNotFoundError(
        f"ModelNet{num_classes}", root, expected.replace("modelnet40_", f"modelnet{num_classes}_"), HINTS[num_classes]
    )


def _mesh_classes(folder: Path) -> list[str]:
    """Folders with meshes in `train` or `test`."""
    return sorted(
        path.name
        for path in folder.iterdir()
        if path.is_dir() and any(next((path / split).glob("*.off"), None) for split in ("train", "test"))
    )
