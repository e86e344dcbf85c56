"""Triangle surfaces with normals, which are transformed as a whole and sampled uniformly by area.

A surface has one unit normal per triangle corner. Curved surfaces are tessellated coarsely and curved again when they
are sampled (Phong tessellation). So the points are close to the true surface, while bending, shearing and joining are
plain operations on vertices.

Source: Boubekeur and Alexa, Phong Tessellation, 2008.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]

_AXES = {"x": 0, "y": 1, "z": 2}


def unit(vectors: Array) -> Array:
    """`vectors` (..., 3) divided by their lengths; zero vectors stay zero."""
    length: Array = np.sqrt(np.einsum("...i,...i->...", vectors, vectors))[..., None]
    return vectors / np.maximum(length, 1e-12)


def cross(a: Array, b: Array) -> Array:
    """Cross product over the last axis; much less overhead than `np.cross` on small arrays."""
    ax, ay, az = a[..., 0], a[..., 1], a[..., 2]
    bx, by, bz = b[..., 0], b[..., 1], b[..., 2]
    return np.stack((ay * bz - az * by, az * bx - ax * bz, ax * by - ay * bx), axis=-1)


def rotation(axis: str, angle: float) -> Array:
    """Right-handed rotation matrix (3, 3) about the coordinate axis "x", "y" or "z" by `angle` radians."""
    i = _AXES[axis]
    j, k = (i + 1) % 3, (i + 2) % 3
    matrix = np.eye(3)
    matrix[j, j] = matrix[k, k] = np.cos(angle)
    matrix[k, j] = np.sin(angle)
    matrix[j, k] = -matrix[k, j]
    return matrix


class Surface:
    """Triangles with corner normals.

    Args:
        corners: (T, 3, 3) positions of the three corners of each of the T triangles.
        normals: (T, 3, 3) outward unit normals at the corners.
    """

    __slots__ = ("corners", "normals")

    def __init__(self, corners: Array, normals: Array) -> None:
        self.corners = corners
        self.normals = normals

    @staticmethod
    def join(surfaces: Iterable[Surface]) -> Surface:
        """One surface made of all triangles of `surfaces`, in their order."""
        surfaces = list(surfaces)
        return Surface(
            np.concatenate([s.corners for s in surfaces]),
            np.concatenate([s.normals for s in surfaces]),
        )

    @property
    def areas(self) -> Array:
        """Areas (T,) of the triangles."""
        edges = self.corners[:, 1:] - self.corners[:, :1]
        normal = cross(edges[:, 0], edges[:, 1])
        squares: Array = np.einsum("ti,ti->t", normal, normal)
        return 0.5 * np.sqrt(squares)

    def affine(self, matrix: ArrayLike, offset: ArrayLike = (0.0, 0.0, 0.0)) -> Surface:
        """The surface under x -> matrix @ x + offset; `matrix` (3, 3) must be invertible."""
        matrix = np.asarray(matrix, dtype=float)
        # Normals go with the inverse transpose, which keeps them outward even for reflections.
        return Surface(self.corners @ matrix.T + np.asarray(offset), unit(self.normals @ np.linalg.inv(matrix)))

    def scaled(self, factors: ArrayLike) -> Surface:
        """The surface scaled by one factor, or by one factor per axis; a negative factor reflects."""
        factors = np.broadcast_to(np.asarray(factors, dtype=float), (3,))
        return Surface(self.corners * factors, unit(self.normals / factors))

    def rotated(self, axis: str, angle: float) -> Surface:
        """The surface rotated about the axis "x", "y" or "z" through the origin by `angle` radians."""
        transposed = rotation(axis, angle).T
        return Surface(self.corners @ transposed, self.normals @ transposed)

    def moved(self, x: float = 0.0, y: float = 0.0, z: float = 0.0) -> Surface:
        """The surface translated by (x, y, z)."""
        return Surface(self.corners + np.array((x, y, z)), self.normals)

    def bent(self, curvature: float, along: str = "x", toward: str = "z") -> Surface:
        """The surface bent into an arc.

        The axis `along` through the origin becomes a circle of radius 1 / `curvature` with its center on the positive
        side of the axis `toward`. Lengths on that axis are kept; the surface must be closer to it than the center.
        """
        if abs(curvature) < 1e-9:
            return self
        a, t = _AXES[along], _AXES[toward]
        angle = curvature * self.corners[..., a]
        radius = 1.0 / curvature - self.corners[..., t]
        cos, sin = np.cos(angle), np.sin(angle)
        corners = self.corners.copy()
        corners[..., a] = radius * sin
        corners[..., t] = 1.0 / curvature - radius * cos
        normals = self.normals.copy()
        stretched = self.normals[..., a] / (curvature * radius)
        normals[..., a] = stretched * cos - self.normals[..., t] * sin
        normals[..., t] = stretched * sin + self.normals[..., t] * cos
        return Surface(corners, unit(normals))

    def sample(self, num_points: int, rng: np.random.Generator) -> tuple[Array, Array, NDArray[np.int64]]:
        """Draw points uniformly by area, independently of one another.

        Returns:
            Positions (N, 3), outward unit normals (N, 3) and the indices (N,) of the triangles drawn from.
        """
        cumulative = np.cumsum(self.areas)
        chosen = np.searchsorted(cumulative, rng.random(num_points) * cumulative[-1], side="right")
        chosen = np.minimum(chosen, len(cumulative) - 1)
        weights = np.empty((num_points, 3))
        weights[:, 1:] = rng.random((num_points, 2))
        folded = weights[:, 1] + weights[:, 2] > 1.0
        weights[folded, 1:] = 1.0 - weights[folded, 1:]
        weights[:, 0] = 1.0 - weights[:, 1] - weights[:, 2]
        corners, corner_normals = self.corners[chosen], self.normals[chosen]
        flat = np.einsum("nc,nci->ni", weights, corners)
        # Phong tessellation: half the mean projection onto the tangent planes at the corners moves a point of a chord
        # onto its circle up to the fourth order of the angle, and does not move points of flat faces.
        height = np.einsum("nci,nci->nc", corners - flat[:, None], corner_normals)
        pos = flat + 0.5 * np.einsum("nc,nci->ni", weights * height, corner_normals)
        return pos, unit(np.einsum("nc,nci->ni", weights, corner_normals)), chosen
