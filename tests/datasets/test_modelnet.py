"""ModelNet's layouts: what is read, and what is said of files that cannot be."""

import os
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from torch_geometric.data import InMemoryDataset

from pcattn.datasets import ModelNet10, ModelNet40
from pcattn.utils.errors import DatasetBrokenError, DatasetError, DatasetNotFoundError
from tests.datasets.modelnet_files import NAMES, write_meshes, write_modelnet40, write_resampled


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
        dataset = ModelNet40(folder, split="test")
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
        with pytest.raises(DatasetNotFoundError, match=r"nowhere, which does not exist\. Unpack ModelNet10\.zip"):
            ModelNet10(tmp_path / "nowhere")

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
        with pytest.raises(DatasetBrokenError, match="40 class names, but got 1; the data set `folder` reads"):
            ModelNet40(folder)
        assert not ModelNet40.recognizes(str(folder))  # classes of your own in the same layout


class TestResampled:
    def test_items(self, tmp_path: Path) -> None:
        root = write_resampled(tmp_path / "modelnet40_normal_resampled")
        train, test = ModelNet40(tmp_path), ModelNet40(root, split="test")
        assert (len(train), len(test), train.num_classes) == (80, 40, 40)
        table = np.loadtxt(root / "class_07" / "class_07_0002.txt", delimiter=",", dtype=np.float32)
        np.testing.assert_array_equal(train[15].pos, table[:, :3])
        np.testing.assert_array_equal(train[15].x, table[:, 3:])
        assert train[15].y.tolist() == [7]
        again = ModelNet40(root)
        assert torch.equal(again._data.pos, train._data.pos)
        assert len(list((root / "processed").iterdir())) == 2  # a cache for each split

    def test_modelnet10_beside_it(self, tmp_path: Path) -> None:
        root = write_resampled(tmp_path / "modelnet40_normal_resampled")
        (root / "modelnet10_shape_names.txt").write_text("\n".join(f"class_{number:02d}" for number in range(4, 14)))
        (root / "modelnet10_train.txt").write_text("class_05_0001\nclass_13_0002\n")
        assert ModelNet10(tmp_path)._data.y.tolist() == [1, 9]

    def test_errors(self, tmp_path: Path) -> None:
        root = write_resampled(tmp_path / "x")
        (root / "class_01" / "class_01_0001.txt").write_text("1,2,3,4,5,6\n1,2,3,4,5\n")
        with pytest.raises(DatasetBrokenError, match=r"class_01_0001\.txt: expected 6 numbers .* got 5 on line 2"):
            ModelNet40(root)
        (root / "class_02" / "class_02_0001.txt").unlink()
        with pytest.raises(DatasetNotFoundError, match=r"expected class_02/class_02_0001\.txt in"):
            ModelNet40(root)
        with pytest.warns(UserWarning, match="ModelNet40: skipped 2 files"):
            assert len(ModelNet40(root, on_error="skip")) == 78
        (root / "modelnet40_train.txt").write_text("table_0001\n")
        with pytest.raises(DatasetBrokenError, match="names such as class_00_0001, but got 'table_0001'"):
            ModelNet40(root)


class TestMeshes:
    def test_points_lie_on_the_faces(self, tmp_path: Path) -> None:
        pytest.importorskip("trimesh")
        write_meshes(tmp_path / "ModelNet10")
        train, test = ModelNet10(tmp_path), ModelNet10(tmp_path, split="test")
        assert (len(train), len(test), train._data.y.tolist()) == (20, 10, [label for label in range(10) for _ in "ab"])
        item = train[3]
        assert item.pos.shape == (2048, 3)
        assert (item.pos[:, 2].abs() < 1e-6).all()  # a plane, whose centroid was moved to the origin
        assert (item.x == torch.tensor([0.0, 0, 1])).all()
        torch.testing.assert_close(item.pos.norm(dim=1).max(), torch.tensor(1.0))
        # Uniform by area: as many on both sides of the middle, and the square's corners at distance 1.
        assert abs(int((item.pos[:, 0] > 0).sum()) - 1024) < 120
        assert not torch.equal(train[2].pos, train[3].pos)

    def test_are_drawn_once(self, tmp_path: Path) -> None:
        pytest.importorskip("trimesh")
        first = ModelNet10(write_meshes(tmp_path / "a"))._data.pos
        assert torch.equal(first, ModelNet10(tmp_path / "a")._data.pos)
        assert torch.equal(first, ModelNet10(write_meshes(tmp_path / "b"))._data.pos)

    def test_a_broken_mesh(self, tmp_path: Path) -> None:
        pytest.importorskip("trimesh")
        path = write_meshes(tmp_path / "a") / "class_03" / "train" / "class_03_0001.off"
        path.write_text("OFF\n4 2 0\n0 0 3\n")
        with pytest.raises(DatasetBrokenError, match=r"class_03_0001\.off"):
            ModelNet10(tmp_path / "a")


def test_several_layouts_in_one_place(folder: Path) -> None:
    write_resampled(folder.parent / "modelnet40_normal_resampled")
    with pytest.raises(DatasetError, match=r"expected one ModelNet40 under .* HDF5 in .* and Text in .*: name one"):
        ModelNet40(folder.parent)


def test_skipping_hdf5_files(folder: Path) -> None:
    (folder / "ply_data_train1.h5").write_bytes(b"")
    with pytest.warns(UserWarning, match=r"skipped 1 files: .*ply_data_train1\.h5"):
        assert len(ModelNet40(folder, on_error="skip")) == 80


REAL = os.environ.get("PCATTN_MODELNET40", "data/modelnet40_ply_hdf5_2048")


@pytest.mark.skipif(not Path(REAL, "shape_names.txt").is_file(), reason="no ModelNet40: set PCATTN_MODELNET40")
def test_the_real_training_split() -> None:
    dataset = ModelNet40(REAL)
    assert len(dataset) == 9840
    assert dataset.class_names[0] == "airplane"
    assert set(dataset._data.y.tolist()) == set(range(40))
    assert dataset._data.pos.view(9840, -1, 3).norm(dim=2).max() <= 1.01
