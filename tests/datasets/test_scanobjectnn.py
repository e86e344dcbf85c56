"""ScanObjectNN's HDF5 files in all variants."""

from pathlib import Path

import h5py
import numpy as np
import pytest

from pcattn.datasets import ScanObjectNN
from pcattn.datasets.scanobjectnn import VARIANTS
from pcattn.training import PointCloudDataModule
from pcattn.utils.errors import DatasetBrokenError, DatasetError, DatasetNotFoundError


def write(root: Path, folder: str, name: str, size: int = 30) -> Path:
    """A file of clouds, whose first coordinate is their size, with the background in the first half of the points."""
    path = root / folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    pos = np.random.default_rng(0).normal(size=(size, 16, 3)).astype(np.float32)
    pos[:, 0] = size
    mask = np.where(np.arange(16) < 8, -1, 7)
    with h5py.File(path, "w") as file:
        file["data"], file["label"] = pos, np.arange(size) % 15
        if "nobg" not in folder:
            file["mask"] = np.tile(mask, (size, 1))
    return path


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "h5_files"
    for number, suffix in enumerate(VARIANTS.values()):
        write(folder, "main_split", f"training_objectdataset{suffix}.h5", 30 + number)
        write(folder, "main_split", f"test_objectdataset{suffix}.h5", 15 + number)
    write(folder, "main_split_nobg", "training_objectdataset.h5", 50)
    write(folder, "split2", "training_objectdataset.h5", 60)
    return folder


def test_variants(root: Path) -> None:
    for number, variant in enumerate(VARIANTS):
        train, test = ScanObjectNN(root, variant=variant), ScanObjectNN(root, split="test", variant=variant)
        assert (len(train), len(test), train.num_classes) == (30 + number, 15 + number, 15)
    assert len(ScanObjectNN(root)) == 34  # the hardest is the default
    assert len(ScanObjectNN(root, variant="objects", background=False)) == 50
    assert len(ScanObjectNN(root, variant="objects", fold="split2")) == 60


def test_items(root: Path) -> None:
    item = ScanObjectNN(root.parent)[17]
    assert item.foreground.tolist() == [False] * 8 + [True] * 8
    assert (item.y.tolist(), item.pos[0].tolist()) == ([2], [34, 34, 34])
    assert "foreground" not in ScanObjectNN(root / "main_split_nobg", variant="objects", background=False)[0]


def test_batches(root: Path) -> None:
    data = PointCloudDataModule(str(root), "scanobjectnn", num_points=8, batch_size=4, features=["height"])
    data.setup("fit")
    assert (data.num_classes, data.class_names[8], data.up_axis) == (15, "shelf", "y")
    assert data.example().channels.shape == (2, 8, 1)


def test_errors(root: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected variant to be one of objects, pb_t25"):
        ScanObjectNN(root, variant="hard")
    with pytest.raises(DatasetError, match=r"expected training_objectdataset_augmentedrot_scale75\.h5 in .* but got"):
        ScanObjectNN(root, background=False)
    with pytest.raises(DatasetNotFoundError, match="ScanObjectNN not found: expected main_split/training"):
        ScanObjectNN(tmp_path / "nowhere")
    path = root / "main_split" / "training_objectdataset.h5"
    with h5py.File(path, "a") as file:
        file["label"][3] = 15
    with pytest.raises(DatasetBrokenError, match=r"training_objectdataset\.h5: expected labels in \[0, 15\)"):
        ScanObjectNN(root, variant="objects")
    with h5py.File(path, "a") as file:
        file["data"][3, 2] = np.nan
    with pytest.raises(DatasetBrokenError, match="finite numbers in data, but cloud 3"):
        ScanObjectNN(root, variant="objects")
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(DatasetBrokenError, match="expected an HDF5 file with `data` and `label`"):
        ScanObjectNN(root, variant="objects")


def test_clouds_that_cannot_be_used_are_left_out(root: Path) -> None:
    path = root / "main_split" / "training_objectdataset.h5"
    with h5py.File(path, "a") as file:
        file["label"][3] = 15
        file["data"][5, 2] = np.nan
    with pytest.warns(
        UserWarning, match=r"skipped 2 clouds: .*training_objectdataset\.h5: expected finite .* cloud 3;"
    ):
        dataset = ScanObjectNN(root, variant="objects", on_error="skip")
    assert dataset._data.y.tolist() == [n % 15 for n in range(30) if n not in (3, 5)]
    assert dataset._data.foreground.shape == (28 * 16,)
    with h5py.File(path, "a") as file:
        file["label"][:] = -1
    message = "expected clouds, but it has none that can be used"
    with pytest.warns(UserWarning, match="skipped 30 clouds"), pytest.raises(DatasetBrokenError, match=message):
        ScanObjectNN(root, variant="objects", on_error="skip")
    with pytest.raises(ValueError, match="expected on_error to be raise or skip, but got 'ignore'"):
        ScanObjectNN(root, on_error="ignore")
