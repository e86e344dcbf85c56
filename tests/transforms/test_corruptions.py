"""The corruptions of ModelNet40-C: repeatable, as strong as the authors', and what becomes of labels."""

import math

import numpy as np
import pytest
import torch

from pcattn.data import PointBatch
from pcattn.transforms.corruptions import CORRUPTIONS, SEVERITIES, corrupt, corrupt_batch, parse_corruption

#: Points of the authors' files at severities 1 to 5, from 1024.
COUNTS = {
    "lidar": (768, 768, 768, 768, 768),
    "density_decrease": (949, 874, 799, 724, 649),
    "cutout": (964, 934, 874, 814, 724),
    "upsampling": (1228, 1280, 1365, 1536, 2048),
    "background": (1046, 1049, 1053, 1058, 1075),
}


@pytest.fixture(scope="module")
def cloud() -> np.ndarray:
    """A hollow ball of radius 0.9, not centered, in the unit sphere."""
    points = np.random.default_rng(0).standard_normal((2048, 3))
    points *= 0.9 / np.linalg.norm(points, axis=1, keepdims=True)
    return (points + np.array((0.05, 0, -0.05))).astype(np.float32)


#: What leaves a cloud in the box [-1, 1]^3.
FITTED = (
    "occlusion",
    "uniform",
    "impulse",
    "upsampling",
    "background",
    "rotation",
    "shear",
    "ffd",
    "rbf",
    "inverse_rbf",
)


def unfit(pos: np.ndarray, source: np.ndarray) -> np.ndarray:
    """What the fit into the box was given: its result, and what most points were before they were moved a little."""
    found, *_ = np.linalg.lstsq(np.c_[source, np.ones(len(source))], pos[: len(source)], rcond=None)
    return (pos - found[3]) / np.cbrt(np.linalg.det(found[:3]))


@pytest.mark.parametrize("name", CORRUPTIONS)
class TestEveryCorruption:
    def test_is_a_function_of_its_arguments(self, name: str, cloud: np.ndarray) -> None:
        before = cloud.copy()
        first, source = corrupt(cloud, name, 3, 1024, seed=1, index=7)
        corrupt(cloud, name, 3, 1024, seed=1, index=8)
        again, _ = corrupt(cloud, name, 3, 1024, seed=1, index=7)
        assert np.array_equal(first, again)
        for other in ({"seed": 2, "index": 7}, {"seed": 1, "index": 8}):
            assert not np.array_equal(first, corrupt(cloud, name, 3, 1024, **other)[0])
        assert np.array_equal(cloud, before)
        assert first.dtype == np.float32
        assert source.min() >= (-1 if name == "background" else 0)
        assert source.max() < 2048

    def test_number_of_points(self, name: str, cloud: np.ndarray) -> None:
        for severity, count in zip(SEVERITIES, COUNTS.get(name, (1024,) * 5), strict=True):
            pos, source = corrupt(cloud, name, severity, 1024)
            assert pos.shape == (count, 3)
            assert source.shape == (count,)

    @pytest.mark.parametrize("num_points", [16, 100])
    def test_few_points(self, name: str, num_points: int, cloud: np.ndarray) -> None:
        for severity in SEVERITIES:
            for available in (num_points, 2 * num_points):
                pos, _ = corrupt(cloud[:available], name, severity, num_points)
                assert np.isfinite(pos).all()
                assert len(pos) >= num_points // 4

    def test_degenerate_clouds(self, name: str) -> None:
        line = np.zeros((64, 3), dtype=np.float32)
        line[:, 1] = np.linspace(-1, 1, 64)
        for pos in (np.zeros_like(line), line):
            for up in "xyz":
                assert np.isfinite(corrupt(pos, name, 5, 32, up_axis=up)[0]).all()

    def test_does_not_depend_on_the_names_of_the_axes(self, name: str, cloud: np.ndarray) -> None:
        """The same object with another axis upwards is corrupted in the same way."""
        expected, _ = corrupt(cloud, name, 4, 256, up_axis="y")
        for up, turns in (("x", -1), ("z", 1)):
            turned, _ = corrupt(np.roll(cloud, turns, axis=1), name, 4, 256, up_axis=up)
            np.testing.assert_allclose(np.roll(turned, -turns, axis=1), expected, atol=1e-6)


