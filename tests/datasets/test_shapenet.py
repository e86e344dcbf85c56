"""ShapeNetPart's layouts: what is read, how it is split, and what is said of files that cannot be used."""

from collections.abc import Callable, Sequence
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from pcattn.datasets import ShapeNetPart
from pcattn.datasets.shapenet_layouts import OFFICIAL, OFFICIAL_PARTS
from pcattn.training import PointCloudDataModule
from pcattn.utils.errors import DatasetBrokenError, DatasetError, DatasetNotFoundError
from tests.datasets.shapenet_files import write_categories, write_hdf5, write_lists, write_own, write_points, write_text


@pytest.fixture
def text(tmp_path: Path) -> Path:
    return write_text(tmp_path / "text")


def test_official_parts() -> None:
    """The table of design/pct.md: Airplane 0-3, ..., Earphone 16-18, ..., Motorbike 30-35, ..., Table 47-49."""
    parts = {name: OFFICIAL_PARTS[folder] for folder, name, _ in OFFICIAL}
    assert len(parts) == 16
    assert [part for ids in parts.values() for part in ids] == list(range(50))
    ends = {"Airplane": (0, 3), "Cap": (6, 7), "Earphone": (16, 18), "Lamp": (24, 27), "Motorbike": (30, 35)}
    ends |= {"Mug": (36, 37), "Skateboard": (44, 46), "Table": (47, 49)}
    assert all((parts[name][0], parts[name][-1]) == end for name, end in ends.items())


