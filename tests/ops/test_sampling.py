from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from pcattn.ops import farthest_point_sample
from pcattn.ops.sampling.reference import centroid
from tests.ops.clouds import CLOUDS, brute_force, make_cloud

RULES = ("centroid", "pointnet2")


class TestFarthestPointSample:
    @pytest.mark.parametrize(
        ("batch", "num_points", "dim", "num_samples"), [(1, 1, 1, 1), (3, 33, 2, 33), (2, 90, 5, 9)]
    )
    @pytest.mark.parametrize("rule", RULES)
    def test_shapes(
        self, batch: int, num_points: int, dim: int, num_samples: int, rule: str, backend: str, poisoned: None
    ) -> None:
        chosen = farthest_point_sample(torch.randn(batch, num_points, dim), num_samples, rule, backend=backend)
        assert chosen.shape == (batch, num_samples)
        assert chosen.dtype == torch.int64
        assert (chosen >= 0).all()
        assert (chosen < num_points).all()

    def test_fixture(self, load_fixture: Callable[[str], dict[str, Tensor]], backend: str) -> None:
        fixture = load_fixture("fps_group")
        chosen = farthest_point_sample(fixture["xyz"], fixture["fps_idx"].shape[1], "pointnet2", backend=backend)
        assert torch.equal(chosen, fixture["fps_idx"])

    @pytest.mark.parametrize("name", CLOUDS)
    def test_each_sample_is_the_farthest(self, name: str, backend: str) -> None:
        cloud = make_cloud(name)
        chosen = farthest_point_sample(cloud, 60, backend=backend)
        distances = brute_force(cloud, cloud)
        for b in range(2):
            nearest = torch.full_like(distances[b, 0], torch.inf)
            for i in range(1, 60):
                nearest = torch.minimum(nearest, distances[b, chosen[b, i - 1]])
                torch.testing.assert_close(nearest[chosen[b, i]], nearest.max(), rtol=1e-14, atol=0)
            assert len(set(chosen[b].tolist())) == 60
        center = cloud.double().mean(1, keepdim=True)
        from_center = brute_force(center, cloud)[:, 0]
        torch.testing.assert_close(
            from_center.gather(1, chosen[:, :1])[:, 0], from_center.amax(1), rtol=1e-6, atol=1e-15
        )

    @pytest.mark.parametrize("name", CLOUDS)
    @pytest.mark.parametrize("rule", RULES)
    def test_backends_agree_index_for_index(self, name: str, rule: str) -> None:
        cloud = make_cloud(name)
        for num_samples in (50, cloud.shape[1]):
            expected = farthest_point_sample(cloud, num_samples, rule, backend="reference")
            assert torch.equal(farthest_point_sample(cloud, num_samples, rule, backend="numba"), expected)

    @pytest.mark.parametrize("name", ["random", "grid", "rough grid", "surface", "far away"])
    def test_does_not_depend_on_the_order_of_the_points(self, name: str, backend: str) -> None:
        cloud = make_cloud(name)
        shuffle = torch.randperm(cloud.shape[1])
        original = farthest_point_sample(cloud, 40, backend=backend)
        shuffled = farthest_point_sample(cloud[:, shuffle], 40, backend=backend)
        assert torch.equal(shuffle[shuffled], original)

    def test_centroid_of_millions_of_points(self) -> None:
        """The sum of the fixed-point numbers stays within int64."""
        for num_points in (1 << 20, (1 << 21) - 1, 1 << 21, (1 << 21) + 100_000):
            center = centroid(torch.tensor([[0.99, -0.99]], dtype=torch.float64).expand(1, num_points, 2))
            torch.testing.assert_close(center, torch.tensor([[0.99, -0.99]], dtype=torch.float64), rtol=1e-11, atol=0)

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_half_precision_and_autocast(self, dtype: torch.dtype, backend: str) -> None:
        cloud = make_cloud("random", dtype=dtype)
        expected = farthest_point_sample(cloud.double(), 50, backend="reference")
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(farthest_point_sample(cloud, 50, backend=backend), expected)

    def test_no_point_is_chosen_twice(self, backend: str) -> None:
        for name in ("duplicates", "one point"):
            cloud = make_cloud(name)
            chosen = farthest_point_sample(cloud, cloud.shape[1], backend=backend)
            assert torch.equal(chosen.sort(1).values, torch.arange(cloud.shape[1]).expand(2, -1))

    @pytest.mark.parametrize("rule", RULES)
    def test_lengths(self, rule: str, backend: str) -> None:
        cloud = torch.randn(3, 70, 3)
        lengths = torch.tensor([70, 40, 5])
        chosen = farthest_point_sample(cloud, 20, rule, lengths=lengths, backend=backend)
        for b, length in enumerate(lengths.tolist()):
            found = min(length, 20)
            alone = farthest_point_sample(cloud[b : b + 1, :length], found, rule, backend=backend)
            assert torch.equal(chosen[b, :found], alone[0])
            if rule == "centroid":
                assert (chosen[b, found:] == chosen[b, 0]).all()

    def test_pointnet2_skips_the_origin(self, backend: str) -> None:
        cloud = torch.tensor([[[1.0, 0, 0], [0.01, 0, 0], [0.0, 0.5, 0]]])
        assert farthest_point_sample(cloud, 3, "pointnet2", backend=backend).tolist() == [[0, 2, 0]]

    def test_non_contiguous(self, backend: str) -> None:
        cloud = torch.randn(2, 3, 80).transpose(1, 2)
        expected = farthest_point_sample(cloud.contiguous(), 20, backend=backend)
        assert torch.equal(farthest_point_sample(cloud, 20, backend=backend), expected)

    def test_terminates_on_non_finite_input(self, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """Where the values stay unread, as on a GPU."""
        monkeypatch.setattr("pcattn.ops.sampling.op.check_finite", lambda *_: None)
        for value in (torch.nan, torch.inf):
            cloud = torch.randn(1, 100, 3)
            cloud[0, ::9] = value
            for rule in RULES:
                chosen = farthest_point_sample(cloud, 50, rule, backend=backend)
                assert (chosen >= 0).all()
                assert (chosen < 100).all()

    def test_opcheck_compile_and_export(self) -> None:
        torch.library.opcheck(
            torch.ops.pcattn.farthest_point_sample.default, (torch.randn(2, 9, 3), 4, "centroid", None, "auto")
        )

        class Sample(torch.nn.Module):
            def forward(self, cloud: Tensor) -> Tensor:
                return farthest_point_sample(cloud, 9)

        clouds = torch.randn(5, 40, 3)
        expected = Sample()(clouds)
        compiled = torch.compile(Sample(), fullgraph=True, backend="aot_eager")
        assert torch.equal(compiled(clouds), expected)
        batch = torch.export.Dim("batch", min=1, max=1024)
        program = torch.export.export(Sample(), (clouds[:2],), dynamic_shapes={"cloud": {0: batch}})
        assert torch.equal(program.module()(clouds), expected)

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"pos": torch.rand(5, 3)}, r"expected pos to be \(B, N, D\)"),
            ({"num_samples": 0}, "expected 1 <= num_samples <= 9"),
            ({"num_samples": 10}, "but got num_samples=10"),
            ({"num_samples": 9 / 2}, r"expected num_samples to be an integer, but got 4\.5"),
            ({"rule": "random"}, "expected rule to be one of centroid, pointnet2, but got 'random'"),
            ({"lengths": torch.tensor([9, 0])}, r"expected lengths in \[1, 9\], but got 0 to 9"),
            ({"backend": "fast"}, "expected backend to be one of"),
        ],
    )
    def test_exceptions(self, arguments: dict, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            farthest_point_sample(**{"pos": torch.rand(2, 9, 3), "num_samples": 3, **arguments})
