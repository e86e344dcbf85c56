"""External attention and its multi-head form against the authors' modules."""

import pytest
import torch

from pcattn.attention import Geometry, build_attention
from pcattn.ops.batch_norm import normalize
from pcattn.ops.external_attention import double_normalize
from tests.attention.attention_cases import assert_near, load_linear, load_norm, load_parameter


def load_external(arrays, value="Mv"):
    core = build_attention("external", arrays["x"].shape[-1], num_slots=len(arrays["Mk"])).double()
    load_linear(core.query, arrays["W1"], arrays["b1"])
    load_parameter(core.memory_key, arrays["Mk"])
    load_parameter(core.memory_value, arrays[value])
    return core


def image_layer(core_out, arrays, training):
    """The layer around the core in the image network: ReLU(x + BN(core W_2^T))."""
    norm = torch.nn.BatchNorm1d(core_out.shape[-1]).double().train(training)
    load_norm(norm, arrays)
    return (arrays["x"] + normalize(norm, core_out @ arrays["W2"].t())).relu()


def test_external_equals_fixture(load_fixture):
    arrays = load_fixture("ea")
    core, x = load_external(arrays), arrays["x"]
    assert_near(core.query(x), arrays["u"])
    logits = core.query(x) @ core.memory_key.t()
    assert_near(logits.softmax(dim=1), arrays["attn_softmax_over_N"])
    assert_near(double_normalize(logits), arrays["attn"])
    out = core(x, Geometry(x[..., :3]))
    assert_near(out, arrays["core"])
    assert_near(image_layer(out, arrays, training=False), arrays["y_eval"])
    assert_near(image_layer(out, arrays, training=True), arrays["y_train"])


def test_external_with_one_memory_equals_fixture(load_fixture):
    arrays = load_fixture("ea")
    out = load_external(arrays, value="Mk")(arrays["x"], Geometry(arrays["x"][..., :3]))
    assert_near(image_layer(out, arrays, training=False), arrays["y_eval_tied"])


@pytest.mark.parametrize("elements", [1, 1 << 20])
def test_multihead_equals_fixture(load_fixture, monkeypatch, elements):
    monkeypatch.setattr("pcattn.ops.external_attention.op._BLOCK_ELEMENTS", {"cpu": elements})
    arrays = load_fixture("mea")
    x, num_slots = arrays["x"], arrays["Mk"].shape[0]
    core = build_attention(
        "multihead_external", x.shape[-1], num_heads=int(arrays["num_heads"]), num_slots=num_slots
    ).double()
    load_linear(core.expand, arrays["Wt"], arrays["bt"])
    load_parameter(core.memory_key, arrays["Mk"])
    load_linear(core.memory_value, arrays["Mv"], arrays["bv"])
    load_linear(core.proj, arrays["Wo"], arrays["bo"])
    heads = core.expand(x).unflatten(-1, (core.num_heads, -1)).transpose(1, 2)
    assert_near(double_normalize(heads @ core.memory_key.t()), arrays["attn"])
    assert_near(core(x, Geometry(x[..., :3])), arrays["y"])


@pytest.mark.parametrize(
    ("name", "kwargs", "message"),
    [
        ("external", {"num_slots": 0}, "num_slots >= 1"),
        ("multihead_external", {"num_slots": 0}, "num_slots >= 1"),
        ("multihead_external", {"num_heads": 3}, "divisible by num_heads"),
    ],
)
def test_exceptions(name, kwargs, message):
    with pytest.raises(ValueError, match=message):
        build_attention(name, 16, **kwargs)
