"""Local aggregation in blocks against the reference: values, gradients, running statistics."""

import copy
from collections.abc import Iterator
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

from pcattn.ops.local_aggregation import aggregate, pool
from pcattn.ops.local_aggregation import numba as kernels
from pcattn.utils.errors import InputError

SIZES = [(2, 20, 9, 5, 6, 8), (1, 7, 1, 3, 3, 5), (3, 40, 16, 8, 16, 12)]  # B, N, M, k, C, D


class Case(NamedTuple):
    """Inputs and modules of `aggregate`."""

    points: Tensor
    centers: Tensor
    neighbors: Tensor
    modules: nn.ModuleList

    def run(self, backend: str) -> Tensor:
        return aggregate(self.points, self.centers, self.neighbors, *self.modules, backend=backend)

    def step(self, backend: str) -> list[Tensor]:
        """Output, gradients and buffers after a training step, which leaves the modules unchanged."""
        case = self._replace(modules=copy.deepcopy(self.modules))
        out = case.run(backend)
        return [out, *gradients(out, [self.points, self.centers, *case.modules.parameters()]), *case.modules.buffers()]


def gradients(out: Tensor, leaves: list[Tensor]) -> tuple[Tensor, ...]:
    cotangent = torch.randn(out.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    return torch.autograd.grad((out * cotangent.to(out.dtype)).sum(), leaves)


def draw_norm(dim: int, dtype: torch.dtype) -> nn.BatchNorm1d:
    """Scales of both signs."""
    norm = nn.BatchNorm1d(dim, dtype=dtype)
    nn.init.uniform_(norm.weight, -1, 1.5)
    nn.init.uniform_(norm.bias, -0.5, 0.5)
    return norm


def make(size: tuple[int, ...], dtype: torch.dtype = torch.float64, mean: float = 0.0) -> Case:
    """A case with one scale of zero, and neighborhoods with copies."""
    batch, num_points, num_groups, k, dim, out_dim = size
    first, second = draw_norm(dim, dtype), draw_norm(out_dim, dtype)
    first.weight.data[0] = 0
    points = (torch.randn(batch, num_points, dim, dtype=dtype) + mean).requires_grad_()
    centers = torch.randn(batch, num_groups, dim, dtype=dtype, requires_grad=True)
    neighbors = torch.randint(num_points, (batch, num_groups, k))
    linear = nn.Linear(dim, out_dim, bias=False, dtype=dtype)
    return Case(points, centers, neighbors, nn.ModuleList((first, linear, second)))


@pytest.fixture(params=["one block", "many blocks", "two threads"])
def _blocks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    if request.param == "many blocks":
        monkeypatch.setattr(kernels, "_BLOCK_ELEMENTS", 100)
    threads = torch.get_num_threads()
    if request.param == "two threads":
        torch.set_num_threads(2)
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("_blocks")
class TestAggregate:
    @pytest.mark.parametrize("size", SIZES)
    def test_equals_reference(self, size: tuple[int, ...]) -> None:
        case = make(size)
        for got, expected in zip(case.step("numba"), case.step("reference"), strict=True):
            torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-10)


class TestOneAggregate:
    def test_variances_far_from_zero(self) -> None:
        """In float32, of features whose mean is a thousand times their spread."""
        single = make((4, 200, 60, 16, 8, 8), torch.float32, mean=1000.0)
        exact = Case(
            single.points.detach().double().requires_grad_(),
            single.centers.detach().double().requires_grad_(),
            single.neighbors,
            copy.deepcopy(single.modules).double(),
        )
        for got, expected in zip(single.step("numba")[:3], exact.step("reference")[:3], strict=True):
            assert (got - expected).norm() / expected.norm() < 2e-3

    def test_nan_is_not_hidden(self) -> None:
        case = make(SIZES[0])
        case.points.data[0, 0, 0] = torch.nan
        case.neighbors[0, 0, 0] = 0
        assert case.run("numba").isnan().all()

    def test_the_reference_runs_where_the_blocks_cannot(self) -> None:
        """In training without gradients, in evaluation with them, in half precision, with exchanged normalizations."""
        case = make(SIZES[0])
        half = case._replace(points=case.points.bfloat16(), centers=case.centers.bfloat16())
        exchanged = nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(case.modules))
        for other, reason in (
            (case._replace(points=case.points.detach()), "do not require gradients"),
            (half._replace(modules=copy.deepcopy(case.modules).bfloat16()), "weights are in half precision"),
            (case._replace(modules=exchanged), "not an nn.BatchNorm1d"),
            (case._replace(modules=copy.deepcopy(case.modules).eval()), "gradients of an evaluation"),
        ):
            with pytest.raises(InputError, match=reason):
                other.run("numba")
            if other.modules is not exchanged:  # these run on GPUs only
                assert other.run("auto").isfinite().all()

    @pytest.mark.parametrize("wrong", [-1, 20])
    def test_neighbors_out_of_range(self, wrong: int) -> None:
        case = make(SIZES[0])
        case.neighbors[1, 2, 3] = wrong
        with pytest.raises(InputError, match=rf"expected neighbors in \[0, 20\), .* but got {wrong} \(cloud 1\)"):
            case.run("auto")

    def test_shapes_that_do_not_fit(self) -> None:
        case = make(SIZES[0])
        with pytest.raises(InputError, match=r"expected points .* but got .*\(2, 9, 6\) and \(2, 8, 5\)"):
            case._replace(neighbors=case.neighbors[:, 1:]).run("auto")


