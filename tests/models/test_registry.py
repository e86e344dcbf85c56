"""Networks by name, with bundled weights, and networks of users."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

import pcattn
from pcattn.attention import ATTENTION, ExternalAttention, Geometry
from pcattn.models import PCTClassifier, PCTSegmenter, build_classifier, build_segmenter
from pcattn.models.registry import CLASSIFIERS, SEGMENTERS


class OwnNet(nn.Module):
    """A network of a user, without an argument for the attention."""

    def __init__(self, num_classes: int, width: int = 8) -> None:
        super().__init__()
        self.map = nn.Sequential(nn.Linear(3, width), nn.ReLU(), nn.Linear(width, num_classes))

    def forward(self, pos: Tensor, features: Tensor | None = None) -> Tensor:
        return self.map(pos).amax(dim=1)


class OwnAttention(nn.Module):
    """The mean of all values."""

    def __init__(self, dim: int, scale: float = 1.0) -> None:
        super().__init__()
        self.v, self.scale = nn.Linear(dim, dim), scale

    def forward(self, x: Tensor, geometry: Geometry) -> Tensor:
        return self.scale * self.v(x).mean(dim=1, keepdim=True).expand_as(x)


@pytest.fixture
def registered() -> Iterator[None]:
    """Remove the registered names after the test."""
    before = [dict(registry) for registry in (CLASSIFIERS, SEGMENTERS, ATTENTION)]
    yield
    for registry, entries in zip((CLASSIFIERS, SEGMENTERS, ATTENTION), before, strict=True):
        registry.clear()
        registry.update(entries)


class TestCreateModel:
    @pytest.mark.parametrize("name", pcattn.list_models())
    def test_every_model(self, name: str) -> None:
        small = (
            {"dims": [8, 16], "depths": [1, 1], "num_heads": [1, 2], "k": 4} if "hier" in name else {"dim": 16, "k": 4}
        )
        network = pcattn.create_model(name, **small).eval()
        inputs = (torch.randn(2, 64, 3), *([torch.tensor([1, 0])] if name.endswith("_partseg") else []))
        outputs = {"_partseg": (2, 64, 50), "_normals": (2, 64, 3)}
        assert network(*inputs).shape == next((outputs[s] for s in outputs if name.endswith(s)), (2, 40))

    def test_arguments(self) -> None:
        network = pcattn.create_model("pct", num_classes=7, attention="external", num_features=3, dim=32)
        assert isinstance(network, PCTClassifier)
        assert isinstance(network.backbone.layers[0].core, ExternalAttention)
        assert network(torch.randn(2, 64, 3), torch.randn(2, 64, 3)).shape == (2, 7)
        assert isinstance(pcattn.create_model("spct_partseg", num_parts=4, num_categories=2), PCTSegmenter)

    def test_patterns(self) -> None:
        assert pcattn.list_models("hierarchical_t*") == ["hierarchical_tiny", "hierarchical_tiny_partseg"]

    @pytest.mark.parametrize(
        ("name", "kwargs", "message"),
        [
            ("pcr", {}, "did you mean"),
            ("pct", {"num_parts": 3}, "num_parts"),
            ("spct", {"pretrained": True}, "expected pretrained model to be one of pct.modelnet40-cpu"),
            ("pct.imagenet", {}, "pretrained model"),
            ("pct", {"pretrained": True, "attention": "self"}, "expected a network that fits modelnet40-cpu"),
        ],
    )
    def test_errors(self, name: str, kwargs: dict, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            pcattn.create_model(name, **kwargs)


class TestPretrained:
    def test_equals_load(self) -> None:
        assert pcattn.list_models("pct*", pretrained=True) == ["pct.modelnet40-cpu"]
        network, model = pcattn.create_model("pct", pretrained=True).eval(), pcattn.load("modelnet40-cpu", device="cpu")
        pos = torch.randn(2, 64, 3)
        assert torch.equal(network(pos), model.task(pos))

    def test_other_classes_start_with_another_last_layer(self) -> None:
        networks = [pcattn.create_model("pct.modelnet40-cpu", **kwargs) for kwargs in ({}, {"num_classes": 3})]
        first, second = (network.state_dict() for network in networks)
        differ = {
            name for name in first if first[name].shape != second[name].shape or (first[name] != second[name]).any()
        }
        assert differ == {"head.4.weight", "head.4.bias"}


class TestOwn:
    @pytest.mark.parametrize("variant", [OwnNet, f"{__name__}.OwnNet"])
    def test_network_by_class_and_import_path(self, variant: str | type[nn.Module]) -> None:
        network = build_classifier(5, variant, attention=None, attention_kwargs=None, num_features=0, width=16)
        assert type(network) is OwnNet
        assert network(torch.randn(2, 9, 3)).shape == (2, 5)
        assert type(pcattn.create_model(variant, num_classes=5)) is OwnNet

    def test_arguments_that_it_lacks_are_named(self) -> None:
        with pytest.raises(
            ValueError, match=r"unexpected keyword argument 'attention'; expected arguments among: width"
        ):
            build_classifier(5, OwnNet, attention="self")

    @pytest.mark.usefixtures("registered")
    def test_network_by_decorator(self) -> None:
        pcattn.register_model("own")(OwnNet)
        pcattn.register_model("own_partseg")(PCTSegmenter)
        assert pcattn.list_models("own*") == ["own", "own_partseg"]
        assert type(build_classifier(3, "own")) is OwnNet
        assert type(build_segmenter(3, None, "own")) is PCTSegmenter
        assert type(pcattn.create_model("own", num_classes=3)) is OwnNet

    @pytest.mark.parametrize("model", ["spct", "hierarchical_tiny"])
    @pytest.mark.parametrize("attention", [OwnAttention, f"{__name__}.OwnAttention", "mean"])
    @pytest.mark.usefixtures("registered")
    def test_attention(self, model: str, attention: str | type[nn.Module]) -> None:
        pcattn.register_attention("mean")(OwnAttention)
        network = pcattn.create_model(model, num_classes=3, attention=attention, attention_kwargs={"scale": 2.0})
        cores = [module for module in network.modules() if isinstance(module, OwnAttention)]
        assert len(cores) in (4, 8)
        assert all(core.scale == 2.0 for core in cores)
        assert network(torch.randn(2, 64, 3)).shape == (2, 3)
