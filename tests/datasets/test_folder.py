"""A user's own files as a data set: layouts, splits, features, labels, and files that cannot be used."""

import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from torch_geometric.transforms import NormalizeScale

from pcattn.data import preprocess
from pcattn.datasets.folder import PointCloudFolder
from pcattn.datasets.folder_layout import Entry
from pcattn.inference.clouds import as_points
from pcattn.io.cloud import Cloud, CloudFile, read_cloud, write_ply
from pcattn.utils.errors import DatasetBrokenError, DatasetError, DatasetNotFoundError
from tests.datasets.user_files import ball, write_clouds

CLASSES = {"ball": 5, "needle": 5}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_clouds(tmp_path / "clouds", CLASSES)


def move(root: Path, splits: dict[str, slice], layout: str) -> None:
    """Move the files of each class into folders of splits, above or below."""
    for folder in sorted(root.iterdir()):
        files = sorted(folder.iterdir())
        for split, part in splits.items():
            target = root / split / folder.name if layout == "above" else folder / split
            target.mkdir(parents=True)
            for file in files[part]:
                file.rename(target / file.name)
    if layout == "above":
        for name in CLASSES:
            (root / name).rmdir()


class TestLayouts:
    def test_classes(self, root: Path) -> None:
        train, test = PointCloudFolder(root), PointCloudFolder(root, "test")
        assert train.class_names == ["ball", "needle"]
        assert train.splits == ["train", "test"]
        assert sorted(train.names + test.names) == [f"{c}/cloud_{i:02d}.ply" for c in CLASSES for i in range(5)]
        assert train._data.y.tolist() == [0] * 4 + [1] * 4
        assert test._data.y.tolist() == [0, 1]
        for index, name in enumerate(train.names):
            cloud = read_cloud(root / name)
            np.testing.assert_array_equal(train[index].pos.numpy(), cloud.pos)
            np.testing.assert_allclose(train[index].x.numpy(), cloud.attributes["colors"] / 255, rtol=1e-6)
        assert train.feature_names == ["red", "green", "blue"]
        assert train.parts is None

    def test_the_split_follows_the_names(self, root: Path, tmp_path: Path) -> None:
        """It moves with the folder, and depends on the seed."""
        test = PointCloudFolder(root, "test", test_fraction=0.4).names
        assert len(test) == 4
        moved = shutil.copytree(root, tmp_path / "elsewhere", ignore=shutil.ignore_patterns("processed"))
        assert PointCloudFolder(moved, "test", test_fraction=0.4).names == test
        others = {tuple(PointCloudFolder(root, "test", test_fraction=0.4, seed=seed).names) for seed in range(1, 4)}
        assert others - {tuple(test)}
        everything = PointCloudFolder(root, test_fraction=0)
        assert (len(everything), everything.splits) == (10, ["train"])
        with pytest.raises(DatasetError, match=r"expected a test split in .*, but got only train"):
            PointCloudFolder(root, "test", test_fraction=0)

    @pytest.mark.parametrize("layout", ["above", "below"])
    def test_folders_of_splits(self, root: Path, layout: str) -> None:
        move(root, {"training": slice(0, 3), "val": slice(3, 4), "test": slice(4, 5)}, layout)
        for split, numbers in (("train", [0, 1, 2]), ("val", [3]), ("test", [4])):
            dataset = PointCloudFolder(root, split)
            assert [Path(name).name for name in dataset.names] == [f"cloud_{i:02d}.ply" for i in numbers] * 2
            assert dataset._data.y.tolist() == [0] * len(numbers) + [1] * len(numbers)
            assert dataset.splits == ["train", "val", "test"]
            assert sum(map(len, (dataset.names,))) == len(dataset)

    def test_a_class_may_be_called_train(self, tmp_path: Path) -> None:
        root = write_clouds(tmp_path, {"bus": 2, "train": 2})
        assert PointCloudFolder(root).class_names == ["bus", "train"]

    def test_remarks_beside_the_classes_are_no_clouds(self, root: Path) -> None:
        (root / "README.txt").write_text("mine")
        (root / ".hidden.ply").write_text("x")
        assert len(PointCloudFolder(root)) == 8
        shutil.copy(root / "ball" / "cloud_00.ply", root / "stray.ply")
        with pytest.raises(DatasetError, match=r"stray\.ply beside"):
            PointCloudFolder(root)

    def test_list(self, root: Path) -> None:
        path = root / "list.csv"
        rows = [
            "path,label,split",
            "ball/cloud_00.ply,10,train",
            "needle/cloud_00.ply,9,train",
            "ball/cloud_01.ply,10,test",
        ]
        path.write_text("\n".join(rows))
        train, test = PointCloudFolder(path), PointCloudFolder(path, "test")
        assert train.class_names == ["9", "10"]
        assert (train.names, train._data.y.tolist()) == (["ball/cloud_00.ply", "needle/cloud_00.ply"], [1, 0])
        assert test._data.y.tolist() == [1]
        for row, message in [
            ("ball/cloud_02.ply", "path,label"),
            ("ball/cloud_02.ply,10,holdout", "train, val or test in line 5, but got 'holdout'"),
            ("ball/cloud_02.ply,10", "a split in every line or in none"),
            ("ball/cloud_01.ply,10,train", "cloud_01.ply 2 times"),
            ("ball/nothing.ply,10,train", "nothing.ply: there is no such file"),
        ]:
            path.write_text("\n".join([*rows, row]))
            with pytest.raises(DatasetBrokenError, match=message):
                PointCloudFolder(path)

    def test_no_clouds(self, tmp_path: Path) -> None:
        with pytest.raises(DatasetNotFoundError, match=r"expected <class>/\*.*nowhere, which does not exist"):
            PointCloudFolder(tmp_path / "nowhere")
        with pytest.raises(DatasetNotFoundError, match="lacks them"):
            PointCloudFolder(tmp_path)


