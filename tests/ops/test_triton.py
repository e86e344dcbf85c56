"""The Triton kernels, on a GPU or in Triton's interpreter."""

import pytest
import torch
from torch import Tensor

from pcattn.ops import ball_query, farthest_point_sample, knn
from tests.ops.clouds import make_cloud

pytest.importorskip("triton", reason="triton is not installed")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def assert_same(result: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> None:
    for mine, theirs in zip(result, expected, strict=True):
        assert torch.equal(mine.cpu(), theirs.cpu())


class TestKNN:
    @pytest.mark.parametrize("name", ["random", "grid", "rough grid", "duplicates", "far away"])
    def test_equals_reference(self, name: str) -> None:
        cloud = make_cloud(name, 64, batch=1).to(DEVICE)
        assert_same(knn(cloud, cloud, 7, backend="triton"), knn(cloud, cloud, 7, backend="reference"))

    @pytest.mark.parametrize(
        ("num_points", "dim", "k", "metric"),
        [(150, 3, 5, "l2"), (60, 3, 33, "linf"), (40, 16, 3, "l2"), (3, 2, 3, "l2"), (20, 3, 1, "l2")],
    )
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
    def test_shapes_and_dtypes(self, num_points: int, dim: int, k: int, metric: str, dtype: torch.dtype) -> None:
        query = torch.randn(2, 18, dim, device=DEVICE).to(dtype)
        support = torch.randn(2, num_points, dim, device=DEVICE).to(dtype)
        expected = knn(query, support, k, metric, backend="reference")
        assert_same(knn(query, support, k, metric, backend="triton"), expected)

    def test_lengths(self) -> None:
        cloud = torch.randn(3, 40, 3, device=DEVICE)
        lengths = torch.tensor([40, 3, 20], device=DEVICE)

        def search(backend: str) -> tuple[Tensor, ...]:
            return knn(cloud, cloud, 6, query_lengths=lengths, support_lengths=lengths, backend=backend)

        assert_same(search("triton"), search("reference"))

    def test_ball_query(self) -> None:
        cloud = make_cloud("rough grid", 64).to(DEVICE)
        query = cloud[:, :20] + 0.02
        expected = ball_query(query, cloud, 0.15, 9, backend="reference")
        assert_same(ball_query(query, cloud, 0.15, 9, backend="triton"), expected)

    def test_gradients(self) -> None:
        cloud = torch.randn(1, 20, 3, device=DEVICE, requires_grad=True)
        gradients = []
        for backend in ("triton", "reference"):
            gradients += torch.autograd.grad(knn(cloud, cloud, 4, backend=backend).distances.sum(), cloud)
        torch.testing.assert_close(*gradients)


class TestFarthestPointSample:
    @pytest.mark.parametrize("rule", ["centroid", "pointnet2"])
    @pytest.mark.parametrize("name", ["random", "grid", "rough grid", "duplicates", "far away"])
    @pytest.mark.parametrize("block", [4096, 32])
    def test_equals_reference(self, name: str, rule: str, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("pcattn.ops.sampling.triton._MAX_BLOCK", block)
        cloud = make_cloud(name, 64).to(DEVICE)
        expected = farthest_point_sample(cloud, 20, rule, backend="reference")
        assert_same((farthest_point_sample(cloud, 20, rule, backend="triton"),), (expected,))

    @pytest.mark.parametrize("rule", ["centroid", "pointnet2"])
    def test_lengths(self, rule: str) -> None:
        cloud = torch.randn(3, 40, 3, device=DEVICE)
        lengths = torch.tensor([40, 3, 20], device=DEVICE)
        expected = farthest_point_sample(cloud, 12, rule, lengths=lengths, backend="reference")
        assert_same((farthest_point_sample(cloud, 12, rule, lengths=lengths, backend="triton"),), (expected,))


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_tensors_need_not_be_on_the_current_device() -> None:
    cloud = make_cloud("random", 64).to("cuda:1")
    neighbors = knn(cloud, cloud, 5, backend="triton").indices
    assert torch.equal(neighbors, knn(cloud, cloud, 5, backend="reference").indices)
    chosen = farthest_point_sample(cloud, 9, backend="triton")
    assert torch.equal(chosen, farthest_point_sample(cloud, 9, backend="reference"))
