"""ScanObjectNN from its HDF5 files, in all variants."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from pcattn.data.dataset import FileDataset
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


class ScanObjectNN(FileDataset):
    """ScanObjectNN: 2,902 scanned indoor objects of 15 classes, cluttered and incomplete.

    Reads `{training,test}_objectdataset*.h5` (`data` (n, P, 3), `label` (n,), `mask` (n, P)) in the folder of a fold
    (`main_split`, `main_split_nobg`, `split1`, ...). Nothing is cached.

    Args:
        root: the folder `h5_files`, its parent folder, or the folder of a fold.
        split: `"train"` or `"test"`.
        variant: `"objects"` (OBJ_BG, and OBJ_ONLY without background); or perturbed boxes: `"pb_t25"` moved by up to a
            quarter of their size, `"pb_t25_r"` also rotated, `"pb_t50_r"`, and `"pb_t50_rs"` also scaled, the hardest
            and most reported.
        background: keep the background points in the box; without them, the clouds of `<fold>_nobg` are read.
        fold: `"main_split"`, or `"split1"` to `"split4"`.
        transform: see `FileDataset`.
        pre_transform: see `FileDataset`.
        pre_filter: see `FileDataset`.
        on_error: `"raise"`, or `"skip"` to leave out clouds with coordinates that are not finite or a label out of
            range, with a warning. A file that cannot be read at all is always an error, because it is the whole split.

    Each item is a `Data` with `pos` (P, 3), `y` (1,) and, where the files have it, `foreground` (P,), whether each
    point belongs to the object rather than the background.

    Raises:
        DatasetNotFoundError: the file is not under `root`.
        DatasetBrokenError: it is truncated or holds something else.

    Source: Uy et al. 2019, Revisiting point cloud classification, https://hkust-vgl.github.io/scanobjectnn.
    """

    splits = ("train", "test")
    up_axis = "y"
    shuffled = True
    class_names = (
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
    )

    def __init__(
        self,
        root: str,
        split: str = "train",
        variant: str = "pb_t50_rs",
        background: bool = True,
        fold: str = "main_split",
        transform: Callable[..., Any] | None = None,
        pre_transform: Callable[..., Any] | None = None,
        pre_filter: Callable[..., Any] | None = None,
        on_error: str = "raise",
    ) -> None:
        if variant not in VARIANTS:
            raise InputError(f"expected variant to be one of {', '.join(VARIANTS)}, but got {variant!r}")
        super().__init__(root, split, transform, pre_transform, pre_filter, on_error)
        folder = fold if background else f"{fold}_nobg"
        path = _find(
            Path(root), folder, f"{'training' if split == 'train' else 'test'}_objectdataset{VARIANTS[variant]}.h5"
        )
        self.raw_files = [path]
        arrays = read_arrays(path, {"data": np.float32, "label": np.int64}, {"mask": np.int64}, finite=not self.skips)
        pos, label, mask = arrays["data"], arrays["label"].reshape(-1), arrays.get("mask")
        if pos.ndim != 3 or pos.shape[2] != 3 or not pos.shape[1] or len(label) != len(pos):
            reason = f"expected data (n, P, 3) and label (n,), but got {pos.shape} and {label.shape}"
            raise DatasetBrokenError(path, reason)
        if mask is not None and mask.shape != pos.shape[:2]:
            raise DatasetBrokenError(path, f"expected mask {pos.shape[:2]}, but got {mask.shape}")
        if self.skips:
            usable = np.isfinite(pos).all(axis=(1, 2)) & (label >= 0) & (label < len(self.class_names))
            wrong = np.flatnonzero(~usable)
            reason = "expected finite coordinates and a label in range"
            self.report_skipped([f"{path}: {reason}, but not so cloud {cloud}" for cloud in wrong], "clouds")
            pos, label, mask = pos[usable], label[usable], None if mask is None else mask[usable]
        if not len(label):
            raise DatasetBrokenError(
                path, f"expected clouds, but it has none{' that can be used' if self.skips else ''}"
            )
        if not 0 <= label.min() <= label.max() < len(self.class_names):
            reason = f"expected labels in [0, {len(self.class_names)}), but got [{label.min()}, {label.max()}]"
            raise DatasetBrokenError(path, reason)
        points = {
            "pos": pos.reshape(-1, 3),
            "foreground": None if mask is None else mask.reshape(-1) != -1,  # elsewhere the object's own number
        }
        self.store(np.full(len(pos), pos.shape[1]), points, {"y": label})
        self.preprocess()

    @classmethod
    def recognizes(cls, root: str) -> bool:
        """Whether files of any variant lie under `root`."""
        pattern = "*_objectdataset*.h5"
        return any(next(Path(root).glob(f"{above}{pattern}"), None) for above in ("", "*/", "h5_files/*/"))


def _find(root: Path, folder: str, name: str) -> Path:
    """The file in `root`, in the folder of a fold, or in `h5_files`."""
    if root.name == folder and (root / name).is_file():
        return root / name
    for home in (root, root / "h5_files"):
        if (home / folder / name).is_file():
            return home / folder / name
    others = sorted(path.name for path in (root / folder).glob("*.h5"))
    if others:
        raise DatasetError(f"expected {name} in {root / folder}, but got {', '.join(others)}")
    raise DatasetNotFoundError("ScanObjectNN", root, f"{folder}/{name} (or h5_files/{folder}/{name})", _HINT)
