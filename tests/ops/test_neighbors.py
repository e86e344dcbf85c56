import numpy as np
import pytest
import torch
from torch import Tensor

from pcattn.ops import KNN, ball_query, knn
from pcattn.ops.neighbors import reference
from tests.ops.clouds import CLOUDS, brute_force, make_cloud


def assert_exact(result: KNN, query: Tensor, support: Tensor, k: int, metric: str = "l2") -> None:
    """The distances are those of float64 brute force, as sets, and the indices belong to them."""
    everything = brute_force(query, support, metric)
    expected = everything.sort(dim=-1).values[..., :k]
    torch.testing.assert_close(everything.gather(-1, result.indices), expected, rtol=1e-14, atol=0)
    torch.testing.assert_close(result.distances, expected.to(result.distances.dtype), rtol=2e-7, atol=0)
    assert (result.indices.sort(-1).values.diff(dim=-1) > 0).all()


class TestKNN:
    @pytest.mark.parametrize(
        ("batch", "num_queries", "num_points", "dim", "k"),
        [(1, 1, 1, 1, 1), (2, 5, 40, 2, 40), (3, 70, 33, 3, 7), (2, 9, 100, 6, 33), (2, 30, 130, 64, 20)],
    )
    def test_shapes(self, batch: int, num_queries: int, num_points: int, dim: int, k: int, backend: str) -> None:
        query, support = torch.randn(batch, num_queries, dim), torch.randn(batch, num_points, dim)
        result = knn(query, support, k, backend=backend)
        assert result.distances.shape == result.indices.shape == (batch, num_queries, k)
        assert result.distances.dtype == torch.float32
        assert result.indices.dtype == torch.int64
        assert_exact(result, query, support, k)

    @pytest.mark.parametrize("name", CLOUDS)
    @pytest.mark.parametrize("metric", ["l2", "linf"])
    def test_equals_float64_brute_force(self, name: str, metric: str, backend: str) -> None:
        cloud = make_cloud(name)
        assert_exact(knn(cloud, cloud, 32, metric, backend=backend), cloud, cloud, 32, metric)
        query = cloud[:, ::7] + 0.01 * cloud.std()
        assert_exact(knn(query, cloud, 9, metric, backend=backend), query, cloud, 9, metric)

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
    @pytest.mark.parametrize("dim", [3, 16])
    def test_dtypes(self, dtype: torch.dtype, dim: int, backend: str) -> None:
        cloud = torch.randn(2, 300, dim).to(dtype)
        result = knn(cloud, cloud, 16, backend=backend)
        assert result.distances.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        assert_exact(result, cloud, cloud, 16)

    def test_float64_is_searched_in_float64(self, backend: str) -> None:
        for dim in (3, 16):
            cloud = 1 + 1e-12 * torch.rand(1, 200, dim, dtype=torch.float64)
            assert_exact(knn(cloud, cloud, 8, backend=backend), cloud, cloud, 8)

    def test_autocast_changes_nothing(self, backend: str) -> None:
        cloud = make_cloud("far away")
        expected = knn(cloud, cloud, 8, backend=backend)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            result = knn(cloud, cloud, 8, backend=backend)
        assert torch.equal(result.indices, expected.indices)
        assert torch.equal(result.distances, expected.distances)

    @pytest.mark.parametrize("name", CLOUDS)
    def test_backends_agree_index_for_index(self, name: str) -> None:
        cloud = make_cloud(name)
        for query, support in ((cloud, cloud), (cloud[:, :50], cloud[:, 40:])):
            expected = knn(query, support, 20, backend="reference")
            result = knn(query, support, 20, backend="numba")
            assert torch.equal(result.indices, expected.indices)
            assert torch.equal(result.distances, expected.distances)

    @pytest.mark.parametrize("dim", [1, 2, 6, 12])
    def test_backends_agree_on_features_with_ties(self, dim: int) -> None:
        cloud = torch.randint(0, 3, (2, 200, dim)).float()
        for k in (1, 20, 200):
            expected = knn(cloud, cloud, k, backend="reference")
            result = knn(cloud, cloud, k, backend="numba")
            assert torch.equal(result.indices, expected.indices)

    @pytest.mark.parametrize("name", ["grid", "rough grid", "surface", "plane"])
    @pytest.mark.parametrize("dim", [3, 12])
    def test_does_not_depend_on_the_order_of_the_points(self, name: str, dim: int, backend: str) -> None:
        cloud = make_cloud(name).repeat(1, 1, dim // 3)
        shuffle = torch.randperm(cloud.shape[1])
        original = knn(cloud[:, :100], cloud, 11, backend=backend).indices
        shuffled = knn(cloud[:, :100], cloud[:, shuffle], 11, backend=backend).indices
        assert torch.equal(shuffle[shuffled], original)

    def test_ties_go_to_the_lexicographically_smaller_point(self, backend: str) -> None:
        support = torch.tensor([[[0.0, 1, 0], [1, 0, 0], [0, 0, 1], [-1, 0, 0], [0, 0, -1], [0, 1, 0]]])
        result = knn(torch.zeros(1, 1, 3), support, 6, backend=backend)
        assert result.indices.tolist() == [[[3, 4, 2, 0, 5, 1]]]

    @pytest.mark.parametrize("name", CLOUDS)
    @pytest.mark.parametrize("dim", [3, 12])
    def test_a_point_is_its_own_nearest_neighbor(self, name: str, dim: int, backend: str) -> None:
        cloud = make_cloud(name).repeat(1, 1, dim // 3)
        everyone = torch.arange(cloud.shape[1]).expand(cloud.shape[:2])
        assert torch.equal(knn(cloud, cloud, 5, backend=backend).indices[..., 0], everyone)
        some = everyone[:, ::3]
        result = knn(cloud[:, ::3].clone(), cloud, 5, query_indices=some, backend=backend)
        assert torch.equal(result.indices[..., 0], some)
        assert torch.equal(knn(cloud, cloud, 1, backend=backend).indices[..., 0], everyone)

    @pytest.mark.parametrize("dim", [3, 12])
    def test_lengths(self, dim: int, backend: str, poisoned: None) -> None:
        query, support = torch.randn(3, 60, dim), torch.randn(3, 80, dim)
        query_lengths, support_lengths = torch.tensor([60, 7, 20]), torch.tensor([80, 5, 0])
        result = knn(query, support, 9, query_lengths=query_lengths, support_lengths=support_lengths, backend=backend)
        for b in range(2):
            m, n = int(query_lengths[b]), int(support_lengths[b])
            found = min(9, n)
            alone = knn(query[b : b + 1, :m], support[b : b + 1, :n], found, backend=backend)
            assert torch.equal(result.indices[b, :m, :found], alone.indices[0])
            assert torch.equal(result.distances[b, :m, :found], alone.distances[0])
            assert (result.indices[b, :m, found:] == alone.indices[0, :, :1]).all()
            assert result.distances[b, :m, found:].isinf().all()
        for nothing in (slice(None), slice(7, None)):
            b = 2 if nothing.start is None else 1
            assert result.distances[b, nothing].isinf().all()
            assert (result.indices[b, nothing] == 0).all()

    def test_results_are_written_completely(self, backend: str, poisoned: None) -> None:
        for dim in (3, 16):
            cloud = torch.randn(2, 75, dim)
            assert_exact(knn(cloud, cloud, 8, backend=backend), cloud, cloud, 8)

    @pytest.mark.parametrize("elements", [1, 300])
    def test_blocks_of_the_reference(self, elements: int, monkeypatch: pytest.MonkeyPatch) -> None:
        """One query per block, and blocks of which the last is smaller."""
        cloud, lengths, own = torch.randn(2, 40, 3), torch.tensor([40, 25]), torch.arange(40).expand(2, -1)
        arguments = {"query_lengths": lengths, "support_lengths": lengths, "query_indices": own, "backend": "reference"}
        expected = knn(cloud, cloud, 5, **arguments)
        monkeypatch.setattr(reference, "_BLOCK_ELEMENTS", elements)
        for got, whole in zip(knn(cloud, cloud, 5, **arguments), expected, strict=True):
            assert torch.equal(got, whole)

    def test_non_contiguous(self, backend: str) -> None:
        for dim in (3, 16):
            cloud = torch.randn(2, dim, 90).transpose(1, 2)
            assert_exact(knn(cloud[:, ::2], cloud, 8, backend=backend), cloud[:, ::2], cloud, 8)

    def test_same_result_in_every_run_and_for_any_number_of_threads(self) -> None:
        cloud = make_cloud("duplicates")
        expected = knn(cloud, cloud, 8).indices
        threads = torch.get_num_threads()
        try:
            for number in (1, 3, 1):
                torch.set_num_threads(number)
                assert torch.equal(knn(cloud, cloud, 8).indices, expected)
        finally:
            torch.set_num_threads(threads)

    @pytest.mark.parametrize("value", [float("nan"), float("inf")])
    def test_terminates_on_non_finite_input(self, value: float, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """If values are not checked, as on a GPU."""
        monkeypatch.setattr("pcattn.ops.neighbors.op.check_finite", lambda *_: None)
        for dim in (3, 16):
            cloud = torch.randn(1, 100, dim)
            cloud[0, ::9] = value
            indices = knn(cloud, cloud, 8, backend=backend).indices
            assert (indices >= 0).all()
            assert (indices < 100).all()

    @pytest.mark.parametrize("metric", ["l2", "linf"])
    def test_gradcheck(self, metric: str, backend: str) -> None:
        query = torch.randn(2, 4, 3, dtype=torch.float64, requires_grad=True)
        support = torch.randn(2, 6, 3, dtype=torch.float64, requires_grad=True)

        def distances(query: Tensor, support: Tensor) -> Tensor:
            return knn(query, support, 3, metric, backend=backend).distances

        assert torch.autograd.gradcheck(distances, (query, support))
        assert torch.autograd.gradgradcheck(distances, (query, support))

    def test_missing_neighbors_have_no_gradient(self) -> None:
        cloud = torch.randn(1, 5, 3, requires_grad=True)
        distances = knn(cloud, cloud, 4, support_lengths=torch.tensor([2])).distances
        distances.masked_fill(distances.isinf(), 0).sum().backward()
        assert cloud.grad is not None
        assert cloud.grad.isfinite().all()

    def test_gradients_have_the_dtype_of_the_input(self) -> None:
        cloud = torch.randn(1, 30, 3, dtype=torch.float16, requires_grad=True)
        knn(cloud, cloud, 4).distances.sum().backward()
        assert cloud.grad is not None
        assert cloud.grad.dtype == torch.float16

    def test_opcheck(self) -> None:
        query, support = torch.randn(2, 9, 3, requires_grad=True), torch.randn(2, 12, 3, requires_grad=True)
        lengths = torch.tensor([9, 4])
        for optional in ((None, None, None), (lengths, lengths, torch.arange(9).repeat(2, 1))):
            arguments = (query, support, 3, "l2", torch.inf, *optional, "auto")
            torch.library.opcheck(torch.ops.pcattn.knn.default, arguments)

    def test_compile(self) -> None:
        def function(cloud: Tensor) -> Tensor:
            return knn(2 * cloud, 2 * cloud, 5).distances.sum(-1)

        compiled = torch.compile(function, fullgraph=True, dynamic=True, backend="aot_eager")
        for batch in (2, 3):
            cloud = torch.randn(batch, 50, 3, requires_grad=True)
            (expected,) = torch.autograd.grad(function(cloud).sum(), cloud)
            (gradient,) = torch.autograd.grad(compiled(cloud).sum(), cloud)
            torch.testing.assert_close(gradient, expected)

    def test_export_with_any_batch_size(self) -> None:
        class Neighbors(torch.nn.Module):
            def forward(self, cloud: Tensor) -> tuple[Tensor, Tensor]:
                return knn(cloud, cloud, 5)

        batch = torch.export.Dim("batch", min=1, max=1024)
        program = torch.export.export(Neighbors(), (torch.randn(2, 50, 3),), dynamic_shapes={"cloud": {0: batch}})
        cloud = torch.randn(7, 50, 3)
        assert torch.equal(program.module()(cloud)[1], knn(cloud, cloud, 5).indices)

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"query": torch.rand(5, 3)}, r"expected query to be \(B, N, D\)"),
            ({"query": torch.rand(2, 5, 3).long()}, "floating point, but got torch.int64"),
            ({"query": torch.rand(3, 5, 3)}, r"same B and D, but got \(3, 5, 3\) and \(2, 9, 3\)"),
            ({"query": torch.rand(2, 5, 2)}, "same B and D"),
            ({"k": 0}, "expected 1 <= k <= 9"),
            ({"k": 3.0}, r"expected k to be an integer, but got 3\.0"),
            ({"k": True}, "expected 1 <= k <= 9"),
            ({"k": 10}, r"expected 1 <= k <= 9 \(the number of support points\), but got k=10"),
            ({"metric": "l1"}, "expected metric to be one of l2, linf, but got 'l1'"),
            ({"backend": "cuda"}, "expected backend to be one of auto"),
            ({"backend": "triton", "k": 2}, None),
            ({"query_indices": torch.zeros(2, 4).long()}, "expected query_indices to be"),
            ({"support_lengths": torch.tensor([9, 10])}, r"expected support_lengths in \[0, 9\], but got 9 to 10"),
            ({"query_lengths": torch.tensor([1.0, 2.0])}, "expected query_lengths to be integers"),
        ],
    )
    def test_exceptions(self, arguments: dict, message: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("TRITON_INTERPRET", raising=False)
        message = message or "backend='triton': .*cpu, not on a CUDA device"
        with pytest.raises(ValueError, match=message):
            knn(**{"query": torch.rand(2, 5, 3), "support": torch.rand(2, 9, 3), "k": 3, **arguments})

    @pytest.mark.parametrize("k", [np.int64(3), torch.tensor(3)])
    def test_integers_of_other_libraries(self, k) -> None:
        cloud = torch.rand(2, 9, 3)
        assert torch.equal(knn(cloud, cloud, k).indices, knn(cloud, cloud, 3).indices)


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
