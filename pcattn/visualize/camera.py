"""The one camera of all pictures: parallel projection from the front, the right and above."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pcattn.utils.errors import InputError

#: Axes that may point up.
AXES = ("x", "y", "z")

# Rotation of the camera about the vertical and its elevation, in degrees.
_AZIMUTH, _ELEVATION = 35.0, 22.0


class View(NamedTuple):
    """A cloud in the image plane."""

    xy: NDArray[np.float64]  #: (N, 2), to the right and up, within [-1, 1]
    depth: NDArray[np.float64]  #: (N,), toward the camera, in the same unit
    up: NDArray[np.float64]  #: up direction of the picture, in the coordinates of the cloud
    forward: NDArray[np.float64]  #: viewing direction, in the coordinates of the cloud
    center: NDArray[np.float64]  #: point in the middle of the picture, in the coordinates of the cloud
    scale: float  #: picture units per unit of the cloud


def look(pos: NDArray[Any], up: str = "z") -> View:
    """Project a cloud: the viewing direction is always the same, and the cloud fills the picture.

    Args:
        pos: (N, 3), finite.
        up: the axis that points up, `"x"`, `"y"` or `"z"`.

    Raises:
        InputError: another `up`.
    """
    if up not in AXES:
        raise InputError(f"expected up to be one of {', '.join(AXES)}, but got {up!r}")
    vertical = np.eye(3)[AXES.index(up)]
    # The axes of the ground are the next two in cyclic order, so that the system is right-handed for every `up`.
    first, second = np.eye(3)[(AXES.index(up) + 1) % 3], np.eye(3)[(AXES.index(up) + 2) % 3]
    azimuth, elevation = np.radians(_AZIMUTH), np.radians(_ELEVATION)
    ground = np.cos(azimuth) * first - np.sin(azimuth) * second
    toward = np.cos(elevation) * ground + np.sin(elevation) * vertical
    right = np.cross(vertical, ground)
    upwards = np.cross(toward, right)
    axes = np.stack((right, upwards, toward), axis=1)
    middle = (pos.min(axis=0) + pos.max(axis=0)) / 2
    seen = (pos - middle) @ axes
    low, high = seen.min(axis=0), seen.max(axis=0)
    offset = (low + high) / 2
    extent = (high - low)[:2].max() / 2
    scale = 1 / extent if extent > 0 else 1.0
    seen = (seen - offset) * scale
    return View(seen[:, :2], seen[:, 2], upwards, -toward, middle + axes @ offset, float(scale))


def radius(num_points: int) -> float:
    """Radius of a drawn point, in picture units: neighbors touch, but the shape remains visible."""
    return float(np.clip(0.9 / np.sqrt(max(num_points, 1)), 0.008, 0.05))


def fade(colors: NDArray[Any], depth: NDArray[Any]) -> NDArray[np.float64]:
    """Colors (N, 3) in [0, 1], where far points fade toward the white of the background.

    Args:
        colors: (N, 3), in [0, 255].
        depth: (N,), toward the camera.
    """
    nearness = (depth - depth.min()) / max(float(np.ptp(depth)), 1e-12)
    faded: NDArray[np.float64] = 1 - (1 - colors / 255) * (0.62 + 0.38 * nearness[:, None])
    return faded
