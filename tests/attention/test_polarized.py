"""Polarized self-attention against the equations of the paper and the authors' modules."""

import pytest
import torch

from pcattn.attention import Geometry, build_attention
from tests.attention.attention_cases import assert_near, load_linear, load_parameter


def load_core(arrays, layout, variant):
    core = build_attention("polarized", arrays["x"].shape[-1], layout=layout, variant=variant).double()
    paper = variant == "paper"
    load_linear(core.channel_q, arrays["ch_Wq"])
    load_linear(core.channel_v, arrays["ch_Wv"], arrays["ch_bv"] if paper else None)
    load_linear(core.spatial_q, arrays["sp_Wq"], arrays["sp_bq"] if paper else None)
    load_linear(core.spatial_v, arrays["sp_Wv"], arrays["sp_bv"] if paper else None)
    if paper:
        linear, norm = core.channel_up
        load_linear(linear, arrays["ch_Wz"], arrays["ch_bz"])
        load_linear(norm, arrays["ln_gamma"], arrays["ln_beta"])
    elif layout == "parallel":
        load_linear(core.channel_up, arrays["ch_Wz"])
    else:
        down, norm, _, up = core.channel_up
        load_linear(down, arrays["ch_up0_W"], arrays["ch_up0_b"])
        load_linear(norm, arrays["ch_up1_gamma"], arrays["ch_up1_beta"])
        load_linear(up, arrays["ch_up3_W"], arrays["ch_up3_b"])
    return core


@pytest.mark.parametrize(
    ("layout", "variant", "gates", "out"),
    [
        ("parallel", "paper", "paper", "y_paper_parallel"),
        ("sequential", "paper", "paper", "y_paper_sequential"),
        ("parallel", "released", "official_p", "y_official_p"),
        ("sequential", "released", "official_s", "y_official_s"),
    ],
)
def test_equals_fixture(load_fixture, layout, variant, gates, out):
    arrays = load_fixture("psa")
    core, x = load_core(arrays, layout, variant), arrays["x"]
    assert_near(core.channel_gate(x), arrays[f"ch_gate_{gates}"])
    # The fixture has the gates of the paper's form for x itself, also in the sequential layout.
    gated = x * core.channel_gate(x) if (layout, variant) == ("sequential", "released") else x
    assert_near(core.spatial_gate(gated), arrays[f"sp_gate_{gates}"])
    assert_near(core(x, Geometry(x[..., :3])), arrays[out])


def test_only_the_paper_form_keeps_its_spatial_gate_in_large_clouds():
    x = torch.randn(1, 4096, 16)
    spread = {}
    for variant in ("paper", "released"):
        core = build_attention("polarized", 16, variant=variant)
        load_parameter(core.spatial_v.weight, 20 * core.spatial_v.weight)
        gate = core.spatial_gate(x)
        spread[variant] = (gate.max() - gate.min()).item()
    assert spread["paper"] > 0.3
    assert spread["released"] < 0.05


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"layout": "both"}, "layout to be one of parallel, sequential"),
        ({"variant": "mine"}, "variant to be one of paper, released"),
        ({"layout": "sequential", "variant": "released"}, "divisible by 8"),
    ],
)
def test_exceptions(kwargs, message):
    with pytest.raises(ValueError, match=message):
        build_attention("polarized", 12, **kwargs)
