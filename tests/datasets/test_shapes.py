"""The generated data set `Shapes` and the surfaces it is made of."""

import os

import numpy as np
import pytest
import torch

from pcattn.datasets.shapes import Shapes, primitives, sample_object
from pcattn.datasets.shapes.categories import CATEGORIES


@pytest.fixture
def rng():
    return np.random.default_rng(3)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """Twenty shapes of each category."""
    return Shapes(str(tmp_path_factory.mktemp("shapes")), num_points=512, num_train=20 * len(CATEGORIES))


def enclosed_volume(surface):
    """Volume inside a closed surface by the divergence theorem, negative where normals point inwards."""
    centers, normals = surface.corners.mean(axis=1), surface.normals.mean(axis=1)
    return np.einsum("ti,ti,t->", centers, normals, surface.areas) / 3


class TestPrimitives:
    @pytest.mark.parametrize(
        ("surface", "volume"),
        [
            (primitives.box((1.0, 2.0, 3.0)), 6.0),
            (primitives.box((1.0, 2.0, 3.0), taper=0.5), 3.5),
            (primitives.box((1.0, 0.2, 0.2), divisions=8).bent(1.5), 0.04),
            (primitives.rounded_box((2.0, 2.0, 2.0), 0.1), 7.8),
            (primitives.cylinder(0.5, 2.0), 0.5 * np.pi),
            (primitives.cylinder(0.5, 3.0, 0.0, segments=32), 0.25 * np.pi),
            (primitives.ellipsoid((1.0, 2.0, 0.5)), 4 / 3 * np.pi),
            (primitives.torus(1.0, 0.25, sides=12), np.pi**2 / 8),
            (primitives.torus(1.0, 0.25, arc=np.pi, sides=12), np.pi**2 / 16),
            (primitives.tube([(0.0, 0.0, 0.0), (0.0, 0.5, 0.0), (0.0, 1.0, 0.0)], 0.2, 12), 0.04 * np.pi),
            (primitives.strut((1.0, 1.0, 0.0), (1.0, 3.0, 1.0), (0.1, 0.2)), 0.02 * np.sqrt(5.0)),
            (primitives.extrude(primitives.ellipse(1.0, 0.5), 2.0), np.pi),
            (primitives.extrude(primitives.ellipse(1.0, 1.0), 3.0, taper=0.5), 1.75 * np.pi),
            (primitives.revolve([(1.0, 0.0), (1.5, 0.0), (1.5, 1.0), (1.0, 1.0), (1.0, 0.0)]), 1.25 * np.pi),
            (primitives.box((1.0, 1.0, 1.0)).affine([[0, -2, 0], [1, 0, 1], [0, 0, 1]], (1, 2, 3)), 2.0),
            (primitives.box((1.0, 2.0, 3.0)).scaled((-1.0, 1.0, 0.5)).rotated("x", 0.7).moved(x=4.0), 3.0),
        ],
    )
    def test_outward_normals_enclose_the_volume(self, surface, volume):
        # The tolerance covers the polygons that stand for circles, whose flat faces also shorten the mean of normals.
        assert enclosed_volume(surface) == pytest.approx(volume, rel=0.15)
        lengths = np.linalg.norm(surface.normals[surface.areas > 0.0], axis=-1)
        np.testing.assert_allclose(lengths, 1.0, atol=1e-9)

    def test_sphere_points_lie_on_the_sphere_with_radial_normals(self, rng):
        pos, normals, _ = primitives.ellipsoid(2.0).moved(x=1.0).sample(5000, rng)
        radial = pos - (1.0, 0.0, 0.0)
        np.testing.assert_allclose(np.linalg.norm(radial, axis=1), 2.0, rtol=0.002)
        assert (radial * normals).sum(axis=1).min() > 2.0 * np.cos(0.06)

    def test_ellipsoid_normals_follow_the_gradient(self, rng):
        radii = np.array((1.0, 0.6, 0.4))
        pos, normals, _ = primitives.ellipsoid(radii, segments=32).sample(2000, rng)
        gradient = pos / radii**2
        cosine = (gradient * normals).sum(axis=1) / np.linalg.norm(gradient, axis=1)
        assert cosine.min() > 0.98

    def test_cylinder_normals(self, rng):
        pos, normals, _ = primitives.cylinder(0.5, 2.0).sample(2000, rng)
        side = np.abs(normals[:, 2]) < 0.5
        assert np.all(np.abs(normals[~side, 2]) > 0.999)
        np.testing.assert_allclose(np.hypot(pos[side, 0], pos[side, 1]), 0.5, rtol=0.01)
        np.testing.assert_allclose(normals[side, :2] * 0.5, pos[side, :2], atol=0.02)

    def test_bend_turns_a_rod_into_an_arc(self, rng):
        rod = primitives.box((2.0, 0.1, 0.1), divisions=40)
        pos, normals, _ = rod.bent(1.0, "x", "z").sample(4000, rng)
        from_center = np.stack((pos[:, 0], pos[:, 2] - 1.0), axis=1)
        distance = np.linalg.norm(from_center, axis=1)
        assert distance.min() > 0.94
        assert distance.max() < 1.06
        inner = (distance < 0.951) & (np.abs(normals[:, 1]) < 0.5) & (np.abs(pos[:, 0]) < 0.7)
        radial = (from_center / distance[:, None] * normals[:, [0, 2]]).sum(axis=1)
        assert inner.any()
        assert radial[inner].max() < -0.99

    def test_sampling_is_uniform_by_area(self, rng):
        size = np.array((1.0, 2.0, 4.0))
        pos, normals, _ = primitives.box(size).sample(30_000, rng)
        axis = np.abs(normals).argmax(axis=1)
        # Every face in 2 x 2 quarters, of expected counts in proportion to the area of the face.
        first, second = (axis + 1) % 3, (axis + 2) % 3
        rows = np.arange(len(pos))
        cell = 8 * axis + 4 * (normals[rows, axis] > 0) + 2 * (pos[rows, first] > 0) + (pos[rows, second] > 0)
        face_area = np.array([size[1] * size[2], size[2] * size[0], size[0] * size[1]])
        expected = len(pos) * np.repeat(face_area, 8) / (8 * face_area.sum())
        chi_square = ((np.bincount(cell, minlength=24) - expected) ** 2 / expected).sum()
        assert chi_square < 49.7  # the 0.1 % tail of 23 degrees of freedom

    def test_sphere_sampling_is_uniform_in_height(self, rng):
        pos, _, _ = primitives.ellipsoid(1.0, segments=32).sample(20_000, rng)
        counts = np.histogram(pos[:, 2], bins=10, range=(-1.0, 1.0))[0]
        np.testing.assert_allclose(counts, 2000, rtol=0.1)

    def test_spline_passes_through_its_knots(self):
        knots = [(0.0, 0.0), (1.0, 2.0), (3.0, 1.0)]
        np.testing.assert_allclose(primitives.spline(knots, 5)[::2], knots, atol=1e-6)


