"""ScanObjectNN from its HDF5 files, in all variants."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

import numpy as np
from torch_geometric.data import InMemoryDataset

from pcattn.data.storage import install, report_skipped
from pcattn.io.hdf5 import read_arrays
from pcattn.utils.errors import DatasetBrokenError, DatasetError, DatasetNotFoundError, InputError

#: What follows `training_objectdataset` and `test_objectdataset` in the name of a file.
VARIANTS = {
    "objects": "",  # OBJ_ONLY and OBJ_BG
    "pb_t25": "_augmented25_norot",
    "pb_t25_r": "_augmented25rot",
    "pb_t50_r": "_augmentedrot",
    "pb_t50_rs": "_augmentedrot_scale75",  # the hardest, which most papers report
}

_HINT = (
    "`pcattn download scanobjectnn --root data` fetches it (13 GB, root is then `data`; pb_t50_rs alone is "
    "scanobjectnn_hardest) once its terms are accepted. By hand, h5_files.zip comes from "
    "https://hkust-vgl.github.io/scanobjectnn: unpack it, and name the folder h5_files as root."
)


class ScanObjectNN(InMemoryDataset):
    """ScanObjectNN: 2,902 scanned indoor objects of 15 classes, cluttered and incomplete.

    Reads `{training,test}_objectdataset*.h5` (`data` (n, P, 3), `label` (n,), `mask` (n, P)) of a split's folder
    (`main_split`, `main_split_nobg`, `split1`, ...). Nothing is cached.

    Args:
        root: the folder `h5_files`, the folder above it, or that of a split.
        train: the training split, else the test split.
        variant: `"objects"` (OBJ_BG, and OBJ_ONLY without background); or perturbed boxes: `"pb_t25"` moved by up to a
            quarter of their size, `"pb_t25_r"` also rotated, `"pb_t50_r"`, and `"pb_t50_rs"` also scaled, the hardest
            and most reported.
        background: clouds with the background points in the box; without them those of `<fold>_nobg`.
        fold: `"main_split"`, or `"split1"` to `"split4"`.
        transform: see torch-geometric.
        pre_transform: likewise.
        pre_filter: likewise.
        on_error: `"raise"`, or `"skip"` to leave out clouds with coordinates that are not finite or a label out of
            range, with a warning. A file that cannot be read at all is an error in any case: it is the whole split.

    Each item is a `Data` with `pos` (P, 3), `y` (1,) and, where the files have it, `foreground` (P,), which points are
    of the object and not of the background.

    Raises:
        DatasetNotFoundError: the file is not under `root`.
        DatasetBrokenError: it is truncated or holds something else.

    Source: Uy et al. 2019, Revisiting point cloud classification, https://hkust-vgl.github.io/scanobjectnn.
    """

    up_axis: ClassVar[str] = "y"
    shuffled: ClassVar[bool] = True
    class_names: ClassVar[list[str]] = [
        "bag",
        "bin",
        "box",
        "cabinet",
        "chair",
        "desk",
        "display",
        "door",
        "shelf",
        "table",
        "bed",
        "pillow",
        "sink",
        "sofa",
        "toilet",
    ]

    def __init__(
        self,
        root: str,
        train: bool = True,
        variant: str = "pb_t50_rs",
        background: bool = True,
        fold: str = "main_split",
        transform: Callable | None = None,
        pre_transform: Callable | None = None,
        pre_filter: Callable | None = None,
        on_error: str = "raise",
    ) -> None:
        if on_error not in ("raise", "skip"):
            raise InputError(f"expected on_error to be raise or skip, but got {on_error!r}")
        if variant not in VARIANTS:
            raise InputError(f"expected variant to be one of {', '.join(VARIANTS)}, but got {variant!r}")
        super().__init__(None, transform, pre_transform, pre_filter)
        folder = fold if background else f"{fold}_nobg"
        path = _find(Path(root), folder, f"{'training' if train else 'test'}_objectdataset{VARIANTS[variant]}.h5")
        skip = on_error == "skip"
        arrays = read_arrays(path, {"data": np.float32, "label": np.int64}, {"mask": np.int64}, finite=not skip)
        pos, label, mask = arrays["data"], arrays["label"].reshape(-1), arrays.get("mask")
        if pos.ndim != 3 or pos.shape[2] != 3 or not pos.shape[1] or len(label) != len(pos):
            reason = f"expected data (n, P, 3) and label (n,), but got {pos.shape} and {label.shape}"
            raise DatasetBrokenError(path, reason)
        if mask is not None and mask.shape != pos.shape[:2]:
            raise DatasetBrokenError(path, f"expected mask {pos.shape[:2]}, but got {mask.shape}")
        if skip:
            usable = np.isfinite(pos).all(axis=(1, 2)) & (label >= 0) & (label < len(self.class_names))
            wrong = np.flatnonzero(~usable)
            reason = "expected finite coordinates and a label in range"
            report_skipped("ScanObjectNN", [f"{path}: {reason}, but not so cloud {cloud}" for cloud in wrong], "clouds")
            pos, label, mask = pos[usable], label[usable], None if mask is None else mask[usable]
        if not len(label):
            raise DatasetBrokenError(path, f"expected clouds, but it has none{' that can be used' if skip else ''}")
        if not 0 <= label.min() <= label.max() < len(self.class_names):
            reason = f"expected labels in [0, {len(self.class_names)}), but got [{label.min()}, {label.max()}]"
            raise DatasetBrokenError(path, reason)
        points = {
            "pos": pos.reshape(-1, 3),
            "foreground": None if mask is None else mask.reshape(-1) != -1,  # elsewhere the object's own number
        }
        install(self, np.full(len(pos), pos.shape[1]), points, {"y": label}, pre_filter, pre_transform)

    @property
    def num_classes(self) -> int:
        """15, also where a split lacks a class."""
        return len(self.class_names)


def _find(root: Path, folder: str, name: str) -> Path:
    """The file in `root`, in the folder of a split there, or in that of `h5_files`."""
    if root.name == folder and (root / name).is_file():
        return root / name
    for home in (root, root / "h5_files"):
        if (home / folder / name).is_file():
            return home / folder / name
    others = sorted(path.name for path in (root / folder).glob("*.h5"))
    if others:
        raise DatasetError(f"expected {name} in {root / folder}, but got {', '.join(others)}")
    raise DatasetNotFoundError("ScanObjectNN", root, f"{folder}/{name} (or h5_files/{folder}/{name})", _HINT)
