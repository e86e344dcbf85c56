"""The configurations train a step: those that `configs/README.md` names for every attention with each of them."""

import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch.nn import functional as F

from pcattn.attention import ATTENTION
from pcattn.cli.main import main
from pcattn.data import PointBatch
from pcattn.tasks.base import PointCloudTask
from pcattn.tasks.optimization import build_optimizer
from pcattn.training import PointCloudDataModule
from pcattn.utils.registry import resolve
from tests.datasets.modelnet_files import write_modelnet40
from tests.datasets.shapenet_files import write_text

FOLDER = Path(__file__).parents[2] / "configs"
FOR_EVERY_ATTENTION = ("modelnet40_modern", "shapenetpart_pct")
TINY = {"dim": 16, "depth": 1, "k": 4, "out_dim": 16}

pytestmark = pytest.mark.filterwarnings("ignore:compile.* is for GPUs")


def build(settings: dict[str, Any], attention: str | None) -> PointCloudTask:
    """The task of a configuration, narrow, with another attention if one is named."""
    task = resolve("task", settings["model"]["class_path"], {})
    known = {"num_classes": 40, "parts": [[0, 1], [2, 3, 4]]}
    arguments = settings["model"]["init_args"] | {
        name: value for name, value in known.items() if name in inspect.signature(task).parameters
    }
    if not arguments["variant"].startswith("hierarchical"):  # those have widths and depths of their own
        arguments["network_kwargs"] = TINY
    arguments["attention"] = attention or arguments["attention"]
    return task(**arguments)


def pairs() -> list[tuple[str, str | None]]:
    """Names of configurations, and attentions; None is the configuration's own."""
    others = sorted({path.stem for path in FOLDER.glob("*.yaml")} - set(FOR_EVERY_ATTENTION))
    return [(name, attention) for name in FOR_EVERY_ATTENTION for attention in ATTENTION] + [(n, None) for n in others]


@pytest.mark.parametrize(("name", "attention"), pairs())
def test_trains_a_step(name: str, attention: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """On its own augmentation, with its own optimizer."""
    settings = yaml.safe_load((FOLDER / f"{name}.yaml").read_text())
    task, data = build(settings, attention), PointCloudDataModule(**settings["data"])
    monkeypatch.setattr(task, "log", lambda *args, **kwargs: None)
    index = torch.arange(4)
    labels = (torch.randint(2, (4, 64)), index % 2) if data.per_point else (index, None)
    normals = F.normalize(torch.randn(4, 64, 3), dim=2) if data.target else None
    batch = PointBatch(torch.randn(4, 64, 3), normals, *labels, index, 0)
    for transform in data.transforms:
        batch = transform(batch, torch.Generator().manual_seed(0))
    options = [task.hparams[option] for option in ("optimizer", "lr", "momentum", "weight_decay")]
    optimizer = build_optimizer(options[0], task.parameters(), *options[1:])
    before = [parameter.clone() for parameter in task.parameters()]
    task.training_step(batch, 0).backward()
    optimizer.step()
    assert all(parameter.isfinite().all() for parameter in task.parameters())
    assert any(not torch.equal(old, new) for old, new in zip(before, task.parameters(), strict=True))


@pytest.fixture(scope="module")
def roots(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("data")
    return {
        "modelnet40": write_modelnet40(folder / "modelnet40", train=(80,), test=(40,)),
        "shapenetpart": write_text(folder / "shapenetpart"),
    }


@pytest.mark.parametrize("name", ["modelnet40_modern", "shapenetpart_pct"])
def test_command_line(name: str, roots: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One step of training and one of validation; the dilations of two layers by name."""
    monkeypatch.chdir(tmp_path)
    main(
        [
            *("fit", "-c", str(FOLDER / f"{name}.yaml"), "--trainer.fast_dev_run=1", "--trainer.accelerator=cpu"),
            *(f"--data.root={roots[name.partition('_')[0]]}", "--data.num_points=28", "--data.batch_size=8"),
            "--model.network_kwargs={dim: 16, depth: 2, k: 4, out_dim: 16}",
            *("--model.attention=neighborhood", "--model.attention_kwargs={k: 3, dilation: [1, 2]}"),
        ]
    )
