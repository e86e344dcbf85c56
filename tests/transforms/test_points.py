"""Jitter, dropout and dropout of features: what is changed, and what is not."""

import pytest
import torch

from pcattn.transforms import Dropout, FeatureDropout, Jitter
from tests.transforms.batches import assert_constant, generator, make_batch


class TestJitter:
    def test_clipped_noise(self) -> None:
        batch = make_batch(num_points=5000)
        noise = Jitter(0.01, 0.02)(batch, generator()).pos - batch.pos
        assert noise.abs().max() <= 0.02 + 1e-12
        assert noise.std() == pytest.approx(0.00959, rel=0.02)  # of a normal clipped at two sigma


class TestDropout:
    def test_dropped_points_become_the_first(self) -> None:
        batch = make_batch(per_point=True)
        out = Dropout(0.9)(batch, generator())
        kept = (out.pos == batch.pos).all(dim=2)
        copies = (out.pos == batch.pos[:, :1]).all(dim=2)
        assert (kept | copies).all()
        torch.testing.assert_close(out.label, torch.where(kept, batch.label, batch.label[:, :1]))
        torch.testing.assert_close(out.normals, torch.where(kept[..., None], batch.normals, batch.normals[:, :1]))
        torch.testing.assert_close(out.features, torch.where(kept[..., None], batch.features, batch.features[:, :1]))

    def test_ratio_is_uniform(self) -> None:
        batch = make_batch(batch=400, num_points=100)
        out = Dropout(0.8)(batch, generator())
        ratio = 1 - (out.pos == batch.pos).all(dim=2).double().mean(dim=1)
        assert ratio.mean() == pytest.approx(0.4, abs=0.04)
        assert ratio.max() > 0.7


class TestFeatureDropout:
    def test_of_clouds(self) -> None:
        batch = make_batch(batch=500, num_points=4)
        out = FeatureDropout(0.3)(batch, generator())
        dropped = (out.normals == 0).all(dim=2)
        assert torch.equal(dropped, (out.features == 0).all(dim=2))
        assert_constant(dropped, dim=1)
        assert dropped[:, 0].double().mean() == pytest.approx(0.3, abs=0.06)
        assert torch.equal(out.normals[~dropped], batch.normals[~dropped])
        assert torch.equal(out.pos, batch.pos)

    def test_of_points(self) -> None:
        dropped = FeatureDropout(0.3, per_point=True)(make_batch(), generator()).normals.eq(0).all(dim=2)
        assert ((dropped.double().mean(dim=1) - 0.3).abs() < 0.15).all()

    def test_nothing_to_drop(self) -> None:
        with pytest.raises(ValueError, match="only positions"):
            FeatureDropout()(make_batch()._replace(normals=None, features=None), generator())
