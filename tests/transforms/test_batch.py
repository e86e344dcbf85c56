"""A choice of points, and numbers from a given generator."""

import math

import pytest
import torch

from pcattn.transforms import subsample
from pcattn.transforms.batch import beta
from tests.transforms.batches import generator, make_batch


class TestSubsample:
    def test_random_choice_without_repetition(self) -> None:
        batch = make_batch(per_point=True)
        out = subsample(batch, 50, generator())
        chosen = out.label - 200 * torch.arange(6)[:, None]
        assert all(row.unique().numel() == 50 for row in chosen)
        assert not torch.equal(chosen[0], chosen[1])
        for cloud in range(6):
            assert torch.equal(out.pos[cloud], batch.pos[cloud, chosen[cloud]])
            assert torch.equal(out.normals[cloud], batch.normals[cloud, chosen[cloud]])
            assert torch.equal(out.features[cloud], batch.features[cloud, chosen[cloud]])
        assert torch.equal(out.point_indices, chosen)
        assert torch.equal(subsample(out, 20, generator(1)).point_indices, subsample(out, 20, generator(1)).label % 200)

    def test_first_points_without_a_generator(self) -> None:
        batch = make_batch()
        assert torch.equal(subsample(batch, 50).pos, batch.pos[:, :50])

    def test_too_many(self) -> None:
        with pytest.raises(ValueError, match="num_points <= 200"):
            subsample(make_batch(), 201)


class TestBeta:
    @pytest.mark.parametrize("concentration", [0.4, 1.0, 3.0])
    def test_moments(self, concentration: float) -> None:
        drawn = beta(50_000, concentration, torch.zeros(1), generator())
        assert drawn.mean() == pytest.approx(0.5, abs=0.01)
        assert drawn.std() == pytest.approx(math.sqrt(1 / (4 * (2 * concentration + 1))), abs=0.01)

    def test_extreme_concentration(self) -> None:
        assert beta(10_000, 1e-3, torch.zeros(1), generator()).isfinite().all()
