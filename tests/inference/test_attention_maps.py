"""Attention of a point in a network: the layer's own weights, carried from tokens to points."""

from functools import partial

import numpy as np
import pytest
import torch

from pcattn.inference.attention_maps import attention_layers, show_attention
from pcattn.models import PCTClassifier
from pcattn.visualize.scene import Cloud


def network(attention: str, variant: str = "spct", **kwargs) -> PCTClassifier:
    return PCTClassifier(4, variant, attention, kwargs or None, dim=16, depth=2, out_dim=32, k=4).eval()


@pytest.fixture
def pos() -> torch.Tensor:
    return torch.randn(40, 3)


def shown(model: PCTClassifier, pos: torch.Tensor, layer: int, point: int, head: int | None = None) -> Cloud:
    cloud = Cloud(pos.numpy(), "a cloud", note="right")
    return show_attention(cloud, model, partial(model, pos[None]), pos, layer, point, head)


def test_heads(pos: torch.Tensor) -> None:
    """The second layer attends from what the first one made of the points; the maps are its own."""
    model = network("neighborhood", num_heads=2, k=5)
    hooks = dict(attention_layers(model)[1]._forward_pre_hooks)
    cloud = shown(model, pos, 1, 7)
    assert list(cloud.fields) == ["layer 1, head 0", "layer 1, head 1"]
    assert cloud.marked == 7
    nearest = set((pos - pos[7]).norm(dim=1).argsort()[:5].tolist())
    for field in cloud.fields.values():
        assert set(np.flatnonzero(field.values)) == nearest
        assert field.values.sum() == pytest.approx(1)
    assert list(shown(model, pos, 1, 7, head=1).fields) == ["layer 1, head 1"]
    assert dict(attention_layers(model)[1]._forward_pre_hooks) == hooks


def test_tokens(pos: torch.Tensor) -> None:
    """Ten tokens for forty points: at most ten different weights."""
    (field,) = shown(network("offset", "pct"), pos, 0, 3).fields.values()
    assert len(field.values) == 40
    assert 1 < len(np.unique(field.values)) <= 10


def test_slots(pos: torch.Tensor) -> None:
    """The slots that the point attends to most, in descending order."""
    cloud = shown(network("external", num_slots=6), pos, 0, 11)
    assert list(cloud.fields) == [f"layer 0, {rank} slot" for rank in ("1st", "2nd", "3rd", "4th")]
    shares = [field.values[11] for field in cloud.fields.values()]
    assert shares == sorted(shares, reverse=True)
    assert cloud.note.startswith("right; slot ")
    assert list(shown(network("external"), pos, 0, 11, head=5).fields) == ["layer 0, slot 5"]


def test_gates(pos: torch.Tensor) -> None:
    fields = shown(network("polarized"), pos, 0, 0).fields
    assert list(fields) == ["layer 0, point gate", "layer 0, share in the channel gate"]


class Plain(torch.nn.Module):
    """A mechanism without maps."""

    def __init__(self, dim: int) -> None:
        super().__init__()

    def forward(self, x: torch.Tensor, geometry: object) -> torch.Tensor:
        return x


@pytest.mark.parametrize(
    ("attention", "layer", "point", "head", "message"),
    [
        ("self", 2, 0, None, r"layer in \[0, 2\), but got 2"),
        ("self", 0, 40, None, r"point in \[0, 40\), but got 40"),
        ("self", 0, 0, 1, r"head in \[0, 1\), but got 1"),
        (f"{__name__}.Plain", 0, 0, None, r"attention with attention_map\(x, geometry, point\)"),
    ],
)
def test_errors(attention: str, layer: int, point: int, head: int | None, message: str, pos: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=message):
        shown(network(attention), pos, layer, point, head)
