"""Part segmentation from the command line: on a small set of `Shapes`, and on clouds without names or categories."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from torch_geometric.data import Data, InMemoryDataset

import pcattn
from pcattn.cli.main import main
from pcattn.datasets import Shapes
from pcattn.metrics import part_iou
from pcattn.ops import interpolate
from pcattn.tasks import PartSegmentation
from pcattn.training import PointCloudDataModule
from tests.cli.test_lightning import error_of, last_line

METRICS = ("loss", "point_accuracy", "instance_miou", "class_miou")


def write_config(path: Path, **data) -> Path:
    network = {"dim": 16, "depth": 1, "k": 4, "out_dim": 32}
    init_args = {"variant": "pct_sampled", "network_kwargs": network, "optimizer": "adamw", "lr": 0.01}
    settings = {
        "model": {"class_path": "PartSegmentation", "init_args": init_args},
        "data": {"per_point": True, "num_points": 48, "val_fraction": 0.25, "batch_size": 16, **data},
        "trainer": {"max_epochs": 2, "accelerator": "cpu", "enable_progress_bar": False},
        "checkpoint": {"monitor": "val/instance_miou"},
    }
    path.write_text(yaml.safe_dump(settings))
    return path


@pytest.fixture(autouse=True)
def _in_tmp_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("parts")
    kwargs = {"num_train": 88, "num_test": 22, "num_points": 64}
    return write_config(folder / "parts.yaml", dataset="shapes", root=str(folder / "shapes"), dataset_kwargs=kwargs)


@pytest.fixture(scope="module")
def run(config: Path) -> Path:
    """A finished run."""
    folder = config.parent / "run"
    main(["fit", "-c", str(config), "--run", str(folder)])
    return folder


def means(out: str, split: str) -> list[str]:
    """The three figures of a report, as printed."""
    words = last_line(out, f"{split}: instance mIoU").replace(",", "").split()
    return [words[3], words[6], words[9]]


class TestFit:
    def test_logs_and_checkpoint(self, run: Path) -> None:
        with (run / "metrics.csv").open() as file:
            rows = [row for row in csv.DictReader(file) if row["val/instance_miou"]]
        assert len(rows) == 2
        assert all(0 <= float(row[f"val/{name}"]) <= 1 for row in rows for name in METRICS[1:])
        results = json.loads((run / "results.json").read_text())
        best = max(float(row["val/instance_miou"]) for row in rows)
        assert results["best"]["val/instance_miou"] == pytest.approx(best)
        assert set(results["test"]) == {f"test/{name}" for name in METRICS}

    def test_checkpoint_knows_the_names(self, run: Path) -> None:
        model = pcattn.load(run, device="cpu")
        assert (model.class_names, model.part_names) == (list(Shapes.class_names), list(Shapes.part_names))
        result = model.segment(torch.rand(100, 3), "mug")
        assert {result.names[label].partition("/")[0] for label in result.labels} == {"mug"}

    def test_table(self, run: Path) -> None:
        results = json.loads((run / "results.json").read_text())["test"]
        summary = json.loads((run / "test_categories.json").read_text())
        assert [summary[name] for name in METRICS] == pytest.approx([results[f"test/{name}"] for name in METRICS])
        assert (summary["protocol"], summary["points_per_shape"], summary["shapes"]) == ("category", 48, 22)
        with (run / "test_categories.csv").open() as file:
            rows = list(csv.DictReader(file))
        assert [row["category"] for row in rows] == list(Shapes.class_names)
        ious = [float(row["miou"]) for row in rows]
        assert sum(ious) / len(ious) == pytest.approx(results["test/class_miou"])

    def test_loads_in_python(self, run: Path) -> None:
        task = PartSegmentation.load_from_checkpoint(run / "checkpoints" / "best.ckpt", weights_only=True)
        assert task.parts == [list(ids) for ids in Shapes.parts]
        assert task(torch.randn(2, 48, 3), torch.tensor([0, 21])).shape == (2, 48, len(Shapes.part_names))


@pytest.mark.parametrize("batch_size", [1, 16])
def test_validate_and_test_repeat_what_fit_reported(run: Path, batch_size: int, capsys: pytest.CaptureFixture) -> None:
    with (run / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["val/instance_miou"]]
    best = max(rows, key=lambda row: float(row["val/instance_miou"]))
    results = json.loads((run / "results.json").read_text())["test"]
    figures = ("instance_miou", "class_miou", "point_accuracy")
    args = ["-c", str(run / "config.yaml"), f"--data.eval_batch_size={batch_size}"]
    main(["validate", *args])
    assert means(capsys.readouterr().out, "val") == [f"{float(best[f'val/{name}']):.4f}" for name in figures]
    main(["test", *args])
    assert means(capsys.readouterr().out, "test") == [f"{results[f'test/{name}']:.4f}" for name in figures]


def test_votes_and_all_points_have_lines_of_their_own(run: Path, capsys: pytest.CaptureFixture) -> None:
    args = ["-c", str(run / "config.yaml")]
    main(["test", *args])
    plain = last_line(capsys.readouterr().out, "test: ")
    printed = {}
    for batch_size in (1, 16):
        further = ["--model.votes=3", "--model.all_points=true", f"--data.eval_batch_size={batch_size}"]
        main(["test", *args, *further])
        printed[batch_size] = capsys.readouterr().out
        assert last_line(printed[batch_size], "test: ") == plain
    starts = (
        "test, mean of 3 votes, the same 48 points: instance mIoU",
        "test, no voting, all 64 points of each shape, from 48: instance mIoU",
        "test, mean of 3 votes, all 64 points of each shape, from 48: instance mIoU",
    )
    for start in starts:
        assert last_line(printed[1], start) == last_line(printed[16], start)
    summary = json.loads((run / "test_categories.json").read_text())
    assert [(row["votes"], row["points_per_shape"]) for row in summary["further"]] == [
        (3, 48),
        (1, [64, 64]),
        (3, [64, 64]),
    ]
    assert summary["votes"] == 1

    # The line of all points, shape by shape.
    task = PartSegmentation.load_from_checkpoint(run / "checkpoints" / "best.ckpt", weights_only=True).eval()
    ious = []
    for cloud in Shapes(str(run.parent / "shapes"), split="test", num_train=88, num_test=22, num_points=64):
        pos, category = cloud.pos[None], cloud.category.view(1)
        with torch.no_grad():
            ids = task.parts[category]
            seen = torch.zeros(1, 48, len(Shapes.part_names))
            seen[..., ids] = task(pos[:, :48], category)[..., ids].softmax(dim=2)
        everywhere = interpolate(pos, pos[:, :48], seen)
        ious.append(float(part_iou(everywhere, cloud.y[None], category, task.parts).instance))
    assert summary["further"][1]["instance_miou"] == pytest.approx(sum(ious) / len(ious))


@pytest.mark.slow
def test_validation_during_training_does_not_vote(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    args = ["fit", "-c", str(run / "config.yaml"), "--run", str(tmp_path / "voting"), "--trainer.max_epochs=1"]
    main([*args, "--model.votes=2"])
    with (tmp_path / "voting" / "metrics.csv").open() as file:
        assert not [name for name in next(csv.reader(file)) if "votes" in name and name.startswith("val")]
    results = json.loads((tmp_path / "voting" / "results.json").read_text())["test"]
    assert set(results) == {f"test/{name}" for name in METRICS} | {f"test/votes_2/{name}" for name in METRICS[2:]}


def test_predict(run: Path) -> None:
    main(["predict", "-c", str(run / "config.yaml")])
    with np.load(run / "predictions.npz") as arrays:
        assert arrays["parts"].shape == (22, 48)
        for index, parts in zip(arrays["indices"], arrays["parts"], strict=True):
            assert set(parts) <= set(Shapes.parts[index % 22])


def test_classes_of_clouds_are_no_parts(config: Path, capsys: pytest.CaptureFixture) -> None:
    message = error_of(["fit", "-c", str(config), "--data.per_point=false"], capsys)
    assert "expected parts of each category (data with per_point: true), but got None" in message


def test_an_unknown_monitor_is_told_before_training(config: Path, capsys: pytest.CaptureFixture) -> None:
    message = error_of(["fit", "-c", str(config), "--checkpoint.monitor=val/oa"], capsys)
    assert "val/loss, val/point_accuracy, val/instance_miou, val/class_miou, but got val/oa" in message


class Halves(InMemoryDataset):
    """Noise whose points are labeled by the side of a plane they lie on."""

    def __init__(self, root: str, train: bool = True, categories: bool = False, strange: bool = False) -> None:
        super().__init__(None)
        generator = torch.Generator().manual_seed(int(train))
        clouds = []
        for index in range(32):
            pos = torch.randn(48, 3, generator=generator)
            data = Data(pos=pos, y=(pos[:, 2] > 0).long())
            if categories:
                data.category = torch.tensor([index % 2])
                data.y += 2 * (index % 2)
            if strange and not train and index == 3:
                data.y[5] = 0  # a part, but none of this category
            clouds.append(data)
        self._data, self.slices = self.collate(clouds)


@pytest.mark.parametrize(("categories", "parts"), [(False, [[0, 1]]), (True, [[0, 1], [2, 3]])])
def test_any_labeled_clouds(categories: bool, parts: list, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """By import path; parts and categories are those of the training split."""
    path = f"{__name__}.Halves"
    data = PointCloudDataModule(dataset=path, dataset_kwargs={"categories": categories}, per_point=True, num_points=48)
    assert data.parts == parts
    assert data.class_names == [str(category) for category in range(len(parts))]
    config = write_config(tmp_path / "halves.yaml", dataset=path, dataset_kwargs={"categories": categories})
    main(["fit", "-c", str(config), "--model.variant=spct", "--trainer.max_epochs=20"])
    assert float(means(capsys.readouterr().out, "test")[2]) > 0.8


def test_a_test_split_with_parts_of_another_category(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Is found before it is evaluated; the training has its results without it."""
    kwargs = {"categories": True, "strange": True}
    config = write_config(tmp_path / "strange.yaml", dataset=f"{__name__}.Halves", dataset_kwargs=kwargs)
    main(["fit", "-c", str(config), "--model.variant=spct", "--trainer.max_epochs=1", "--run=strange"])
    line = last_line(capsys.readouterr().out, "test: left out: ")
    assert line.endswith("to be parts of category 1 ([2, 3]), but got 0 for point 5 of cloud 3")
    assert set(json.loads(Path("strange/results.json").read_text())) == {"clouds_per_second", "best"}
    assert "parts of category 1" in error_of(["test", "-c", "strange/config.yaml"], capsys)