class TestCategories:
    @pytest.mark.parametrize("category", CATEGORIES, ids=lambda category: category.name)
    def test_objects_are_sound(self, category):
        seen = np.zeros(len(category.parts))
        for k in range(25):
            surface, labels = category.draw(np.random.default_rng([5, k]))
            assert labels.shape == (len(surface.corners),)
            assert np.isfinite(surface.corners).all()
            length = np.linalg.norm(surface.normals, axis=-1)
            # Corners where a surface degenerates to a point may lack a normal, but no area hangs on them.
            assert np.all(np.abs(length[surface.areas > 1e-9] - 1.0) < 1e-6)
            seen += np.isin(np.arange(len(category.parts)), labels)
        assert 2 <= len(category.parts) <= 6
        assert (seen >= 2).all()
        assert (seen > 12).sum() >= 2


class TestShapes:
    def test_interface(self, small):
        assert len(small) == 20 * len(CATEGORIES)
        assert small.num_classes == len(small.class_names) == len(small.parts) >= 16
        assert len(small.part_names) == sum(map(len, small.parts))
        assert [p for parts in small.parts for p in parts] == list(range(len(small.part_names)))
        shape = small[3]
        assert shape.pos.shape == shape.x.shape == (512, 3)
        assert shape.pos.dtype == shape.x.dtype == torch.float32
        assert shape.y.shape == (512,)
        assert shape.category.shape == (1,)
        assert shape.y.dtype == shape.category.dtype == torch.int64
        assert small._data.pos.view(len(small), 512, 3)[3].equal(shape.pos)

    def test_categories_are_balanced(self, small):
        assert small._data.category.bincount().tolist() == [20] * small.num_classes

    def test_labels_belong_to_the_category(self, small):
        for shape in small:
            assert set(shape.y.tolist()) <= set(small.parts[int(shape.category)])

    def test_every_part_occurs(self, small):
        assert small._data.y.unique().tolist() == list(range(len(small.part_names)))

    def test_normalized(self, small):
        pos = small._data.pos.view(len(small), -1, 3)
        assert pos.mean(dim=1).abs().max() < 1e-5
        torch.testing.assert_close(pos.norm(dim=2).amax(dim=1), torch.ones(len(small)))
        torch.testing.assert_close(small._data.x.norm(dim=1), torch.ones(len(small) * 512))

    def test_points_come_in_random_order(self, small):
        labels = small._data.y.view(len(small), -1)
        halves = torch.stack([(half == labels[:, :1]).float().mean(dim=1) for half in labels.chunk(2, dim=1)])
        assert (halves[0] - halves[1]).abs().max() < 0.2

    def test_deterministic(self, tmp_path):
        one, two = (Shapes(str(tmp_path / name), num_points=64, num_train=30) for name in "ab")
        other = Shapes(str(tmp_path / "a"), num_points=64, num_train=30, seed=1)
        for key in ("pos", "x", "y", "category"):
            assert one._data[key].equal(two._data[key])
        assert not one._data.pos.equal(other._data.pos)

    def test_a_shape_does_not_depend_on_the_number_of_shapes(self, tmp_path):
        few = Shapes(str(tmp_path), num_points=64, num_train=5)
        many = Shapes(str(tmp_path), num_points=64, num_train=8)
        assert few._data.pos.equal(many._data.pos[: 5 * 64])

    def test_splits_are_disjoint(self, tmp_path):
        train, test = (
            Shapes(str(tmp_path), split, num_points=64, num_train=40, num_test=40) for split in ("train", "test")
        )
        distance = torch.cdist(train._data.pos.view(40, -1), test._data.pos.view(40, -1))
        assert distance.min() > 0.1

    def test_noise(self, tmp_path):
        clean = Shapes(str(tmp_path), num_points=400, num_train=21)
        noisy = Shapes(str(tmp_path), num_points=400, num_train=21, noise=0.02)
        jitter = noisy._data.pos - clean._data.pos
        assert jitter.abs().max() <= 0.06 + 1e-6
        assert jitter.std() == pytest.approx(0.02, rel=0.05)
        assert noisy._data.y.equal(clean._data.y)

    def test_partial_shows_one_side(self, tmp_path):
        partial = Shapes(str(tmp_path), num_points=256, num_train=len(CATEGORIES), partial=True)
        assert partial._data.pos.view(len(partial), 256, 3).norm(dim=2).amax(dim=1).allclose(torch.ones(len(partial)))
        for shape in partial:
            # Some direction sees the front of all points; the mean normal is close to it.
            assert (shape.x @ shape.x.mean(dim=0)).mean() > 0.05

    def test_partial_sphere_is_a_hemisphere(self, rng):
        ball = primitives.ellipsoid(1.0)
        pos, normals, _ = sample_object(ball, np.zeros(len(ball.corners), dtype=int), 1000, rng, partial=True)
        assert np.linalg.norm(normals.mean(axis=0)) > 0.4
        assert pos.shape == (1000, 3)

    def test_a_wall_hides_what_lies_behind(self):
        ball = primitives.ellipsoid(1.0)
        shell = primitives.Surface.join((ball, primitives.ellipsoid(0.5)))
        labels = np.repeat([0, 1], [len(ball.corners), len(shell.corners) - len(ball.corners)])
        parts = sample_object(shell, labels, 1000, np.random.default_rng(0), partial=True)[2]
        # A fifth of the area belongs to the ball within; a few of its points show through empty cells.
        assert (parts == 1).mean() < 0.05


