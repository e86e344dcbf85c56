"""LBR and its maximum over the points."""

import copy

import pytest
import torch

from pcattn.layers import LBR


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("options", [{}, {"negative_slope": 0.2}, {"bias": True}])
def test_max_is_the_maximum_of_the_output(options: dict, training: bool) -> None:
    """Values, gradients and running statistics."""
    layer = LBR(6, 8, **options).double().train(training)
    torch.nn.init.uniform_(layer.norm.weight, -1, 1.5)
    torch.nn.init.uniform_(layer.norm.bias, -0.5, 0.5)
    x = torch.randn(4, 30, 6, dtype=torch.float64, requires_grad=True)
    cotangent, results = torch.randn(4, 8, dtype=torch.float64), []
    for run, maximum in ((copy.deepcopy(layer), LBR.max), (layer, lambda layer, x: layer(x).amax(dim=1))):
        out = maximum(run, x)
        results.append([out, *torch.autograd.grad((out * cotangent).sum(), [x, *run.parameters()]), *run.buffers()])
    for got, expected in zip(*results, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-10)


def test_equals_its_equation() -> None:
    layer = LBR(3, 5, bias=True).eval()
    x = torch.randn(2, 4, 7, 3)
    torch.testing.assert_close(layer(x), layer.norm(layer.linear(x).flatten(0, -2)).relu().view(2, 4, 7, 5))


def test_negative_slope() -> None:
    x = torch.randn(16, 3)
    assert (LBR(3, 4)(x) >= 0).all()
    assert (LBR(3, 4, negative_slope=0.2)(x) < 0).any()
