"""The transformer block around an attention."""

import pytest
import torch

from pcattn.attention import Geometry
from pcattn.layers import AttentionBlock


def test_number_of_parameters() -> None:
    """4 C^2 each in attention and MLP, their biases, two normalizations, two scales, and the MLP 3 -> 16 -> heads."""
    dim, heads = 32, 4
    expected = 8 * dim**2 + (3 + 1 + 2 + 1) * dim + 4 * dim + 2 * dim + (3 * 16 + 16 + 16 * heads + heads)
    block = AttentionBlock(dim, "neighborhood", {"num_heads": heads})
    assert sum(p.numel() for p in block.parameters()) == expected


def test_equals_its_equation() -> None:
    block = AttentionBlock(8, "offset", layer_scale=0.3)
    x, geometry = torch.randn(2, 9, 8), Geometry(torch.randn(2, 9, 3))
    with torch.no_grad():
        first = x + 0.3 * (block.norm1(x) - block.core(block.norm1(x), geometry))
        torch.testing.assert_close(block(x, geometry), first + 0.3 * block.mlp(block.norm2(first)))


def test_stochastic_depth() -> None:
    """In training, a branch is dropped for a whole cloud and its mean is kept; in evaluation, none is dropped."""
    block = AttentionBlock(8, "external", layer_scale=1.0, drop_path=0.25)
    branch = torch.ones(4000, 3, 2)
    dropped = block._drop(branch)
    assert torch.equal(dropped, dropped[:, :1, :1].expand_as(dropped))
    assert dropped.unique().tolist() == pytest.approx([0.0, 1 / 0.75])
    assert dropped.mean() == pytest.approx(1.0, abs=0.05)
    assert torch.equal(block.eval()._drop(branch), branch)