class TestCache:
    def test_one_file_for_each_split(self, tmp_path):
        Shapes(str(tmp_path), split="test", num_points=32, num_test=3)
        (name,) = os.listdir(tmp_path / "processed")
        assert name.startswith("test-")
        assert name.endswith(".pt")

    def test_a_single_shape(self, tmp_path):
        shapes = Shapes(str(tmp_path), num_points=32, num_train=1)
        assert len(shapes) == 1
        assert shapes[0].pos.shape == (32, 3)

    def test_options_have_files_of_their_own(self, tmp_path):
        for options in ({}, {"seed": 2}, {"noise": 0.1}, {"partial": True}, {"num_points": 16}, {"num_train": 2}):
            Shapes(str(tmp_path), **{"num_points": 32, "num_train": 3, **options})
        Shapes(str(tmp_path), num_points=32, num_train=3, pre_filter=lambda data: True)
        assert len(os.listdir(tmp_path / "processed")) == 7

    def test_reused(self, tmp_path, monkeypatch):
        first = Shapes(str(tmp_path), num_points=32, num_train=3)
        monkeypatch.setattr(Shapes, "generate_shape", lambda *_: pytest.fail("the cache was not used"))
        assert Shapes(str(tmp_path), num_points=32, num_train=3)._data.pos.equal(first._data.pos)
        with pytest.raises(pytest.fail.Exception):
            Shapes(str(tmp_path), num_points=32, num_train=3, force_reload=True)

    @pytest.mark.parametrize("step", ["save", "generate_shape"])
    def test_an_interrupted_run_leaves_nothing(self, tmp_path, monkeypatch, step):
        def interrupted(*_):
            raise KeyboardInterrupt

        monkeypatch.setattr(Shapes, step, interrupted)
        with pytest.raises(KeyboardInterrupt):
            Shapes(str(tmp_path), num_points=32, num_train=3)
        assert not list(tmp_path.rglob("*.pt*"))

    def test_pre_transform_and_pre_filter(self, tmp_path):
        def keep_first(data):
            return data.category.item() == 0

        def lift(data):
            data.pos = data.pos + torch.tensor([0.0, 0.0, 5.0])
            return data

        shapes = Shapes(
            str(tmp_path), num_points=32, num_train=2 * len(CATEGORIES), pre_filter=keep_first, pre_transform=lift
        )
        assert len(shapes) == 2
        assert len(Shapes(str(tmp_path), num_points=32, num_train=3, pre_transform=lift)) == 3
        assert len(list(tmp_path.rglob("*.pt"))) == 2
        assert shapes._data.pos[:, 2].mean() == pytest.approx(5.0, abs=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_points": 0}, "expected num_points to be an integer >= 1, but got 0"),
        ({"num_points": 1.5}, "expected num_points to be an integer >= 1, but got 1.5"),
        ({"num_train": 0}, "expected num_train to be an integer >= 1, but got 0"),
        ({"num_test": -1}, "expected num_test to be an integer >= 1, but got -1"),
        ({"seed": -1}, "expected seed to be an integer >= 0, but got -1"),
        ({"noise": -0.1}, "expected noise to be a finite number >= 0, but got -0.1"),
        ({"noise": float("nan")}, "expected noise to be a finite number >= 0, but got nan"),
    ],
)
def test_bad_options(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        Shapes(str(tmp_path), **options)
    assert not list(tmp_path.iterdir())
