"""The camera: what is up stays up, and every cloud fills the picture."""

import numpy as np
import pytest

from pcattn.visualize.camera import look


@pytest.mark.parametrize("up", ["x", "y", "z"])
def test_up_is_up_and_the_picture_is_filled(up: str) -> None:
    pos = np.random.default_rng(0).standard_normal((100, 3)) * 7 + 100
    view = look(pos, up)
    higher = pos.copy()
    higher[:, "xyz".index(up)] += 1
    moved = (higher - view.center) @ view.up * view.scale
    assert (moved > view.xy[:, 1]).all()
    assert np.abs(view.xy).max() == pytest.approx(1)
    assert (view.xy.max(axis=0) + view.xy.min(axis=0)) == pytest.approx([0, 0])
    # A turn, not a mirror image: distances and handedness stay.
    seen = np.column_stack((view.xy, view.depth)) / view.scale
    axes, *_ = np.linalg.lstsq(pos - view.center, seen, rcond=None)
    assert np.linalg.det(axes) == pytest.approx(1)


def test_one_point_and_a_wrong_axis() -> None:
    assert look(np.zeros((1, 3))).xy.tolist() == [[0, 0]]
    with pytest.raises(ValueError, match="up to be one of x, y, z, but got 'w'"):
        look(np.zeros((1, 3)), "w")
