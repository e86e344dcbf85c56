"""Batch normalization of points-first tensors in training on the CPU."""

import copy

import pytest
import torch
from torch import Tensor, nn

from pcattn.ops.batch_norm import normalize


def step(x: Tensor, norm: nn.BatchNorm1d, own: bool) -> list[Tensor]:
    """Output, gradients and buffers after a training step of our or of torch's normalization."""
    out = (
        normalize(norm, x, backend="auto" if norm.momentum is None else "numba")
        if own
        else norm(x.flatten(0, -2)).view_as(x)
    )
    cotangent = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(out.dtype)
    return [out, *torch.autograd.grad((out * cotangent).sum(), [x, *norm.parameters()]), *norm.buffers()]


def make(shape: tuple[int, ...], mean: float = 1.0) -> tuple[Tensor, nn.BatchNorm1d]:
    norm = nn.BatchNorm1d(shape[-1])
    nn.init.uniform_(norm.weight, -1, 1.5)
    nn.init.uniform_(norm.bias, -1, 1)
    return torch.randn(shape) + mean, norm


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("shape", [(2, 5), (1, 1000, 3), (3, 300, 17), (2, 3, 4, 8)])
def test_equals_torch_in_float64(shape: tuple[int, ...], threads: int) -> None:
    x, norm = make(shape)
    x, norm = x.double().transpose(0, -2).requires_grad_(), norm.double()
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    ours = step(x, copy.deepcopy(norm), own=True)
    torch.set_num_threads(before)
    for got, expected in zip(ours, step(x, norm, own=False), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("kwargs", [{"momentum": 0.3}, {"momentum": None}, {"track_running_stats": False}], ids=str)
def test_running_statistics(kwargs: dict) -> None:
    """Moving average, cumulative average, or none, then evaluation with them."""
    ours = nn.BatchNorm1d(4, **kwargs).double()
    torchs = copy.deepcopy(ours)
    for mean in (1.0, -3.0, 5.0):
        x = (torch.randn(2, 10, 4) + mean).double().requires_grad_()
        for got, expected in zip(step(x, ours, own=True), step(x, torchs, own=False), strict=True):
            torch.testing.assert_close(got, expected)
    torch.testing.assert_close(normalize(ours.eval(), x), torchs.eval()(x.flatten(0, 1)).view_as(x))


@pytest.mark.parametrize("mean", [0.0, 1.0, 100.0])
def test_float32_is_rounded_once(mean: float) -> None:
    """Output and gradients of a typical batch are those of float64 up to the last rounding."""
    x, norm = make((16, 512, 8), mean)
    exact = step(x.double().requires_grad_(), copy.deepcopy(norm).double(), own=False)
    for got, expected in zip(step(x.requires_grad_(), norm, own=True)[:4], exact, strict=False):
        assert float((got - expected).detach().norm() / expected.norm().detach()) < 4e-8


def test_nan_is_not_hidden() -> None:
    x, norm = make((2, 3, 4))
    x[0, 0, 0] = torch.nan
    out = normalize(norm, x)
    assert out[..., 0].isnan().all()
    assert not out[..., 1:].isnan().any()


def test_statistics_are_exact() -> None:
    """In float32, for many rows far from zero."""
    norm, x = nn.BatchNorm1d(4, momentum=1.0), 3 + torch.randn(20_000, 4)
    normalize(norm, x)
    torch.testing.assert_close(norm.running_mean.double(), x.double().mean(0), rtol=3e-7, atol=0)
    torch.testing.assert_close(norm.running_var.double(), x.double().var(0), rtol=1e-6, atol=0)


def test_gradcheck() -> None:
    norm = nn.BatchNorm1d(3).double()
    x = torch.randn(2, 5, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, *parameters: normalize(norm, x), (x, *norm.parameters()))


def test_one_row_is_refused() -> None:
    with pytest.raises(ValueError, match="more than 1 value"):
        normalize(nn.BatchNorm1d(3), torch.randn(1, 3))