class TestClouds:
    def test_cache(self, root: Path) -> None:
        first = PointCloudFolder(root)
        (cache,) = (root / "processed").iterdir()
        stamp = (cache / "index.json").stat().st_mtime_ns
        assert torch.equal(PointCloudFolder(root)._data.pos, first._data.pos)
        assert (cache / "index.json").stat().st_mtime_ns == stamp
        assert not list(cache.glob("part-*"))
        write_ply(root / "ball" / "cloud_00.ply", Cloud(ball(np.random.default_rng(9), 33), {}), overwrite=True)
        dataset = PointCloudFolder(root, test_fraction=0)
        assert len(dataset[0].pos) == 33
        assert dataset.feature_names == []  # one has no colors: no channel is common to all
        assert "x" not in dataset[0]

    def test_read_in_processes(self, tmp_path: Path) -> None:
        root = write_clouds(tmp_path, {"ball": 20})
        dataset = PointCloudFolder(root, test_fraction=0)
        for index in (0, 19):
            np.testing.assert_array_equal(dataset[index].pos, read_cloud(root / f"ball/cloud_{index:02d}.ply").pos)

    def test_formats_side_by_side(self, tmp_path: Path) -> None:
        """A mesh, which is sampled, and text in coordinates that float32 would blur."""
        (tmp_path / "a").mkdir()
        (tmp_path / "a" / "1.off").write_text("OFF4 2 0\n0 0 0\n1 0 0\n1 1 0\n0 1 0\n3 0 1 2\n3 0 2 3\n")
        pos = ball(np.random.default_rng(0), 9).astype(np.float64)
        normals = ball(np.random.default_rng(1), 9)
        np.savetxt(tmp_path / "a" / "2.xyz", np.hstack([pos + 5e6, normals]), fmt="%.9f")
        dataset = PointCloudFolder(tmp_path, test_fraction=0, mesh_points=50)
        assert dataset.feature_names == ["nx", "ny", "nz"]
        assert dataset[0].pos.shape == (50, 3)
        torch.testing.assert_close(dataset[1].pos, torch.from_numpy(pos - pos.mean(axis=0)).float(), atol=1e-6, rtol=0)

    def test_a_channel_with_nan_is_left_out_with_a_warning(self, tmp_path: Path) -> None:
        (tmp_path / "a").mkdir()
        for index in range(3):
            table = np.random.default_rng(index).normal(size=(9, 5))
            table[4, 3] = np.nan if index else 0
            np.savetxt(tmp_path / "a" / f"{index}.txt", table, header="x y z echo height")
        with pytest.warns(UserWarning, match=r"channel echo is left out: .* in 2 files, such as 1\.txt"):
            assert PointCloudFolder(tmp_path, test_fraction=0).feature_names == ["height"]
        with pytest.warns(UserWarning, match="channel echo"):  # also when the cache is read
            PointCloudFolder(tmp_path, test_fraction=0)

    def test_contract_of_torch_geometric(self, root: Path) -> None:
        plain = PointCloudFolder(root, test_fraction=0)
        assert [Path(path) for path in plain.raw_paths] == [root / name for name in plain.names]
        assert plain.processed_file_names == []
        dataset = PointCloudFolder(
            root, test_fraction=0, pre_filter=lambda data: int(data.y) == 1, pre_transform=NormalizeScale()
        )
        assert dataset.names == [name for name in plain.names if name.startswith("needle")]
        torch.testing.assert_close(dataset[0].pos, NormalizeScale()(plain[plain.names.index(dataset.names[0])]).pos)
        with pytest.raises(ValueError, match="expected pre_filter to keep some of 10 clouds, but got none"):
            PointCloudFolder(root, test_fraction=0, pre_filter=lambda data: False)

    def test_large_clouds_are_reduced(self, root: Path) -> None:
        dataset = PointCloudFolder(root, max_points=50, test_fraction=0)
        sizes = dataset.slices["pos"].diff()
        assert int(sizes.max()) == 50 > int(sizes.min())
        full = PointCloudFolder(root, test_fraction=0)
        for index in range(len(full)):
            rows = {tuple(row) for row in full[index].pos.tolist()}
            assert len(rows & {tuple(row) for row in dataset[index].pos.tolist()}) == sizes[index]

    @pytest.mark.parametrize("kind", ["whole", "fractions", "integers", "float ply"])
    def test_colors_are_the_same_in_training_and_use(self, kind: str, tmp_path: Path) -> None:
        """Also block by block, where a block is dark."""
        rng = np.random.default_rng(0)
        pos, colors = rng.integers(0, 99, size=(40, 3)), rng.integers(0, 256, size=(40, 3))
        colors[0], colors[:7, 0], colors[:8, 1:] = (255, 0, 0), 0, 0
        colors[8] = 254, 255, 253
        path = tmp_path / "clouds" / "a" / {"integers": "a.npy", "float ply": "a.ply"}.get(kind, "a.txt")
        path.parent.mkdir(parents=True)
        if kind == "integers":
            np.save(path, np.hstack([pos, colors]))
        elif kind == "float ply":
            write_ply(path, Cloud(pos.astype(np.float32), {"colors": colors.astype(np.float32)}))
        else:
            colors = colors / 255 * 254.5 if kind == "fractions" else colors
            header = "x y z red green blue"
            np.savetxt(path, np.hstack([pos, colors]), header=header)
        expected = torch.from_numpy(colors / 255).float()
        dataset = PointCloudFolder(tmp_path / "clouds", test_fraction=0)
        names = ["red", "green", "blue"]
        assert dataset.feature_names == names
        torch.testing.assert_close(dataset[0].x, expected)
        channels = [as_points(block, names).channels for block in CloudFile(path, block=8)]
        assert torch.equal(torch.cat(channels), dataset[0].x)

    def test_clouds_far_away_are_placed_as_in_use(self, tmp_path: Path) -> None:
        """Also where they keep their scale, and are reduced."""
        path = tmp_path / "clouds" / "a" / "a.npy"
        path.parent.mkdir(parents=True)
        np.save(path, np.random.default_rng(0).random((40, 3)) * 8 + (5e5, 5e6, 100.0))
        stored = PointCloudFolder(tmp_path / "clouds", test_fraction=0, max_points=30)[0].pos
        used, _ = preprocess(*as_points(read_cloud(path)), normalize="none")
        assert stored.abs().max() < 8
        assert set(map(tuple, stored.tolist())) < set(map(tuple, used.float().tolist()))

    def test_what_is_odd_about_channels_is_said(self, root: Path) -> None:
        cloud = read_cloud(root / "ball" / "cloud_00.ply")
        count = len(cloud.pos)
        for index, bits in enumerate((16, 8)):
            colors = np.full((count, 3), 2**bits - 1, f"u{bits // 8}")
            height = np.full(count, np.nan if index else 0.5, np.float32)
            (root / "ball" / f"cloud_0{index}.ply").unlink()
            write_ply(root / "ball" / f"cloud_0{index}.ply", Cloud(cloud.pos, {"colors": colors, "height": height}))
        with pytest.warns(UserWarning, match="channel|colors") as caught:
            dataset = PointCloudFolder(root)
        messages = "\n".join(str(warning.message) for warning in caught)
        assert "the channel height is left out: it has NaN or infinity in 1 of 10 files, such as" in messages
        assert "cloud_01.ply" in messages
        assert "some files have colors of 8 bits, such as" in messages
        assert dataset.feature_names == ["red", "green", "blue"]

    def test_labels_at_the_vertices_of_meshes(self, tmp_path: Path) -> None:
        head = "ply\nformat ascii 1.0\nelement vertex 4\nproperty float x\nproperty float y\nproperty float z\n"
        head += "property int part\nelement face 1\nproperty list uchar int vertex_indices\nend_header\n"
        for index in range(3):
            path = tmp_path / "cup" / f"{index}.ply"
            path.parent.mkdir(exist_ok=True)
            path.write_text(f"{head}0 0 0 4\n1 0 0 4\n1 1 0 7\n0 1 {index} 7\n4 0 1 2 3\n")
        dataset = PointCloudFolder(tmp_path, label="part", mesh="vertices")
        assert dataset.part_names == ["cup/4", "cup/7"]
        assert dataset[0].y.tolist() == [0, 0, 1, 1]
        with pytest.raises(ValueError, match="expected mesh to be sample or vertices, but got 'corners'"):
            PointCloudFolder(tmp_path, mesh="corners")

    def test_labels_under_another_spelling(self, root: Path) -> None:
        for path in root.rglob("*.ply"):
            cloud = read_cloud(path)
            write_ply(path, Cloud(cloud.pos, {"scalar_Label": np.arange(len(cloud.pos)) % 2}), overwrite=True)
        assert PointCloudFolder(root, label="label").part_names == ["ball/0", "ball/1", "needle/0", "needle/1"]


