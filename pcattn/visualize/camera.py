"""The one camera of all pictures: parallel projection from the front, the right and above."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pcattn.utils.errors import InputError

#: Coordinates that may point up.
AXES = ("x", "y", "z")

# Degrees that the camera is turned about the vertical, and raised.
_AZIMUTH, _ELEVATION = 35.0, 22.0


class View(NamedTuple):
    """A cloud in the picture plane."""

    xy: NDArray[np.float64]  #: (N, 2), to the right and up, within [-1, 1]
    depth: NDArray[np.float64]  #: (N,), towards the camera, in the same unit
    up: NDArray[np.float64]  #: direction that is up in the picture, in the coordinates of the cloud
    forward: NDArray[np.float64]  #: direction of view
    center: NDArray[np.float64]  #: point of the cloud's space in the middle of the picture
    scale: float  #: picture units a unit of the cloud


def look(pos: NDArray, up: str = "z") -> View:
    """Look at a cloud (N, 3): the same direction for all, the distance such that it fills the picture.

    Args:
        pos: (N, 3), finite.
        up: coordinate that points up, `"x"`, `"y"` or `"z"`.

    Raises:
        InputError: another `up`.
    """
    if up not in AXES:
        raise InputError(f"expected up to be one of {', '.join(AXES)}, but got {up!r}")
    vertical = np.eye(3)[AXES.index(up)]
    # Right-handed, whatever points up: x, y of the ground are the coordinates that follow.
    first, second = np.eye(3)[(AXES.index(up) + 1) % 3], np.eye(3)[(AXES.index(up) + 2) % 3]
    azimuth, elevation = np.radians(_AZIMUTH), np.radians(_ELEVATION)
    ground = np.cos(azimuth) * first - np.sin(azimuth) * second
    towards = np.cos(elevation) * ground + np.sin(elevation) * vertical
    right = np.cross(vertical, ground)
    upwards = np.cross(towards, right)
    axes = np.stack((right, upwards, towards), axis=1)
    middle = (pos.min(axis=0) + pos.max(axis=0)) / 2
    seen = (pos - middle) @ axes
    low, high = seen.min(axis=0), seen.max(axis=0)
    offset = (low + high) / 2
    extent = (high - low)[:2].max() / 2
    scale = 1 / extent if extent > 0 else 1.0
    seen = (seen - offset) * scale
    return View(seen[:, :2], seen[:, 2], upwards, -towards, middle + axes @ offset, float(scale))


def radius(num_points: int) -> float:
    """Radius of a point, in picture units, that lets neighbors touch without drowning the shape."""
    return float(np.clip(0.9 / np.sqrt(max(num_points, 1)), 0.008, 0.05))


def fade(colors: NDArray, depth: NDArray) -> NDArray[np.float64]:
    """Colors (N, 3) in [0, 1], of which the far ones fade towards the white of the page."""
    nearness = (depth - depth.min()) / max(float(np.ptp(depth)), 1e-12)
    return 1 - (1 - colors / 255) * (0.62 + 0.38 * nearness[:, None])
