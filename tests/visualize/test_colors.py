"""Colors: apart from each other for all eyes, and apart from the white they are drawn on."""

import numpy as np
import pytest

from pcattn.visualize.colors import RIGHT, WRONG, _seen, color_distance, palette, sequential, to_hex


def nearest(colors: np.ndarray) -> float:
    seen = _seen(colors)
    distance = color_distance(seen[:, None], seen[None])
    return float(distance[~np.eye(len(colors), dtype=bool)].min())


class TestPalette:
    def test_prefix(self) -> None:
        """A label keeps its color when labels are added."""
        assert np.array_equal(palette(50)[:9], palette(9))
        assert palette(0).shape == (0, 3)
        assert palette(4).dtype == np.uint8

    @pytest.mark.parametrize(("n", "least"), [(6, 0.075), (16, 0.075), (50, 0.04)])
    def test_told_apart_by_all_eyes(self, n: int, least: float) -> None:
        """In OKLab; red and green of equal lightness are 0.3 apart for most eyes, and 0.02 for some."""
        assert nearest(palette(n)) > least

    def test_red_and_green_would_not_pass(self) -> None:
        assert nearest(np.array([[170, 80, 60], [110, 110, 50]])) < 0.05

    def test_seen_on_white(self) -> None:
        assert color_distance(_seen(palette(50)), _seen(np.full(3, 255))).min() > 0.12

    def test_negative(self) -> None:
        with pytest.raises(ValueError, match="n >= 0, but got -1"):
            palette(-1)


def test_sequential_darkens() -> None:
    lightness = _seen(sequential(np.linspace(0, 1, 33)))[:, 0, 0]
    assert (np.diff(lightness) < 0).all()
    assert sequential(np.array([[np.nan, -1, 2]])).shape == (1, 3, 3)
    assert np.array_equal(sequential(np.array([-1.0, 2])), sequential(np.array([0.0, 1])))


def test_errors_without_hue() -> None:
    assert _seen(np.array(RIGHT))[0, 0] - _seen(np.array(WRONG))[0, 0] > 0.25


def test_hex() -> None:
    assert to_hex(palette(1)[0]) == "#0072b2"
