import pytest
import torch

from pcattn.ops import gather, interpolate
from tests.ops.clouds import CLOUDS, brute_force, make_cloud


class TestInterpolate:
    @pytest.mark.parametrize("name", CLOUDS)
    def test_is_exact_at_support_points(self, name: str, backend: str) -> None:
        cloud = make_cloud(name)
        features = cloud * 2 + 1
        torch.testing.assert_close(interpolate(cloud, cloud, features, backend=backend), features)

    def test_equation(self) -> None:
        query, support, features = torch.randn(2, 7, 3), torch.randn(2, 9, 3), torch.randn(2, 9, 4)
        distances, indices = brute_force(query, support).sort(-1)
        weights = 1 / distances[..., :3]
        weights = weights / weights.sum(-1, keepdim=True)
        expected = (weights[..., None] * gather(features.double(), indices[..., :3])).sum(2)
        torch.testing.assert_close(interpolate(query, support, features).double(), expected, rtol=1e-5, atol=1e-6)

    @pytest.mark.parametrize(("scale", "offset"), [(1e-4, 0.0), (1e4, 0.0), (1.0, 1000.0)])
    def test_does_not_depend_on_scale_and_position(self, scale: float, offset: float) -> None:
        query, support = torch.randn(1, 9, 3, dtype=torch.float64), torch.randn(1, 20, 3, dtype=torch.float64)
        features = torch.randn(1, 20, 4, dtype=torch.float64)
        expected = interpolate(query, support, features)
        result = interpolate(query * scale + offset, support * scale + offset, features)
        torch.testing.assert_close(result, expected, rtol=1e-8, atol=1e-9)

    def test_fewer_points_than_k_and_lengths(self) -> None:
        query, features = torch.randn(2, 6, 3), torch.randn(2, 4, 5)
        support = torch.randn(2, 4, 3)
        expected = features[:, :1].expand(-1, 6, -1)
        torch.testing.assert_close(interpolate(query, support[:, :1], features[:, :1]), expected)
        lengths = torch.tensor([1, 0])
        result = interpolate(query, support, features, support_lengths=lengths)
        torch.testing.assert_close(result, expected * lengths.view(2, 1, 1))

    def test_gradcheck(self) -> None:
        query = torch.randn(1, 4, 3, dtype=torch.float64, requires_grad=True)
        support = torch.randn(1, 6, 3, dtype=torch.float64, requires_grad=True)
        features = torch.randn(1, 6, 2, dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(interpolate, (query, support, features))

    def test_gradients_are_finite_at_support_points(self) -> None:
        cloud = torch.randn(1, 9, 3, requires_grad=True)
        interpolate(cloud, cloud, cloud.detach()).square().sum().backward()
        assert cloud.grad is not None
        assert cloud.grad.isfinite().all()

    def test_half_precision_features(self) -> None:
        cloud = torch.randn(1, 9, 3)
        assert interpolate(cloud, cloud, cloud.half()).dtype == torch.float16

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
    def test_autocast_changes_nothing(self, dtype: torch.dtype) -> None:
        query, support, features = torch.randn(1, 7, 3), torch.randn(1, 9, 3), torch.randn(1, 9, 4).to(dtype)
        expected = interpolate(query, support, features)
        with torch.autocast("cpu", torch.bfloat16):
            result = interpolate(query, support, features)
        assert result.dtype == dtype
        assert torch.equal(result, expected)

    def test_exceptions(self) -> None:
        with pytest.raises(ValueError, match=r"support \(B, N, D\) and features \(B, N, C\) with the same B and N"):
            interpolate(torch.rand(1, 4, 3), torch.rand(1, 5, 3), torch.rand(1, 6, 2))