@pytest.mark.parametrize("name", FITTED)
def test_ends_in_the_box(name: str, cloud: np.ndarray) -> None:
    """Its middle at the origin, its longest edge of length 2."""
    pos, _ = corrupt(cloud + np.float32((0.3, -0.2, 0.1)), name, 2, 512)
    np.testing.assert_allclose(pos.min(0), -pos.max(0), atol=1e-6)
    assert (pos.max(0) - pos.min(0)).max() == pytest.approx(2)


class TestStrength:
    """Against the definitions in the authors' generator, undoing the fit into the box where there is one."""

    @pytest.mark.parametrize("severity", SEVERITIES)
    def test_gaussian(self, severity: int, cloud: np.ndarray) -> None:
        pos, _ = corrupt(cloud, "gaussian", severity, 2048)
        noise = (pos - cloud)[np.abs(cloud).max(axis=1) < 0.7]  # not clipped
        assert noise.std() == pytest.approx(0.005 + 0.005 * severity, rel=0.05)
        assert np.abs(pos).max() <= 1

    @pytest.mark.parametrize("severity", SEVERITIES)
    def test_uniform(self, severity: int, cloud: np.ndarray) -> None:
        pos, _ = corrupt(cloud, "uniform", severity, 2048)
        noise = unfit(pos, cloud) - cloud
        assert noise.std() == pytest.approx(0.01 * severity / math.sqrt(3), rel=0.05)
        assert np.abs(noise).max() < 0.0105 * severity

    @pytest.mark.parametrize("severity", SEVERITIES)
    def test_impulse(self, severity: int, cloud: np.ndarray) -> None:
        pos, _ = corrupt(cloud, "impulse", severity, 1024)
        shift = unfit(pos, cloud[:1024]) - cloud[:1024]
        shift -= np.median(shift, axis=0)
        hit = np.abs(shift).max(axis=1) > 0.05
        assert hit.sum() == 1024 // (30, 25, 20, 15, 10)[severity - 1]
        np.testing.assert_allclose(np.abs(shift[hit]), 0.1, atol=0.01)

    @pytest.mark.parametrize(("name", "per"), [("upsampling", 2), ("background", 30)])
    def test_added_points(self, name: str, per: int, cloud: np.ndarray) -> None:
        pos, source = corrupt(cloud, name, 4, 1024)
        added = 1024 // per
        assert source[:1024].tolist() == list(range(1024))
        before = unfit(pos, cloud[:1024])
        np.testing.assert_allclose(before[:1024], cloud[:1024], atol=1e-5)
        if name == "background":
            assert (source[1024:] == -1).all()
            assert np.abs(before[1024:]).max() <= 1 + 1e-5
            assert before[1024:].std() == pytest.approx(1 / math.sqrt(3), rel=0.2)
        else:
            assert len(np.unique(source[1024:])) == added
            noise = before[1024:] - cloud[source[1024:]]
            assert np.abs(noise).max() <= 0.05 + 1e-5
            assert noise.std() == pytest.approx(0.05 / math.sqrt(3), rel=0.05)

    @pytest.mark.parametrize("severity", SEVERITIES)
    def test_rotation(self, severity: int, cloud: np.ndarray) -> None:
        level = (2.5, 5, 7.5, 10, 15)[severity - 1]
        corners = np.concatenate((cloud[:61], np.eye(3, dtype=np.float32)))
        angles = []
        for index in range(8):
            pos, _ = corrupt(corners, "rotation", severity, 64, index=index, up_axis="y")
            found, *_ = np.linalg.lstsq(np.c_[corners, np.ones(64)], pos, rcond=None)
            matrix = found[:3] / np.cbrt(np.linalg.det(found[:3]))
            np.testing.assert_allclose(matrix @ matrix.T, np.eye(3), atol=1e-5)
            (xx, xy, xz), (_, _, yz), (_, _, zz) = matrix  # the product of rotations about x, y and z
            angles.append(np.degrees((math.atan2(-yz, zz), math.asin(xz), math.atan2(-xy, xx))))
        off = np.abs(angles) - level
        assert np.abs(off).max() <= 2.5 + 1e-2
        assert abs(off.mean()) < 1
        assert (np.ptp(off, axis=0) > 1.5).all()  # each axis by a number of its own, in either direction
        assert (np.min(angles, axis=0) < 0).all()
        assert (np.max(angles, axis=0) > 0).all()

    @pytest.mark.parametrize("severity", SEVERITIES)
    def test_shear_keeps_the_height(self, severity: int, cloud: np.ndarray) -> None:
        shears = []
        for index in range(8):
            pos, _ = corrupt(cloud, "shear", severity, 64, index=index, up_axis="y")
            found, *_ = np.linalg.lstsq(np.c_[cloud[:64], np.ones(64)], pos, rcond=None)
            matrix = found[:3] / found[1, 1]
            np.testing.assert_allclose(matrix[:, 1], (0, 1, 0), atol=1e-5)
            np.testing.assert_allclose(matrix.diagonal(), 1, atol=1e-5)
            shears.append(matrix[[0, 1, 1, 2], [2, 0, 2, 0]])
        off = np.abs(shears) - 0.05 * severity
        assert ((off >= -0.05 - 1e-4) & (off <= 0.05 + 1e-4)).all()
        assert abs(off.mean()) < 0.015
        assert (np.ptp(off, axis=0) > 0.03).all()  # each of the four by a number of its own
        assert (np.min(shears, axis=0) < 0).all()
        assert (np.max(shears, axis=0) > 0).all()

    @pytest.mark.parametrize("severity", SEVERITIES)
    @pytest.mark.parametrize("name", ["rbf", "inverse_rbf"])
    def test_control_points_move_as_far_as_asked(self, name: str, severity: int) -> None:
        """An interpolant is right where it interpolates; the fit into the box is a similarity, found from distances."""
        axis = np.linspace(-1, 1, 5)
        controls = np.stack(np.meshgrid(axis, axis, axis), axis=-1).reshape(-1, 3)
        pos, _ = corrupt(controls, name, severity, 125)
        moved = unfit(pos, controls) - controls
        assert np.linalg.norm(moved, axis=1).mean() == pytest.approx(0.025 * severity, rel=0.1)

    @pytest.mark.parametrize("severity", SEVERITIES)
    def test_ffd_is_the_polynomial(self, severity: int) -> None:
        """Bernstein polynomials of degree 4: their coefficients are where the control points have gone to."""
        rng = np.random.default_rng(0)
        pos = rng.uniform(-1, 1, (700, 3))
        out, _ = corrupt(pos, "ffd", severity, 700)
        factors = [math.comb(4, i) * ((1 + pos) / 2) ** i * ((1 - pos) / 2) ** (4 - i) for i in range(5)]
        basis = np.stack([factors[i][:, 0] * factors[j][:, 1] * factors[k][:, 2] for i, j, k in np.ndindex(5, 5, 5)], 1)
        moved, *_ = np.linalg.lstsq(basis[:600], out[:600], rcond=None)
        np.testing.assert_allclose(basis[600:] @ moved, out[600:], atol=1e-4)  # at points that took no part
        controls = np.array(list(np.ndindex(5, 5, 5))) / 2 - 1
        shift = (unfit(moved, controls) - controls) / 2  # in units of the edge of the cube
        assert shift.std() == pytest.approx(0.1 * severity / math.sqrt(3), rel=0.15)
        assert np.abs(shift).max() < 0.12 * severity


