"""`pcattn report`, and the pictures that a training leaves."""

import base64
import csv
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from pcattn.cli import main
from pcattn.visualize import Pictures, charts
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
    assert labels == ["train/loss (as minimised)", "val/loss (cross-entropy alone)", "val/oa"]


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
