"""The segmentation networks: sizes, order of the points, conditioning, the algebra of the head, errors."""

import pytest
import torch
from torch import Tensor

from pcattn.attention import ATTENTION
from pcattn.metrics import angle_error, cosine_distance
from pcattn.models import PCTNormals, PCTSegmenter
from pcattn.models.segmenter import SegmentationHead
from pcattn.ops import interpolate

VARIANTS = list(PCTSegmenter.VARIANTS)
SMALL = {"dim": 16, "depth": 2, "out_dim": 32}


def small(variant: str = "spct", num_categories: int | None = 3, **kwargs) -> PCTSegmenter:
    return PCTSegmenter(5, num_categories, variant, **{**SMALL, **kwargs})


def num_parameters(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


class TestParameterCounts:
    def test_spct_is_the_released_one(self) -> None:
        assert num_parameters(PCTSegmenter(50, 16, "spct")) == 2_446_130

    def test_without_categories(self) -> None:
        # Without the embedding of the category, 16 -> 64 with BN, and its 64 columns in the head.
        expected = 2_446_130 - (16 * 64 + 2 * 64) - 64 * 512
        assert num_parameters(PCTSegmenter(50, None, "spct")) == expected
        assert num_parameters(PCTSegmenter(50, 0, "spct")) == expected
        assert num_parameters(PCTNormals("spct")) == expected - 47 * 257

    def test_sampling_has_no_parameters(self) -> None:
        shapes = [
            {name: value.shape for name, value in PCTSegmenter(variant=variant).state_dict().items()}
            for variant in ("pct", "pct_sampled")
        ]
        assert shapes[0] == shapes[1]


class TestSegmenter:
    @pytest.mark.parametrize("variant", VARIANTS)
    @pytest.mark.parametrize("attention", ATTENTION)
    def test_trains_with_any_attention(self, variant: str, attention: str) -> None:
        network = small(variant, attention=attention)
        logits = network(torch.randn(2, 80, 3), torch.tensor([0, 2]))
        assert logits.shape == (2, 80, 5)
        logits.square().sum().backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())

    @pytest.mark.parametrize("variant", VARIANTS)
    def test_output_order_is_input_order(self, variant: str) -> None:
        network = small(variant).double().eval()
        pos, category, order = torch.randn(2, 90, 3, dtype=torch.float64), torch.tensor([1, 0]), torch.randperm(90)
        expected = network(pos, category)
        assert (expected[:, 0] != expected[:, 1]).any()
        torch.testing.assert_close(network(pos[:, order], category), expected[:, order], atol=1e-10, rtol=0)

    @pytest.mark.parametrize("variant", VARIANTS)
    def test_does_not_depend_on_the_batch(self, variant: str) -> None:
        network = small(variant).double().eval()
        pos, category = torch.randn(3, 64, 3, dtype=torch.float64), torch.tensor([2, 0, 1])
        alone = torch.cat([network(pos[i : i + 1], category[i : i + 1]) for i in range(3)])
        torch.testing.assert_close(network(pos, category), alone, atol=1e-10, rtol=0)

    @pytest.mark.parametrize("variant", ["pct", "pct_sampled"])
    def test_neighborhoods_are_seen(self, variant: str) -> None:
        """Without attention, only the neighbor embedding passes features from one point to another."""
        network = small(variant, None, depth=0, k=4, num_features=1).eval()
        pos, features = torch.randn(1, 32, 3), torch.zeros(1, 32, 1)
        changed = features.clone()
        changed[0, 7] = 9.0
        _, tokens = network.backbone(pos, features)
        _, others = network.backbone(pos, changed)
        assert tokens.shape[1] == (8 if variant == "pct_sampled" else 32)
        moved = (tokens != others).any(dim=2).sum()
        assert moved < tokens.shape[1]
        if variant == "pct":
            assert moved > 1

    def test_category_conditions(self) -> None:
        network = small().eval()
        pos = torch.randn(1, 16, 3)
        first, second = (network(pos, torch.tensor([which])) for which in (0, 1))
        assert not torch.equal(first, second)

    def test_without_categories_the_argument_is_optional(self) -> None:
        network = small(num_categories=None).eval()
        pos = torch.randn(2, 16, 3)
        assert torch.equal(network(pos), network(pos, torch.tensor([1, 2])))

    def test_features(self) -> None:
        network = small("pct", num_features=3).eval()
        pos, normals, category = torch.randn(2, 40, 3), torch.randn(2, 40, 3), torch.tensor([0, 1])
        assert not torch.equal(network(pos, category, normals), network(pos, category, -normals))

    @pytest.mark.parametrize(
        ("kwargs", "message"),
        [
            ({"variant": "pcr"}, "npct, spct, pct, pct_sampled, but got 'pcr'"),
            ({"num_parts": 0}, "num_parts >= 1"),
            ({"num_categories": -1}, "num_categories >= 0"),
            ({"attention": "ofset"}, "did you mean 'offset'"),
            ({"detph": 3}, "detph"),
        ],
    )
    def test_bad_arguments(self, kwargs: dict, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            PCTSegmenter(**kwargs)

    @pytest.mark.parametrize(
        ("category", "message"),
        [
            (None, r"shape \(2,\), but got none"),
            (torch.zeros(3, dtype=torch.long), r"shape \(2,\), but got torch.int64 of shape \(3,\)"),
            (torch.zeros(2), "but got torch.float32"),
            (torch.tensor([0, 3]), r"in \[0, 3\), but got 3 for cloud 1"),
        ],
    )
    def test_bad_category(self, category: Tensor | None, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            small()(torch.randn(2, 16, 3), category)

    def test_too_few_points(self) -> None:
        with pytest.raises(ValueError, match="at least 64 points"):
            small("pct_sampled")(torch.randn(1, 40, 3), torch.tensor([0]))
        with pytest.raises(ValueError, match="k <= 20"):
            small("pct")(torch.randn(1, 20, 3), torch.tensor([0]))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("sampled", [True, False])
def test_factorized_head_equals_textbook(sampled: bool, training: bool) -> None:
    """Interpolate the tokens, concatenate them with the features of the cloud, then apply the layers."""
    head = SegmentationHead(6, 10, 4, dropout=0.0).double().train(training)
    tokens = torch.randn(2, 9, 6, dtype=torch.float64, requires_grad=True)
    of_cloud = torch.randn(2, 10, dtype=torch.float64, requires_grad=True)
    pos = torch.randn(2, 30, 3, dtype=torch.float64)
    points = (pos, pos[:, :9]) if sampled else None
    at_points = interpolate(*points, tokens) if points else tokens
    whole = torch.cat((at_points, of_cloud[:, None].expand(-1, at_points.shape[1], -1)), dim=2)
    textbook = head.last(head.second(head.first(whole)))
    factorized = head(tokens, of_cloud, points)
    torch.testing.assert_close(factorized, textbook, atol=1e-12, rtol=0)
    leaves = (tokens, of_cloud, *head.parameters())
    cotangent = torch.randn_like(textbook)
    for ours, theirs in zip(
        torch.autograd.grad((factorized * cotangent).sum(), leaves),
        torch.autograd.grad((textbook * cotangent).sum(), leaves),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, atol=1e-10, rtol=0)


class TestNormals:
    @pytest.mark.parametrize("variant", VARIANTS)
    def test_unit_length_in_the_order_of_the_points(self, variant: str) -> None:
        network = PCTNormals(variant, **SMALL).double().eval()
        pos, order = torch.randn(2, 70, 3, dtype=torch.float64), torch.randperm(70)
        normals = network(pos)
        torch.testing.assert_close(normals.norm(dim=2), torch.ones(2, 70, dtype=torch.float64))
        torch.testing.assert_close(network(pos[:, order]), normals[:, order], atol=1e-10, rtol=0)

    def test_learns_the_normals_of_a_sphere(self) -> None:
        network = PCTNormals("spct", dropout=0.0, dim=16, depth=1, out_dim=32)
        optimizer = torch.optim.AdamW(network.parameters(), lr=0.01)
        pos = torch.nn.functional.normalize(torch.randn(4, 64, 3), dim=2)
        before = angle_error(network(pos), pos).mean()
        for _ in range(30):
            optimizer.zero_grad()
            cosine_distance(network(pos), pos).mean().backward()
            optimizer.step()
        assert angle_error(network(pos), pos).mean() < 15 < before
