"""Multi-head external attention in blocks of heads against the definition."""

import pytest
import torch

from pcattn.ops.external_attention import double_normalize, multihead_external_attention, op, reference


@pytest.mark.parametrize("elements", [1, 40, 1 << 20])
@pytest.mark.parametrize("scale", [1, 30])
def test_equals_definition(monkeypatch: pytest.MonkeyPatch, elements: int, scale: float) -> None:
    """Output and gradients; with large logits, some rows have sums as small as the constant 1e-9."""
    monkeypatch.setattr(op, "_BLOCK_ELEMENTS", {"cpu": elements})
    heads = scale * torch.randn(2, 3, 9, 4, dtype=torch.float64)
    key, value = torch.randn(5, 4, dtype=torch.float64), torch.randn(4, 5, dtype=torch.float64)
    grad, results = torch.randn_like(heads), []
    for attend in (reference.multihead_external_attention, multihead_external_attention):
        leaves = [x.clone().requires_grad_() for x in (heads, key, value)]
        out = attend(*leaves)
        results.append((out, *torch.autograd.grad(out, leaves, grad)))
    for expected, actual in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-10)


def test_gradcheck_and_opcheck() -> None:
    shapes = ((2, 3, 6, 4), (5, 4), (4, 5))
    leaves = tuple(torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes)
    assert torch.autograd.gradcheck(multihead_external_attention, leaves)
    torch.library.opcheck(torch.ops.pcattn.multihead_external.default, leaves)


def test_non_contiguous() -> None:
    heads, key, value = torch.randn(2, 9, 3, 4).transpose(1, 2), torch.randn(5, 4), torch.randn(4, 5)
    expected = multihead_external_attention(heads.contiguous(), key, value)
    torch.testing.assert_close(multihead_external_attention(heads, key, value), expected)


def test_compile() -> None:
    heads, key, value = torch.randn(2, 3, 9, 4), torch.randn(5, 4), torch.randn(4, 5)
    compiled = torch.compile(multihead_external_attention, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(heads, key, value), multihead_external_attention(heads, key, value))


@pytest.mark.parametrize(
    "shapes", [((2, 9, 4), (5, 4), (4, 5)), ((2, 3, 9, 4), (5, 3), (4, 5)), ((2, 3, 9, 4), (5, 4), (5, 4))]
)
def test_exceptions(shapes: tuple[tuple[int, ...], ...]) -> None:
    with pytest.raises(ValueError, match=r"expected heads \(B, H, N, D\), key \(S, D\) and value \(D, S\), but got"):
        multihead_external_attention(*map(torch.randn, shapes))


def test_rows_sum_to_one() -> None:
    for dtype in (torch.float16, torch.float32):
        weights = double_normalize(torch.randn(2, 30, 8).to(dtype))
        torch.testing.assert_close(weights.float().sum(dim=-1), torch.ones(2, 30), rtol=0, atol=2e-3)