class TestDensity:
    @pytest.mark.parametrize("name", ["cutout", "density_decrease"])
    def test_points_go_missing_and_others_stay(self, name: str, cloud: np.ndarray) -> None:
        pos, source = corrupt(cloud, name, 5, 1024)
        np.testing.assert_array_equal(pos, cloud[source])
        assert len(np.unique(source)) == len(source)
        assert source.max() < 1024

    def test_increase_takes_spare_points(self, cloud: np.ndarray) -> None:
        pos, source = corrupt(cloud, "density_increase", 5, 1024)
        np.testing.assert_array_equal(pos, cloud[source])
        distance = np.linalg.norm(cloud[:, None] - cloud, axis=2)
        taken = np.isin(np.arange(2048), source)
        whole = taken[distance.argsort(axis=1)[:, :60]].all(axis=1)  # neighborhoods without a gap
        assert whole.sum() >= 20
        assert taken.sum() < 1024  # the others come with repetition

    @pytest.mark.parametrize("name", ["occlusion", "lidar"])
    @pytest.mark.parametrize("severity", SEVERITIES)
    def test_only_the_near_side_is_seen(self, name: str, severity: int, cloud: np.ndarray) -> None:
        """Of a ball, the points that face the camera: those whose normal has a positive part towards it."""
        _, source = corrupt(cloud, name, severity, 1024)
        normals = (cloud - (0.05, 0, -0.05)) / 0.9
        view = normals[source].mean(0)
        view /= np.linalg.norm(view)
        facing = normals[source] @ view
        assert (facing < -0.1).mean() < 0.02
        assert (normals @ view > 0.5).sum() * 0.8 < len(np.unique(source)) * (1 if name == "occlusion" else 3)
        # The camera stands 30 to 60 degrees above the horizon, the scanner 22.5; the view is estimated from points.
        low, high = np.sin(np.radians((30, 60) if name == "occlusion" else (22.5, 22.5)))
        assert low - 0.1 < view[2] < high + 0.1  # z is up

    def test_lidar_has_lines_one_degree_apart(self, cloud: np.ndarray) -> None:
        pos, _ = corrupt(cloud, "lidar", 2, 1024)
        assert len(pos) == 768
        assert len(np.unique(pos, axis=0)) < 768  # drawn with repetition


