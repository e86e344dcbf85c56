from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from pcattn.ops import ball_query, farthest_point_sample, gather, group, interpolate, knn
from tests.ops.clouds import CLOUDS, brute_force, make_cloud


class TestBallQuery:
    @pytest.mark.parametrize("name", CLOUDS)
    def test_equals_float64_brute_force(self, name: str, backend: str) -> None:
        cloud = make_cloud(name)
        query = cloud[:, ::5]
        everything = brute_force(query, cloud)
        radius = float(everything.flatten().kthvalue(everything.numel() // 10).values.sqrt()) or 1.0
        distances, indices = ball_query(query, cloud, radius, 24, backend=backend)
        expected = everything.masked_fill(everything > radius**2, torch.inf).sort(-1).values[..., :24]
        torch.testing.assert_close(distances, expected.float(), rtol=2e-7, atol=0)
        present = distances.isfinite()
        torch.testing.assert_close(everything.gather(2, indices)[present], expected[present], rtol=1e-14, atol=0)
        assert torch.equal(indices[~present], indices[..., :1].expand_as(indices)[~present])

    def test_the_radius_belongs_to_the_ball_and_empty_balls_are_marked(self, backend: str) -> None:
        support = torch.tensor([[[1.0, 0, 0], [0, 0.5, 0], [0, 0, 2]]])
        query = torch.tensor([[[0.0, 0, 0], [9, 9, 9]]])
        distances, indices = ball_query(query, support, 1.0, 3, backend=backend)
        assert distances.tolist() == [[[0.25, 1.0, torch.inf], [torch.inf] * 3]]
        assert indices.tolist() == [[[1, 0, 1], [0, 0, 0]]]

    def test_gradcheck(self, backend: str) -> None:
        cloud = torch.randn(1, 6, 3, dtype=torch.float64, requires_grad=True)

        def distances(cloud: Tensor) -> Tensor:
            result = ball_query(cloud, cloud, 2.0, 4, backend=backend).distances
            return result[result.isfinite()]

        assert torch.autograd.gradcheck(distances, (cloud,))

    @pytest.mark.parametrize("radius", [0.0, -1.0, float("nan")])
    def test_exceptions(self, radius: float) -> None:
        with pytest.raises(ValueError, match="expected radius to be positive"):
            ball_query(torch.rand(1, 4, 3), torch.rand(1, 4, 3), radius, 2)


class TestGather:
    @pytest.mark.parametrize("shape", [(2,), (2, 5), (2, 5, 3), (2, 0), (2, 5, 0)])
    def test_equals_indexing(self, shape: tuple[int, ...]) -> None:
        features, indices = torch.randn(2, 9, 4), torch.randint(0, 9, shape)
        expected = torch.stack([features[b, indices[b]] for b in range(2)])
        assert torch.equal(gather(features, indices), expected)
        assert torch.equal(gather(features.transpose(1, 2).contiguous().transpose(1, 2), indices), expected)

    def test_gradcheck(self) -> None:
        features = torch.randn(2, 5, 3, dtype=torch.float64, requires_grad=True)
        indices = torch.randint(0, 5, (2, 4, 2))
        assert torch.autograd.gradcheck(lambda x: gather(x, indices), (features,))

    def test_exceptions(self) -> None:
        with pytest.raises(ValueError, match=r"expected features \(B, N, C\) and indices \(B, ...\) with the same B"):
            gather(torch.rand(2, 5, 3), torch.zeros(3, 4).long())


class TestGroup:
    def test_fixture(self, load_fixture: Callable[[str], dict[str, Tensor]]) -> None:
        fixture = load_fixture("fps_group")
        pos, features = fixture["xyz"], fixture["feat"]
        centers = farthest_point_sample(pos, fixture["fps_idx"].shape[1], "pointnet2")
        sampled = gather(pos, centers)
        assert torch.equal(sampled, fixture["new_xyz"])
        neighbors = knn(sampled, pos, fixture["knn_idx"].shape[2], query_indices=centers).indices
        assert torch.equal(neighbors.sort(-1).values, fixture["knn_idx"].sort(-1).values)
        torch.testing.assert_close(group(features, fixture["knn_idx"], centers), fixture["grouped"])

    def test_without_centers(self) -> None:
        features, neighbors = torch.randn(2, 6, 4), torch.randint(0, 6, (2, 6, 3))
        relative, own = group(features, neighbors).chunk(2, dim=-1)
        assert torch.equal(own, features[:, :, None].expand(-1, -1, 3, -1))
        assert torch.equal(relative, gather(features, neighbors) - own)

    def test_gradcheck(self) -> None:
        features = torch.randn(2, 5, 3, dtype=torch.float64, requires_grad=True)
        neighbors, centers = torch.randint(0, 5, (2, 4, 2)), torch.randint(0, 5, (2, 4))
        assert torch.autograd.gradcheck(lambda x: group(x, neighbors, centers), (features,))
        assert torch.autograd.gradgradcheck(lambda x: group(x, neighbors, centers), (features,))

    def test_opcheck(self) -> None:
        features = torch.randn(2, 9, 3, requires_grad=True)
        arguments = (features, torch.randint(0, 9, (2, 5, 3)), torch.randint(0, 9, (2, 5)), "auto")
        torch.library.opcheck(torch.ops.pcattn.group.default, arguments)

    def test_exceptions(self) -> None:
        features = torch.rand(2, 5, 3)
        with pytest.raises(ValueError, match=r"centers \(B, M\), but got"):
            group(features, torch.zeros(2, 4, 2).long(), torch.zeros(2, 3).long())
        with pytest.raises(ValueError, match="expected neighbors of all 5 points"):
            group(features, torch.zeros(2, 4, 2).long())
        with pytest.raises(ValueError, match="no numba kernel"):
            group(features, torch.zeros(2, 5, 2).long(), backend="numba")


class TestInterpolate:
    @pytest.mark.parametrize("name", CLOUDS)
    def test_at_a_support_point_it_is_its_feature(self, name: str, backend: str) -> None:
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
    def test_does_not_depend_on_scale_and_place(self, scale: float, offset: float) -> None:
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
