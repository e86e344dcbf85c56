"""What the numba kernels promise beyond equality with the reference, which `test_neighborhood` checks."""

import pytest
import torch

from pcattn.ops.neighborhood_attention import numba as numba_neighborhood
from pcattn.ops.neighborhood_attention.op import neighborhood_attention


@pytest.fixture(autouse=True)
def _restore_threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(("backend", "calls"), [("auto", 1), ("numba", 1), ("reference", 0)])
def test_runs_where_it_is_chosen(backend, calls, monkeypatch):
    """Forward and backward: the reference gives the same numbers, many times slower, and would not be noticed."""
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
    """Equal to the last bit: no two threads add to one key."""
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
def test_refuses_points_that_are_not_there(wrong):
    q = torch.randn(1, 9, 1, 4)
    neighbors = torch.zeros(1, 9, 2, dtype=torch.long)
    neighbors[0, 3, 1] = wrong
    with pytest.raises(ValueError, match=rf"expected neighbors in \[0, 9\), the points of a cloud, but got {wrong}"):
        neighborhood_attention(q, q, q, neighbors, backend="numba")


def test_not_a_number_is_not_hidden():
    q = torch.randn(1, 9, 1, 4)
    q[0, 2] = torch.nan
    neighbors = torch.arange(9).view(1, 9, 1)
    out = neighborhood_attention(q, torch.ones_like(q), torch.ones_like(q), neighbors, backend="numba")
    assert out.isnan().any(dim=-1).flatten().nonzero().tolist() == [[2]]
