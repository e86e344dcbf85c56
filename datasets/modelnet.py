"""ModelNet40 as it lies on users' disks: the HDF5 files of `modelnet40_ply_hdf5_2048`."""

from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor
from torch_geometric.data import Data, InMemoryDataset

from .errors import DatasetBrokenError, DatasetNotFoundError

_FOLDER = "modelnet40_ply_hdf5_2048"
_HINT = (
    "The archive modelnet40_ply_hdf5_2048.zip is mirrored at "
    "https://github.com/ma-xu/pointMLP-pytorch/releases/tag/Modenet40_dataset (its first home, "
    "shapenet.cs.stanford.edu, no longer answers): unpack it there, or name its folder as root."
)


class ModelNet40(InMemoryDataset):
    """ModelNet40: 12,308 CAD models of 40 classes as point clouds (9,840 for training, 2,468 for test).

    Reads `ply_data_train*.h5` or `ply_data_test*.h5` (`data` (n, P, 3), `label` (n, 1), optionally `normal`
    (n, P, 3)) and `shape_names.txt`. A file list `train_files.txt` is followed by file name alone, because the folders
    in it are those of another machine. The files are opened read-only and take about a second to read, so nothing is
    cached beside them. All clouds lie behind one (M * P, 3) tensor.

    Args:
        root: the folder with these files, or the folder above it.
        train: the training split, else the test split.
        transform: see torch-geometric.
        pre_transform: likewise.
        pre_filter: likewise.

    Each item is a `Data` with `pos` (P, 3), `y` (1,) and, where the files hold them, normals `x` (P, 3).

    Raises:
        DatasetNotFoundError: the split's files are not under `root`.
        DatasetBrokenError: a file is truncated or holds something else.

    Source: 3D ShapeNets, Wu et al. 2015, https://modelnet.cs.princeton.edu; the sampling is PointNet's.
    """

    normalized: ClassVar[str] = "sphere"

    def __init__(
        self,
        root: str,
        train: bool = True,
        transform: Callable | None = None,
        pre_transform: Callable | None = None,
        pre_filter: Callable | None = None,
    ) -> None:
        # root None: there is no download and no processed/ folder for the base class to look after.
        super().__init__(None, transform, pre_transform, pre_filter)
        folder = find_folder(root)
        self.class_names = self.read_class_names(root)
        pos, normals, labels = _read_split(folder, "train" if train else "test", len(self.class_names))
        num_clouds, num_points = pos.shape[:2]
        per_point = torch.arange(num_clouds + 1) * num_points
        self._data = Data(pos=pos.flatten(0, 1), y=labels)
        self.slices = {"pos": per_point, "y": torch.arange(num_clouds + 1)}
        if normals is not None:
            self._data.x = normals.flatten(0, 1)
            self.slices["x"] = per_point
        if pre_filter is not None or pre_transform is not None:
            clouds = [data for data in self if pre_filter is None or pre_filter(data)]
            self._data, self.slices = self.collate([pre_transform(data) if pre_transform else data for data in clouds])
            self._data_list = None

    @property
    def num_classes(self) -> int:
        """40, also where a split lacks a class."""
        return len(self.class_names)

    @staticmethod
    def read_class_names(root: str) -> list[str]:
        """The names in `shape_names.txt`, in the order of the labels."""
        path = find_folder(root) / "shape_names.txt"
        names = path.read_text().split()
        if len(names) != 40:
            raise DatasetBrokenError(path, f"expected 40 class names, but got {len(names)}")
        return names


def find_folder(root: str) -> Path:
    """The folder with `shape_names.txt`: `root` itself or its `modelnet40_ply_hdf5_2048`."""
    for folder in (Path(root), Path(root) / _FOLDER):
        if (folder / "shape_names.txt").is_file():
            return folder
    raise DatasetNotFoundError("ModelNet40", Path(root), f"shape_names.txt and ply_data_*.h5 (or {_FOLDER}/)", _HINT)


def _read_split(folder: Path, split: str, num_classes: int) -> tuple[Tensor, Tensor | None, Tensor]:
    """Positions (M, P, 3), normals (M, P, 3) if every file has them, labels (M,) of one split."""
    names = folder / f"{split}_files.txt"
    if names.is_file():
        files = [folder / Path(line.strip()).name for line in names.read_text().splitlines() if line.strip()]
    else:
        files = sorted(folder.glob(f"ply_data_{split}*.h5"))
    missing = [file.name for file in files if not file.is_file()]
    if missing or not files:
        expected = ", ".join(missing) or f"ply_data_{split}*.h5"
        raise DatasetNotFoundError(f"the {split} split of ModelNet40", folder, expected, _HINT)
    parts = [_read_file(file, num_classes) for file in files]
    for file, part in zip(files, parts, strict=True):
        if part[0].shape[1:] != parts[0][0].shape[1:]:
            expected_shape, got = parts[0][0].shape[1:], part[0].shape[1:]
            raise DatasetBrokenError(file, f"expected clouds of {expected_shape} as in {files[0].name}, but got {got}")
    pos, normals, labels = zip(*parts, strict=True)
    with_normals = all(array is not None for array in normals)
    return (
        torch.from_numpy(np.concatenate(pos)),
        torch.from_numpy(np.concatenate(normals)) if with_normals else None,
        torch.from_numpy(np.concatenate(labels)),
    )


def _read_file(path: Path, num_classes: int) -> tuple[np.ndarray, np.ndarray | None, np.ndarray]:
    import h5py  # imported here: only this format needs it

    try:
        with h5py.File(path, "r") as file:
            pos = file["data"][:].astype(np.float32, copy=False)
            labels = file["label"][:].astype(np.int64).reshape(-1)
            normals = file["normal"][:].astype(np.float32, copy=False) if "normal" in file else None
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise DatasetBrokenError(path, f"expected an HDF5 file with `data` and `label`, but got: {error}") from error
    if pos.ndim != 3 or pos.shape[2] != 3 or len(labels) != len(pos):
        reason = f"expected data (n, P, 3) and label (n,), but got {pos.shape} and {labels.shape}"
        raise DatasetBrokenError(path, reason)
    if normals is not None and normals.shape != pos.shape:
        raise DatasetBrokenError(path, f"expected normal {pos.shape}, but got {normals.shape}")
    for name, array in (("coordinates", pos), ("normals", normals)):
        if array is not None and not np.isfinite(array).all():
            cloud = int(np.argmin(np.isfinite(array).all(axis=(1, 2))))
            raise DatasetBrokenError(path, f"expected finite {name}, but cloud {cloud} has NaN or infinity")
    if len(labels) and not 0 <= labels.min() <= labels.max() < num_classes:
        reason = f"expected labels in [0, {num_classes}), but got [{labels.min()}, {labels.max()}]"
        raise DatasetBrokenError(path, reason)
    return pos, normals, labels
