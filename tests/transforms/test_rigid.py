"""Scale, translate, rotate, flip: what is changed, and what is not."""

import math

import pytest
import torch

from pcattn.transforms import Flip, Rotate, RotateSO3, Scale, Translate
from tests.transforms.batches import assert_constant, generator, make_batch


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


class TestRotateSO3:
    def test_is_a_rotation(self) -> None:
        batch = make_batch()
        out = RotateSO3()(batch, generator())
        torch.testing.assert_close(torch.cdist(out.pos, out.pos), torch.cdist(batch.pos, batch.pos))
        torch.testing.assert_close((out.pos * out.normals).sum(-1), (batch.pos * batch.normals).sum(-1))
        torch.testing.assert_close(torch.linalg.det(out.pos[:, :3]), torch.linalg.det(batch.pos[:, :3]))

    def test_is_uniform(self) -> None:
        """A turned point is uniform on the sphere, so each coordinate on [-1, 1]; E[cos angle] = -1/2 + trace part."""
        count = 20_000
        basis = torch.eye(3).double().expand(count, 3, 3)
        rotation = RotateSO3()(make_batch(1)._replace(pos=basis, normals=None), generator()).pos
        for row in range(3):
            for column in range(3):
                values = rotation[:, row, column].sort().values
                uniform = torch.linspace(-1, 1, count).double()
                assert (values - uniform).abs().max() < 0.03  # Kolmogorov-Smirnov at about 1e-6
        # The angle has density (1 - cos t) / pi on [0, pi]: its mean is pi / 2 + 2 / pi.
        angle = ((rotation.diagonal(dim1=1, dim2=2).sum(1) - 1) / 2).clamp(-1, 1).arccos()
        assert angle.mean() == pytest.approx(math.pi / 2 + 2 / math.pi, abs=0.02)


class TestFlip:
    def test_mirrors_the_chosen_axes_half_of_the_time(self) -> None:
        batch = make_batch(batch=2000, num_points=3)
        out = Flip("xz")(batch, generator())
        sign = out.pos / batch.pos
        assert_constant(sign, dim=1)
        assert torch.equal(sign.abs(), torch.ones_like(sign))
        torch.testing.assert_close(out.normals, batch.normals * sign)
        share = (sign[:, 0] < 0).double().mean(dim=0)
        assert share.tolist() == pytest.approx([0.5, 0.0, 0.5], abs=0.04)
        assert ((sign[:, 0, 0] < 0) & (sign[:, 0, 2] < 0)).double().mean() == pytest.approx(0.25, abs=0.04)