class TestBatch:
    def batch(self, per_point: bool = False) -> PointBatch:
        pos = torch.randn(3, 64, 3)
        pos = pos / pos.norm(dim=2).amax(dim=1)[:, None, None]
        label = torch.arange(192).view(3, 64) if per_point else torch.arange(3)
        return PointBatch(pos, None, label, None, torch.tensor([4, 9, 2]), 0)

    def test_is_cloud_by_cloud(self) -> None:
        batch = self.batch(per_point=True)
        out = corrupt_batch(batch, "cutout", 2, 32, seed=3, up_axis="y")
        for cloud in range(3):
            pos, source = corrupt(batch.pos[cloud].numpy(), "cutout", 2, 32, 3, int(batch.indices[cloud]), "y")
            assert torch.equal(out.pos[cloud], torch.from_numpy(pos))
            assert torch.equal(out.label[cloud], batch.label[cloud][source])

    @pytest.mark.parametrize(
        ("change", "name", "message"),
        [
            ({"normals": torch.zeros(3, 64, 3)}, "cutout", "positions alone"),
            ({"features": torch.zeros(3, 64, 1)}, "cutout", "positions alone"),
            ({"label": torch.zeros(3, 64, dtype=torch.long)}, "background", "of no part"),
            ({"pos": torch.full((3, 64, 3), 5.0)}, "uniform", "unit sphere"),
            ({"pos": torch.full((3, 64, 3), torch.nan)}, "uniform", "finite points in cloud 4"),
        ],
    )
    def test_refuses(self, change: dict, name: str, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            corrupt_batch(self.batch()._replace(**change), name, 1, 32)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("gaussian", "like gaussian:3"),
        ("gaussian:6", "1 to 5, but got 6"),
        ("gaussian:-1", "like gaussian:3"),
        ("gausian:3", "did you mean 'gaussian'"),
    ],
)
def test_bad_names(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_corruption(text)
