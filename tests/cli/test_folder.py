"""A folder of a user's own files, from the command line alone: classes of clouds, and parts of their points."""

import csv
import warnings
from pathlib import Path

import pytest
import yaml

from pcattn.cli.main import main
from tests.cli.test_lightning import error_of, last_line
from tests.datasets.user_files import write_clouds

NETWORK = {
    "variant": "spct",
    "network_kwargs": {"dim": 16, "depth": 1, "out_dim": 32},
    "optimizer": "adamw",
    "lr": 0.01,
}


@pytest.fixture(autouse=True)
def _in_tmp_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def write_config(task: str, monitor: str) -> str:
    settings = {
        "model": {"class_path": task, "init_args": NETWORK},
        "data": {"val_fraction": 0.25, "batch_size": 8},
        "trainer": {"max_epochs": 12, "accelerator": "cpu", "enable_progress_bar": False},
        "checkpoint": {"monitor": monitor},
    }
    Path("my.yaml").write_text(yaml.safe_dump(settings))
    return "my.yaml"


def options(**data: object) -> list[str]:
    return [f"--data.{name}={value}" for name, value in {"dataset": "folder", "root": "my_clouds", **data}.items()]


def test_classification(capsys: pytest.CaptureFixture) -> None:
    """Clouds of 40 to 90 points, with their colors, 64 points at a time."""
    write_clouds(Path("my_clouds"), {"ball": 20, "needle": 20})
    config = write_config("Classification", "val/oa")
    main(["fit", "-c", config, *options(num_points=64, features="[color]")])
    out = capsys.readouterr().out
    assert "test: overall accuracy 1.0000 (8 of 8)" in out
    assert [line.split()[0] for line in out.splitlines() if line.startswith(("ball", "needle"))] == ["ball", "needle"]
    main(["validate", "-c", "runs/my/config.yaml"])
    assert "overall accuracy 1.0000 (8 of 8)" in last_line(capsys.readouterr().out, "val:")
    main(["predict", "-c", "runs/my/config.yaml"])
    with open("runs/my/predictions.csv") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 8
    assert all(Path("my_clouds", row["file"]).is_file() for row in rows)
    assert all(row["file"].startswith(f"{row['truth']}/") and row["prediction"] == row["truth"] for row in rows)
    with pytest.raises(SystemExit, match="0"):
        main(["report", "runs/my", "--worst", "2"])
    table = Path("runs/my/report.md").read_text()
    assert sum(f"| {row['file']} | {row['prediction']} " in table for row in rows) == 2


@pytest.mark.slow
def test_parts(capsys: pytest.CaptureFixture) -> None:
    write_clouds(Path("my_clouds"), {"ball": 16, "needle": 16}, labels=True)
    config = write_config("PartSegmentation", "val/instance_miou")
    data = options(num_points=64, per_point="true", dataset_kwargs="{label: part}")
    main(["fit", "-c", config, *data])
    words = last_line(capsys.readouterr().out, "test: instance mIoU").replace(",", "").split()
    assert float(words[3]) > 0.8
    main(["validate", "-c", "runs/my/config.yaml"])
    assert "instance mIoU" in last_line(capsys.readouterr().out, "val:")


def test_messages(capsys: pytest.CaptureFixture) -> None:
    root = write_clouds(Path("my_clouds"), {"ball": 4, "needle": 4})
    config = write_config("Classification", "val/oa")
    fit = ["fit", "-c", config]
    assert "expected num_points, because the clouds of folder differ in size" in error_of(
        [*fit, *options(num_points="null")], capsys
    )
    assert "expected intensity among the features of folder, but it has color" in error_of(
        [*fit, *options(num_points=32, features="[intensity]")], capsys
    )
    (root / "ball" / "broken.ply").write_bytes(b"\x89PNG\r\n\x1a\n")
    assert "broken.ply: its name ends in .ply, but it holds a PNG image" in error_of(
        [*fit, *options(num_points=32)], capsys
    )
    labeled = write_clouds(Path("labeled"), {"ball": 4, "needle": 4}, labels=True)
    fit = ["fit", "-c", write_config("PartSegmentation", "val/instance_miou")]
    assert (
        "has labels of clouds; --data.dataset_kwargs '{label: NAME}' names the property of the files that labels "
        "points (they have red, green, blue, part)"
    ) in error_of([*fit, *options(root=labeled, num_points=32, per_point="true")], capsys)
    assert "<class>/*" in error_of([*fit, *options(root="nowhere", num_points=32)], capsys)


def test_warnings_are_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    root = write_clouds(Path("my_clouds"), {"ball": 4, "needle": 4})
    (root / "ball" / "cloud_00.ply").write_bytes(b"")
    (root / "processed").write_text("in the way")
    config = write_config("Classification", "val/oa")
    monkeypatch.setenv("XDG_CACHE_HOME", "home")
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)  # restored afterwards
    with pytest.raises(SystemExit), pytest.warns(UserWarning, match="skipped") as caught:
        main(["fit", "-c", config, *options(dataset_kwargs="{on_error: skip}", num_points="null")])
    told = [warnings.formatwarning(w.message, w.category, w.filename, w.lineno) for w in caught]
    assert [line[:40].split()[:3] for line in told[:2]] == [
        ["pcattn:", "warning:", "my_clouds"],
        ["pcattn:", "warning:", "PointCloudFolder:"],
    ]
    assert all(line.count("\n") == 1 for line in told)
    assert warnings.formatwarning("a", UserWarning, "/b.py", 3, "code()") == "/b.py:3: UserWarning: a\n  code()\n"
