"""Offset-attention in blocks against the definition."""

import pytest
import torch

from pcattn.ops.offset_attention import offset_attention, op, reference


@pytest.fixture(autouse=True)
def _blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compute small clouds in blocks as well."""
    monkeypatch.setattr(op, "_MAX_WRITTEN_OUT", 0)


@pytest.mark.parametrize("scale", [0.3, 1, 6])
@pytest.mark.parametrize("elements", [1, 500, 1 << 20])
def test_equals_definition(monkeypatch: pytest.MonkeyPatch, scale: float, elements: int) -> None:
    """Output and gradients; with large energies, some rows have sums as small as the constant 1e-9."""
    monkeypatch.setattr(op, "_BLOCK_ELEMENTS", {"cpu": elements})
    q, v = scale * torch.randn(3, 21, 4, dtype=torch.float64), torch.randn(3, 21, 6, dtype=torch.float64)
    grad, results = torch.randn_like(v), []
    for attend in (reference.offset_attention, offset_attention):
        leaves = q.clone().requires_grad_(), v.clone().requires_grad_()
        out = attend(*leaves)
        results.append((out, *torch.autograd.grad(out, leaves, grad)))
    for expected, actual in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)


def test_gradcheck_and_opcheck(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(op, "_BLOCK_ELEMENTS", {"cpu": 30})
    q, v = (torch.randn(2, 8, n, dtype=torch.float64, requires_grad=True) for n in (2, 3))
    assert torch.autograd.gradcheck(offset_attention, (q, v))
    torch.library.opcheck(torch.ops.pcattn.offset_attention.default, (q, v))


def test_non_contiguous() -> None:
    q, v = torch.randn(2, 3, 8).transpose(1, 2), torch.randn(2, 5, 8).transpose(1, 2)
    torch.testing.assert_close(offset_attention(q, v), offset_attention(q.contiguous(), v.contiguous()))


def test_compile() -> None:
    q, v = torch.randn(2, 8, 3), torch.randn(2, 8, 5)
    compiled = torch.compile(offset_attention, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(q, v), offset_attention(q, v))


@pytest.mark.parametrize("shape", [(2, 7, 3), (3, 8, 3), (8, 3)])
def test_exceptions(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"expected q \(B, N, D\) and v \(B, N, C\) with the same B and N, but got"):
        offset_attention(torch.randn(2, 8, 3), torch.randn(shape))
