"""Weights as files: what is kept, what is found, and what is refused."""

import json
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

import pcattn
from pcattn.inference import checkpoints
from pcattn.models import pretrained
from pcattn.tasks import Classification, PartSegmentation

NETWORK = {"dim": 16, "depth": 1, "k": 4, "out_dim": 32}
DATA = {"dataset": "modelnet40", "num_points": 32, "normals": False, "root": "some/folder", "_instantiator": "a.b"}


def classifier(**kwargs: Any) -> Classification:
    task = Classification(3, network_kwargs=NETWORK, class_names=["bed", "chair", "lamp"], **kwargs)
    for buffer in task.network.buffers():  # batch statistics as after a training
        if buffer.is_floating_point():
            buffer.uniform_(0.5, 2.0)
    return task.eval()


def write_ckpt(path: Path, task: nn.Module, **changes: Any) -> Path:
    """A checkpoint in the layout of Lightning."""
    hyper_parameters = {**task.hparams, "_class_path": f"pcattn.tasks.{type(task).__name__}", "_instantiator": "a.b"}
    scores = {"monitor": "val/oa", "current_score": torch.tensor(0.75), "best_model_path": f"elsewhere/{path.name}"}
    stored = {
        "epoch": 4,
        "global_step": 100,
        "state_dict": task.state_dict(),
        "hyper_parameters": hyper_parameters,
        "datamodule_hyper_parameters": DATA,
        "callbacks": {"ModelCheckpoint": scores, "Timer": {}},
        **changes,
    }
    torch.save(stored, path)
    return path


