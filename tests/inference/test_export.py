"""Exported files give the results of the network, and networks that a format cannot hold are refused."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pcattn.inference import export
from pcattn.inference.model import Model
from pcattn.tasks import Classification, PartSegmentation
from pcattn.utils.errors import InputError

NETWORK = {"dim": 16, "depth": 1, "k": 4, "out_dim": 32}
DATA = {"num_points": 32, "preprocessing": {"features": ["normals"], "normalize": "box", "up_axis": "y"}}


def lively(task: Any, data: dict[str, Any]) -> Model:
    """With batch statistics and weights that make the outputs differ from cloud to cloud."""
    for tensor in task.network.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(torch.rand_like(tensor) + 0.5 if tensor.dim() == 1 else torch.randn_like(tensor))
    return Model(task, data)


def segmenter(**kwargs: Any) -> Model:
    names = {"class_names": ["mug", "chair"], "part_names": ["body", "handle", "leg", "seat"]}
    task = PartSegmentation([[0, 1], [2, 3]], "pct_sampled", network_kwargs=NETWORK, num_features=3, **names, **kwargs)
    return lively(task, DATA)


class TestONNX:
    @pytest.mark.slow
    def test_same_results_in_onnxruntime(self, tmp_path: Path) -> None:
        """Neighbor search, farthest point sampling and interpolation, for other numbers of clouds and points."""
        onnxruntime = pytest.importorskip("onnxruntime")
        pytest.importorskip("onnxscript")
        model = segmenter()
        words = export.export(model, tmp_path / "a.onnx", "onnx")
        assert "any number of clouds of any number of points" in words
        session = onnxruntime.InferenceSession(tmp_path / "a.onnx", providers=["CPUExecutionProvider"])
        for batch, num_points in ((1, 32), (4, 50)):
            pos, features = torch.rand(batch, num_points, 3), torch.rand(batch, num_points, 3)
            category = torch.arange(batch) % 2
            inputs = {"pos": pos.numpy(), "category": category.numpy(), "features": features.numpy()}
            (logits,) = session.run(["logits"], inputs)
            with torch.no_grad():
                expected = model.task(pos, category, features).numpy()
            assert np.ptp(expected) > 0.1
            np.testing.assert_allclose(logits, expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())
        about = json.loads(session.get_modelmeta().custom_metadata_map["pcattn"])
        assert about == export.describe(model)
        assert [path.name for path in tmp_path.iterdir()] == ["a.onnx"]

    @pytest.mark.parametrize("attention", ["self", "external"])
    def test_attentions(self, attention: str, tmp_path: Path) -> None:
        """`export` itself compares the results in onnxruntime."""
        pytest.importorskip("onnxruntime")
        pytest.importorskip("onnxscript")
        task = Classification(3, "spct", attention, network_kwargs={"dim": 16, "depth": 1, "out_dim": 32})
        words = export.export(lively(task, {"num_points": 32}), tmp_path / "a.onnx", "onnx")
        assert "any number of clouds of any number of points" in words

    @pytest.mark.slow
    def test_hierarchical(self, tmp_path: Path) -> None:
        """Neighbor lists, sorted into classes by dilation, and attention over them; compared by `export` itself."""
        pytest.importorskip("onnxruntime")
        pytest.importorskip("onnxscript")
        network = {"dims": [8, 16], "depths": [2, 0], "num_heads": [2, 2], "k": 4, "dilation": 2}
        task = Classification(3, "hierarchical_tiny", network_kwargs=network)
        words = export.export(lively(task, {"num_points": 32}), tmp_path / "a.onnx", "onnx")
        assert "any number of clouds of 32 points" in words

    def test_refused(self, tmp_path: Path) -> None:
        pytest.importorskip("onnxscript")
        model = lively(Classification(3, "spct", "axial", network_kwargs={"dim": 16, "depth": 1}), {"num_points": 32})
        with pytest.raises(ValueError, match=r"a network that ONNX can hold, but .* has no translation"):
            export.export(model, tmp_path / "a.onnx", "onnx")
        assert not list(tmp_path.iterdir())

    def test_packages_are_asked_for(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(export, "find_spec", lambda name: None if name == "onnxruntime" else name)
        with pytest.raises(InputError, match=r"ONNX needs onnxruntime: pip install 'pcattn\[export\]'"):
            export.export(segmenter(), tmp_path / "a.onnx", "onnx")


@pytest.mark.slow
def test_pt2(tmp_path: Path) -> None:
    model = segmenter()
    words = export.export(model, tmp_path / "a.pt2", "pt2")
    assert "any number of clouds of 32 points" in words
    files = {"pcattn.json": ""}
    network = torch.export.load(tmp_path / "a.pt2", extra_files=files).module()
    for batch in (1, 5):
        inputs = torch.rand(batch, 32, 3), torch.zeros(batch, dtype=torch.long), torch.rand(batch, 32, 3)
        torch.testing.assert_close(network(*inputs), model.task(*inputs), rtol=1e-4, atol=1e-4)
    assert json.loads(files["pcattn.json"]) == export.describe(model)


def test_results_are_compared() -> None:
    export._compare(torch.ones(2), torch.ones(2) + 1e-5)
    for wrong in (torch.tensor([1.0, 1.1]), torch.tensor([1.0, torch.nan])):
        with pytest.raises(ValueError, match="to give the network's results, but they differ by"):
            export._compare(wrong, torch.ones(2))


def test_description() -> None:
    about = export.describe(segmenter())
    assert list(about["inputs"]) == ["pos", "category", "features"]
    assert about["parts"] == [[0, 1], [2, 3]]
    prepared = about["preprocessing"]
    assert (prepared["channels"], prepared["num_points"], prepared["normalize"]) == (["nx", "ny", "nz"], 32, "box")
    assert "bounding box" in prepared["steps"][0]
    preprocessing = {"features": ["height", "estimated_normals"], "normalize": "none", "up_axis": "z"}
    about = export.describe(
        Model(Classification(3, num_features=4), {"num_points": 32, "preprocessing": preprocessing})
    )
    assert about["preprocessing"]["channels"] == ["nx", "ny", "nz", "height"]
    assert "estimate normals" in about["preprocessing"]["steps"][0]
