"""Attention maps, which applied to the values give the output of the forward pass."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from pcattn.attention import Geometry, build_attention
from pcattn.ops.batch_norm import normalize
from tests.attention.attention_cases import assert_near, randomize

POINT = 7


def built(name: str, **kwargs) -> nn.Module:
    return randomize(build_attention(name, 16, **kwargs).double()).eval()


def test_every_mechanism(core: Callable[..., nn.Module], cloud: Callable[..., tuple[Tensor, Geometry]]) -> None:
    """Maps have different names and sum to one, over all points or over the slots of a head."""
    x, geometry = cloud()
    module = core().eval()
    with torch.no_grad():
        maps = module.attention_map(x, geometry, POINT)
    assert maps.weights.shape == (2, len(maps.names), 40)
    assert len(set(maps.names)) == len(maps.names)
    assert bool((maps.weights >= 0).all())
    assert bool((maps.weights <= 1 + 1e-9).all())
    if maps.slots:
        heads = len({name.partition(",")[0] for name in maps.names if "head" in name}) or 1
        assert_near(maps.weights.sum(dim=1), torch.full((2, 40), float(heads)).double(), 1e-6)
    elif "point gate" not in maps.names:
        assert_near(maps.weights.sum(dim=2), torch.ones(2, len(maps.names)).double(), 1e-6)


@pytest.mark.parametrize("kwargs", [{}, {"num_heads": 2, "tied": True}])
def test_self(kwargs: dict, cloud: Callable) -> None:
    x, geometry = cloud()
    core = built("self", **kwargs)
    weights = core.attention_map(x, geometry, POINT).weights
    values = core.v(x).unflatten(-1, (core.num_heads, -1))
    assert_near(torch.einsum("bhn,bnhd->bhd", weights, values).flatten(1), core(x, geometry)[:, POINT])


@pytest.mark.parametrize("num_points", [40, 300])
def test_offset(num_points: int, cloud: Callable) -> None:
    x, geometry = cloud(num_points=num_points)
    core = built("offset")
    weights = core.attention_map(x, geometry, POINT).weights
    assert_near((weights @ core.v(x))[:, 0], core(x, geometry)[:, POINT])


def test_external(cloud: Callable) -> None:
    x, geometry = cloud()
    core = built("external", num_slots=8)
    maps = core.attention_map(x, geometry, POINT)
    assert maps.names[3] == "slot 3"
    assert_near(maps.weights.transpose(1, 2) @ core.memory_value, core(x, geometry))


def test_multihead_external(cloud: Callable) -> None:
    x, geometry = cloud()
    core = built("multihead_external", num_heads=2, num_slots=8)
    maps = core.attention_map(x, geometry, POINT)
    assert maps.names[9] == "head 1, slot 1"
    weights = maps.weights.unflatten(1, (8, 8))  # (B, heads, slots, N)
    heads = torch.einsum("bhsn,ds->bnhd", weights, core.memory_value.weight) + core.memory_value.bias
    assert_near(core.proj(heads.flatten(2)), core(x, geometry))


@pytest.mark.parametrize("kwargs", [{"k": 6}, {"k": 4, "dilation": 3, "bias": "table"}, {"k": 5, "bias": "none"}])
def test_neighborhood(kwargs: dict, cloud: Callable) -> None:
    x, geometry = cloud()
    core = built("neighborhood", **kwargs)
    weights = core.attention_map(x, geometry, POINT).weights
    assert int((weights > 0).sum(dim=2).max()) <= kwargs["k"]
    values = core.qkv(x).unflatten(-1, (3, core.num_heads, -1)).unbind(2)[2]
    out = core.proj(torch.einsum("bhn,bnhd->bhd", weights, values).flatten(1))
    assert_near(out, core(x, geometry)[:, POINT])


def test_acmix(cloud: Callable) -> None:
    """Only the attention path, because the convolution has no attention weights."""
    x, geometry = cloud()
    core = built("acmix")
    torch.nn.init.zeros_(core.rate_conv)
    weights = core.attention_map(x, geometry, POINT).weights
    values = core.v(x).unflatten(-1, (core.num_heads, -1))
    out = core.rate_attention * torch.einsum("bhn,bnhd->bhd", weights, values).flatten(1)
    assert_near(out, core(x, geometry)[:, POINT])


@pytest.mark.parametrize("kwargs", [{"axes": "x"}, {"axes": "y", "gated": True, "span": 2}])
def test_axial(kwargs: dict, cloud: Callable) -> None:
    x, geometry = cloud()
    core = built("axial", **kwargs)
    (pencil,) = core.pencils
    weights = core.attention_map(x, geometry, POINT).weights  # (B, G, N)
    values = pencil._inputs(x)[2]
    coordinate = geometry.pencils(pencil.axis).coordinate
    span = pencil.relative.shape[1] // 2
    entry = span + (coordinate[:, POINT, None] - coordinate).round().clamp(-span, span).long()
    relative = pencil.relative.split(pencil.widths)[2].t()[entry]  # (B, N, g)
    content, place = (
        torch.einsum("bgn,bngd->bgd", weights, values),
        torch.einsum("bgn,bnd->bgd", weights, relative),
    )
    if pencil.gates is not None:
        content, place = content * pencil.gates[2], place * pencil.gates[3]
    both = torch.stack((content, place), dim=-1).flatten(1)
    assert_near(
        normalize(pencil.out_norm, both[:, None]).unflatten(-1, (-1, 2)).sum(dim=-1)[:, 0], core(x, geometry)[:, POINT]
    )


def test_axial_names(cloud: Callable) -> None:
    x, geometry = cloud()
    maps = built("axial", axes="yx", num_groups=2).attention_map(x, geometry, POINT)
    assert maps.names == ["y, head 0", "y, head 1", "x, head 0", "x, head 1"]


@pytest.mark.parametrize("layout", ["parallel", "sequential"])
def test_polarized(layout: str, cloud: Callable) -> None:
    x, geometry = cloud()
    core = built("polarized", layout=layout)
    point_gate, share = core.attention_map(x, geometry, POINT).weights.unbind(1)
    channel_gate = core.channel_up(core.channel_v((share[..., None] * x).sum(dim=1, keepdim=True))).sigmoid()
    gate = point_gate[..., None] + channel_gate if layout == "parallel" else point_gate[..., None] * channel_gate
    assert_near(x * gate, core(x, geometry))
