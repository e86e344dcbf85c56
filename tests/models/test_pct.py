"""PCT's networks: sizes, the algebra of local aggregation, invariances, errors."""

import numpy as np
import pytest
import torch
from torch import Tensor

from pcattn.attention import Geometry
from pcattn.layers import LBR, LocalAggregation
from pcattn.models import PCTClassifier
from pcattn.models.pct import is_fused_after_mix
from pcattn.ops import farthest_point_sample, gather, knn
from pcattn.ops.batch_norm.op import normalize


def num_parameters(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


class TestParameterCounts:
    """The counts of the released networks (40 classes, offset attention)."""

    @pytest.mark.parametrize(("variant", "expected"), [("spct", 1_360_552), ("pct", 2_876_136)])
    def test_classifier(self, variant: str, expected: int) -> None:
        assert num_parameters(PCTClassifier(40, variant)) == expected

    def test_position_embedding_is_that_of_the_port(self) -> None:
        assert num_parameters(PCTClassifier(40, "pct", position_embedding=True)) == 2_811_112

    def test_npct_is_spct_with_untied_self_attention(self) -> None:
        # Self-attention has a key weight of its own, C x C/4, in each of the four layers.
        assert num_parameters(PCTClassifier(40, "npct")) == 1_360_552 + 4 * 128 * 32

    @pytest.mark.parametrize(("dim", "expected"), [(128, 37_376), (256, 148_480)])
    def test_offset_layer(self, dim: int, expected: int) -> None:
        classifier = PCTClassifier(40, "spct", dim=dim)
        assert num_parameters(classifier.backbone.layers[0]) == expected

    def test_a_name_and_its_default_build_the_same(self) -> None:
        explicit = PCTClassifier(40, "npct", attention="self").state_dict()
        assert {k: v.shape for k, v in explicit.items()} == {
            k: v.shape for k, v in PCTClassifier(40, "npct").state_dict().items()
        }


class TestLocalAggregation:
    def textbook(self, layer: LocalAggregation, features: Tensor, centers: Tensor, neighbors: Tensor) -> Tensor:
        """Group first, then both LBRs, as the paper writes it."""
        of_center = gather(features, centers)[:, :, None].expand(-1, -1, neighbors.shape[2], -1)
        grouped = torch.cat((gather(features, neighbors) - of_center, of_center[..., layer.num_relative :]), dim=3)
        return layer.second(torch.relu(normalize(layer.norm, layer.linear(grouped)))).amax(dim=2)

    @pytest.mark.parametrize("num_relative", [0, 3])
    @pytest.mark.parametrize("training", [True, False])
    def test_factorized_equals_textbook(self, training: bool, num_relative: int) -> None:
        layer = LocalAggregation(6, 10, num_relative).double().train(training)
        features = torch.randn(2, 30, 6, dtype=torch.float64, requires_grad=True)
        pos = torch.randn(2, 30, 3, dtype=torch.float64)
        centers = farthest_point_sample(pos, 12)
        neighbors = knn(gather(pos, centers), pos, 5).indices
        cotangent = torch.randn(2, 12, 10, dtype=torch.float64)
        results = []
        for forward in (layer, lambda *args: self.textbook(layer, *args)):
            out = forward(features, centers, neighbors)
            leaves = (features, *layer.parameters())
            results.append((out, *torch.autograd.grad((out * cotangent).sum(), leaves)))
        for factorized, textbook in zip(*results, strict=True):
            torch.testing.assert_close(factorized, textbook, atol=1e-12, rtol=0)

    def test_grouping_is_the_released_one(self, load_fixture) -> None:
        """With identity weights the layer's input to the first norm is the grouped tensor of the released code."""
        arrays = load_fixture("fps_group")
        layer = LocalAggregation(arrays["feat"].shape[2], arrays["grouped"].shape[3]).double().eval()
        torch.nn.init.eye_(layer.linear.weight)
        seen = {}
        layer.norm.register_forward_pre_hook(lambda module, args: seen.update(grouped=args[0]))
        centers = farthest_point_sample(arrays["xyz"], arrays["fps_idx"].shape[1], rule="pointnet2")
        layer(arrays["feat"], centers, arrays["knn_idx"])
        grouped = seen["grouped"].view_as(arrays["grouped"])
        torch.testing.assert_close(grouped, arrays["grouped"], atol=1e-10, rtol=0)


class TestBatchNorm:
    def test_equals_torch_on_channels_first(self) -> None:
        ours, theirs = torch.nn.BatchNorm1d(5), torch.nn.BatchNorm1d(5)
        x = torch.randn(4, 7, 5)
        torch.testing.assert_close(normalize(ours, x), theirs(x.transpose(1, 2)).transpose(1, 2))
        torch.testing.assert_close(ours.running_var, theirs.running_var)

    def test_statistics_are_exact(self) -> None:
        """In float32, of many rows far from zero."""
        norm, x = torch.nn.BatchNorm1d(4, momentum=1.0), 3 + torch.randn(20_000, 4)
        normalize(norm, x)
        torch.testing.assert_close(norm.running_mean.double(), x.double().mean(0), rtol=3e-7, atol=0)
        torch.testing.assert_close(norm.running_var.double(), x.double().var(0), rtol=1e-6, atol=0)

    def test_gradients(self) -> None:
        norm = torch.nn.BatchNorm1d(3).double()
        x = torch.randn(2, 5, 3, dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(lambda x, *parameters: normalize(norm, x), (x, *norm.parameters()))

    def test_one_row_is_refused(self) -> None:
        with pytest.raises(ValueError, match="more than 1 value"):
            normalize(torch.nn.BatchNorm1d(3), torch.randn(1, 3))

    def test_lbr_slope(self) -> None:
        x = torch.randn(16, 3)
        assert (LBR(3, 4)(x) >= 0).all()
        assert (LBR(3, 4, negative_slope=0.2)(x) < 0).any()


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
        """Their two LBRs belonged to the embedding, and were applied before it was fused."""
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

    def test_without_attention_points_do_not_meet_before_the_pool(self) -> None:
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
        """While a function is traced, sizes are tensors of one integer."""
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
