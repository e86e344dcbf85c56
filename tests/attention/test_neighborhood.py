"""Neighborhood attention on points of a grid against the authors' operators on images."""

import pytest
import torch

from pcattn.attention import Geometry, build_attention
from pcattn.ops.neighborhood_attention import neighborhood_attention
from tests.attention.attention_cases import (
    assert_near,
    grid_positions,
    knn_linf,
    load_linear,
    load_parameter,
    window_search,
)

LINE_CASES = [(3, 1), (3, 2), (3, 3), (3, 4), (5, 1), (5, 2)]


def load_core(arrays, table=None, **kwargs):
    """A core with the weights of a fixture, whose table has the axes of the grid first."""
    if table is None:
        kwargs["bias"] = "none"
    else:
        kwargs.update(bias="table", table_size=[*table.shape[1:], *[1] * (4 - table.dim())])
    core = build_attention("neighborhood", arrays["x"].shape[-1], num_heads=int(arrays["num_heads"]), **kwargs).double()
    load_linear(core.qkv, arrays["Wqkv"], arrays["bqkv"])
    load_linear(core.proj, arrays["Wo"], arrays["bo"])
    if table is not None:
        load_parameter(core.bias.table, table)
    return core


@pytest.fixture(params=[None, 1, 1 << 18], ids=["numba", "small chunks", "large chunks"], autouse=True)
def _backend(request, monkeypatch):
    """The numba kernel, and the reference with one query or all queries in a chunk."""
    if request.param is not None:
        monkeypatch.setattr("pcattn.ops.backends.is_installed", lambda module: False)
        monkeypatch.setattr("pcattn.ops.neighborhood_attention.reference._CHUNK_ELEMENTS", {"cpu": request.param})


@pytest.fixture
def line(load_fixture):
    """The arrays, features and geometry of the shuffled tokens, and their order."""
    arrays = load_fixture("na1d")
    batch, length, _ = arrays["x"].shape
    order = torch.randperm(length)
    geometry = Geometry(grid_positions(length)[order].expand(batch, -1, -1))
    return arrays, arrays["x"][:, order], geometry, order


def weights(core, x, geometry):
    """The weights (B, H, N, N): the result for an identity matrix as values, with heads of width N."""
    where = core.k, core.dilation, core.dilation_mode
    q, k, _ = core.qkv(x).unflatten(-1, (3, core.num_heads, -1)).unbind(2)
    num_points, width = x.shape[1], q.shape[-1]
    padding = (0, num_points - width)
    q, k = (torch.nn.functional.pad(y, padding) for y in (q * (num_points / width) ** 0.5, k))
    identity = torch.eye(num_points, dtype=x.dtype)[None, :, None].expand_as(q)
    bias = None if core.bias is None else core.bias(geometry.offsets(*where) / core.cell)
    return neighborhood_attention(q, k, identity, geometry.neighbors(*where), bias).transpose(1, 2)


@pytest.mark.parametrize(("k", "dilation"), LINE_CASES)
def test_line_equals_fixture(line, k, dilation):
    arrays, x, geometry, order = line
    name = f"k{k}_d{dilation}"
    core = load_core(arrays, arrays[f"rpb_k{k}"], k=k, dilation=dilation, dilation_mode="class", cell=float(dilation))
    assert_near(core(x, geometry), arrays[f"y_{name}"][:, order])
    listed = order[geometry.neighbors(k, dilation, "class")].sort(dim=-1).values
    assert (listed == arrays[f"nbr_{name}"][order]).all()
    expected = torch.zeros(*arrays[f"attn_{name}"].shape[:3], x.shape[1], dtype=x.dtype)
    expected.scatter_(3, arrays[f"nbr_{name}"].expand_as(arrays[f"attn_{name}"]), arrays[f"attn_{name}"])
    assert_near(weights(core, x, geometry), expected[:, :, order][..., order])


def test_line_without_bias_equals_fixture(line):
    arrays, x, geometry, order = line
    assert_near(load_core(arrays, k=5)(x, geometry), arrays["y_k5_d1_nobias"][:, order])


