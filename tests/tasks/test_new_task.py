"""A task is one file and one line: all commands work with `NormalEstimation` and with a task of the user's own."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

import pcattn
from pcattn.cli.main import main
from pcattn.inference.checkpoints import Checkpoint, build
from pcattn.io.cloud import Cloud, read_cloud, write_ply
from pcattn.tasks import TASKS, Classification, register_task
from pcattn.utils.errors import InputError

#: The file: a network that predicts how high the centroid of a cloud lies in its bounding box.
TASK = """
from torch import nn

from pcattn.tasks import MetricInfo, PointCloudTask


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(3, 16), nn.ReLU(), nn.Linear(16, 1))

    def forward(self, pos):
        return self.layers(pos).mean(dim=1)


class CentroidHeight(PointCloudTask):
    METRICS = {"loss": MetricInfo("squared error", "min", "")}

    def __init__(self, optimizer: str = "adamw", lr: float = 0.01, momentum: float = 0.9, weight_decay: float = 0.0,
                 warmup_epochs: float = 0.0, min_lr: float = 0.0):
        super().__init__(optimizer=optimizer, lr=lr, min_lr=min_lr)
        self.save_hyperparameters()
        self.network = Network()

    def loss(self, logits, batch):
        height = batch.pos[..., 2]
        low, high = height.amin(dim=1), height.amax(dim=1)
        return ((logits[:, 0] - (height.mean(dim=1) - low) / (high - low)) ** 2).mean()
"""


def fit(folder: Path, task: str, init_args: dict[str, Any], **data: Any) -> Path:
    kwargs = {"num_train": 66, "num_test": 22, "num_points": 64}
    data = {"num_points": 48, "val_fraction": 0.34, "batch_size": 16, **data}
    config = {
        "model": {"class_path": task, "init_args": init_args},
        "data": {**data, "dataset": "shapes", "root": str(folder / "shapes"), "dataset_kwargs": kwargs},
        "trainer": {"max_epochs": 1, "accelerator": "cpu", "enable_progress_bar": False},
    }
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    main(["fit", "-c", str(path), "--run", str(folder / "run")])
    return folder / "run"


def call(*args: Any) -> int:
    with pytest.raises(SystemExit) as stop:
        main(list(map(str, args)))
    return int(stop.value.code or 0)


def write_cloud(path: Path) -> Cloud:
    rng = np.random.default_rng(0)
    cloud = Cloud(rng.random((90, 3)), {"normals": rng.random((90, 3)).astype(np.float32)})
    write_ply(path, cloud)
    return cloud


@pytest.mark.slow
def test_normal_estimation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.chdir(tmp_path)
    network = {"dim": 16, "depth": 2, "k": 4, "out_dim": 32}
    arguments = {"network_kwargs": network, "optimizer": "adamw", "lr": 0.01}
    run = fit(tmp_path, "NormalEstimation", arguments, target="normals", features=["height"])
    assert "best checkpoint by val/angle" in capsys.readouterr().out
    result = json.loads((run / "results.json").read_text())["test"]
    assert 0 < result["test/angle"] < 120
    assert (run / "validation.png").stat().st_size > 0

    main(["validate", "-c", str(run / "config.yaml")])
    assert "val: cosine distance" in capsys.readouterr().out
    main(["predict", "-c", str(run / "config.yaml")])
    with np.load(run / "predictions.npz") as arrays:
        assert arrays["normals"].shape == (22, 48, 3)
        assert arrays["points"].shape == (22, 48)

    assert call("show", run, "--out", "x.html", "--number", "2") == 0
    page = Path("x.html").read_text()
    data = json.loads(page.split('id="data">')[1].split("</script>")[0])
    assert data["shown"] == ["truth", "prediction", "angle error"]
    kinds = {field["name"]: field["kind"] for field in data["clouds"][0]["fields"]}
    assert kinds == {"truth": "colors", "prediction": "colors", "angle error": "quantity"}
    assert call("show", run, "--out", "x.png", "--number", "2", "--renderer", "matplotlib") == 0
    assert call("report", run, "--worst", "2") == 0
    assert f"angle | {result['test/angle']:.2f}°" in (run / "report.md").read_text()

    cloud = write_cloud(Path("a.ply"))
    assert call("predict-files", "a.ply", "--ckpt_path", run, "--csv", "out.csv", "--device", "cpu") == 0
    written = read_cloud("predictions/a.ply")
    np.testing.assert_allclose(np.linalg.norm(written.attributes["normals"], axis=1), 1, atol=1e-5)
    expected = pcattn.load(run, device="cpu").predict(cloud.pos)["normals"]
    np.testing.assert_allclose(written.attributes["normals"], expected, atol=1e-5)
    assert b"property float nx" in Path("predictions/a.ply").read_bytes()
    with open("out.csv") as file:
        assert [row["output"] for row in csv.DictReader(file)] == ["predictions/a.ply"]
    assert call("show", "a.ply", "--ckpt_path", run, "--out", "a.png", "--renderer", "matplotlib") == 0

    assert call("export", "--ckpt_path", run, "--out", "n.safetensors", "--dtype", "float32") == 0
    again = pcattn.load("n.safetensors", device="cpu").predict(cloud.pos)["normals"]
    np.testing.assert_allclose(again, expected, atol=1e-5)
    assert call("export", "--ckpt_path", run, "--out", "n.pt2") == 0
    assert call("robustness", "-c", run / "config.yaml") == 2
    assert "expected a task with a metric for corruptions" in capsys.readouterr().err


def test_a_registered_task(tmp_path: Path) -> None:
    """The line is the decorator; checkpoints then find the task by its name."""
    try:

        @register_task
        class Registered(Classification):
            pass

        task = Registered(num_classes=3, network_kwargs={"dim": 8, "depth": 1, "k": 4, "out_dim": 16})
        checkpoint = Checkpoint("Registered", dict(task.hparams), {}, {}, None, task.network.state_dict())
        assert type(build(checkpoint, "x.ckpt")) is Registered
        with pytest.raises(InputError, match="expected a new name for task"):
            register_task(type("Registered", (Classification,), {}))
    finally:
        del TASKS["Registered"]


@pytest.mark.slow
def test_a_task_of_the_users_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """The line is the class path in the configuration."""
    monkeypatch.chdir(tmp_path)
    Path("centroid_task.py").write_text(TASK)
    run = fit(tmp_path, "centroid_task.CentroidHeight", {})
    assert "best checkpoint by val/loss" in capsys.readouterr().out

    cloud = write_cloud(Path("a.ply"))
    arguments = ["--ckpt_path", run, "--trust"]
    assert call("predict-files", "a.ply", *arguments, "--json", "out.json", "--device", "cpu") == 0
    (row,) = json.loads(Path("out.json").read_text())
    model = pcattn.load(run, trust=True, device="cpu")
    expected = float(model.predict(cloud)["prediction"][0])
    assert row["predictions"] == [{"output": 0, "value": pytest.approx(expected, abs=1e-6)}]
    assert call("predict-files", "a.ply", "--ckpt_path", run) == 2
    assert "which is code to be imported" in capsys.readouterr().err

    assert call("export", *arguments, "--out", "c.pt2") == 0
    pos = torch.rand(2, 48, 3)
    program = torch.export.load("c.pt2").module()
    torch.testing.assert_close(program(pos), model.network(pos))
    assert call("show", run, "--trust", "--out", "x.html", "--number", "2") == 0
    assert call("report", run, "--trust", "--worst", "2") == 0