def with_statistics(case: Case) -> Case:
    """The case in evaluation, with running statistics of its own rows."""
    case.run("reference")
    return case._replace(modules=case.modules.eval())


class TestEvaluation:
    @pytest.mark.usefixtures("_blocks")
    @pytest.mark.parametrize("size", SIZES)
    @torch.no_grad()
    def test_equals_reference(self, size: tuple[int, ...]) -> None:
        case = with_statistics(make(size))
        torch.testing.assert_close(case.run("numba"), case.run("reference"), rtol=1e-10, atol=1e-10)

    @torch.no_grad()
    def test_nan_is_not_hidden(self) -> None:
        case = with_statistics(make(SIZES[0]))
        case.points[0, 0] = torch.nan
        case.neighbors[0, 0, 0] = 0
        assert case.run("numba")[0, 0].isnan().all()

    @torch.no_grad()
    def test_autocast(self) -> None:
        case = with_statistics(make((4, 200, 60, 16, 8, 8), torch.float32))
        exact = case.run("reference")
        with torch.autocast("cpu", torch.bfloat16):
            ours, reference = case.run("numba"), case.run("reference")
        assert ours.dtype == reference.dtype == torch.bfloat16
        assert (ours - exact).norm() <= 1.1 * (reference - exact).norm()


class TestAutocast:
    @pytest.mark.usefixtures("_blocks")
    def test_gradients_are_as_exact_as_those_of_the_reference(self) -> None:
        """Output, gradients and buffers, by their distance from float32."""
        case = make((4, 200, 60, 16, 32, 32), torch.float32)
        exact = case.step("reference")
        with torch.autocast("cpu", torch.bfloat16):
            ours, reference = case.step("numba"), case.step("reference")
        for got, peer, expected in zip(ours, reference, exact, strict=True):
            assert got.dtype == peer.dtype
            assert (got - expected).float().norm() <= 1.1 * (
                peer - expected
            ).float().norm() + 1e-3 * expected.float().norm()


class TestPool:
    @pytest.mark.usefixtures("_blocks")
    @pytest.mark.parametrize("size", [(4, 30, 6, 8), (2, 1, 3, 5), (3, 200, 5, 4)])  # B, N, C, D
    @pytest.mark.parametrize("bias", [False, True])
    def test_equals_reference(self, size: tuple[int, ...], bias: bool) -> None:
        """With copies of points."""
        batch, num_points, dim, out_dim = size
        modules = nn.ModuleList((nn.Linear(dim, out_dim, bias=bias).double(), draw_norm(out_dim, torch.float64)))
        x = torch.randn(batch, num_points, dim, dtype=torch.float64)
        x = x[:, torch.randint(num_points, (num_points,))].requires_grad_()
        results = []
        for backend in ("numba", "reference"):
            run = copy.deepcopy(modules)
            out = pool(x, *run, backend=backend)
            results.append([out, *gradients(out, [x, *run.parameters()]), *run.buffers()])
        for got, expected in zip(*results, strict=True):
            torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-10)

    def test_variances_far_from_zero(self) -> None:
        """In float32, over many points."""
        linear, norm = nn.Linear(4, 8, bias=False), nn.BatchNorm1d(8)
        x = (torch.randn(2, 5000, 4) + 1000).requires_grad_()
        pool(x, linear, norm, backend="numba")
        exact = copy.deepcopy(linear).double()(x.double()).flatten(0, 1)
        torch.testing.assert_close(norm.running_var, (0.9 + 0.1 * exact.var(dim=0)).float(), rtol=1e-4, atol=0)
        torch.testing.assert_close(norm.running_mean, (0.1 * exact.mean(dim=0)).float(), rtol=1e-6, atol=0)