def test_image_in_the_maximum_metric_equals_fixture(load_fixture):
    """In the interior and in the corners, where the 9 nearest pixels are unique; along an edge there are ties."""
    arrays = load_fixture("na2d")
    batch, height, width, _ = arrays["x"].shape
    order = torch.randperm(height * width)
    geometry = Geometry(grid_positions(height, width)[order].expand(batch, -1, -1), knn_linf)
    core = load_core(arrays, arrays["rpb_k3"], k=9, cell=1.0)
    out = core(arrays["x"].flatten(1, 2)[:, order], geometry)[:, order.argsort()].view_as(arrays["x"])
    expected = arrays["y_k3_d1"]
    assert_near(out[:, 1:-1, 1:-1], expected[:, 1:-1, 1:-1])
    assert_near(out[:, [0, 0, -1, -1], [0, -1, 0, -1]], expected[:, [0, 0, -1, -1], [0, -1, 0, -1]])


@pytest.mark.parametrize("dilation", [1, 2])
def test_image_with_its_windows_equals_fixture(load_fixture, dilation):
    """With the windows of the image as neighbor lists, it equals the image operator everywhere."""
    arrays = load_fixture("na2d")
    batch, height, width, _ = arrays["x"].shape
    pos = grid_positions(height, width).expand(batch, -1, -1)
    geometry = Geometry(pos, window_search(height, width, 3, dilation))
    core = load_core(arrays, arrays["rpb_k3"], k=9, cell=float(dilation))
    x = arrays["x"].flatten(1, 2)
    assert_near(core(x, geometry).view_as(arrays["x"]), arrays[f"y_k3_d{dilation}"])
    windows = window_search(height, width, 3, dilation)(pos, pos, 9).indices[:, None]
    listed = weights(core, x, geometry).gather(3, windows.expand(-1, core.num_heads, -1, -1))
    assert_near(listed.view_as(arrays[f"attn_k3_d{dilation}"]), arrays[f"attn_k3_d{dilation}"])


@pytest.mark.parametrize("mode", ["rank", "class"])
def test_all_neighbors_are_dense_attention(cloud, mode):
    x, geometry = cloud(num_points=20)
    core = build_attention("neighborhood", 16, k=20, bias="none", dilation_mode=mode).double()
    q, k, v = core.qkv(x).unflatten(-1, (3, 4, -1)).permute(2, 0, 3, 1, 4)
    dense = torch.nn.functional.scaled_dot_product_attention(q, k, v)
    assert_near(core(x, geometry), core.proj(dense.transpose(1, 2).flatten(2)))


def test_table_is_interpolated():
    """Halfway between entries it is their mean, beyond the table its border; size 1 ignores an axis."""
    core = build_attention("neighborhood", 4, num_heads=1, bias="table", table_size=[3, 1, 3], cell=1.0).double()
    table = torch.randn(1, 3, 1, 3, dtype=torch.float64)
    load_parameter(core.bias.table, table)
    places = torch.tensor([[0, 0, 0], [0.5, 7, 0], [-0.5, 0, 0.5], [9, 0, -9.0]], dtype=torch.float64)
    t = table[0, :, 0]
    expected = torch.stack([t[1, 1], t[1:, 1].mean(), t[:2, 1:].mean(), t[2, 0]])
    assert_near(core.bias(places)[:, 0], expected)


def test_bias_does_not_depend_on_the_scale(cloud):
    core, (x, geometry) = build_attention("neighborhood", 16, k=8).double(), cloud()
    assert_near(core(x, Geometry(1000 * geometry.pos)), core(x, geometry))


@pytest.mark.parametrize("scale", [1.0, 0.001])
def test_half_precision_of_the_positions(scale):
    """The unit of the positions is computed in float32, because squares of short distances vanish in float16."""
    core = build_attention("neighborhood", 16, k=5)
    x, pos = torch.randn(2, 40, 16), scale * torch.rand(2, 40, 3)
    expected = core(x, Geometry(pos))
    actual = core.half()(x.half(), Geometry(pos.half()))
    assert (actual - expected).abs().max() <= 3e-3 * expected.abs().max()


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"num_heads": 3}, "divisible by num_heads"),
        ({"k": 0}, "k >= 1"),
        ({"dilation": 0}, "dilation >= 1"),
        ({"dilation_mode": "random"}, "dilation_mode to be one of rank, class"),
        ({"bias": "cubic"}, "bias to be one of mlp, table, none"),
        ({"bias": "table", "table_size": 4}, "three odd numbers"),
        ({"cell": 0.0}, "cell > 0"),
    ],
)
def test_exceptions(kwargs, message):
    with pytest.raises(ValueError, match=message):
        build_attention("neighborhood", 16, **kwargs)
