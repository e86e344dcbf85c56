"""Hierarchical networks: sizes, levels, dilation, invariances, attentions and errors."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from pcattn.attention import ATTENTION, Geometry
from pcattn.layers import AttentionBlock
from pcattn.models import HierarchicalBackbone, HierarchicalClassifier, HierarchicalSegmenter
from pcattn.models.hierarchical_segmenter import FeaturePropagation
from pcattn.models.levels import build_levels
from pcattn.ops import farthest_point_sample, gather, interpolate, knn

#: Two levels with two blocks each.
SMALL = {"dims": [16, 32], "depths": [2, 2], "num_heads": [2, 4], "k": 4, "dilation": 4}


def classifier(**kwargs) -> HierarchicalClassifier:
    return HierarchicalClassifier(5, **{**SMALL, **kwargs})


def segmenter(num_categories: int | None = 3, **kwargs) -> HierarchicalSegmenter:
    return HierarchicalSegmenter(5, num_categories, **{**SMALL, **kwargs})


def num_parameters(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize(
    ("variant", "of_classifier", "of_segmenter"),
    [
        ("hierarchical_tiny", 1_053_490, 977_500),
        ("hierarchical_small", 3_184_618, 3_290_644),
        ("hierarchical_base", 12_406_452, 12_873_406),
    ],
)
def test_parameter_counts(variant: str, of_classifier: int, of_segmenter: int) -> None:
    with torch.device("meta"):
        assert num_parameters(HierarchicalClassifier(40, variant)) == of_classifier
        assert num_parameters(HierarchicalSegmenter(50, 16, variant)) == of_segmenter


class TestLevels:
    @pytest.mark.parametrize("strides", [[2, 2, 2], [1, 4, 2], [3, 1, 1]])
    def test_samples_are_nested_and_neighbors_are_nearest(self, strides: list[int]) -> None:
        pos, k = torch.randn(2, 50, 3), 6
        at, below = pos, pos
        for stride, level in zip(strides, build_levels(pos, strides, k), strict=True):
            size = at.shape[1] // stride
            if size < at.shape[1]:
                at = gather(pos, farthest_point_sample(pos, size))
            assert torch.equal(level.geometry.pos, at)
            if level.centers is not None:
                assert torch.equal(gather(below, level.centers), at)
            assert torch.equal(level.neighbors, knn(at, below, min(k, below.shape[1])).indices)
            below = at

    @pytest.mark.parametrize("num_points", [1, 2, 3, 7])
    def test_few_points(self, num_points: int) -> None:
        levels = build_levels(torch.randn(1, num_points, 3), [2, 4, 4], k=16)
        sizes = [level.geometry.pos.shape[1] for level in levels]
        assert sizes == [max(1, num_points // 2), 1, 1]
        assert all(level.neighbors.shape[2] <= num_points for level in levels)

    @pytest.mark.parametrize("strides", [[1, 4], [2, 2]])
    def test_spacing(self, strides: list[int]) -> None:
        pos = torch.randn(2, 40, 3, dtype=torch.float64)
        below = pos
        for level in build_levels(pos, strides, k=5):
            near = gather(below, level.neighbors)
            distance = (near - level.geometry.pos[:, :, None]).norm(dim=3)
            torch.testing.assert_close(level.spacing[:, 0, 0], distance.square().mean(dim=(1, 2)).sqrt())
            below = level.geometry.pos

    def test_lists_are_shared(self) -> None:
        """A level searches once for its first and third block and for the aggregation of the next level."""
        calls = []
        levels = build_levels(torch.randn(1, 64, 3), [1, 4], k=4)
        search = levels[0].geometry._search
        levels[0].geometry._search = lambda *args: calls.append(args) or search(*args)
        for dilation in (1, 4, 1, 4):
            levels[0].geometry.neighbors(4, dilation, "class")
        assert len(calls) == 1


class TestDilation:
    @pytest.mark.parametrize(
        ("num_points", "k", "dilation"), [(64, 4, 8), (40, 4, 8), (33, 16, 8), (9, 16, 8), (1, 4, 2)]
    )
    def test_clipped_geometry_keeps_the_bound(self, num_points: int, k: int, dilation: int) -> None:
        pos = torch.randn(2, num_points, 3)
        fitting = min(k, num_points)
        bound = min(dilation, num_points // fitting)
        clipped, exact = Geometry(pos, clip=True), Geometry(pos)
        for mode in ("class", "rank"):
            lists = clipped.neighbors(k, dilation, mode)
            assert torch.equal(lists, exact.neighbors(fitting, bound, mode))
            assert clipped.neighbors(fitting, bound, mode) is lists
            assert torch.equal(clipped.offsets(k, dilation, mode), exact.offsets(fitting, bound, mode))

    def test_blocks_alternate(self) -> None:
        backbone = classifier(depths=[3, 2], dilation=[8, 2]).backbone
        assert [[block.core.dilation for block in blocks] for blocks in backbone.layers] == [[1, 8, 1], [1, 2]]
        assert {block.core.dilation_mode for blocks in backbone.layers for block in blocks} == {"class"}

    @pytest.mark.parametrize(("dilations", "expected"), [([1, 1, 1, 1], 9), ([1, 3, 1, 3], 17), ([1, 3, 9, 27], 81)])
    def test_receptive_field_of_four_blocks(self, dilations: list[int], expected: int) -> None:
        """k = 3 on a line, counted as in the papers: 1 + 4 * 2 for plain blocks, 1 + 2 (1 + 3 + 1 + 3), and 3^4."""
        assert len(influential(dilations)) == expected

    def test_alternation_reaches_further_on_a_cloud(self) -> None:
        """A token of the first level depends on more points of a sphere than with plain blocks."""
        pos = torch.nn.functional.normalize(torch.randn(1, 512, 3, dtype=torch.float64), dim=2)
        reached = {}
        for dilation in (1, 8):
            torch.manual_seed(0)
            kwargs = {**SMALL, "k": 8, "depths": [4, 1], "dilation": dilation, "stem_stride": 1, "num_features": 1}
            backbone = HierarchicalBackbone(**kwargs).double().eval()
            features = torch.randn(1, 512, 1, dtype=torch.float64, requires_grad=True)
            backbone(pos, features)[1][0][0, 0].sum().backward()
            reached[dilation] = int((features.grad != 0).sum())
        assert reached[8] > 3 * reached[1]


def influential(dilations: list[int]) -> list[int]:
    """Tokens of a line that influence the middle token through a stack of blocks with k = 3."""
    length = 135
    pos = torch.zeros(1, length, 3, dtype=torch.float64)
    pos[..., 0] = torch.arange(length)
    geometry = Geometry(pos)
    x = leaf = torch.randn(1, length, 8, dtype=torch.float64, requires_grad=True)
    for dilation in dilations:
        kwargs = {"num_heads": 2, "k": 3, "dilation": dilation, "dilation_mode": "class"}
        x = AttentionBlock(8, "neighborhood", kwargs).double()(x, geometry)
    (grad,) = torch.autograd.grad(x[0, length // 2].sum(), leaf)
    return grad[0].abs().sum(dim=1).nonzero().flatten().tolist()


class TestClassifier:
    def test_drop_path_grows(self) -> None:
        backbone = classifier(drop_path=0.3).backbone
        rates = [block.drop_path for blocks in backbone.layers for block in blocks]
        assert rates == pytest.approx([0.0, 0.1, 0.2, 0.3])

    def test_shape_and_gradients(self) -> None:
        network = classifier()
        logits = network(torch.randn(3, 64, 3))
        assert logits.shape == (3, 5)
        logits.sum().backward()
        assert all(parameter.grad is not None for parameter in network.parameters())

    @pytest.mark.parametrize("mode", ["class", "rank"])
    def test_does_not_depend_on_the_order_of_points(self, mode: str) -> None:
        network, pos = classifier(dilation_mode=mode).double().eval(), torch.randn(2, 75, 3, dtype=torch.float64)
        torch.testing.assert_close(network(pos[:, torch.randperm(75)]), network(pos), atol=1e-10, rtol=0)

    def test_aggregates_relative_positions_in_units_of_their_spacing(self) -> None:
        """Without attention and without positions in the features, scale and position of a cloud do not matter."""
        backbone = HierarchicalBackbone(**{**SMALL, "depths": [0, 0]}, num_features=1).double().eval()
        with torch.no_grad():
            backbone.embedding.linear.weight[:, :3] = 0
        pos, features = torch.randn(2, 40, 3, dtype=torch.float64), torch.randn(2, 40, 1, dtype=torch.float64)
        expected = backbone(pos, features)[1][-1]
        torch.testing.assert_close(backbone(100 * pos + 7, features)[1][-1], expected, atol=1e-9, rtol=0)
        assert not torch.allclose(backbone(pos * torch.tensor([1.0, 1.0, 2.0]), features)[1][-1], expected)

    def test_every_level_is_pooled(self) -> None:
        network, pos = classifier(pool_dim=6).eval(), torch.randn(2, 40, 3)
        tokens = network.backbone(pos)[1]
        pooled = [pool(x).max(dim=1).values for pool, x in zip(network.pools, tokens, strict=True)]
        torch.testing.assert_close(network(pos), network.head(torch.cat(pooled, dim=1)))

    def test_does_not_depend_on_the_batch(self) -> None:
        network, pos = classifier().double().eval(), torch.randn(3, 64, 3, dtype=torch.float64)
        alone = torch.cat([network(cloud[None]) for cloud in pos])
        torch.testing.assert_close(network(pos), alone, atol=1e-10, rtol=0)

    @pytest.mark.parametrize("attention", ATTENTION)
    def test_any_attention(self, attention: str) -> None:
        """In every level, with the arguments of the level, and for a single point."""
        network = classifier(attention=attention)
        network(torch.randn(2, 40, 3)).square().sum().backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())
        assert network.eval()(torch.randn(2, 1, 3)).isfinite().all()

    def test_attention_of_each_level(self) -> None:
        kwargs = {"k": [3, None], "num_slots": [None, 8]}
        network = classifier(attention=["neighborhood", "external"], attention_kwargs=kwargs)
        first, second = (blocks[0].core for blocks in network.backbone.layers)
        assert (first.k, first.num_heads, second.memory_key.shape[0]) == (3, 2, 8)
        network(torch.randn(2, 40, 3)).sum().backward()

    def test_features(self) -> None:
        network, (pos, normals) = classifier(num_features=3).eval(), torch.randn(2, 2, 64, 3)
        assert not torch.equal(network(pos, normals), network(pos, -normals))

    def test_gradcheck(self) -> None:
        network = classifier(num_features=1, dims=[4, 4], num_heads=[1, 2], depths=[2, 1]).double().eval()
        pos, features = torch.randn(1, 12, 3, dtype=torch.float64), torch.randn(1, 12, 1, dtype=torch.float64)
        assert torch.autograd.gradcheck(network, (pos, features.requires_grad_()), fast_mode=True)

    def test_half_precision(self) -> None:
        network, pos = classifier().eval(), torch.randn(2, 64, 3)
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            half = network(pos)
        assert (half.float() - network(pos)).abs().max() < 0.05

    def test_compiles_whole(self) -> None:
        network, pos = classifier(depths=[2, 0]).eval(), torch.randn(2, 64, 3)
        compiled = torch.compile(network, backend="aot_eager", fullgraph=True)
        torch.testing.assert_close(compiled(pos), network(pos), rtol=1e-4, atol=1e-5)

    @pytest.mark.parametrize(
        ("kwargs", "message"),
        [
            ({"variant": "hierarchical_huge"}, "hierarchical_tiny, .* but got 'hierarchical_huge'"),
            ({"depths": [2]}, r"depths to be 2 integers, one per level, >= 0, but got \[2\]"),
            ({"num_heads": [3, 4]}, "divisible by num_heads"),
            ({"dims": [16, 0]}, "dims to be 2 integers"),
            ({"dilation": 0}, "dilation to be 2 integers, one per level, >= 1, but got 0"),
            ({"stride": 0}, "stride to be an integer >= 1, but got 0"),
            ({"k": 2.5}, "k to be an integer >= 1, but got 2.5"),
            ({"num_features": -1}, "num_features to be an integer >= 0, but got -1"),
            ({"drop_path": 1.0}, r"drop_path in \[0, 1\)"),
            ({"attention": ["self"]}, r"one name or a list of 2, one per level, but got \['self'\]"),
            ({"attention": "neighbourhood"}, "did you mean 'neighborhood'"),
            ({"attention_kwargs": {"num_slots": 3}}, "num_slots"),
            ({"detph": 3}, "detph"),
        ],
    )
    def test_bad_arguments(self, kwargs: dict, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            classifier(**kwargs)

    def test_numpy_integers(self) -> None:
        network = classifier(k=np.int64(4), stride=np.int64(2), dilation=np.int64(2))
        assert network(torch.randn(2, 40, 3)).shape == classifier()(torch.randn(2, 40, 3)).shape

    def test_bad_input(self) -> None:
        with pytest.raises(ValueError, match=r"\(B, N, 3\)"):
            classifier()(torch.randn(64, 3))
        with pytest.raises(ValueError, match="pos to be finite"):
            classifier()(torch.full((1, 64, 3), torch.nan))


class TestSegmenter:
    @pytest.mark.parametrize("stem_stride", [1, 3])
    @pytest.mark.parametrize("num_points", [1, 5, 70])
    def test_every_point_keeps_its_output(self, stem_stride: int, num_points: int) -> None:
        network = segmenter(stem_stride=stem_stride).double().eval()
        pos, order = torch.randn(2, num_points, 3, dtype=torch.float64), torch.randperm(num_points)
        category = torch.tensor([0, 2])
        expected = network(pos, category)
        assert expected.shape == (2, num_points, 5)
        torch.testing.assert_close(network(pos[:, order], category), expected[:, order], atol=1e-10, rtol=0)

    @pytest.mark.parametrize(("kwargs", "num_tokens"), [({}, 12), ({"stem_stride": 1}, 12), ({"stem_stride": 3}, 4)])
    def test_tokens_of_the_first_level(self, kwargs: dict, num_tokens: int) -> None:
        """By default, every point is a token."""
        levels, tokens = segmenter(**kwargs).backbone(torch.randn(2, 12, 3))
        assert levels[0].geometry.pos.shape == (2, num_tokens, 3)
        assert tokens[0].shape == (2, num_tokens, 16)

    def test_gradients(self) -> None:
        network = segmenter()
        network(torch.randn(2, 40, 3), torch.tensor([0, 1])).sum().backward()
        assert all(parameter.grad is not None for parameter in network.parameters())

    def test_category_conditions(self) -> None:
        network, pos = segmenter().eval(), torch.randn(1, 16, 3)
        assert not torch.equal(network(pos, torch.tensor([0])), network(pos, torch.tensor([1])))
        with pytest.raises(ValueError, match=r"in \[0, 3\), but got 3 for cloud 0"):
            network(pos, torch.tensor([3]))
        without = segmenter(None).eval()
        assert torch.equal(without(pos), without(pos, torch.tensor([1])))

    def test_factorized_propagation_equals_textbook(self) -> None:
        unit = FeaturePropagation(6, 4).double()
        pos = torch.randn(2, 30, 3, dtype=torch.float64)
        x, skipped = torch.randn(2, 9, 6, dtype=torch.float64), torch.randn(2, 30, 4, dtype=torch.float64)
        textbook = unit.lbr(torch.cat((interpolate(pos, pos[:, :9], x), skipped), dim=2))
        torch.testing.assert_close(unit(x, skipped, pos[:, :9], pos), textbook, atol=1e-12, rtol=0)


@pytest.mark.parametrize(
    "build",
    [lambda: classifier(depths=[2, 0]), lambda: segmenter(None, depths=[0, 1])],
    ids=["classifier", "segmenter"],
)
def test_export_with_a_free_batch(build: Callable[[], torch.nn.Module]) -> None:
    network = build().eval()
    free = ({0: torch.export.Dim.DYNAMIC},)
    exported = torch.export.export(network, (torch.randn(3, 40, 3),), dynamic_shapes=free).module()
    for batch in (1, 4):
        pos = torch.randn(batch, 40, 3)
        torch.testing.assert_close(exported(pos), network(pos), rtol=1e-4, atol=1e-5)


def test_degenerate_clouds() -> None:
    """All points equal, on a line, or copies of two or three points: results are finite."""
    line = torch.zeros(2, 32, 3)
    line[..., 0] = torch.linspace(-1, 1, 32)
    twins = torch.randn(2, 2, 3).repeat_interleave(16, dim=1)  # all neighbors of a point are its copies
    clouds: list[Tensor] = [torch.full((2, 32, 3), 0.3), line, twins, torch.randn(2, 3, 3).repeat(1, 11, 1)[:, :32]]
    for train in (True, False):
        for network in (classifier().train(train), segmenter(None).train(train)):
            assert all(network(cloud).isfinite().all() for cloud in clouds)
