"""What the numba kernels promise beyond equality with the reference, which `test_neighborhood` checks."""

import pytest
import torch

from pcattn.attention.neighborhood_op import neighborhood_attention


@pytest.fixture(autouse=True)
def _restore_threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("threads", [2, 3])
def test_any_number_of_threads(threads):
    """Equal to the last bit: no two threads add to one key."""
    q, k, v, grad = torch.randn(4, 2, 300, 3, 8)
    neighbours = torch.randint(0, 300, (2, 300, 5))
    results = []
    for number in (1, threads):
        torch.set_num_threads(number)
        leaves = [x.clone().requires_grad_() for x in (q, k, v)]
        out = neighborhood_attention(*leaves, neighbours, backend="numba")
        results.append((out, *torch.autograd.grad(out, leaves, grad)))
    for one, several in zip(*results, strict=True):
        assert torch.equal(one, several)


@pytest.mark.parametrize("wrong", [-1, 9])
def test_refuses_points_that_are_not_there(wrong):
    q = torch.randn(1, 9, 1, 4)
    neighbours = torch.zeros(1, 9, 2, dtype=torch.long)
    neighbours[0, 3, 1] = wrong
    with pytest.raises(ValueError, match=rf"expected neighbours in \[0, 9\), the points of a cloud, but got {wrong}"):
        neighborhood_attention(q, q, q, neighbours, backend="numba")


def test_not_a_number_is_not_hidden():
    q = torch.randn(1, 9, 1, 4)
    q[0, 2] = torch.nan
    neighbours = torch.arange(9).view(1, 9, 1)
    out = neighborhood_attention(q, torch.ones_like(q), torch.ones_like(q), neighbours, backend="numba")
    assert out.isnan().any(dim=-1).flatten().nonzero().tolist() == [[2]]
