"""ModelNet40's HDF5 files: what is read, and what is said of files that cannot be."""

import os
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from torch_geometric.data import InMemoryDataset

from pcattn.datasets import DatasetBrokenError, DatasetNotFoundError, ModelNet40

from .modelnet_files import NAMES, write_modelnet40


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_modelnet40(tmp_path / "modelnet40_ply_hdf5_2048")


class TestReading:
    def test_items(self, folder: Path) -> None:
        dataset = ModelNet40(folder)
        assert isinstance(dataset, InMemoryDataset)
        assert (len(dataset), dataset.num_classes, dataset.class_names) == (160, 40, NAMES)
        with h5py.File(folder / "ply_data_train1.h5") as file:
            expected, label = file["data"][5], file["label"][5]
        item = dataset[85]
        np.testing.assert_array_equal(item.pos.numpy(), expected)
        np.testing.assert_array_equal(item.y.numpy(), label)
        assert "x" not in item

    def test_one_tensor(self, folder: Path) -> None:
        dataset = ModelNet40(folder, train=False)
        assert dataset._data.pos.view(40, 64, 3)[7].data_ptr() == dataset[7].pos.data_ptr()

    def test_the_folder_above_is_found_too(self, folder: Path) -> None:
        assert len(ModelNet40(folder.parent)) == 160

    def test_train_does_not_need_test(self, folder: Path) -> None:
        (folder / "ply_data_test0.h5").unlink()
        assert len(ModelNet40(folder)) == 160

    def test_without_a_file_list_files_are_sorted(self, folder: Path) -> None:
        expected = ModelNet40(folder)._data.pos
        (folder / "train_files.txt").unlink()
        assert torch.equal(ModelNet40(folder)._data.pos, expected)

    def test_normals(self, folder: Path) -> None:
        for path in folder.glob("ply_data_train*.h5"):
            with h5py.File(path, "a") as file:
                file["normal"] = -file["data"][:]
        item = ModelNet40(folder)[3]
        assert torch.equal(item.x, -item.pos)

    def test_hooks_of_torch_geometric(self, folder: Path) -> None:
        def double(data):
            data.pos = 2 * data.pos
            return data

        plain = ModelNet40(folder)
        dataset = ModelNet40(folder, pre_filter=lambda data: int(data.y) < 10, pre_transform=double)
        assert len(dataset) == 40
        torch.testing.assert_close(dataset[1].pos, 2 * plain[1].pos)
        torch.testing.assert_close(ModelNet40(folder, transform=double)[1].pos, 2 * plain[1].pos)

    def test_nothing_is_written_beside_the_files(self, folder: Path) -> None:
        before = sorted(folder.rglob("*"))
        ModelNet40(folder)
        assert sorted(folder.rglob("*")) == before


class TestErrors:
    def test_no_folder(self, tmp_path: Path) -> None:
        with pytest.raises(DatasetNotFoundError, match=r"shape_names\.txt.*nowhere, which does not exist.*mirrored at"):
            ModelNet40(tmp_path / "nowhere")

    def test_missing_file_is_named(self, folder: Path) -> None:
        (folder / "ply_data_train1.h5").unlink()
        with pytest.raises(DatasetNotFoundError, match=r"ply_data_train1\.h5"):
            ModelNet40(folder)

    def test_truncated(self, folder: Path) -> None:
        path = folder / "ply_data_train0.h5"
        path.write_bytes(path.read_bytes()[:-4000])
        with pytest.raises(DatasetBrokenError, match=r"ply_data_train0\.h5"):
            ModelNet40(folder)

    @pytest.mark.parametrize(
        ("name", "value", "message"),
        [
            ("data", np.full((80, 64, 3), np.nan, np.float32), "finite"),
            ("data", np.zeros((80, 64, 2), np.float32), r"data \(n, P, 3\)"),
            ("data", np.zeros((79, 64, 3), np.float32), r"label \(n,\)"),
            ("data", np.zeros((80, 32, 3), np.float32), r"clouds of \(64, 3\)"),
            ("label", np.full((80, 1), 40, np.uint8), r"labels in \[0, 40\)"),
            ("label", None, "label"),
        ],
    )
    def test_wrong_content(self, folder: Path, name: str, value: np.ndarray | None, message: str) -> None:
        with h5py.File(folder / "ply_data_train1.h5", "a") as file:
            del file[name]
            if value is not None:
                file[name] = value
        with pytest.raises(DatasetBrokenError, match=rf"ply_data_train1\.h5.*{message}"):
            ModelNet40(folder)

    def test_wrong_names(self, folder: Path) -> None:
        (folder / "shape_names.txt").write_text("airplane\n")
        with pytest.raises(DatasetBrokenError, match="40 class names, but got 1"):
            ModelNet40(folder)


REAL = os.environ.get("PCATTN_MODELNET40", "data/modelnet40_ply_hdf5_2048")


@pytest.mark.skipif(not Path(REAL, "shape_names.txt").is_file(), reason="no ModelNet40: set PCATTN_MODELNET40")
def test_the_real_training_split() -> None:
    dataset = ModelNet40(REAL)
    assert len(dataset) == 9840
    assert dataset.class_names[0] == "airplane"
    assert set(dataset._data.y.tolist()) == set(range(40))
    assert dataset._data.pos.view(9840, -1, 3).norm(dim=2).max() <= 1.01