class TestLabels:
    def test_parts_by_category(self, tmp_path: Path) -> None:
        root = write_clouds(tmp_path, CLASSES, labels=True)
        dataset = PointCloudFolder(root, label="part")
        assert dataset.parts == [[0, 1], [2, 3]]
        assert dataset.part_names == ["ball/1", "ball/3", "needle/1", "needle/3"]
        for item in dataset:
            assert torch.equal(item.y, torch.where(item.pos[:, 2] > 0, 0, 1) + 2 * item.category)
        assert dataset.feature_names == ["red", "green", "blue"]

    def test_one_category_without_folders(self, tmp_path: Path) -> None:
        pos = ball(np.random.default_rng(0), 20)
        for index in range(3):
            np.savetxt(tmp_path / f"{index}.txt", np.hstack([pos, (pos[:, :1] > 0) * 7 + index]), fmt="%.6f")
        dataset = PointCloudFolder(tmp_path, label="column_4", test_fraction=0)
        assert dataset.class_names == ["all"]
        assert dataset.parts == [[0, 1, 2, 3, 4, 5]]
        assert dataset.part_names == [f"all/{value}" for value in (0, 1, 2, 7, 8, 9)]
        assert dataset[1].y.unique().tolist() == [1, 4]

    @pytest.mark.parametrize(
        ("values", "message"), [(np.full(9, -1), "got -1"), (np.full(9, 0.5), r"got 0\.5"), (None, "in 'part'")]
    )
    def test_wrong_labels(self, values: np.ndarray | None, message: str, tmp_path: Path) -> None:
        attributes = {} if values is None else {"part": values}
        (tmp_path / "a").mkdir()
        write_ply(tmp_path / "a" / "b.ply", Cloud(ball(np.random.default_rng(0), 9), attributes))
        with pytest.raises(DatasetBrokenError, match=rf"b\.ply.*{message}"):
            PointCloudFolder(tmp_path, label="part", test_fraction=0)


