"""Offset-attention against the authors' module."""

import copy

import pytest
import torch

from pcattn.attention import Geometry
from pcattn.bench.attention import peak_memory
from pcattn.layers import AttentionLayer
from pcattn.ops.offset_attention import offset_attention
from tests.attention.attention_cases import assert_near, load_linear, load_norm


def load_layer(arrays):
    layer = AttentionLayer(arrays["x"].shape[-1], "offset").double()
    load_linear(layer.core.qk, arrays["Wqk"])
    load_linear(layer.core.v, arrays["Wv"], arrays["bv"])
    load_linear(layer.lbr.linear, arrays["Wt"], arrays["bt"])
    load_norm(layer.lbr.norm, arrays)
    return layer.eval()


@pytest.fixture(params=["written out", "blocks"])
def form(request, monkeypatch):
    """The attention with all weights in memory, and in blocks of few keys."""
    if request.param == "blocks":
        monkeypatch.setattr("pcattn.ops.offset_attention.op._MAX_WRITTEN_OUT", 0)
        monkeypatch.setattr("pcattn.ops.offset_attention.op._BLOCK_ELEMENTS", {"cpu": 20})
    return request.param


def test_layer_equals_fixture(load_fixture, form):
    arrays = load_fixture("oa")
    layer, geometry = load_layer(arrays), Geometry(arrays["xyz"])
    x = arrays["x"].requires_grad_()
    out = layer(x, geometry)
    assert_near(out, arrays["y_eval"])
    (out * arrays["g"]).sum().backward()
    assert_near(x.grad, arrays["grad_x_eval"])
    assert_near(layer.core(x, geometry), arrays["f_sa"])


def test_training_equals_fixture(load_fixture, form):
    arrays = load_fixture("oa")
    layer = load_layer(arrays).train()
    assert_near(layer(arrays["x"], Geometry(arrays["xyz"])), arrays["y_train"])
    assert_near(layer.lbr.norm.running_mean, arrays["bn_mean_after_train"])
    assert_near(layer.lbr.norm.running_var, arrays["bn_var_after_train"])


def test_position_embedding_equals_fixture(load_fixture, form):
    arrays = load_fixture("oa")
    embedded = arrays["xyz"] @ arrays["Wp"].t() + arrays["bp"]
    assert_near(embedded, arrays["pos_embed"])
    assert_near(load_layer(arrays)(arrays["x"] + embedded, Geometry(arrays["xyz"])), arrays["y_pos_eval"])


def test_weights_equal_fixture(load_fixture, form):
    """With an identity matrix as values, the result is the matrix of weights."""
    arrays = load_fixture("oa")
    q = arrays["x"] @ arrays["Wqk"].t()
    identity = torch.eye(q.shape[1], dtype=q.dtype).expand(len(q), -1, -1)
    weights = offset_attention(q, identity)
    assert_near(weights, arrays["attn_query_rows"])
    assert_near(weights.transpose(1, 2), arrays["attn_code"])
    totals = (q @ q.transpose(1, 2)).softmax(dim=1).sum(dim=2)
    assert_near(weights.sum(dim=-1), 1 - 1e-9 / (1e-9 + totals))


def test_large_cloud_trains_in_little_memory():
    layer = AttentionLayer(128, "offset")
    x, geometry = torch.randn(1, 16384, 128, requires_grad=True), Geometry(torch.zeros(1, 16384, 3))
    assert peak_memory(lambda: layer(x, geometry).square().mean().backward()) < 500 * 2**20


@pytest.mark.parametrize(("dim", "parameters"), [(128, 37_376), (256, 148_480)])
def test_number_of_parameters(dim, parameters):
    assert sum(p.numel() for p in AttentionLayer(dim, "offset").parameters()) == parameters


def test_same_result_on_both_sides_of_the_threshold(monkeypatch):
    core = AttentionLayer(8, "offset").core.double()
    x = torch.randn(1, 50, 8, dtype=torch.float64)
    expected = copy.deepcopy(core)(x, Geometry(x[..., :3]))
    monkeypatch.setattr("pcattn.ops.offset_attention.op._MAX_WRITTEN_OUT", 49)
    assert_near(core(x, Geometry(x[..., :3])), expected)


def test_exceptions():
    with pytest.raises(ValueError, match="expected dim to be divisible by 4, but got dim=6"):
        AttentionLayer(6, "offset")


@pytest.mark.parametrize("autocast", [False, True])
def test_large_energies_in_float16(autocast):
    """Energies beyond 65,504 leave the range of float16; results are finite nevertheless, also in small clouds."""
    core = AttentionLayer(16, "offset").core.requires_grad_(False)
    core.qk.weight *= 300
    x = torch.randn(1, 64, 16)
    geometry, q = Geometry(x[..., :3]), core.qk(x)
    assert (q @ q.transpose(1, 2)).max() > 1e5
    if not autocast:
        core, x = core.half(), x.half()
    with torch.autocast("cpu", torch.float16, enabled=autocast):
        out, weights = core(x, geometry), core.attention_map(x, geometry, 3).weights
    assert out.dtype == torch.float16
    assert out.isfinite().all()
    assert weights.isfinite().all()
