"""A network of the user in the commands: named by import path, trained, used and exported."""

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from pcattn.cli.main import main
from pcattn.data import PointBatch
from pcattn.tasks import Classification
from tests.datasets.modelnet_files import write_modelnet40
from tests.runs import fit
from tests.tiny import write_tiny_config

MODULE = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self, num_classes, width=8):
        super().__init__()
        self.map = nn.Sequential(nn.Linear(3, width), nn.ReLU(), nn.Linear(width, num_classes))

    def forward(self, pos, features=None):
        return self.map(pos).amax(dim=1)


class Segmenter(nn.Module):
    def __init__(self, num_parts, num_categories, width=8):
        super().__init__()
        self.category = nn.Embedding(num_categories, width)
        self.map, self.last = nn.Linear(3, width), nn.Linear(width, num_parts)

    def forward(self, pos, category=None, features=None):
        return self.last(torch.relu(self.map(pos) + self.category(category)[:, None]))
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module in the current folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path[:])
    name = f"mynet_{tmp_path.name}"
    Path(f"{name}.py").write_text(MODULE)
    return name


def run(*args: str | Path) -> int:
    with pytest.raises(SystemExit) as stop:
        main(list(map(str, args)))
    return stop.value.code or 0


def use(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], *options: str) -> None:
    """`predict-files` and `export`, which import the network only where it is trusted."""
    cloud = tmp_path / "cloud.xyz"
    cloud.write_text("\n".join("{:.4f} {:.4f} {:.4f}".format(*point) for point in torch.rand(80, 3).tolist()))
    assert run("predict-files", "--ckpt_path", checkpoint, cloud, *options) == 2
    assert "--trust" in capsys.readouterr().err
    assert run("predict-files", "--ckpt_path", checkpoint, "--trust", cloud, *options) == 0
    assert "cloud.xyz" in capsys.readouterr().out
    for suffix in ("safetensors", "pt2"):
        assert run("export", "--ckpt_path", checkpoint, "--trust", "--out", tmp_path / f"net.{suffix}") == 0
        assert (tmp_path / f"net.{suffix}").is_file()


def test_classification(module: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = write_tiny_config(tmp_path / "tiny.yaml", write_modelnet40(tmp_path / "data"))
    options = ["--model.variant", f"{module}.Net", "--model.network_kwargs", "{width: 16}", "--run", "own"]
    main(["fit", "-c", str(config), *options, "--trainer.max_epochs", "1"])
    main(["test", "-c", "own/config.yaml"])
    assert "test: overall accuracy" in capsys.readouterr().out
    use(Path("own"), tmp_path, capsys)


@pytest.mark.slow
def test_part_segmentation(module: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "runs"
    folder.mkdir()
    own = {"variant": f"{module}.Segmenter", "network_kwargs": {"width": 16}}
    use(fit(folder, "PartSegmentation", own), tmp_path, capsys, "--category", "0")


class Net(nn.Module):
    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.last = nn.Linear(3, num_classes)

    def forward(self, pos: torch.Tensor, features: torch.Tensor | None = None) -> torch.Tensor:
        return self.last(pos).amax(dim=1)


def test_a_class_in_python_is_stored_as_its_import_path() -> None:
    task = Classification(3, variant=Net)
    assert task.hparams["variant"] == f"{__name__}.Net"
    batch = PointBatch(torch.randn(2, 8, 3), None, torch.tensor([0, 1]), None, torch.arange(2), 0)
    assert task.logits(batch).shape == (2, 3)
