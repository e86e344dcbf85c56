"""Colors of labels, errors and quantities, on a white background. Color-blind people can tell them apart."""

from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pcattn.utils.errors import InputError

Colors = NDArray[np.uint8]

#: Points with a right and a wrong prediction: light and dark, so that nobody needs the hue to tell them apart.
RIGHT, WRONG = (200, 206, 214), (208, 36, 20)
#: Points of which nothing is known.
UNKNOWN = (150, 156, 164)
#: The point whose attention is shown.
MARKED = (0, 92, 230)

# Okabe and Ito's colors (https://jfly.uni-koeln.de/color/), without black, and without yellow, which is hard to see
# on white.
_FIRST = ((0, 114, 178), (230, 159, 0), (0, 158, 115), (213, 94, 0), (86, 180, 233), (204, 121, 167))

# From light to dark, so that nobody needs the hue to read it.
_SEQUENCE = ((222, 225, 230), (250, 190, 90), (228, 92, 60), (150, 24, 84), (45, 8, 74))

# How red-blind and green-blind people see linear RGB: Machado et al. 2009, https://doi.org/10.1109/TVCG.2009.113,
# severity 1.
_PROTAN = ((0.152286, 1.052583, -0.204868), (0.114503, 0.786281, 0.099216), (-0.003882, -0.048116, 1.051998))
_DEUTAN = ((0.367322, 0.860646, -0.227968), (0.280085, 0.672501, 0.047413), (-0.011820, 0.042940, 0.968881))


def palette(n: int) -> Colors:
    """Colors of n labels, (n, 3).

    The first six are those of Okabe and Ito. Each further color comes from a grid without very light and very dark
    ones: it is the one farthest from all colors before it, to people with normal, red-blind and green-blind vision. The
    color of a label does not depend on n.

    Raises:
        InputError: n is negative.
    """
    if n < 0:
        raise InputError(f"expected n >= 0, but got {n}")
    chosen = [np.array(_FIRST, dtype=np.uint8)[:n]]
    if n > len(_FIRST):
        grid = _candidates()
        seen = _seen(grid)
        distance = np.full(len(grid), np.inf)
        for color in _seen(chosen[0]):
            distance = np.minimum(distance, color_distance(seen, color))
        for _ in range(n - len(_FIRST)):
            farthest = int(distance.argmax())
            chosen.append(grid[farthest][None])
            distance = np.minimum(distance, color_distance(seen, seen[farthest]))
    return np.concatenate(chosen)


def sequential(values: NDArray[Any]) -> Colors:
    """Colors (..., 3) of numbers in [0, 1]: light gray, orange, red, dark violet. NaN is `UNKNOWN`."""
    values = np.asarray(values, dtype=float)
    anchors = np.array(_SEQUENCE, dtype=float)
    place = np.linspace(0, 1, len(anchors))
    known = np.nan_to_num(values).clip(0, 1)
    colors = np.stack([np.interp(known, place, anchors[:, channel]) for channel in range(3)], axis=-1)
    return np.where(np.isnan(values)[..., None], UNKNOWN, colors.round()).astype(np.uint8)


def to_hex(color: NDArray[Any] | tuple[int, ...]) -> str:
    """`#rrggbb`."""
    return "#" + "".join(f"{int(channel):02x}" for channel in color)


def color_distance(first: NDArray[Any], second: NDArray[Any]) -> NDArray[Any]:
    """The distance of two colors, as `_seen` returns them, to the eyes that tell them apart worst."""
    distance: NDArray[np.float64] = np.linalg.norm(first - second, axis=-1).min(axis=-1)
    return distance


@cache
def _candidates() -> Colors:
    levels = np.arange(0, 256, 17, dtype=np.uint8)
    grid = np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), axis=-1).reshape(-1, 3)
    lightness = _oklab(_linear(grid))[:, 0]
    return grid[(lightness > 0.3) & (lightness < 0.82)]


def _seen(colors: Colors) -> NDArray[np.float64]:
    """Colors (..., 3) in OKLab as people with normal, red-blind and green-blind vision see them, (..., 3, 3)."""
    linear = _linear(colors)
    eyes = [linear, *(linear @ np.array(matrix).T for matrix in (_PROTAN, _DEUTAN))]
    return np.stack([_oklab(rgb.clip(0, 1)) for rgb in eyes], axis=-2)


def _linear(colors: Colors) -> NDArray[np.float64]:
    """sRGB to linear RGB in [0, 1]."""
    rgb = np.asarray(colors, dtype=float) / 255
    return np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)


def _oklab(linear: NDArray[np.float64]) -> NDArray[np.float64]:
    """Linear RGB to OKLab, a perceptually uniform color space (https://bottosson.github.io/posts/oklab)."""
    to_cones = [[0.4122214708, 0.5363325363, 0.0514459929], [0.2119034982, 0.6806995451, 0.1073969566]]
    to_cones.append([0.0883024619, 0.2817188376, 0.6299787005])
    to_lab = [[0.2104542553, 0.7936177850, -0.0040720468], [1.9779984951, -2.4285922050, 0.4505937099]]
    to_lab.append([0.0259040371, 0.7827717662, -0.8086757660])
    lab: NDArray[np.float64] = np.cbrt(linear @ np.array(to_cones).T) @ np.array(to_lab).T
    return lab
