"""Properties of every mechanism."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pcattn.attention import ATTENTION, Geometry, build_attention
from pcattn.bench.attention import peak_memory
from pcattn.layers import AttentionLayer
from tests.attention.attention_cases import INVARIANT_TO_COPIES, MECHANISMS, assert_near, randomize

Mechanism = tuple[str, dict[str, Any]]
Core = Callable[..., nn.Module]
Cloud = Callable[..., tuple[Tensor, Geometry]]


class OnPositions(nn.Module):
    """A layer whose inputs are tensors, as export requires."""

    def __init__(self, dim: int, mechanism: Mechanism) -> None:
        super().__init__()
        self.layer = randomize(AttentionLayer(dim, *mechanism))

    def forward(self, x: Tensor, pos: Tensor) -> Tensor:
        return self.layer(x, Geometry(pos))


def test_every_mechanism_is_tested() -> None:
    assert {name for name, _ in MECHANISMS} == set(ATTENTION)


@pytest.mark.parametrize("training", [True, False])
def test_permutation_equivariance(core: Core, cloud: Cloud, training: bool) -> None:
    module, (x, geometry) = core().train(training), cloud()
    order = torch.randperm(x.shape[1])
    permuted = copy.deepcopy(module)(x[:, order], Geometry(geometry.pos[:, order]))
    assert_near(permuted, module(x, geometry)[:, order])


def test_batch_size_invariance(mechanism: Mechanism, cloud: Cloud) -> None:
    layer, (x, geometry) = randomize(AttentionLayer(16, *mechanism).double()).eval(), cloud(batch=3)
    together = layer(x, geometry)
    for i in range(3):
        assert_near(layer(x[i : i + 1], Geometry(geometry.pos[i : i + 1])), together[i : i + 1])


def test_copies_change_nothing(mechanism: Mechanism, core: Core, cloud: Cloud) -> None:
    name, kwargs = mechanism
    if name not in INVARIANT_TO_COPIES or kwargs.get("variant") == "released":
        pytest.skip(f"{name} depends on how many points there are")
    module, (x, geometry) = core(), cloud()
    twice = module(torch.cat((x, x), dim=1), Geometry(torch.cat((geometry.pos, geometry.pos), dim=1)))
    # The constant 1e-9 of the double normalization has twice the weight.
    assert_near(twice[:, : x.shape[1]], module(x, geometry), atol=1e-6)


@pytest.mark.parametrize("training", [True, False])
def test_gradients(core: Core, cloud: Cloud, training: bool) -> None:
    module, (x, geometry) = core(dim=8).train(training), cloud(num_points=12, dim=8)
    names, parameters = zip(*module.named_parameters(), strict=True)

    def run(x: Tensor, *parameters: Tensor) -> Tensor:
        # Copies, because batch normalization updates its statistics in place.
        state = {name: buffer.clone() for name, buffer in module.named_buffers()}
        return torch.func.functional_call(module, {**state, **dict(zip(names, parameters, strict=True))}, (x, geometry))

    assert torch.autograd.gradcheck(run, (x.requires_grad_(), *parameters), fast_mode=True)


def test_every_parameter_gets_a_gradient(core: Core, cloud: Cloud) -> None:
    module, (x, geometry) = core(), cloud()
    (module(x, geometry) * torch.randn_like(x)).sum().backward()
    assert all(parameter.grad is not None and parameter.grad.abs().max() > 0 for parameter in module.parameters())


@pytest.mark.parametrize("num_points", [64, 300])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(mechanism: Mechanism, dtype: torch.dtype, num_points: int) -> None:
    name, kwargs = mechanism
    core = build_attention(name, 32, **kwargs).eval()
    x = torch.randn(2, num_points, 32, requires_grad=True)
    geometry = Geometry(torch.randn(2, num_points, 3))
    expected = core(x, geometry)
    with torch.autocast("cpu", dtype):
        actual = core(x, geometry)
        actual.float().sum().backward()
    assert actual.isfinite().all()
    assert x.grad is not None
    assert x.grad.isfinite().all()
    assert (actual - expected).abs().max() <= 2e-2 * expected.abs().max()


def test_half_precision_weights(mechanism: Mechanism) -> None:
    name, kwargs = mechanism
    core = build_attention(name, 16, **kwargs).bfloat16().eval()
    out = core(torch.randn(1, 32, 16, dtype=torch.bfloat16), Geometry(torch.randn(1, 32, 3)))
    assert out.dtype == torch.bfloat16
    assert out.isfinite().all()


def test_not_contiguous(core: Core, cloud: Cloud) -> None:
    module, (x, geometry) = core().eval(), cloud()
    strided = x.transpose(1, 2).contiguous().transpose(1, 2)
    assert_near(module(strided, geometry), module(x, geometry))


@pytest.mark.parametrize("num_points", [24, 300])
def test_compile(mechanism: Mechanism, num_points: int) -> None:
    torch.compiler.reset()
    module = OnPositions(16, mechanism).double()
    x, pos = torch.randn(2, num_points, 16, dtype=torch.float64), torch.randn(2, num_points, 3, dtype=torch.float64)
    results = []
    for compiled in (False, True):
        run, leaf = copy.deepcopy(module), x.clone().requires_grad_()
        out = (torch.compile(run, fullgraph=True, backend="aot_eager") if compiled else run)(leaf, pos)
        out.square().sum().backward()
        results.append((out, leaf.grad, *(parameter.grad for parameter in run.parameters()), *run.buffers()))
    for expected, actual in zip(*results, strict=True):
        assert_near(actual, expected, atol=1e-9)


@pytest.mark.parametrize("num_points", [24, 300])
def test_export_with_free_batch(mechanism: Mechanism, num_points: int) -> None:
    module = OnPositions(16, mechanism).eval()
    inputs = [(torch.randn(batch, num_points, 16), torch.randn(batch, num_points, 3)) for batch in (2, 5)]
    batch = torch.export.Dim("batch", min=1, max=64)
    exported = torch.export.export(module, inputs[0], dynamic_shapes=({0: batch}, {0: batch})).module()
    for x, pos in inputs:
        assert_near(exported(x, pos), module(x, pos), atol=1e-5)


def test_memory_is_linear(mechanism: Mechanism) -> None:
    """Four times the points take about four times the memory; an N x N tensor would take sixteen times."""
    name, kwargs = mechanism
    peaks = []
    for num_points in (1024, 4096):
        core = build_attention(name, 32, **kwargs)
        x, geometry = torch.randn(1, num_points, 32, requires_grad=True), Geometry(torch.rand(1, num_points, 3))
        core(x, geometry)  # computes neighbor lists and pencils, which are not counted
        peaks.append(peak_memory(lambda: core(x, geometry).sum().backward()))  # noqa: B023
    assert peaks[1] < 6 * peaks[0]
