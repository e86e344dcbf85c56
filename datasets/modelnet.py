"""ModelNet10 and ModelNet40 in each of the layouts in which they lie on users' disks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

from torch_geometric.data import InMemoryDataset

from pcattn.data.storage import install, report_skipped
from pcattn.datasets.modelnet_layouts import find_layout
from pcattn.utils.errors import DatasetNotFoundError, InputError


class ModelNet40(InMemoryDataset):
    """ModelNet40: 12,311 CAD models of 40 classes as point clouds (9,843 for training, 2,468 for test).

    The layout is recognized:

    - HDF5, `modelnet40_ply_hdf5_2048`: `ply_data_train*.h5` and `ply_data_test*.h5` (`data` (n, P, 3), `label` (n, 1),
      optionally `normal` (n, P, 3)) and `shape_names.txt`; three training models are missing in it. A file list
      `train_files.txt` is followed by file name alone, because the folders in it are those of another machine. Read in
      about a second, so nothing is cached.
    - Text, `modelnet40_normal_resampled`: `<class>/<class>_0001.txt`, 10,000 lines `x,y,z,nx,ny,nz`, listed in
      `modelnet40_train.txt` and `modelnet40_test.txt`. Read once, in parallel, and cached (`pcattn.io.cache`).
    - Meshes, `ModelNet40`: `<class>/{train,test}/*.off`. 2,048 points are drawn from each by area, with the normals of
      the faces, moved into the unit sphere and cached; the seed is that of the file's name.

    Args:
        root: the folder with these files, or the folder above it.
        train: the training split, else the test split.
        transform: see torch-geometric.
        pre_transform: likewise.
        pre_filter: likewise.
        on_error: `"raise"`, or `"skip"` to leave out files that cannot be used, with a warning.

    Each item is a `Data` with `pos` (P, 3), `y` (1,) and, where the files hold them, normals `x` (P, 3).

    Raises:
        DatasetNotFoundError: the split's files are not under `root`.
        DatasetBrokenError: a file is truncated or holds something else.

    Source: 3D ShapeNets, Wu et al. 2015, https://modelnet.cs.princeton.edu; the samplings are PointNet's and
    PointNet++'s.
    """

    normalized: ClassVar[str] = "sphere"
    shuffled: ClassVar[bool] = True
    feature_names: ClassVar[tuple[str, ...]] = ("nx", "ny", "nz")
    _count: ClassVar[int] = 40

    def __init__(
        self,
        root: str,
        train: bool = True,
        transform: Callable | None = None,
        pre_transform: Callable | None = None,
        pre_filter: Callable | None = None,
        on_error: str = "raise",
    ) -> None:
        if on_error not in ("raise", "skip"):
            raise InputError(f"expected on_error to be raise or skip, but got {on_error!r}")
        # root None: there is no download and no processed/ folder for the base class to look after.
        super().__init__(None, transform, pre_transform, pre_filter)
        layout = find_layout(Path(root), self._count)
        self.class_names = layout.class_names()
        clouds = layout.read("train" if train else "test", on_error == "skip")
        report_skipped(type(self).__name__, clouds.skipped)
        points = {"pos": clouds.pos, "x": clouds.normals}
        install(self, clouds.sizes, points, {"y": clouds.labels}, pre_filter, pre_transform)

    @property
    def num_classes(self) -> int:
        """All, also where a split lacks a class."""
        return len(self.class_names)

    @classmethod
    def recognizes(cls, root: str) -> bool:
        """Whether these files lie under `root`."""
        try:
            find_layout(Path(root), cls._count)
        except DatasetNotFoundError:
            return False
        return True

    @classmethod
    def read_class_names(cls, root: str) -> list[str]:
        """The names of the classes, in the order of the labels."""
        return find_layout(Path(root), cls._count).class_names()


class ModelNet10(ModelNet40):
    """ModelNet10: 4,899 CAD models of 10 classes (3,991 for training, 908 for test), as text or as meshes.

    Arguments, items and layouts as `ModelNet40`; text is listed in the `modelnet10_*.txt` of
    `modelnet40_normal_resampled`.
    """

    _count: ClassVar[int] = 10
