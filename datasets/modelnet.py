"""ModelNet10 and ModelNet40, in each of the layouts they are distributed in."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

from pcattn.data.dataset import FileDataset
from pcattn.datasets.modelnet_layouts import ClassCountError, find_layout
from pcattn.utils.errors import DatasetError, DatasetNotFoundError


class ModelNet40(FileDataset):
    """ModelNet40: 12,311 CAD models of 40 classes as point clouds (9,843 for training, 2,468 for test).

    The layout is found automatically:

    - HDF5, `modelnet40_ply_hdf5_2048`: `ply_data_train*.h5` and `ply_data_test*.h5` (`data` (n, P, 3), `label` (n, 1),
      optionally `normal` (n, P, 3)) and `shape_names.txt`; it lacks three training models. Of the paths in
      `train_files.txt` only the file names count, because the folders are those of another machine. Reading takes
      about a second, so nothing is cached.
    - Text, `modelnet40_normal_resampled`: `<class>/<class>_0001.txt`, 10,000 lines `x,y,z,nx,ny,nz`, listed in
      `modelnet40_train.txt` and `modelnet40_test.txt`. Read once, in parallel, and cached (`pcattn.io.cache`).
    - Meshes, `ModelNet40`: `<class>/{train,test}/*.off`. 2,048 points are drawn from each mesh by area, with the
      normals of the faces, moved into the unit sphere and cached. The seed follows from the file name.

    Args:
        root: the folder with these files, or its parent folder.
        split: `"train"` or `"test"`.
        transform: see `FileDataset`.
        pre_transform: see `FileDataset`.
        pre_filter: see `FileDataset`.
        on_error: `"raise"`, or `"skip"` to leave out files that cannot be used, with a warning.

    Each item is a `Data` with `pos` (P, 3), `y` (1,) and, where the files hold them, normals `x` (P, 3).

    Raises:
        DatasetNotFoundError: the split's files are not under `root`.
        DatasetBrokenError: a file is truncated or holds something else.

    Source: 3D ShapeNets, Wu et al. 2015, https://modelnet.cs.princeton.edu; the samplings are PointNet's and
    PointNet++'s.
    """

    splits = ("train", "test")
    normalized = "sphere"
    shuffled = True
    feature_names = ("nx", "ny", "nz")
    _count: ClassVar[int] = 40

    def __init__(
        self,
        root: str,
        split: str = "train",
        transform: Callable[..., Any] | None = None,
        pre_transform: Callable[..., Any] | None = None,
        pre_filter: Callable[..., Any] | None = None,
        on_error: str = "raise",
    ) -> None:
        super().__init__(root, split, transform, pre_transform, pre_filter, on_error)
        layout = find_layout(Path(root), self._count)
        self.class_names = layout.class_names()
        clouds = layout.read(split, self.skips)
        self.raw_files = clouds.files
        self.report_skipped(clouds.skipped)
        self.store(clouds.sizes, {"pos": clouds.pos, "x": clouds.normals}, {"y": clouds.labels})
        self.preprocess()

    @classmethod
    def recognizes(cls, root: str) -> bool:
        """Whether one of the layouts, with the classes of this data set, is found under `root`."""
        try:
            find_layout(Path(root), cls._count).class_names()
        except (DatasetNotFoundError, ClassCountError):  # the latter: classes of your own in the same layout
            return False
        except DatasetError:
            return True
        return True

    @classmethod
    def read_class_names(cls, root: str) -> list[str]:
        """Names of the classes by their labels, from the list that comes with the files."""
        return find_layout(Path(root), cls._count).class_names()


class ModelNet10(ModelNet40):
    """ModelNet10: 4,899 CAD models of 10 classes (3,991 for training, 908 for test), as text or as meshes.

    Arguments, items and layouts as `ModelNet40`; text is listed in the `modelnet10_*.txt` of
    `modelnet40_normal_resampled`.
    """

    _count: ClassVar[int] = 10
