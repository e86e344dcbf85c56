"""The Triton kernels against the reference, on a GPU or in Triton's interpreter."""

from importlib.util import find_spec

import pytest
import torch

from pcattn.ops.neighborhood_attention import neighborhood_attention

pytestmark = pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def draw(num_points, num_neighbors, num_heads, dim, with_bias, dtype=torch.float32):
    """Queries, keys and values as slices of one tensor, as in a layer, and lists that may repeat a key."""
    qkv = torch.randn(2, num_points, 3, num_heads, dim, device=DEVICE).to(dtype)
    neighbors = torch.randint(0, num_points, (2, num_points, num_neighbors), device=DEVICE)
    bias = torch.randn(2, num_points, num_neighbors, num_heads, device=DEVICE).to(dtype) if with_bias else None
    return qkv, neighbors, bias


def forward_backward(qkv, neighbors, bias, grad, backend):
    leaves = [x.detach().clone().requires_grad_() for x in (qkv, bias) if x is not None]
    out = neighborhood_attention(*leaves[0].unbind(2), neighbors, *leaves[1:], backend=backend)
    return out, *torch.autograd.grad(out, leaves, grad)


@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize(
    ("num_points", "num_neighbors", "num_heads", "dim"), [(1, 1, 1, 1), (37, 5, 3, 8), (20, 20, 2, 20), (70, 3, 1, 64)]
)
def test_equals_reference(num_points, num_neighbors, num_heads, dim, with_bias):
    qkv, neighbors, bias = draw(num_points, num_neighbors, num_heads, dim, with_bias)
    grad = torch.randn(2, num_points, num_heads, dim, device=DEVICE)
    triton = forward_backward(qkv, neighbors, bias, grad, "triton")
    chunks = forward_backward(qkv, neighbors, bias, grad, "reference")
    for actual, expected in zip(triton, chunks, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype):
    qkv, neighbors, bias = draw(40, 6, 2, 16, True, dtype)
    grad = torch.randn(2, 40, 2, 16, device=DEVICE).to(dtype)
    triton = forward_backward(qkv, neighbors, bias, grad, "triton")
    exact = forward_backward(qkv.float(), neighbors, bias.float(), grad.float(), "reference")
    for actual, expected in zip(triton, exact, strict=True):
        assert actual.dtype == dtype
        assert (actual.float() - expected).abs().max() < 2e-2 * expected.abs().max()


def test_values_between_other_tensors():
    """Only the rows of the points are read and written: the memory around them is NaN."""
    qkv, neighbors, _ = draw(13, 4, 2, 5, False)
    poisoned = torch.full((4, 17, 3, 2, 7), torch.nan, device=DEVICE)
    poisoned[1:3, 2:15, ..., 1:6] = qkv
    view = poisoned[1:3, 2:15, ..., 1:6]
    out = neighborhood_attention(*view.unbind(2), neighbors, backend="triton")
    torch.testing.assert_close(out, neighborhood_attention(*qkv.unbind(2), neighbors, backend="reference"))


def test_a_bias_may_exclude_neighbors():
    qkv, neighbors, bias = draw(13, 4, 2, 5, True)
    bias[:, :, 0] = -torch.inf
    out = neighborhood_attention(*qkv.unbind(2), neighbors, bias, backend="triton")
    expected = neighborhood_attention(*qkv.unbind(2), neighbors[..., 1:], bias[:, :, 1:], backend="reference")
    torch.testing.assert_close(out, expected)


def test_says_why_it_cannot_run():
    qkv, neighbors, _ = draw(13, 4, 1, 300, False, torch.float64)
    with pytest.raises(ValueError, match=r"torch.float64 is not one of .*; heads are 300 wide, more than 256"):
        neighborhood_attention(*qkv.unbind(2), neighbors, backend="triton")
