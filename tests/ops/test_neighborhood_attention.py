"""Backends of neighborhood attention against the definition."""

from functools import partial

import pytest
import torch

from pcattn.ops.neighborhood_attention import neighborhood_attention
from pcattn.ops.neighborhood_attention import numba as numba_neighborhood


@pytest.fixture(params=["numba", "small chunks", "large chunks"])
def backend(request, monkeypatch):
    """The numba kernel, and the reference with one query or all queries in a chunk."""
    if request.param == "numba":
        return "numba"
    elements = 1 if request.param == "small chunks" else 1 << 18
    monkeypatch.setattr("pcattn.ops.neighborhood_attention.reference._CHUNK_ELEMENTS", {"cpu": elements})
    return "reference"


def gathered(q, k, v, neighbors, bias):
    """The definition, with the keys and values of all neighbors in memory."""
    cloud = torch.arange(len(q))[:, None, None]
    logits = torch.einsum("bnhd,bnkhd->bnkh", q, k[cloud, neighbors]) / q.shape[-1] ** 0.5
    weights = (logits if bias is None else logits + bias).softmax(dim=2)
    return torch.einsum("bnkh,bnkhd->bnhd", weights, v[cloud, neighbors])


@pytest.mark.parametrize("with_bias", [False, True])
def test_equals_gather(with_bias, backend):
    """Output and gradients; a neighbor list may repeat a key."""
    q, k, v, grad = torch.randn(4, 2, 17, 3, 5, dtype=torch.float64)
    neighbors = torch.randint(0, 17, (2, 17, 6))
    bias = torch.randn(2, 17, 6, 3, dtype=torch.float64) if with_bias else None
    results = []
    for attend in (gathered, partial(neighborhood_attention, backend=backend)):
        leaves = [x.clone().requires_grad_() for x in (q, k, v, *([bias] if with_bias else []))]
        out = attend(*leaves[:3], neighbors, leaves[3] if with_bias else None)
        results.append((out, *torch.autograd.grad(out, leaves, grad)))
    for expected, actual in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype, backend):
    """Sums are in float32, so the result is that of float32 rounded once."""
    q, k, v = torch.randn(3, 2, 9, 2, 8, dtype=dtype).requires_grad_().unbind()
    neighbors = torch.randint(0, 9, (2, 9, 4))
    out = neighborhood_attention(q, k, v, neighbors, backend=backend)
    exact = neighborhood_attention(q.float(), k.float(), v.float(), neighbors, backend=backend)
    torch.testing.assert_close(out, exact.to(dtype), atol=0, rtol=2 * torch.finfo(dtype).eps)
    for grad in torch.autograd.grad(out.sum(), (q, k, v)):
        assert grad.dtype == dtype
        assert grad.isfinite().all()


def test_gradcheck_and_opcheck(backend):
    q, k, v = torch.randn(3, 1, 6, 2, 3, dtype=torch.float64).requires_grad_().unbind()
    bias = torch.randn(1, 6, 4, 2, dtype=torch.float64, requires_grad=True)
    neighbors = torch.randint(0, 6, (1, 6, 4))
    assert torch.autograd.gradcheck(
        lambda *x: neighborhood_attention(*x[:3], neighbors, x[3], backend), (q, k, v, bias)
    )
    leaves = [x.detach().requires_grad_() for x in (q, k, v)]
    for given in (bias, None):
        arguments = (*leaves, neighbors, given, backend)
        torch.library.opcheck(torch.ops.pcattn.neighborhood_attention.default, arguments)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"q": torch.zeros(1, 5, 8)}, "one shape \\(B, N, H, D\\)"),
        ({"v": torch.zeros(1, 5, 2, 3)}, "one shape \\(B, N, H, D\\)"),
        ({"k": torch.zeros(1, 5, 2, 4, dtype=torch.float64)}, "one dtype"),
        ({"neighbors": torch.zeros(1, 4, 3, dtype=torch.long)}, "expected neighbors"),
        ({"bias": torch.zeros(1, 5, 3, 1)}, "expected bias"),
        ({"backend": "fast"}, "backend to be one of auto, triton, numba, reference"),
        ({"backend": "triton"}, "can run, but got backend='triton': .*not on a CUDA device"),
    ],
)
def test_exceptions(change, message, monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    arguments = {name: torch.zeros(1, 5, 2, 4) for name in "qkv"}
    arguments["neighbors"] = torch.zeros(1, 5, 3, dtype=torch.long)
    with pytest.raises(ValueError, match=message):
        neighborhood_attention(**{**arguments, **change})


@pytest.fixture(autouse=True)
def _restore_threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(("backend", "calls"), [("auto", 1), ("numba", 1), ("reference", 0)])
def test_the_chosen_backend_runs(backend, calls, monkeypatch):
    """Forward and backward. The results of the reference are the same, so a wrong choice would only be slow."""
    called = {"forward": 0, "backward": 0}

    def count(name):
        kernel = getattr(numba_neighborhood, name)

        def counted(*args):
            called[name] += 1
            return kernel(*args)

        return counted

    for name in called:
        monkeypatch.setattr(numba_neighborhood, name, count(name))
    q = torch.randn(1, 9, 1, 4, requires_grad=True)
    neighborhood_attention(q, q, q, torch.zeros(1, 9, 2, dtype=torch.long), backend=backend).sum().backward()
    assert called == {"forward": calls, "backward": calls}


@pytest.mark.parametrize("threads", [2, 3])
def test_any_number_of_threads(threads):
    """Equal to the last bit, because no two threads add to the same key."""
    q, k, v, grad = torch.randn(4, 2, 300, 3, 8)
    neighbors = torch.randint(0, 300, (2, 300, 5))
    results = []
    for number in (1, threads):
        torch.set_num_threads(number)
        leaves = [x.clone().requires_grad_() for x in (q, k, v)]
        out = neighborhood_attention(*leaves, neighbors, backend="numba")
        results.append((out, *torch.autograd.grad(out, leaves, grad)))
    for one, several in zip(*results, strict=True):
        assert torch.equal(one, several)


@pytest.mark.parametrize("wrong", [-1, 9])
def test_neighbors_out_of_range(wrong):
    q = torch.randn(1, 9, 1, 4)
    neighbors = torch.zeros(1, 9, 2, dtype=torch.long)
    neighbors[0, 3, 1] = wrong
    with pytest.raises(ValueError, match=rf"expected neighbors in \[0, 9\), the points of a cloud, but got {wrong}"):
        neighborhood_attention(q, q, q, neighbors, backend="numba")


def test_nan_is_not_hidden():
    q = torch.randn(1, 9, 1, 4)
    q[0, 2] = torch.nan
    neighbors = torch.arange(9).view(1, 9, 1)
    out = neighborhood_attention(q, torch.ones_like(q), torch.ones_like(q), neighbors, backend="numba")
    assert out.isnan().any(dim=-1).flatten().nonzero().tolist() == [[2]]
