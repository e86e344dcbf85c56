"""Clouds and fields: colors by place in the category, thinning, and the way to another process."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from pcattn.visualize.colors import UNKNOWN, palette
from pcattn.visualize.scene import errors, field_names, labels, load, quantity, save
from tests.visualize.examples import ball


def test_labels_take_the_first_colors() -> None:
    field = labels(np.array([7, 8, 7, 2]), [f"n{i}" for i in range(9)], [7, 8])
    assert np.array_equal(field.colors()[:3], palette(2)[[0, 1, 0]])
    assert field.present() == [("n7", tuple(palette(2)[0])), ("n8", tuple(palette(2)[1])), ("n2", UNKNOWN)]


def test_quantity() -> None:
    field = quantity(np.array([0.0, 2.0, 4.0]), 0.0, 4.0)
    assert field.normalized().tolist() == [0.0, 0.5, 1.0]
    assert quantity(np.zeros(3), 0.0, 0.0).colors().shape == (3, 3)
    assert errors(np.array([True, False])).present()[1][0] == "wrong"


def test_thinned_keeps_the_marked_point() -> None:
    cloud = ball(100, marked=40)
    few = cloud.thinned(10)
    assert len(few.pos) == 10
    assert np.array_equal(few.pos[few.marked], cloud.pos[40])
    place = [int(np.flatnonzero((cloud.pos == row).all(axis=1))[0]) for row in few.pos]
    assert np.array_equal(few.fields["truth"].values, cloud.fields["truth"].values[place])
    assert cloud.thinned(100) is cloud


def test_file(tmp_path: Path) -> None:
    clouds = [replace(ball(), index=7, score=0.81), ball(50, "second", marked=2)]
    save(clouds, tmp_path / "clouds.npz")
    for cloud, copy in zip(clouds, load(tmp_path / "clouds.npz"), strict=True):
        assert (copy.title, copy.note, copy.good, copy.marked) == (cloud.title, cloud.note, cloud.good, cloud.marked)
        assert (copy.index, str(copy.score)) == (cloud.index, str(cloud.score))
        assert np.array_equal(copy.pos, cloud.pos)
        for name, field in cloud.fields.items():
            assert np.array_equal(copy.fields[name].colors(), field.colors())
            assert copy.fields[name].entries == field.entries
    assert field_names(clouds) == ["truth", "prediction", "error", "probability"]
