"""`pcattn report`, and the pictures that a training leaves."""

import base64
import csv
import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch import Tensor, nn

from pcattn.cli import report as command
from pcattn.cli.main import main
from pcattn.data import PointBatch
from pcattn.inference.evaluate import Run
from pcattn.io.cloud import Cloud, write_ply
from pcattn.tasks import PartSegmentation
from pcattn.training import Pictures
from pcattn.visualize import charts
from pcattn.visualize.charts import read_curves


def report(*args: str | Path) -> int:
    with pytest.raises(SystemExit) as exit_info:
        main(["report", *map(str, args)])
    return int(exit_info.value.code or 0)


@pytest.fixture
def run(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A copy of a finished run."""
    return Path(shutil.copytree(request.getfixturevalue(request.param), tmp_path / "run"))


@pytest.mark.parametrize("run", ["parts_run", "class_run"], indirect=True)
def test_report(run: Path, capsys: pytest.CaptureFixture) -> None:
    """The figures are those that fit reported; both files stand on their own."""
    checkpoint = (run / "checkpoints" / "best.ckpt").read_bytes()
    assert report(run, "--worst", "3") == 0
    assert f"written: {run}/report.html, {run}/report.md" in capsys.readouterr().out
    results = json.loads((run / "results.json").read_text())["test"]
    page, text = (run / "report.html").read_text(), (run / "report.md").read_text()
    for name, value in results.items():
        if "loss" not in name:
            assert f"{100 * value:.2f} %" in page
            assert f"{100 * value:.2f} %" in text
    assert "22 shapes of the test split" in text
    assert ("protocol | category" in text) == ("per_point: true" in (run / "config.yaml").read_text())
    assert "max_epochs" in page  # the configuration
    assert page.count("src='data:image/png;base64,") == 4
    assert not re.search(r"(src|href)='(?!data:)", page)
    for picture in re.findall(r"!\[.*?\]\((.*?)\)", text):
        data = (run / picture).read_bytes()
        assert base64.b64encode(data).decode() in page
    assert (run / "checkpoints" / "best.ckpt").read_bytes() == checkpoint
    if (run / "test_categories.csv").is_file():
        with (run / "test_categories.csv").open() as file:
            for row in csv.DictReader(file):
                shown = re.search(rf"\| {row['category']} \| ([\d.]+) \| {row['shapes']} \|", text)
                assert float(shown[1]) == pytest.approx(100 * float(row["miou"]), abs=0.06)  # type: ignore[index]


class Constant(nn.Module):
    """A network that predicts the same parts (N,) for every cloud."""

    def __init__(self, parts: list[int], num_parts: int) -> None:
        super().__init__()
        self.parts, self.num_parts = parts, num_parts

    def forward(self, pos: Tensor, category: Tensor | None = None, features: Tensor | None = None) -> Tensor:
        return torch.eye(self.num_parts)[self.parts].expand(len(pos), -1, -1)


@pytest.mark.parametrize("protocol", ["all50", "present"])
def test_confusion_with_parts_of_another_category(protocol: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts of two categories may share the last part of their names."""
    names = ["bag/1", "bag/2", "cap/1", "cap/2"]
    network = {"dim": 8, "depth": 1, "k": 2, "out_dim": 8}
    task = PartSegmentation([[0, 1], [2, 3]], part_names=names, protocol=protocol, network_kwargs=network)
    task.network = Constant([0, 3, 1, 3], 4)
    truth, category = torch.tensor([[0, 0, 0, 1], [2, 3, 2, 3]]), torch.tensor([0, 1])
    batch = PointBatch(torch.rand(2, 4, 3), None, truth, category, torch.tensor([7, 5]), 0)
    monkeypatch.setattr(command, "read_split", lambda data, split: (None, None))
    monkeypatch.setattr(command, "read_batches", lambda clouds, indices: [batch])
    run = Run(Path("best.ckpt"), task.eval(), SimpleNamespace())  # type: ignore[arg-type]
    clouds, _, confusions = command.evaluate(run, "val")
    assert [(c.title, c.matrix.tolist()) for c in confusions] == [
        ("0", [[1, 1, 1], [0, 0, 1]]),  # parts of a cap are counted in the last column
        ("1", [[0, 0, 2], [0, 2, 0]]),
    ]
    assert all((c.rows, c.columns) == (["1", "2"], ["1", "2", "other"]) for c in confusions)
    assert [(cloud.title, cloud.index) for cloud in clouds] == [("0 7", 7), ("1 5", 5)]
    assert [cloud.score for cloud in clouds] == pytest.approx([1 / 6, 1 / 2], abs=1e-6)


def test_labeled_points_without_category(tmp_path: Path) -> None:
    """A folder of clouds with a label per point and no classes."""
    rng = np.random.default_rng(0)
    for split, number in (("train", 8), ("test", 3)):
        (tmp_path / "rooms" / split).mkdir(parents=True)
        for i in range(number):
            pos = rng.random((40, 3)).astype(np.float32)
            write_ply(
                tmp_path / "rooms" / split / f"{i}.ply", Cloud(pos, {"label": (pos[:, 2] > 0.5).astype(np.int32)})
            )
    network = {"dim": 16, "depth": 1, "k": 4, "out_dim": 16}
    config = {
        "model": {"class_path": "PartSegmentation", "init_args": {"network_kwargs": network}},
        "data": {
            "dataset": "folder",
            "root": str(tmp_path / "rooms"),
            "dataset_kwargs": {"label": "label"},
            "per_point": True,
            "num_points": 32,
            "batch_size": 4,
            "val_fraction": 0.25,
        },
        "trainer": {"max_epochs": 1, "accelerator": "cpu", "enable_progress_bar": False},
    }
    (tmp_path / "rooms.yaml").write_text(yaml.safe_dump(config))
    main(["fit", "-c", str(tmp_path / "rooms.yaml"), "--run", str(tmp_path / "run")])
    assert report(tmp_path / "run", "--worst", "2") == 0
    assert "instance miou" in (tmp_path / "run" / "report.md").read_text()


def test_no_run(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert report(tmp_path / "none") == 2
    assert report(tmp_path) == 2
    assert "expected the folder of a run with checkpoints/best.ckpt" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_curves(tmp_path: Path) -> None:
    """The last validation of an epoch counts; rows without an epoch do not."""
    rows = ["0,1,3.0,", "0,1,,0.1", "1,2,2.5,", "1,2,,0.15", "1,3,,0.2", ",4,9,"]
    (tmp_path / "metrics.csv").write_text("\n".join(["epoch,step,train/loss,val/oa", *rows]) + "\n")
    assert read_curves(tmp_path) == {"train/loss": [(0, 3.0), (1, 2.5)], "val/oa": [(0, 0.1), (1, 0.2)]}
    assert read_curves(tmp_path / "none") == {}


def test_the_legend_tells_the_losses_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figures: list[Any] = []
    monkeypatch.setattr(charts, "write_figure", lambda path, figure, dpi: figures.append(figure))
    charts.draw_curves({name: [(0.0, 1.0)] for name in ("train/loss", "val/loss", "val/oa")}, tmp_path / "curves.png")
    labels = [text.get_text() for axes in figures[0].axes for text in axes.get_legend().get_texts()]
    assert labels == ["train/loss (as minimized)", "val/loss (cross-entropy alone)", "val/oa"]


def test_pictures_of_a_training(parts_run: Path) -> None:
    assert [path.name for path in sorted((parts_run / "pictures").iterdir())] == ["epoch-001.png"]
    assert (parts_run / "validation.png").read_bytes().startswith(b"\x89PNG")
    assert "airplane" in (parts_run / "validation.html").read_text()
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(parts_run / "tensorboard")).Reload()
    assert events.Tags()["images"] == ["validation"]


@pytest.mark.parametrize("arguments", [{"every_n_epochs": 0}, {"number": 0}])
def test_bad_arguments(arguments: dict) -> None:
    with pytest.raises(ValueError, match=r"every_n_epochs >= 1 and number >= 1"):
        Pictures(**arguments)
