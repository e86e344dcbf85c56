"""From a finished run to bundled weights, and what their file says about them."""

import json
from pathlib import Path

import pytest
import yaml

from pcattn.cli import bundle
from pcattn.cli.main import main
from pcattn.inference import checkpoints
from pcattn.tasks import Classification
from tests.inference.test_checkpoints import write_ckpt

COMMAND = "pcattn fit -c configs/a.yaml"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    (folder / "checkpoints").mkdir(parents=True)
    network = {"dim": 8, "depth": 1, "out_dim": 16}
    task = Classification(3, variant="spct", network_kwargs=network, class_names=["bed", "chair", "lamp"])
    write_ckpt(folder / "checkpoints" / "best.ckpt", task)
    (folder / "config.yaml").write_text(yaml.safe_dump({"seed_everything": 3, "trainer": {"max_epochs": 7}}))
    (folder / "results.json").write_text(json.dumps({"best": {"val/oa": 0.75}}))
    return folder


def test_bundle(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    args = ["bundle", str(run), "a-b", "--command", COMMAND, "--folder", str(tmp_path / "new")]
    with pytest.raises(SystemExit, match="0"):
        main(args)
    path = tmp_path / "new" / "a-b.safetensors"
    assert str(path) in capsys.readouterr().out
    checkpoint = checkpoints.read(path)
    assert checkpoint.training == {
        "command": COMMAND,
        "seed": 3,
        "epoch": 5,
        "epochs": 7,
        "metrics": {"val/oa": 0.75},
    }
    assert checkpoint.hyper_parameters["class_names"] == ["bed", "chair", "lamp"]
    assert checkpoint.data["num_points"] == 32
    before = path.read_bytes()
    with pytest.raises(SystemExit, match="2"):
        main(args)
    assert f"expected a new name, but {path} exists" in capsys.readouterr().err
    assert path.read_bytes() == before


def test_unfinished_run(run: Path, tmp_path: Path) -> None:
    (run / "results.json").unlink()
    with pytest.raises(ValueError, match=r"a finished run, but .*results\.json does not exist"):
        bundle.bundle(run, "a", COMMAND, tmp_path)


def test_too_large(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundle, "MAX_BYTES", 1000)
    with pytest.raises(ValueError, match="at most 1,000 bytes"):
        bundle.bundle(run, "a", COMMAND, tmp_path)
    assert not list(tmp_path.glob("*.safetensors"))


@pytest.mark.parametrize("name", checkpoints.bundled())
def test_bundled_weights_are_complete(name: str) -> None:
    """Each builds its network, says how it was made, and has a configuration of its name."""
    path = checkpoints.bundled()[name]
    checkpoint = checkpoints.read(path)
    checkpoints.build(checkpoint)
    assert {"command", "seed", "metrics"} <= checkpoint.training.keys()
    assert path.stat().st_size <= bundle.MAX_BYTES
    config = Path(__file__).parents[2] / "configs" / f"{name.replace('-', '_')}.yaml"
    settings = yaml.safe_load(config.read_text())
    assert config.name in checkpoint.training["command"]
    checkpoint.hyper_parameters["network_kwargs"].pop("fuse_after_mix", None)  # of weights from before 0.2
    for option, value in settings["model"]["init_args"].items():
        assert checkpoint.hyper_parameters[option] == value
    for option in ("dataset", "num_points", "augmentation"):
        assert checkpoint.data[option] == settings["data"][option]
