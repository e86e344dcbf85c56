"""`pcattn convert`: what it writes works with the commands that take a checkpoint."""

from pathlib import Path

import pytest
import torch

import pcattn
from pcattn.cli.main import main
from tests.datasets.modelnet_files import write_modelnet40
from tests.models.released import ReleasedPCT, randomize
from tests.tiny import write_tiny_config


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """A narrow network of the PyTorch port, 40 classes."""
    torch.save(randomize(ReleasedPCT(16, 16, 40)).state_dict(), tmp_path / "model.t7")
    return tmp_path / "model.t7"


def run(*args: str | Path) -> int:
    with pytest.raises(SystemExit) as stop:
        main(list(map(str, args)))
    return stop.value.code or 0


def test_convert_then_test_predict_and_export(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run("convert", weights, "--out", "pct.safetensors", "--classes", "modelnet40") == 0
    assert "pct.safetensors: Classification, pct," in capsys.readouterr().out
    model = pcattn.load("pct.safetensors", device="cpu")
    assert model.class_names[0] == "airplane"
    assert model.task.hparams["network_kwargs"]["fps_rule"] == "pointnet2"
    root = write_modelnet40(tmp_path / "data")
    (root / "shape_names.txt").write_text("\n".join(model.class_names))
    config = write_tiny_config(tmp_path / "tiny.yaml", root)
    main(["test", "-c", str(config), "--ckpt_path", "pct.safetensors", "--data.num_points", "64"])
    assert "test: overall accuracy" in capsys.readouterr().out
    (tmp_path / "cloud.xyz").write_text(
        "\n".join("{:.4f} {:.4f} {:.4f}".format(*p) for p in torch.rand(80, 3).tolist())
    )
    assert run("predict-files", "--ckpt_path", "pct.safetensors", "cloud.xyz") == 0
    assert "cloud.xyz" in capsys.readouterr().out
    assert run("export", "--ckpt_path", "pct.safetensors", "--out", "again.safetensors") == 0
    assert pcattn.load("again.safetensors", device="cpu").class_names == model.class_names


def test_start_a_training_from_it(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    run("convert", weights, "--out", "pct.safetensors")
    config = write_tiny_config(tmp_path / "tiny.yaml", write_modelnet40(tmp_path / "data"))
    args = ["--init_from", "pct.safetensors", "--model.network_kwargs", "{dim: 16, out_dim: 16, k: 4}"]
    main(["fit", "-c", str(config), *args, "--trainer.max_epochs", "1"])
    out = capsys.readouterr().out
    assert "weights from pct.safetensors" in out
    assert "left out" not in out


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["missing.t7"], "missing.t7"),
        (["model.t7", "--architecture", "dgcnn"], "invalid choice: 'dgcnn'"),
        (["model.t7", "--classes", "classes.txt"], "classes.txt"),
        (["model.t7", "--classes", "shapenetpart"], "class_names"),
        (["model.t7", "--out", "model.onnx"], "ends in .safetensors"),
    ],
)
def test_errors(
    args: list[str], message: str, weights: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(weights.parent)
    assert run("convert", *args) == 2
    assert message in capsys.readouterr().err
