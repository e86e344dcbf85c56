"""Properties of the searches on arbitrary and on degenerate clouds."""

import hypothesis.extra.numpy as arrays
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pcattn.ops import ball_query, farthest_point_sample, gather, group, interpolate, knn

# A few fixed coordinates, which cause many ties and duplicates, and arbitrary ones of very different size.
COORDINATES = st.one_of(
    st.sampled_from([0.0, 1.0, -1.0, 0.5]), st.floats(-(2.0**50), 2.0**50, width=32, allow_subnormal=False)
)
BOUNDED = settings(max_examples=40, derandomize=True, deadline=None)


@st.composite
def clouds(draw: st.DrawFn, least: int = 1) -> Tensor:
    shape = (draw(st.integers(1, 2)), draw(st.integers(least, 12)), 3)
    return torch.from_numpy(draw(arrays.arrays(np.float32, shape, elements=COORDINATES)))


def brute_force(query: Tensor, support: Tensor) -> Tensor:
    x, y, z = (query.double()[:, :, None] - support.double()[:, None]).square().unbind(dim=3)
    return x + y + z


class TestProperties:
    @BOUNDED
    @given(clouds(), st.data())
    def test_knn_is_brute_force(self, pos: Tensor, data: st.DataObject) -> None:
        k = data.draw(st.integers(1, pos.shape[1]))
        found = knn(pos, pos.clone(), k)
        exact = brute_force(pos, pos)
        sorted_distances = exact.sort(dim=2).values[..., :k]
        assert torch.equal(exact.gather(2, found.indices), sorted_distances)
        assert torch.equal(found.distances, sorted_distances.float())
        assert all(row.unique().numel() == k for row in found.indices.flatten(0, 1))

    @BOUNDED
    @given(clouds(), st.randoms(use_true_random=False))
    def test_order_of_the_points_does_not_matter(self, pos: Tensor, random) -> None:
        order = torch.tensor(random.sample(range(pos.shape[1]), pos.shape[1]))
        k = min(3, pos.shape[1])
        neighbors = gather(pos, knn(pos, pos.clone(), k).indices)
        permuted = gather(pos[:, order], knn(pos, pos[:, order], k).indices)
        assert torch.equal(neighbors, permuted)
        sampled, other = (gather(p, farthest_point_sample(p, k)) for p in (pos, pos[:, order]))
        assert torch.equal(sampled, other)

    @BOUNDED
    @given(clouds())
    def test_farthest_point_sampling_is_greedy(self, pos: Tensor) -> None:
        chosen = farthest_point_sample(pos, pos.shape[1])
        assert torch.equal(chosen.sort(dim=1).values, torch.arange(pos.shape[1]).expand_as(chosen))
        distance = brute_force(pos, pos)
        for cloud, order in zip(distance, chosen, strict=True):
            for step in range(1, len(order)):
                gap = cloud[:, order[:step]].amin(dim=1)
                assert gap[order[step]] == gap[order[step:]].max()

    @BOUNDED
    @given(clouds(), st.floats(1e-3, 10))
    def test_ball_query_is_a_part_of_knn(self, pos: Tensor, radius: float) -> None:
        k = pos.shape[1]
        ball, nearest = ball_query(pos, pos.clone(), radius, k), knn(pos, pos.clone(), k)
        inside = brute_force(pos, pos).gather(2, nearest.indices) <= radius**2
        assert torch.equal(ball.distances.isfinite(), inside)
        assert torch.equal(ball.indices[inside], nearest.indices[inside])

    @BOUNDED
    @given(clouds(), st.integers(1, 3))
    def test_interpolation_of_known_features(self, pos: Tensor, k: int) -> None:
        """It is the identity at distinct support points, and keeps constant features constant."""
        constant = interpolate(pos, pos.clone(), torch.full_like(pos, 7.0), k)
        torch.testing.assert_close(constant, torch.full_like(pos, 7.0))
        if pos.unique(dim=1).shape[1] == pos.shape[1] and len(pos) == 1:
            features = torch.arange(float(pos.numel())).view_as(pos)
            again = interpolate(pos, pos.clone(), features, 1)
            torch.testing.assert_close(again, features)


class TestDegenerate:
    @pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
    def test_not_finite_points_are_refused(self, value: float) -> None:
        good, bad = torch.randn(2, 2, 8, 3)
        bad[1, 5, 2] = value
        message = r"to be finite, but point 5 of cloud 1 is \("
        with pytest.raises(ValueError, match=f"query {message}"):
            knn(bad, good, 2)
        with pytest.raises(ValueError, match=f"support {message}"):
            ball_query(good, bad, 1.0, 2)
        with pytest.raises(ValueError, match=f"support {message}"):
            interpolate(good, bad, good)
        with pytest.raises(ValueError, match=f"pos {message}"):
            farthest_point_sample(bad, 2)
        # Padding may hold anything.
        lengths = torch.tensor([8, 5])
        knn(good, bad, 2, support_lengths=lengths)
        farthest_point_sample(bad, 2, lengths=lengths)

    @pytest.mark.parametrize("scale", [1e-30, 1e30])
    def test_scales(self, scale: float) -> None:
        pos = torch.randn(2, 20, 3)
        exact = brute_force(pos, pos).argsort(dim=2)[..., :5]
        found = knn(pos * scale, (pos * scale).clone(), 5)
        assert torch.equal(found.indices, exact)
        assert found.distances.isfinite().all()
        assert torch.equal(farthest_point_sample(pos * scale, 6), farthest_point_sample(pos, 6))
        assert interpolate(pos * scale, pos[:, :4] * scale, pos[:, :4]).isfinite().all()

    def test_one_place_and_one_point(self) -> None:
        same = torch.full((2, 6, 3), 0.3)
        assert farthest_point_sample(same, 6).sort().values.tolist() == [[0, 1, 2, 3, 4, 5]] * 2
        assert torch.equal(interpolate(same, same, same), same)
        single = torch.randn(1, 1, 3)
        assert knn(single, single, 1).indices.tolist() == [[[0]]]
        assert farthest_point_sample(single, 1).tolist() == [[0]]
        with pytest.raises(ValueError, match="k=2"):
            knn(single, single, 2)

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
    def test_dtypes_and_strides(self, dtype: torch.dtype) -> None:
        pos = torch.randn(1, 3, 20).to(dtype).transpose(1, 2)  # not contiguous
        k = knn(pos, pos, 4)
        assert torch.equal(k.indices, knn(pos.contiguous().double(), pos.contiguous().double(), 4).indices)
        assert group(pos, k.indices).dtype == dtype
        assert interpolate(pos, pos[:, ::2], pos[:, ::2]).dtype == dtype
        assert torch.equal(farthest_point_sample(pos, 5), farthest_point_sample(pos.double(), 5))

    def test_wrong_types(self) -> None:
        whole = torch.zeros(1, 4, 3, dtype=torch.long)
        with pytest.raises(ValueError, match="floating point"):
            knn(whole, whole, 1)
        with pytest.raises(ValueError, match="not empty"):
            farthest_point_sample(torch.zeros(1, 0, 3), 1)
