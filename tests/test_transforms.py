"""Augmentation: what is changed, what is not, and that it repeats."""

import math

import pytest
import torch
from torch import Tensor

from pcattn.datasets import PointBatch
from pcattn.transforms import TRANSFORMS, Dropout, Jitter, Rotate, Scale, Translate, build_transforms, subsample


def make_batch(batch: int = 6, num_points: int = 200, per_point: bool = False) -> PointBatch:
    pos = torch.randn(batch, num_points, 3, dtype=torch.float64)
    normals = torch.nn.functional.normalize(torch.randn_like(pos), dim=2)
    label = torch.arange(batch * num_points).view(batch, num_points) if per_point else torch.arange(batch)
    return PointBatch(pos, normals, label, None, torch.arange(batch), seed=1, features=torch.rand_like(pos))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def assert_constant(values: Tensor, dim: int) -> None:
    torch.testing.assert_close(values, values.narrow(dim, 0, 1).expand_as(values))


@pytest.mark.parametrize("name", TRANSFORMS)
class TestEveryTransform:
    def test_repeats_and_leaves_its_input(self, name: str) -> None:
        batch = make_batch(per_point=True)
        before = [tensor.clone() for tensor in batch[:3]]
        transform = TRANSFORMS[name]()
        first, second, other = (transform(batch, generator(seed)) for seed in (3, 3, 4))
        assert all(torch.equal(a, b) for a, b in zip(first[:3], second[:3], strict=True))
        assert not torch.equal(first.pos, other.pos)
        assert all(torch.equal(a, b) for a, b in zip(batch[:3], before, strict=True))
        assert name == "dropout" or torch.equal(first.features, batch.features)  # colours do not turn
        assert first.pos.shape == batch.pos.shape
        assert first.pos.dtype == batch.pos.dtype

    def test_clouds_differ_in_one_batch(self, name: str) -> None:
        batch = make_batch()
        same = batch._replace(pos=batch.pos[:1].repeat(6, 1, 1))
        assert not torch.equal(*TRANSFORMS[name]()(same, generator()).pos[:2])


class TestScale:
    def test_one_factor_a_cloud_and_axis(self) -> None:
        batch = make_batch()
        factor = Scale(0.5, 2.0)(batch, generator()).pos / batch.pos
        assert_constant(factor, dim=1)
        assert ((factor >= 0.5) & (factor <= 2.0)).all()
        assert (factor[:, 0, 0] != factor[:, 0, 1]).all()

    def test_isotropic(self) -> None:
        batch = make_batch()
        assert_constant(Scale(isotropic=True)(batch, generator()).pos / batch.pos, dim=2)

    def test_normals_stay_normal_to_the_surface(self) -> None:
        """Tangents move with the points; the scaled normal is orthogonal to them and of unit length."""
        batch = make_batch()
        tangent = torch.linalg.cross(batch.normals, torch.randn_like(batch.pos))
        out = Scale()(batch._replace(pos=tangent), generator())
        torch.testing.assert_close((out.pos * out.normals).sum(-1), torch.zeros_like(out.pos[..., 0]))
        torch.testing.assert_close(out.normals.norm(dim=2), torch.ones_like(out.pos[..., 0]))


class TestTranslate:
    def test_one_offset_a_cloud(self) -> None:
        batch = make_batch()
        offset = Translate(0.3)(batch, generator()).pos - batch.pos
        assert_constant(offset, dim=1)
        assert offset.abs().max() <= 0.3


class TestRotate:
    @pytest.mark.parametrize("axis", ["x", "y", "z"])
    def test_is_a_rotation_about_the_axis(self, axis: str) -> None:
        batch = make_batch()
        out = Rotate(axis)(batch, generator())
        kept = "xyz".index(axis)
        torch.testing.assert_close(out.pos[..., kept], batch.pos[..., kept])
        torch.testing.assert_close(torch.cdist(out.pos, out.pos), torch.cdist(batch.pos, batch.pos))
        torch.testing.assert_close((out.pos * out.normals).sum(-1), (batch.pos * batch.normals).sum(-1))
        # Not a reflection: the triple product of the first three points keeps its sign.
        torch.testing.assert_close(torch.linalg.det(out.pos[:, :3]), torch.linalg.det(batch.pos[:, :3]))

    def test_limit(self) -> None:
        batch = make_batch()._replace(pos=torch.tensor([1.0, 0, 0]).double().expand(500, 1, 3), normals=None)
        out = Rotate("z", max_degrees=30)(batch, generator()).pos
        angles = torch.atan2(out[..., 1], out[..., 0])
        assert angles.abs().max() <= math.radians(30)
        assert angles.min() < -math.radians(25)
        assert angles.max() > math.radians(25)


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
        with pytest.raises(ValueError, match="at most 200"):
            subsample(make_batch(), 201)


class TestBuild:
    def test_by_name_in_order(self) -> None:
        steps = build_transforms([{"rotate": {"axis": "x"}}, {"jitter": None}])
        assert steps == [Rotate("x"), Jitter()]
        assert build_transforms(None) == []

    @pytest.mark.parametrize(
        ("steps", "message"),
        [
            ([{"scle": {}}], "did you mean 'scale'"),
            ([{"scale": {}, "jitter": {}}], "one {name: arguments}"),
            ([{"scale": {"lo": 1}}], "low, high"),
            ([{"scale": {"low": 2.0, "high": 1.0}}], "low <= high"),
            ([{"dropout": {"max_ratio": 1.0}}], "max_ratio"),
            ([{"rotate": {"axis": "w"}}], "axis"),
            ([{"jitter": {"std": -1}}], "std"),
            ([{"translate": {"max_offset": -1}}], "max_offset"),
        ],
    )
    def test_bad_steps(self, steps: list, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            build_transforms(steps)