class Evil:
    """Runs code when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.target),)


class OwnAttention(nn.Linear):
    def __init__(self, dim: int) -> None:
        super().__init__(dim, dim)

    def forward(self, x, geometry):
        return super().forward(x)


class TestSaveWeights:
    @pytest.mark.parametrize("dtype", ["float16", "float32"])
    def test_round_trip(self, dtype: str, tmp_path: Path) -> None:
        task = classifier()
        path = checkpoints.save_weights(task, tmp_path / "a.safetensors", DATA, {"seed": 3}, dtype)
        model = pcattn.load(path, device="cpu")
        assert dict(model.task.hparams) == {**task.hparams, "compile": False}
        assert (model.num_points, model.training, model.class_names) == (32, {"seed": 3}, ["bed", "chair", "lamp"])
        for name, got in model.task.network.state_dict().items():
            expected = task.network.state_dict()[name]
            rounded = dtype == "float16" and expected.dim() > 1
            assert torch.equal(got, expected.half().float() if rounded else expected)

    def test_metadata(self, tmp_path: Path) -> None:
        path = checkpoints.save_weights(classifier(), tmp_path / "a.safetensors", DATA)
        with safe_open(path, framework="pt") as file:
            about = json.loads(file.metadata()["pcattn"])
        assert about["version"] == pcattn.__version__
        assert about["task"] == "Classification"
        assert about["data"] == {"dataset": "modelnet40", "num_points": 32, "normals": False}
        assert os.listdir(tmp_path) == ["a.safetensors"]

    def test_beyond_the_range(self, tmp_path: Path) -> None:
        task = classifier()
        task.network.head[4].weight.data[0, 0] = 1e5
        with pytest.raises(ValueError, match=r"within the range of float16, but got others in head\.4\.weight"):
            checkpoints.save_weights(task, tmp_path / "a.safetensors")
        assert not list(tmp_path.iterdir())

    @pytest.mark.parametrize(
        ("name", "dtype", "message"),
        [("a.pt", "float16", r"ends in \.safetensors, but got .*a\.pt"), ("a.safetensors", "int8", "but got 'int8'")],
    )
    def test_wrong_arguments(self, name: str, dtype: str, message: str, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=message):
            checkpoints.save_weights(classifier(), tmp_path / name, dtype=dtype)


class TestLoad:
    def test_ckpt(self, tmp_path: Path) -> None:
        task = classifier()
        model = pcattn.load(write_ckpt(tmp_path / "a.ckpt", task), device="cpu")
        assert model.training == {"epochs": 5, "steps": 100, "metrics": {"val/oa": 0.75}}
        assert model.num_points == 32
        assert not model.task.training
        for name, tensor in task.network.state_dict().items():
            assert torch.equal(model.task.network.state_dict()[name], tensor)

    def test_last_has_not_the_score_of_the_best(self, tmp_path: Path) -> None:
        best = write_ckpt(tmp_path / "best.ckpt", classifier())
        last = best.rename(tmp_path / "last.ckpt")
        assert checkpoints.read(last).training == {"epochs": 5, "steps": 100}

    def test_segmenter_without_class_path(self, tmp_path: Path) -> None:
        """As a training from Python leaves it; and with what the command line adds."""
        task = PartSegmentation([[0, 1], [2]], network_kwargs=NETWORK, part_names=["leg", "seat", "all"])
        path = write_ckpt(tmp_path / "a.ckpt", task, hyper_parameters={**task.hparams, "num_classes": 2})
        assert pcattn.load(path, device="cpu").part_names == ["leg", "seat", "all"]

    def test_run_folder(self, tmp_path: Path) -> None:
        (tmp_path / "checkpoints").mkdir()
        with pytest.raises(ValueError, match=r"run with checkpoints/best\.ckpt, but got"):
            pcattn.load(tmp_path)
        last = write_ckpt(tmp_path / "checkpoints" / "last.ckpt", classifier())
        assert checkpoints.find(tmp_path) == last
        best = write_ckpt(tmp_path / "checkpoints" / "best.ckpt", classifier())
        assert checkpoints.find(str(tmp_path)) == best

    def test_bundled_name(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "weights").mkdir()
        monkeypatch.setattr(pretrained, "files", lambda package: tmp_path)
        with pytest.raises(ValueError, match=r"bundled weights \(there are none\), but got 'tiny'"):
            pcattn.load("tiny")
        checkpoints.save_weights(classifier(), tmp_path / "weights" / "tiny.safetensors")
        assert pcattn.load("tiny", device="cpu").class_names == ["bed", "chair", "lamp"]
        with pytest.raises(ValueError, match=r"bundled weights \(tiny\), but got 'tny'"):
            pcattn.load("tny")


class TestRefused:
    @pytest.mark.parametrize("layout", ["torch", "pickle"])
    @pytest.mark.filterwarnings("ignore:Detected pickle protocol")
    def test_code_in_a_pickle(self, layout: str, tmp_path: Path) -> None:
        path, target = tmp_path / "evil.ckpt", tmp_path / "ran"
        if layout == "torch":
            write_ckpt(path, classifier(), extra=Evil(target))
        else:
            path.write_bytes(pickle.dumps({"state_dict": Evil(target)}, protocol=2))
        with pytest.raises(ValueError, match=r"evil\.ckpt to hold tensors and plain data alone, .*mkdir.*: refused"):
            pcattn.load(path)
        assert not target.exists()

    def test_import_path_of_an_attention(self, tmp_path: Path) -> None:
        own = f"{__name__}.OwnAttention"
        path = checkpoints.save_weights(classifier(attention=own), tmp_path / "a.safetensors")
        with pytest.raises(ValueError, match=rf"attention to be one of self, .*'{own}', which is code"):
            pcattn.load(path)
        model = pcattn.load(path, trust=True, device="cpu")
        assert isinstance(model.task.network.backbone.layers[0].core, OwnAttention)

    def test_import_path_of_a_task(self, tmp_path: Path) -> None:
        task = classifier()
        path = write_ckpt(tmp_path / "a.ckpt", task, hyper_parameters={"_class_path": "os.system", "command": "true"})
        with pytest.raises(ValueError, match=r"task to be one of Classification, .*PartSegmentation, .*'os\.system'"):
            pcattn.load(path)

    @pytest.mark.parametrize("suffix", ["ckpt", "safetensors"])
    @pytest.mark.parametrize("content", [b"", b"hello\n", "cut"], ids=["empty", "text", "cut"])
    def test_broken_file(self, content: bytes | str, suffix: str, tmp_path: Path) -> None:
        path = tmp_path / f"a.{suffix}"
        if isinstance(content, str):
            (write_ckpt(path, classifier()) if suffix == "ckpt" else checkpoints.save_weights(classifier(), path))
            content = path.read_bytes()[:-1000]
        path.write_bytes(content)
        with pytest.raises(ValueError, match=rf"expected {path} to be a .*, but reading it failed: ."):
            pcattn.load(path)

    def test_other_files(self, tmp_path: Path) -> None:
        torch.save({"weight": torch.ones(2)}, tmp_path / "a.ckpt")
        with pytest.raises(ValueError, match="it lacks hyper_parameters or state_dict"):
            pcattn.load(tmp_path / "a.ckpt")
        save_file({"weight": torch.ones(2)}, tmp_path / "a.safetensors")
        with pytest.raises(ValueError, match=r"metadata 'pcattn', .*but it has none"):
            pcattn.load(tmp_path / "a.safetensors")

    def test_weights_of_another_network(self, tmp_path: Path) -> None:
        task = classifier()
        path = write_ckpt(
            tmp_path / "a.ckpt", task, hyper_parameters={**task.hparams, "num_classes": 4, "class_names": None}
        )
        with pytest.raises(ValueError, match=r"weights of .*a\.ckpt do not fit the network .*size mismatch"):
            pcattn.load(path)

    def test_complex_weights(self, tmp_path: Path) -> None:
        """PyTorch would drop their imaginary parts with a warning."""
        path = write_ckpt(tmp_path / "a.ckpt", classifier())
        stored = torch.load(path, weights_only=True)
        name = next(name for name in stored["state_dict"] if name.startswith("network."))
        stored["state_dict"][name] = stored["state_dict"][name].to(torch.complex64)
        torch.save(stored, path)
        with pytest.raises(ValueError, match=r"expected real weights in .*a\.ckpt, but got complex ones in "):
            pcattn.load(path)

    def test_arguments_of_another_version(self, tmp_path: Path) -> None:
        task = classifier()
        path = write_ckpt(tmp_path / "a.ckpt", task, hyper_parameters={**task.hparams, "novelty": 1})
        with pytest.raises(ValueError, match="novelty"):
            pcattn.load(path)
