"""Self-attention against the equations of the paper."""

import pytest
import torch

from pcattn.attention import Geometry
from pcattn.layers import AttentionLayer
from tests.attention.attention_cases import assert_near, load_linear, load_norm


def load_layer(arrays, tied=False):
    layer = AttentionLayer(arrays["x"].shape[-1], "self", {"tied": tied}).double()
    load_linear(layer.core.q, arrays["Wk" if tied else "Wq"])
    load_linear(layer.core.k, arrays["Wk"])
    load_linear(layer.core.v, arrays["Wv"], arrays["bv"])
    load_linear(layer.lbr.linear, arrays["Wt"], arrays["bt"])
    load_norm(layer.lbr.norm, arrays)
    return layer


@pytest.mark.parametrize("tied", [False, True])
def test_layer_equals_fixture(load_fixture, tied):
    arrays = load_fixture("sa")
    layer = load_layer(arrays, tied).eval()
    geometry = Geometry(arrays["x"][..., :3])
    assert_near(layer(arrays["x"], geometry), arrays["y_eval_tied" if tied else "y_eval"])
    if not tied:
        assert_near(layer.train()(arrays["x"], geometry), arrays["y_train"])


@pytest.mark.parametrize("tied", [False, True])
def test_weights_equal_fixture(load_fixture, tied):
    """With one-hot values, the result of the core is a column of its weights."""
    arrays = load_fixture("sa")
    core, x = load_layer(arrays, tied).core, arrays["x"]
    expected = arrays["attn_tied" if tied else "attn"]
    num_points, dim = x.shape[1], x.shape[2]
    load_linear(core.v, torch.zeros(dim, dim), torch.zeros(dim))
    columns = []
    for point in range(num_points):
        core.v.forward = lambda x, point=point: torch.zeros_like(x).index_fill(1, torch.tensor([point]), 1.0)
        columns.append(core(x, Geometry(x[..., :3]))[..., 0])
    assert_near(torch.stack(columns, dim=-1), expected)


def test_heads_attend_separately():
    core = AttentionLayer(16, "self", {"num_heads": 2}).core.double()
    x = torch.randn(2, 9, 16, dtype=torch.float64)
    expected = []
    for head in range(2):
        q, k = (project.weight[2 * head : 2 * head + 2] for project in (core.q, core.k))
        v = x @ core.v.weight[8 * head : 8 * head + 8].t() + core.v.bias[8 * head : 8 * head + 8]
        weights = ((x @ q.t()) @ (x @ k.t()).transpose(1, 2) / 2**0.5).softmax(dim=-1)
        expected.append(weights @ v)
    assert_near(core(x, Geometry(x[..., :3])), torch.cat(expected, dim=-1))


@pytest.mark.parametrize("kwargs", [{"num_heads": 3}, {"num_heads": 0}, {"num_heads": 8}])
def test_exceptions(kwargs):
    with pytest.raises(ValueError, match="divisible by 4 \\* num_heads"):
        AttentionLayer(16, "self", kwargs)
