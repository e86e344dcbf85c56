"""PCT classifiers: numbers of parameters, invariances, arguments and errors."""

import numpy as np
import pytest
import torch

from pcattn.attention import Geometry
from pcattn.models import PCTClassifier
from pcattn.models.pct import is_fused_after_mix


def num_parameters(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


class TestParameterCounts:
    """Of the released networks, with 40 classes and offset-attention."""

    @pytest.mark.parametrize(("variant", "expected"), [("spct", 1_360_552), ("pct", 2_876_136)])
    def test_classifier(self, variant: str, expected: int) -> None:
        assert num_parameters(PCTClassifier(40, variant)) == expected

    def test_position_embedding_is_that_of_the_port(self) -> None:
        assert num_parameters(PCTClassifier(40, "pct", position_embedding=True)) == 2_811_112

    def test_npct_is_spct_with_untied_self_attention(self) -> None:
        # Self-attention has a separate key weight, C x C/4, in each of the four layers.
        assert num_parameters(PCTClassifier(40, "npct")) == 1_360_552 + 4 * 128 * 32

    @pytest.mark.parametrize(("dim", "expected"), [(128, 37_376), (256, 148_480)])
    def test_offset_layer(self, dim: int, expected: int) -> None:
        classifier = PCTClassifier(40, "spct", dim=dim)
        assert num_parameters(classifier.backbone.layers[0]) == expected

    def test_default_attention(self) -> None:
        explicit = PCTClassifier(40, "npct", attention="self").state_dict()
        assert {k: v.shape for k, v in explicit.items()} == {
            k: v.shape for k, v in PCTClassifier(40, "npct").state_dict().items()
        }


VARIANTS = ["npct", "spct", "pct"]


def small(variant: str, **kwargs) -> PCTClassifier:
    return PCTClassifier(5, variant, dim=16, depth=2, out_dim=32, **kwargs)


class TestClassifier:
    @pytest.mark.parametrize("variant", VARIANTS)
    def test_shape_and_gradients(self, variant: str) -> None:
        classifier = small(variant)
        logits = classifier(torch.randn(3, 64, 3))
        assert logits.shape == (3, 5)
        logits.sum().backward()
        assert all(parameter.grad is not None for parameter in classifier.parameters())

    @pytest.mark.parametrize("variant", VARIANTS)
    def test_does_not_depend_on_the_order_of_points(self, variant: str) -> None:
        classifier = small(variant).double().eval()
        pos = torch.randn(2, 80, 3, dtype=torch.float64)
        expected = classifier(pos)
        torch.testing.assert_close(classifier(pos[:, torch.randperm(80)]), expected, atol=1e-10, rtol=0)

    @pytest.mark.parametrize("variant", VARIANTS)
    def test_does_not_depend_on_the_batch(self, variant: str) -> None:
        classifier = small(variant).double().eval()
        pos = torch.randn(3, 64, 3, dtype=torch.float64)
        alone = torch.cat([classifier(cloud[None]) for cloud in pos])
        torch.testing.assert_close(classifier(pos), alone, atol=1e-10, rtol=0)

    def test_features(self) -> None:
        classifier = small("pct", num_features=3).eval()
        pos, normals = torch.randn(2, 64, 3), torch.randn(2, 64, 3)
        assert not torch.equal(classifier(pos, normals), classifier(pos, -normals))

    def test_position_embedding_reaches_every_layer(self) -> None:
        classifier = small("spct", position_embedding=True).eval()
        seen = []
        for layer in classifier.backbone.layers:
            layer.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
        pos = torch.randn(1, 8, 3)
        with torch.no_grad():
            classifier(pos)
            backbone = classifier.backbone
            embedded = backbone.embedding(pos, pos)[1] + backbone.position(pos)
            torch.testing.assert_close(seen[0], embedded)
            first = backbone.layers[0]
            core = first.core(embedded, Geometry(pos))
            torch.testing.assert_close(seen[1], embedded + first.lbr(embedded - core) + backbone.position(pos))

    def test_weights_from_before_0_2(self) -> None:
        """Their two LBRs were part of the embedding and were applied before its output was fused."""
        classifier = small("pct", k=4, fuse_after_mix=True).eval()
        old = {name.replace("backbone.mix", "backbone.embedding.mix"): v for name, v in classifier.state_dict().items()}
        other = small("pct", k=4, fuse_after_mix=True).eval()
        other.load_state_dict(old)
        pos = torch.randn(2, 32, 3)
        assert torch.equal(other(pos), classifier(pos))
        with torch.no_grad():
            _, outputs = other.backbone.outputs(pos)
            _, embedded = other.backbone.embedding(pos, pos)
            assert torch.equal(outputs[..., :16], other.backbone.mix(embedded))
        assert is_fused_after_mix(old)
        assert not is_fused_after_mix(classifier.state_dict())

    def test_points_are_independent_without_attention(self) -> None:
        backbone = PCTClassifier(5, "spct", depth=0).backbone.eval()
        pos = torch.randn(1, 16, 3)
        torch.testing.assert_close(backbone(pos)[1][:, :4], backbone(pos[:, :4])[1])

    def test_a_list_gives_each_layer_its_own_argument(self) -> None:
        classifier = small("spct", attention="external", attention_kwargs={"num_slots": [8, 24]})
        assert [layer.core.memory_key.shape[0] for layer in classifier.backbone.layers] == [8, 24]

    @pytest.mark.parametrize(
        ("kwargs", "message"),
        [
            ({"variant": "pcr"}, "variant"),
            ({"attention": "ofset"}, "did you mean 'offset'"),
            ({"attention": "external", "attention_kwargs": {"slots": 3}}, "num_slots"),
            ({"attention": "external", "attention_kwargs": {"num_slots": [1, 2, 3]}}, "list of 4"),
            ({"attention": "no.such.module"}, "cannot be imported"),
            ({"dim": 30}, "multiple of 4"),
            ({"num_features": -1}, "num_features to be an integer >= 0, but got -1"),
            ({"head_activation": "gelu"}, "head_activation to be one of leaky_relu, relu, but got 'gelu'"),
            ({"num_classes": 0}, "num_classes to be an integer >= 1, but got 0"),
            ({"num_classes": 2.5}, "num_classes to be an integer >= 1, but got 2.5"),
        ],
    )
    def test_bad_arguments(self, kwargs: dict, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            PCTClassifier(**{"num_classes": 5, **kwargs})

    def test_numpy_integers(self) -> None:
        classifier = PCTClassifier(np.int64(5), dim=np.int64(16), depth=np.int64(1), k=np.int64(4), out_dim=np.int64(8))
        assert classifier(torch.randn(2, 16, 3)).shape == (2, 5)

    @pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
    def test_trace(self) -> None:
        """During tracing, sizes are tensors."""
        classifier, pos = small("pct", k=4).eval(), torch.randn(2, 32, 3)
        torch.testing.assert_close(torch.jit.trace(classifier, pos)(pos), classifier(pos))

    @pytest.mark.parametrize(
        ("num_features", "pos", "features", "message"),
        [
            (0, (2, 64, 2), None, r"\(B, N, 3\)"),
            (0, (64, 3), None, r"\(B, N, 3\)"),
            (0, (2, 64, 3), (2, 64, 3), "no features"),
            (3, (2, 64, 3), None, "none"),
            (3, (2, 64, 3), (2, 60, 3), r"\(2, 64, 3\)"),
            (0, (2, 40, 3), None, "at least 64 points"),
        ],
    )
    def test_bad_input(self, num_features: int, pos: tuple, features: tuple | None, message: str) -> None:
        classifier = PCTClassifier(5, "pct", dim=16, num_features=num_features)
        with pytest.raises(ValueError, match=message):
            classifier(torch.randn(pos), None if features is None else torch.randn(features))

    @pytest.mark.parametrize("value", [torch.nan, torch.inf])
    def test_features_that_are_not_finite(self, value: float) -> None:
        classifier, features = small("spct", num_features=3), torch.randn(3, 32, 3)
        features[2, 7, 1] = value
        with pytest.raises(ValueError, match="features to be finite, but cloud 2"):
            classifier(torch.randn(3, 32, 3), features)
