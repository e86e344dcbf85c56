"""A hierarchical network on the command line: its options, its checkpoints and their use."""

from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

import pcattn
from pcattn.cli.compare import _inspect
from pcattn.cli.main import main
from pcattn.models import HierarchicalSegmenter
from tests.cli.test_parts import write_config

NETWORK = {"dims": [8, 16], "depths": [2, 1], "num_heads": [2, 2], "k": 4}
ATTENTION = ["acmix", "self"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run; attention and dilation are told by options beside the configuration."""
    folder = tmp_path_factory.mktemp("hierarchical")
    kwargs = {"num_train": 44, "num_test": 22, "num_points": 64}
    config = write_config(folder / "a.yaml", dataset="shapes", root=str(folder / "shapes"), dataset_kwargs=kwargs)
    settings = yaml.safe_load(config.read_text())
    settings["model"]["init_args"] |= {"variant": "hierarchical_tiny", "network_kwargs": NETWORK}
    settings["trainer"]["max_epochs"] = 1
    config.write_text(yaml.safe_dump(settings))
    options = ["--model.attention", f"[{', '.join(ATTENTION)}]", "--model.network_kwargs.dilation", "3"]
    main(["fit", "-c", str(config), "--run", str(folder / "run"), *options])
    return folder / "run"


def status(*args: str | Path) -> int:
    with pytest.raises(SystemExit) as stop:
        main([str(arg) for arg in args])
    return int(stop.value.code or 0)


@pytest.fixture(scope="module")
def network(run: Path) -> HierarchicalSegmenter:
    """A network built by hand, with the weights of the run."""
    stored = torch.load(run / "checkpoints" / "best.ckpt", weights_only=True)
    settings, prefix = stored["hyper_parameters"], "network."
    assert settings["attention"] == ATTENTION
    assert settings["network_kwargs"] == {**NETWORK, "dilation": 3}
    sizes = sum(map(len, settings["parts"])), len(settings["parts"])
    network = HierarchicalSegmenter(*sizes, "hierarchical_tiny", ATTENTION, dilation=3, **NETWORK).eval()
    state = {key.removeprefix(prefix): value for key, value in stored["state_dict"].items() if key.startswith(prefix)}
    network.load_state_dict(state)
    return network


@torch.no_grad()
def test_loaded_network_gives_the_same_logits(run: Path, network: HierarchicalSegmenter, tmp_path: Path) -> None:
    pos, category = torch.randn(3, 48, 3), torch.tensor([0, 5, 2])
    exported = tmp_path / "a.safetensors"
    assert status("export", "--ckpt_path", run, "--out", exported, "--dtype", "float32") == 0
    for source in (run, exported):
        assert torch.equal(pcattn.load(source, device="cpu").task(pos, category), network(pos, category))


def test_count(run: Path, network: HierarchicalSegmenter) -> None:
    counted = _inspect(run / "checkpoints" / "best.ckpt")
    assert counted["parameters"] == sum(parameter.numel() for parameter in network.parameters())
    assert counted["multiply_adds"] > 48 * 512 * 256  # the head alone has more


def test_files_of_any_size(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    for number in (1, 3, 500):
        np.save(tmp_path / f"{number}.npy", np.random.default_rng(0).random((number, 3)))
    assert status("predict-files", "--ckpt_path", run, "--category", "chair", tmp_path, "--out", tmp_path / "out") == 0
    assert len(list((tmp_path / "out").glob("*.ply"))) == 3


def test_attention_of_a_block(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Blocks are counted through all levels: two of the first one, one of the second."""
    picture = tmp_path / "a.png"
    args = ["show", run, "--number", "1", "--point", "5", "--out", picture, "--renderer", "matplotlib", "--attention"]
    assert status(*args, "2") == 0
    assert picture.stat().st_size
    assert status(*args, "3") == 2
    assert "layer in [0, 3), but got 3" in capsys.readouterr().err
