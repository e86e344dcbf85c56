"""`pcattn export`: the files it writes and what it refuses."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import pcattn
from pcattn.cli.main import main
from pcattn.inference import checkpoints
from pcattn.tasks import Classification

NETWORK = {"dim": 16, "depth": 1, "k": 4, "out_dim": 32}


class TestCommand:
    @pytest.fixture
    def checkpoint(self, tmp_path: Path) -> str:
        task = Classification(3, network_kwargs=NETWORK, class_names=["bed", "chair", "lamp"])
        return str(checkpoints.save_weights(task, tmp_path / "weights.safetensors", {"num_points": 32}))

    def run(self, *arguments: Any) -> int:
        with pytest.raises(SystemExit) as stop:
            main(["export", *map(str, arguments)])
        return int(stop.value.code or 0)

    def test_safetensors(self, checkpoint: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
        out = tmp_path / "b.safetensors"
        assert self.run("--ckpt_path", checkpoint, "--out", out, "--dtype", "float32") == 0
        assert "b.safetensors: weights in float32" in capsys.readouterr().out
        pos = torch.rand(32, 3)
        first, second = (pcattn.load(path, device="cpu").classify(pos) for path in (checkpoint, out))
        assert np.array_equal(first.probabilities, second.probabilities)
        assert self.run("--ckpt_path", checkpoint, "--out", out) == 2
        assert "b.safetensors exists already: --overwrite" in capsys.readouterr().err

    def test_a_failing_exporter_is_one_line(
        self, checkpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
    ) -> None:
        def fail(*args: Any, **kwargs: Any) -> None:
            raise RuntimeError("step 2 of 3\nlong story") from TypeError("no such operation\nits graph")

        monkeypatch.setattr(torch.export, "export", fail)
        for name in ("a.pt2", "a.onnx"):
            if name == "a.onnx":
                pytest.importorskip("onnxscript")
                pytest.importorskip("onnxruntime")
            assert self.run("--ckpt_path", checkpoint, "--out", tmp_path / name) == 2
            error = "pcattn: error: expected a network that torch.export can hold, but it failed: no such operation\n"
            assert capsys.readouterr().err == error
        monkeypatch.undo()
        monkeypatch.setattr(torch.onnx, "export", fail)
        assert self.run("--ckpt_path", checkpoint, "--out", tmp_path / "a.onnx") == 2
        assert "expected a network that ONNX can hold, but it failed: no such" in capsys.readouterr().err
        assert not list(tmp_path.glob("*a.*"))

    def test_wrong_calls(self, checkpoint: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
        assert self.run("--ckpt_path", checkpoint, "--out", tmp_path / "a.bin") == 2
        assert "suffix of safetensors, pt2, onnx, but got" in capsys.readouterr().err
        assert self.run("--ckpt_path", "gone", "--out", tmp_path / "a.pt2") == 2
        assert "but got 'gone'" in capsys.readouterr().err
        assert self.run("--ckpt_path", checkpoint, "--out", tmp_path / "no" / "folder" / "a.safetensors") == 2
        assert len(capsys.readouterr().err.splitlines()) == 1
