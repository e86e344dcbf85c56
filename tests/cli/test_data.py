"""`pcattn data`: what it recognizes, counts, suspects and draws."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from torch_geometric.data import Data, InMemoryDataset

from pcattn.cli.data import describe, main
from pcattn.cli.main import main as command_line
from pcattn.data.inspect import to_text
from pcattn.datasets import recognize
from pcattn.datasets.folder import PointCloudFolder
from pcattn.io.cloud import Cloud, write_ply
from pcattn.utils.errors import DatasetError, SkippedWarning
from tests.datasets.modelnet_files import write_modelnet40
from tests.datasets.user_files import ball, write_clouds


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for split, count in (("train", 4), ("test", 2)):
        write_clouds(tmp_path / "clouds" / split, {"ball": count, "needle": count}, seed=count, labels=True)
    return tmp_path / "clouds"


def test_counts_and_ranges(root: Path, capsys: pytest.CaptureFixture) -> None:
    assert main([str(root), "--option", "label=part"]) == 0
    out = capsys.readouterr().out
    lines = [line.split() for line in out.splitlines()]
    assert out.startswith(f"{root}: PointCloudFolder, --data.dataset folder\n")
    sizes = describe(str(root)).splits["train"].slices["pos"].diff()
    assert ["train", "8", str(int(sizes.min())), str(int(np.median(sizes))), str(int(sizes.max()))] in lines
    assert ["ball", "4", "2"] in lines
    assert ["red", "0"] in [line[:2] for line in lines]
    points = sum(int((data.y == 0).sum()) for data in describe(str(root), options={"label": "part"}).splits["train"])
    assert ["ball/1", str(points)] in [line[:2] for line in lines]
    assert "nothing suspicious" in out
    assert Path("clouds_samples.png").read_bytes().startswith(b"\x89PNG")
    main([str(root)])  # a picture that is there is not overwritten
    assert {path.name for path in Path().glob("*.png")} == {"clouds_samples.png", "clouds_samples.2.png"}


def test_labels_of_points_are_suggested(root: Path) -> None:
    report = describe(str(root))
    assert "if part labels the points: --option label=part counts them here, and --data.dataset_kwargs '{l" in to_text(
        report
    )
    assert "if part labels" not in to_text(describe(str(root), options={"label": "part"}))
    assert "if part labels" not in to_text(report._replace(channels={"x": (0, 0, 0)}))


def test_what_is_suspicious(root: Path) -> None:
    train, test = root / "train", root / "test"
    cloud = np.float32(ball(np.random.default_rng(0), 50))
    write_ply(train / "ball" / "leak.ply", Cloud(cloud, {}))
    write_ply(test / "ball" / "leak.ply", Cloud(cloud[::-1], {}))  # in another order
    write_ply(train / "ball" / "twice.ply", Cloud(5 * cloud, {}))
    write_ply(train / "needle" / "twice.ply", Cloud(5 * cloud, {}))
    write_ply(train / "ball" / "flat.ply", Cloud(cloud * np.float32([1, 1, 0]), {}))
    write_ply(train / "ball" / "inches.ply", Cloud(1000 * cloud, {}))
    write_ply(train / "ball" / "few.ply", Cloud(cloud[:3], {}))
    write_ply(train / "ball" / "repeated.ply", Cloud(cloud[np.arange(200) % 40], {}))
    (train / "ball" / "damaged.ply").write_bytes(b"ply\n")
    shutil.rmtree(test / "needle")
    report = describe(str(root))
    text = to_text(report)
    for expected in (
        "1 identical clouds in several splits (leakage), such as train train/ball/leak.ply = test test/ball/leak.ply",
        "1 identical clouds with different classes, such as train train/ball/twice.ply = train train/needle/twice.ply",
        "1 identical clouds more than once in a split",
        "no clouds of needle in test",
        "1 clouds with no extent along an axis, such as train train/ball/flat.ply",
        "(another unit?), such as train train/ball/inches.ply",
        "1 clouds with fewer than 16 different points, such as train train/ball/few.ply",
        "1 clouds with more than half of the points repeated, such as train train/ball/repeated.ply",
        "damaged.ply: expected a PLY header",
    ):
        assert expected in text
    assert len(report.problems) == 9
    assert "and 7 more" in to_text(report, limit=2)


@pytest.mark.parametrize(("classes", "suspicious"), [("a", True), ("ab", False)])
def test_a_single_part(tmp_path: Path, classes: str, suspicious: bool) -> None:
    for name in classes:  # the same label is another part in another class
        (tmp_path / name).mkdir()
        for index in range(3):
            cloud = ball(np.random.default_rng(index), 30)
            write_ply(tmp_path / name / f"{index}.ply", Cloud(cloud, {"part": np.full(30, 7, np.uint8)}))
    text = to_text(describe(str(tmp_path), options={"label": "part"}))
    assert ("with a single part, the IoU is 1 by definition" in text) == suspicious


@pytest.mark.parametrize(
    ("names", "found"),
    [
        (("Area_1", "Area_2"), "class Area_1, Area_2 is named like an area of S3DIS"),
        (("Test", "test_data", "bolt"), "class Test, test_data is named like a split"),
        (("bolt", "points"), "class points is named like a part of another layout"),
        (("bolt", "testament"), "nothing suspicious"),
    ],
)
def test_folders_that_are_no_classes(tmp_path: Path, names: tuple[str, ...], found: str) -> None:
    write_clouds(tmp_path, dict.fromkeys(names, 3))
    assert found in to_text(describe(str(tmp_path)))


def test_labels_that_are_not_read(tmp_path: Path) -> None:
    write_clouds(tmp_path, {"bolt": 3})
    (tmp_path / "bolt" / "cloud_00.seg").write_text("1\n")
    assert "labels in .seg files, such as" in to_text(describe(str(tmp_path)))


def test_every_broken_file_is_named(root: Path) -> None:
    """Others name five."""
    for path in root.glob("*/ball/*.ply"):
        path.write_bytes(b"")
    for index in (0, 1):
        (root / "train" / "needle" / f"cloud_0{index}.ply").write_bytes(b"")
    with pytest.raises(DatasetError, match=r"8 of 12 files .*; and 3 more: `pcattn data` names them all"):
        PointCloudFolder(str(root))
    with pytest.warns(SkippedWarning, match=r"skipped 8 .*; and 3 more: `pcattn data`") as caught:
        PointCloudFolder(str(root), on_error="skip")
    (warning,) = caught
    lines = to_text(describe(str(root))).splitlines()
    start = lines.index("- PointCloudFolder: skipped 8 files and folders:")
    assert lines[start + 1 : start + 9] == [f"  {reason}" for reason in warning.message.reasons]


def test_a_cache_elsewhere_is_no_finding(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(root.parent / "home"))
    (root / "processed").write_text("in the way")  # as a read-only folder, also for the superuser
    assert describe(str(root)).problems == []
    assert list((root.parent / "home" / "pcattn").iterdir())


class Odd(InMemoryDataset):
    """Clouds with NaN, and normals that are none."""

    def __init__(self, root: str, train: bool = True) -> None:
        super().__init__(None)
        pos = torch.randn(20, 3, generator=torch.Generator().manual_seed(int(train)))
        broken = pos.clone()
        broken[3] = torch.nan
        items = [Data(pos=pos, y=torch.tensor([0]), x=2 * pos), Data(pos=broken, y=torch.tensor([1]), x=0 * pos)]
        self._data, self.slices = self.collate(items)


def test_any_data_set_by_import_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = to_text(describe("nowhere", f"{__name__}.Odd"))
    assert "train 1: 1 of 20 points have NaN" in text
    assert "normals of 4 of 4 clouds are not of unit length" in text
    assert "channel x has NaN" in text
    assert main(["nowhere", "--dataset", f"{__name__}.Odd"]) == 0


def test_recognition(tmp_path: Path) -> None:
    write_modelnet40(tmp_path / "modelnet40")
    assert recognize(str(tmp_path / "modelnet40")) == ["modelnet40"]
    report = describe(str(tmp_path / "modelnet40"))
    assert [len(split) for split in report.splits.values()] == [160, 40]
    write_clouds(tmp_path / "mine", {"a": 2})
    assert recognize(str(tmp_path / "mine")) == ["folder"]


def test_messages(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(DatasetError, match=r"expected point clouds in the folder .*, but it is empty"):
        describe(str(tmp_path))
    (tmp_path / "notes.md").write_text("hello")
    with pytest.raises(DatasetError, match=r"holds no point clouds.*modelnet40,.*shapes, folder"):
        describe(str(tmp_path))
    with pytest.raises(DatasetError, match=r"expected a folder .* in a CSV file, but .*notes\.md is a file$"):
        describe(str(tmp_path / "notes.md"))
    np.save(tmp_path / "scan.npy", np.eye(3))
    with pytest.raises(SystemExit, match="2"):
        command_line(["data", str(tmp_path / "scan.npy")])
    assert "scan.npy is a file: `pcattn show` draws a single cloud" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        command_line(["data", str(tmp_path / "scan.npy"), "--dataset", "folder"])
    assert "scan.npy, which is a file" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        command_line(["data", str(tmp_path / "nowhere")])
    assert "nowhere does not exist" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        command_line(["data", str(tmp_path), "--option", "label"])
    assert "expected --option NAME=VALUE, but got label" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        command_line(["data", str(tmp_path), "--dataset", "folders"])
    assert "did you mean 'folder'?" in capsys.readouterr().err