class TestText:
    def test_items(self, text: Path) -> None:
        train, val, test = (ShapeNetPart(text, split) for split in ("train", "val", "test"))
        assert (len(train), len(val), len(test)) == (8, 4, 4)
        assert train.class_names == ["Cap", "Mug"]
        assert train.parts == [[6, 7], [36, 37]]
        assert train.splits == ("train", "val", "test")
        assert (train.part_names[7], train.part_names[36], train.part_names[8]) == ("Cap/2", "Mug/1", "unused")
        table = np.loadtxt(text / "03797390" / "id1.txt", dtype=np.float32)
        item = val[2]
        np.testing.assert_array_equal(item.pos, table[:, :3])
        np.testing.assert_array_equal(item.x, table[:, 3:6])
        np.testing.assert_array_equal(item.y, table[:, 6])
        assert item.category.tolist() == [1]

    def test_the_folder_above_is_found(self, text: Path) -> None:
        assert len(ShapeNetPart(text.parent)) == 8
        write_text(text.parent / "again")
        with pytest.raises(DatasetError, match=r"expected one ShapeNetPart under .*, but got again, text"):
            ShapeNetPart(text.parent)

    def test_categories_keep_their_labels(self, text: Path) -> None:
        mugs = ShapeNetPart(text, categories=["Mug"])
        assert (len(mugs), mugs.num_classes, mugs.parts) == (4, 2, [[6, 7], [36, 37]])
        assert {int(item.category) for item in mugs} == {1}
        assert torch.equal(mugs[0].pos, ShapeNetPart(text)[4].pos)
        with pytest.raises(DatasetError, match="expected categories among Cap, Mug, but got Cup"):
            ShapeNetPart(text, categories=["Cup"])

    def test_is_parsed_once_and_mapped(self, text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        first = ShapeNetPart(text, "val")
        from pcattn.io import text as reader

        monkeypatch.setattr(reader, "read_table", None)  # nothing is parsed any more
        again = ShapeNetPart(text, "val")
        assert torch.equal(first._data.pos, again._data.pos)
        assert len(ShapeNetPart(text, "test")) == 4

    def test_hooks_of_torch_geometric(self, text: Path) -> None:
        dataset = ShapeNetPart(text, pre_filter=lambda data: int(data.category) == 1)
        assert len(dataset) == 4

    def test_dense_batches(self, text: Path) -> None:
        data = PointCloudDataModule(
            str(text),
            "shapenetpart",
            per_point=True,
            features=["normals"],
            num_points=16,
            batch_size=4,
            normalize="none",
        )
        data.setup("fit")
        data.setup("test")
        assert (data.class_names, data.parts, data.num_features) == (["Cap", "Mug"], [[6, 7], [36, 37]], 3)
        assert [len(data.train_indices), len(data.val_indices)] == [8, 4]
        for batch in (*data.train_dataloader(), *data.val_dataloader(), *data.test_dataloader()):
            torch.testing.assert_close(batch.pos, batch.normals)  # as the files are written
            allowed = torch.tensor(data.parts)[batch.category]
            assert (batch.label[..., None] == allowed[:, None]).any(dim=2).all()


class TestPoints:
    def test_local_labels_become_global(self, tmp_path: Path) -> None:
        root = write_points(tmp_path / "x", {"Mug": ("03797390", 2), "Car": ("02958343", 4)})
        train, test = ShapeNetPart(root), ShapeNetPart(root, "test")
        assert train.parts == [[36, 37], [8, 9, 10, 11]]
        assert (len(train), len(test), train.splits) == (4, 2, ("train", "test"))
        assert "x" not in train[0]
        for item in (*train, *test):
            assert item.y.unique().tolist() == train.parts[int(item.category)]

    def test_categories_of_ones_own_follow_the_official_ones(self, tmp_path: Path) -> None:
        categories = {"Pipe": ("pipes", 3), "Mug": ("03797390", 2), "Nut": ("nuts", 2)}
        assert ShapeNetPart(write_points(tmp_path / "x", categories)).parts == [[50, 51, 52], [36, 37], [53, 54]]

    def test_categories_of_ones_own_alone_begin_at_zero(self, tmp_path: Path) -> None:
        root = write_points(tmp_path / "x", {"Pipe": ("pipes", 3), "Nut": ("nuts", 2)})
        assert ShapeNetPart(root).parts == [[0, 1, 2], [3, 4]]


class TestHDF5:
    def test_items(self, tmp_path: Path) -> None:
        root = write_hdf5(tmp_path / "hdf5_data")
        train = ShapeNetPart(root.parent)
        assert (len(train), len(ShapeNetPart(root, "val")), len(ShapeNetPart(root, "test"))) == (10, 3, 2)
        assert (len(train.class_names), train.parts[15]) == (16, [47, 48, 49])
        with h5py.File(root / "ply_data_train1.h5") as file:
            np.testing.assert_array_equal(train[7].pos, file["data"][1])
            np.testing.assert_array_equal(train[7].y, file["pid"][1])
            assert int(train[7].category) == file["label"][1, 0]

    def test_a_truncated_file(self, tmp_path: Path) -> None:
        root = write_hdf5(tmp_path / "hdf5_data")
        path = root / "ply_data_train1.h5"
        path.write_bytes(path.read_bytes()[:-1000])
        with pytest.raises(DatasetBrokenError, match=r"ply_data_train1\.h5: expected an HDF5 file with `data`"):
            ShapeNetPart(root)
        with pytest.warns(UserWarning, match=r"skipped 1 files: .*ply_data_train1\.h5"):
            assert len(ShapeNetPart(root, on_error="skip")) == 6

    def test_a_part_of_another_category(self, tmp_path: Path) -> None:
        root = write_hdf5(tmp_path / "hdf5_data")
        with h5py.File(root / "ply_data_val0.h5", "a") as file:
            file["pid"][2, 5] = 20
        with pytest.raises(DatasetBrokenError, match=r"ply_data_val0\.h5: expected the parts of .* in pid of cloud 2"):
            ShapeNetPart(root)


class TestOnesOwn:
    def test_parts_are_inferred_and_splits_carved(self, tmp_path: Path) -> None:
        root = write_own(tmp_path / "own")
        train, test = ShapeNetPart(root), ShapeNetPart(root, "test")
        assert (train.class_names, train.parts) == (["gadget"], [[50, 51, 52, 53]])
        assert (len(train), len(test)) == (80, 20)
        files = [np.loadtxt(path, dtype=np.float32) for path in sorted((root / "09990001").iterdir())]
        read = [item.pos.numpy() for item in (*train, *test)]
        matches = [next(i for i, file in enumerate(files) if np.array_equal(file[:, :3], pos)) for pos in read]
        assert sorted(matches) == list(range(100))
        assert matches[80:] == sorted(matches[80:])

    def test_the_split_depends_on_names_and_seed_alone(self, tmp_path: Path) -> None:
        first, second = write_own(tmp_path / "a", 20), write_own(tmp_path / "b", 20)
        sizes = [len(item.y) for item in ShapeNetPart(first, "test")]
        assert sizes == [len(item.y) for item in ShapeNetPart(second, "test")]
        assert sizes != [len(item.y) for item in ShapeNetPart(first, "test", split_seed=1)]

    def test_the_data_module_puts_them_into_the_unit_sphere(self, tmp_path: Path) -> None:
        data = PointCloudDataModule(str(write_own(tmp_path / "own", 20)), "shapenetpart", per_point=True, num_points=24)
        data.setup("fit")
        assert data.example().pos.norm(dim=2).max() <= 1.001
        assert data.part_names[50:] == ["gadget/50", "gadget/51", "gadget/52", "gadget/53"]
        assert (len(data.train_indices), len(data.val_indices)) == (14, 2)

    def test_parts_are_called_as_the_files_label_them(self, tmp_path: Path) -> None:
        root = write_labels(tmp_path, {"cube": [0, 1, 3], "cyl": [4, 7]})
        unused = ["unused"] * 2
        assert ShapeNetPart(root).part_names == ["cube/0", "cube/1", unused[0], "cube/3", "cyl/4", *unused, "cyl/7"]
        root = write_points(tmp_path / "x", {"Pipe": ("pipes", 3), "Nut": ("nuts", 2)})
        assert ShapeNetPart(root).part_names == ["Pipe/1", "Pipe/2", "Pipe/3", "Nut/1", "Nut/2"]

    def test_labels_that_two_categories_use(self, tmp_path: Path) -> None:
        root = write_labels(tmp_path, {"cube": range(12), "ring": [20, 21], "cyl": [6, 7]})
        for on_error in ("raise", "skip"):
            with pytest.raises(DatasetError, match="labels of its own for each category, but 6, 7 occur in cube and"):
                ShapeNetPart(root, on_error=on_error)
        assert not list((root / "processed").iterdir())


def write_labels(root: Path, labels: dict[str, Sequence[int]]) -> Path:
    """Text files of categories with these labels of points."""
    write_categories(root, {name: f"{name}s" for name in labels})
    rng = np.random.default_rng(0)
    for name, values in labels.items():
        (root / f"{name}s").mkdir()
        for number in range(3):
            table = np.hstack([rng.normal(size=(len(values), 3)), np.array(values)[:, None]])
            np.savetxt(root / f"{name}s" / f"{number}.txt", table)
    return root


def break_file(lines: Callable[[list[str]], list[str]]) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        path.write_text("\n".join(lines(path.read_text().splitlines())))

    return change


class TestErrors:
    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (break_file(lambda lines: []), "expected lines of numbers, but got none"),
            (break_file(lambda lines: lines[:1]), "expected at least two points, but got 1"),
            (break_file(lambda lines: [*lines[:9], lines[9][:20]]), "expected 7 numbers on every line .* on line 10"),
            (break_file(lambda lines: [line[: line.rindex(" ")] for line in lines]), "`x y z label` or .* but got 6"),
            (
                break_file(lambda lines: [line.replace("6.0", "5.0") for line in lines]),
                r"labels in \[6, 7\], the parts",
            ),
            (break_file(lambda lines: [f"{line[:-7]}.5" for line in lines]), r"integers of at least 0, but got \d\.5"),
            (
                break_file(lambda lines: ["nan" + line[line.index(" ") :] for line in lines]),
                "finite numbers, but got 'nan",
            ),
            (
                break_file(lambda lines: [line.split(" ", 3)[3] for line in lines]),
                "expected 6 coordinates a line .* got 3",
            ),
        ],
    )
    def test_a_broken_file_is_named_or_skipped(self, text: Path, change: Callable, message: str) -> None:
        change(text / "02954340" / "id2.txt")
        with pytest.raises(DatasetBrokenError, match=rf"02954340/id2\.txt: .*{message}"):
            ShapeNetPart(text)
        with pytest.warns(UserWarning, match=rf"ShapeNetPart: skipped 1 files: .*id2\.txt: .*{message}"):
            assert len(ShapeNetPart(text, on_error="skip")) == 7
        with pytest.warns(UserWarning, match="skipped 1 files"):  # also when the cache is read
            ShapeNetPart(text, on_error="skip")

    def test_labels_that_do_not_fit(self, tmp_path: Path) -> None:
        root = write_points(tmp_path / "x", {"Mug": ("03797390", 2)})
        path = root / "03797390" / "points_label" / "id1.seg"
        lines = path.read_text().splitlines()
        for text, message in [
            ("\n".join(lines[1:]), f"a label for each of the {len(lines)} points, but got {len(lines) - 1}"),
            ("\n".join(["3", *lines[1:]]), r"expected labels in \[1, 2\], the parts of Mug .* but got \[1, 3\]"),
            ("\n".join(["0", *lines[1:]]), r"integers of at least 1, but got 0\.0 for point 0"),
        ]:
            path.write_text(text)
            with pytest.raises(DatasetBrokenError, match=rf"id1\.seg: .*{message}"):
                ShapeNetPart(root)
        path.unlink()
        with pytest.raises(DatasetBrokenError, match=r"id1\.seg: expected the labels of the points"):
            ShapeNetPart(root)

    def test_lists(self, text: Path) -> None:
        write_lists(text, {"val": ["02954340/id1", "03797390/lost"]})
        with pytest.raises(DatasetBrokenError, match=r"val_file_list\.json: .* 1 are missing, such as 03797390/lost"):
            ShapeNetPart(text)
        with pytest.warns(UserWarning, match=r"skipped 1 files: .*val_file_list\.json: .* 1 are missing, such as 0"):
            ShapeNetPart(text, on_error="skip")
        path = text / "train_test_split" / "shuffled_val_file_list.json"
        path.write_text('{"a"')
        with pytest.raises(DatasetBrokenError, match=r"val_file_list\.json: expected a list"):
            ShapeNetPart(text)
        path.unlink()
        assert ShapeNetPart(text).splits == ("train", "test")
        with pytest.raises(DatasetNotFoundError, match=r"the val split of ShapeNetPart not found.*It has train, test"):
            ShapeNetPart(text, "val")

    def test_categories(self, text: Path) -> None:
        write_categories(text, {"Cap": "02954340", "gadget": "1234"})
        with pytest.raises(DatasetError, match="category gadget not found"):
            ShapeNetPart(text)
        (text / "synsetoffset2category.txt").write_text("Cap\n")
        with pytest.raises(DatasetBrokenError, match="lines of a name and a folder, but got 'Cap'"):
            ShapeNetPart(text)
        write_categories(text, {"gadget": "1234"})
        with pytest.raises(DatasetNotFoundError, match=r"points/\*\.pts for the folders .* lists \(1234, "):
            ShapeNetPart(text)

    def test_arguments(self, text: Path, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="expected split"):
            ShapeNetPart(text, "all")
        with pytest.raises(ValueError, match="expected on_error"):
            ShapeNetPart(text, on_error="ignore")
        with pytest.raises(DatasetNotFoundError, match="nowhere, which does not exist"):
            ShapeNetPart(tmp_path / "nowhere")


REAL = Path("data")


@pytest.mark.skipif(
    not (REAL / "shapenetcore_partanno_segmentation_benchmark_v0").is_dir(), reason="no sample of ShapeNetPart in data/"
)
def test_the_real_samples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    shapes = ShapeNetPart(REAL / "shapenetcore_partanno_segmentation_benchmark_v0")
    assert [int(item.category) for item in shapes] == list(range(16))
    assert shapes.class_names == [name for _, name, _ in OFFICIAL]
    for item in shapes:
        seen = item.y.unique().tolist()
        assert set(seen) <= set(shapes.parts[int(item.category)])
        assert len(seen) >= 2
    assert sum(len(item.y.unique()) for item in shapes) == 48  # this chair has no arms, this lamp three parts of four
    folder = REAL / "shapenetcore_partanno_segmentation_benchmark_v0_normal"
    val, test = ShapeNetPart(folder, "val"), ShapeNetPart(folder, "test")
    assert (len(val), len(test), val.splits) == (5, 11, ("val", "test"))
    for item in (*val, *test):
        assert item.y.unique().tolist() == [6, 7]
        assert (item.x.norm(dim=1) - 1).abs().median() < 2e-3  # a few are shorter in the files