class TestOnError:
    @pytest.fixture
    def damaged(self, root: Path) -> Path:
        file = root / "ball" / "cloud_00.ply"
        file.write_bytes(file.read_bytes()[:-10])
        (root / "ball" / "cloud_01.ply").write_bytes(b"")
        (root / "cone").mkdir()
        return root

    def test_raise(self, damaged: Path) -> None:
        with pytest.raises(DatasetError, match="cone: expected clouds in the folder of a class"):
            PointCloudFolder(damaged)
        (damaged / "cone").rmdir()
        with pytest.raises(
            DatasetError, match=r"2 of 10 files .*on_error: skip.*cloud_00\.ply: expected \d+ x vertex.*cloud_01\.ply"
        ):
            PointCloudFolder(damaged)
        assert not list((damaged / "processed").iterdir())

    def test_skip(self, damaged: Path) -> None:
        for _ in range(2):  # also when the cache is read
            with pytest.warns(UserWarning, match="skipped") as caught:
                dataset = PointCloudFolder(damaged, test_fraction=0, on_error="skip")
            folders, files = (str(warning.message) for warning in caught)
            assert "skipped 1" in folders
            assert "cone" in folders
            assert "skipped 2" in files
            assert "cloud_00.ply" in files
            assert "cloud_01.ply: it is empty" in files
            assert dataset.class_names == ["ball", "needle"]
            assert len(dataset) == 8

    def test_an_error_in_another_process(self, tmp_path: Path) -> None:
        root = write_clouds(tmp_path, {"ball": 20})
        (root / "ball" / "cloud_07.ply").write_bytes(b"ply\n")
        with pytest.raises(DatasetBrokenError, match=r"cloud_07\.ply: expected a PLY header"):
            PointCloudFolder(root)

    def test_most_of_a_list_is_missing(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Each file is looked for once, and not among all others: of 20,000 that took minutes."""

        def refuse(*args: object) -> bool:
            raise AssertionError("entries are compared with each other")

        monkeypatch.setattr(Entry, "__eq__", refuse)
        for name in ("a", "b"):
            np.save(tmp_path / f"{name}.npy", np.random.default_rng(0).random((9, 3)))
        lines = ["a.npy,a", "b.npy,b", *(f"{index}.npy,a" for index in range(20))]
        (tmp_path / "list.csv").write_text("\n".join(lines))
        with pytest.warns(UserWarning, match="skipped 20"):
            dataset = PointCloudFolder(tmp_path / "list.csv", test_fraction=0, on_error="skip")
        assert dataset.names == ["a.npy", "b.npy"]
        with pytest.raises(DatasetError, match=r"0\.npy: there is no such file \(19 more files"):
            PointCloudFolder(tmp_path / "list.csv")

    def test_nothing_left(self, tmp_path: Path) -> None:
        (tmp_path / "a").mkdir()
        (tmp_path / "a" / "b.ply").write_text("hello")
        with warnings.catch_warnings(), pytest.raises(DatasetError, match=r"none of 1 files can be used.*b\.ply"):
            PointCloudFolder(tmp_path, on_error="skip")

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"split": "holdout"}, "train, val, test, but got 'holdout'"),
            ({"on_error": "ignore"}, "raise or skip"),
            ({"test_fraction": 1}, "test_fraction < 1"),
            ({"mesh_points": 0}, "mesh_points >= 1"),
        ],
    )
    def test_options(self, root: Path, options: dict, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            PointCloudFolder(root, **options)
