from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from pcattn.ops import farthest_point_sample, gather, group, knn


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

    def test_non_contiguous_and_half_precision(self) -> None:
        features, neighbors = torch.randn(2, 4, 6).transpose(1, 2), torch.randint(0, 6, (2, 6, 3))
        assert torch.equal(group(features, neighbors), group(features.contiguous(), neighbors))
        assert group(features.half(), neighbors).dtype == torch.float16

    def test_compile_and_export(self) -> None:
        class Group(torch.nn.Module):
            def forward(self, features: Tensor, neighbors: Tensor) -> Tensor:
                return group(features, neighbors)

        features, neighbors = torch.randn(5, 6, 4), torch.randint(0, 6, (5, 6, 3))
        expected = Group()(features, neighbors)
        compiled = torch.compile(Group(), fullgraph=True, backend="aot_eager")
        assert torch.equal(compiled(features, neighbors), expected)
        batch = {0: torch.export.Dim("batch", min=1, max=1024)}
        program = torch.export.export(
            Group(), (features[:2], neighbors[:2]), dynamic_shapes={"features": batch, "neighbors": batch}
        )
        assert torch.equal(program.module()(features, neighbors), expected)

    def test_exceptions(self) -> None:
        features = torch.rand(2, 5, 3)
        with pytest.raises(ValueError, match=r"centers \(B, M\), but got"):
            group(features, torch.zeros(2, 4, 2).long(), torch.zeros(2, 3).long())
        with pytest.raises(ValueError, match="expected neighbors of all 5 points"):
            group(features, torch.zeros(2, 4, 2).long())
