"""The blockwise local aggregation against the written-out one: values, gradients, running statistics."""

import copy

import pytest
import torch
from torch import Tensor

from pcattn.layers import LBR, LocalAggregation
from pcattn.layers import lbr as layers
from pcattn.ops.local_aggregation import op as aggregation_op

SIZES = [(2, 20, 9, 5, 6, 8), (1, 7, 1, 3, 3, 5), (3, 40, 16, 8, 16, 12)]  # B, N, M, k, C, D


def make(size: tuple[int, ...], dtype: torch.dtype = torch.float64) -> tuple[LocalAggregation, tuple[Tensor, ...]]:
    """A layer with scales of both signs, one of them zero, and neighborhoods with copies."""
    batch, num_points, num_groups, k, dim, out_dim = size
    layer = LocalAggregation(dim, out_dim).to(dtype)
    for norm in (layer.norm, layer.second.norm):
        torch.nn.init.uniform_(norm.weight, -1, 1.5)
        torch.nn.init.uniform_(norm.bias, -0.5, 0.5)
    layer.norm.weight.data[0] = 0
    features = torch.randn(batch, num_points, dim, dtype=dtype, requires_grad=True)
    return layer, (features, *(torch.randint(num_points, (batch, num_groups, *rest)) for rest in ((), (k,))))


def differentiate(layer: LocalAggregation, inputs: tuple[Tensor, ...]) -> list[Tensor]:
    """Output, gradients and buffers after a training step."""
    out = layer(*inputs)
    cotangent = torch.randn(out.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    gradients = torch.autograd.grad((out * cotangent.to(out.dtype)).sum(), [inputs[0], *layer.parameters()])
    return [out, *gradients, *layer.buffers()]


@pytest.fixture(params=["one block", "many blocks", "two threads"])
def _blocks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch):
    if request.param == "many blocks":
        monkeypatch.setattr(aggregation_op, "_BLOCK_ELEMENTS", 100)
    threads = torch.get_num_threads()
    if request.param == "two threads":
        monkeypatch.setattr(aggregation_op, "_GRAIN", 1)
        torch.set_num_threads(2)
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("_blocks")
@pytest.mark.parametrize("size", SIZES)
def test_equals_written_out(size: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    layer, inputs = make(size)
    ours = differentiate(copy.deepcopy(layer), inputs)
    assert "Aggregate" in ours[0].grad_fn.next_functions[0][0].name()
    monkeypatch.setattr(layers, "can_aggregate", lambda *args: False)
    for got, expected in zip(ours, differentiate(layer, inputs), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.usefixtures("_blocks")
@pytest.mark.parametrize("size", [(4, 30, 6, 8), (2, 1, 3, 5), (3, 200, 5, 4)])  # B, N, C, D
@pytest.mark.parametrize("options", [{"negative_slope": 0.2}, {"bias": True}])
def test_maximum_first(size: tuple[int, ...], options: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    """`LBR.max`, with copies of points: values, gradients and buffers of the maximum taken last."""
    batch, num_points, dim, out_dim = size
    layer = LBR(dim, out_dim, **options).double()
    torch.nn.init.uniform_(layer.norm.weight, -1, 1.5)
    torch.nn.init.uniform_(layer.norm.bias, -0.5, 0.5)
    x = torch.randn(batch, num_points, dim, dtype=torch.float64)
    x = x[:, torch.randint(num_points, (num_points,))].requires_grad_()
    cotangent, results = torch.randn(batch, out_dim, dtype=torch.float64), []
    for can_pool in (True, False):
        if not can_pool:
            monkeypatch.setattr(layers, "can_aggregate", lambda *args: False)
        run = copy.deepcopy(layer)
        out = run.max(x)
        gradients = torch.autograd.grad((out * cotangent).sum(), [x, *run.parameters()])
        results.append([out, *(gradients if num_points > 1 else gradients[1:]), *run.buffers()])
    for got, expected in zip(*results, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-10)


def test_maximum_first_far_from_zero() -> None:
    """Variances in float32 over many points."""
    layer = LBR(4, 8)
    x = (torch.randn(2, 5000, 4) + 1000).requires_grad_()
    layer.max(x)
    exact = copy.deepcopy(layer.linear).double()(x.double()).flatten(0, 1)
    torch.testing.assert_close(layer.norm.running_var, (0.9 + 0.1 * exact.var(dim=0)).float(), rtol=1e-4, atol=0)
    torch.testing.assert_close(layer.norm.running_mean, (0.1 * exact.mean(dim=0)).float(), rtol=1e-6, atol=0)


def test_far_from_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    """Variances in float32 of features whose mean is a thousand times their spread."""
    layer, (features, *indices) = make((4, 200, 60, 16, 8, 8))
    shifted = (features + 1000).detach().requires_grad_()
    monkeypatch.setattr(layers, "can_aggregate", lambda *args: False)
    exact = differentiate(copy.deepcopy(layer), (shifted, *indices))
    monkeypatch.undo()
    single = differentiate(layer.float(), (shifted.detach().float().requires_grad_(), *indices))
    for got, expected in zip(single[:2], exact[:2], strict=True):
        assert (got - expected).norm() / expected.norm() < 2e-3


def test_nan_is_not_hidden() -> None:
    layer, inputs = make(SIZES[0])
    inputs[0].data[0, 0, 0] = torch.nan
    inputs[2][0, 0, 0] = 0
    assert layer(*inputs).isnan().all()


def test_only_in_training_on_the_cpu() -> None:
    layer, (features, *_) = make(SIZES[0])
    norms = layer.norm, layer.second.norm
    assert aggregation_op.can_aggregate(features, *norms)
    assert not aggregation_op.can_aggregate(features.detach(), *norms)
    assert not aggregation_op.can_aggregate(features.bfloat16(), *norms)
    with torch.autocast("cpu", torch.bfloat16):
        assert not aggregation_op.can_aggregate(features, *norms)
    exchanged = torch.nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(layer))
    assert not aggregation_op.can_aggregate(features, exchanged.norm, exchanged.second.norm)
    layer.eval()
    assert not aggregation_op.can_aggregate(features, *norms)


@pytest.mark.parametrize("wrong", [-1, 20])
def test_neighbors_out_of_range(wrong: int) -> None:
    layer, (features, centers, neighbors) = make(SIZES[0])
    neighbors[1, 2, 3] = wrong
    with pytest.raises(ValueError, match=rf"expected neighbors in \[0, 20\), .* but got {wrong} \(cloud 1\)"):
        layer(features, centers, neighbors)


def test_shapes_that_do_not_fit() -> None:
    layer, (features, centers, neighbors) = make(SIZES[0])
    with pytest.raises(ValueError, match=r"expected points .* but got .*\(2, 9, 8\) and \(2, 8, 5\)"):
        layer(features, centers, neighbors[:, 1:])
