"""Parametric surfaces with outward normals, and their sampling by area.

A :class:`Surface` is a set of triangles with one unit normal per triangle corner. Curved primitives are tessellated
coarsely and curved again when they are sampled (Phong tessellation), so that the drawn points lie close to the true
surface while bending, shearing and joining stay plain operations on vertices.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]

_AXES = {"x": 0, "y": 1, "z": 2}


def _unit(vectors: Array) -> Array:
    """`vectors` (..., 3) divided by their lengths; zero vectors stay zero."""
    length = np.sqrt(np.einsum("...i,...i->...", vectors, vectors))[..., None]
    return vectors / np.maximum(length, 1e-12)


def _cross(a: Array, b: Array) -> Array:
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
        normal = _cross(edges[:, 0], edges[:, 1])
        return 0.5 * np.sqrt(np.einsum("ti,ti->t", normal, normal))

    def affine(self, matrix: ArrayLike, offset: ArrayLike = (0.0, 0.0, 0.0)) -> Surface:
        """The surface under x -> matrix @ x + offset; `matrix` (3, 3) must be invertible."""
        matrix = np.asarray(matrix, dtype=float)
        # Normals go with the inverse transpose, which keeps them outward even for reflections.
        return Surface(self.corners @ matrix.T + np.asarray(offset), _unit(self.normals @ np.linalg.inv(matrix)))

    def scaled(self, factors: ArrayLike) -> Surface:
        """The surface scaled by one factor or by one factor for each axis; a negative one reflects."""
        factors = np.broadcast_to(np.asarray(factors, dtype=float), (3,))
        return Surface(self.corners * factors, _unit(self.normals / factors))

    def rotated(self, axis: str, angle: float) -> Surface:
        """The surface rotated about the axis "x", "y" or "z" through the origin by `angle` radians."""
        transposed = rotation(axis, angle).T
        return Surface(self.corners @ transposed, self.normals @ transposed)

    def moved(self, x: float = 0.0, y: float = 0.0, z: float = 0.0) -> Surface:
        """The surface translated by (x, y, z)."""
        return Surface(self.corners + np.array((x, y, z)), self.normals)

    def bent(self, curvature: float, along: str = "x", toward: str = "z") -> Surface:
        """The surface bent into an arc.

        The axis `along` through the origin becomes a circle of radius 1 / `curvature` with its centre on the positive
        side of the axis `toward`. Lengths on that axis are kept; the surface must stay closer to it than the centre.
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
        return Surface(corners, _unit(normals))

    def sample(self, num_points: int, rng: np.random.Generator) -> tuple[Array, Array, NDArray[np.int64]]:
        """Draws points uniformly by area, independently of one another.

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
        # Phong tessellation: half the mean projection onto the tangent planes at the corners takes a point of a chord
        # onto its circle up to the fourth order of the angle, and leaves flat faces alone.
        height = np.einsum("nci,nci->nc", corners - flat[:, None], corner_normals)
        pos = flat + 0.5 * np.einsum("nc,nci->ni", weights * height, corner_normals)
        return pos, _unit(np.einsum("nc,nci->ni", weights, corner_normals)), chosen


def _quads_to_surface(points: Array, normals: Array) -> Surface:
    """Splits quads with corners (..., 4, 3) in cyclic order into two triangles each."""
    order = [0, 1, 2, 0, 2, 3]
    return Surface(points[..., order, :].reshape(-1, 3, 3), normals[..., order, :].reshape(-1, 3, 3))


def _corners_of_cells(grid: Array) -> Array:
    """The four corners (R - 1, C - 1, 4, 3) of each cell of a grid (R, C, 3)."""
    return np.stack((grid[:-1, :-1], grid[:-1, 1:], grid[1:, 1:], grid[1:, :-1]), axis=2)


def grid_surface(
    points: Array, normals: Array | None = None, closed: tuple[bool, bool] = (False, False), crease: float = 0.7
) -> Surface:
    """The surface through a grid of points.

    Args:
        points: (R, C, 3); outward is (direction of growing column) x (direction of growing row).
        normals: (R, C, 3) unit normals at the points. Without them they are the mean of the cells around a point.
        closed: whether the last row (column) repeats the first one, so that normals are shared across the seam.
        crease: cells whose normals differ by more than this angle in radians meet at a sharp edge.
    """
    quads = _corners_of_cells(points)
    if normals is not None:
        return _quads_to_surface(quads, _corners_of_cells(normals))
    face = _unit(_cross(quads[:, :, 2] - quads[:, :, 0], quads[:, :, 3] - quads[:, :, 1]))
    padded = np.pad(face, ((1, 1), (1, 1), (0, 0)))
    if closed[0]:
        padded[0], padded[-1] = padded[-2], padded[1]
    if closed[1]:
        padded[:, 0], padded[:, -1] = padded[:, -2], padded[:, 1]
    rows, columns = face.shape[:2]
    around = np.stack([padded[i : i + rows, j : j + columns] for i in range(3) for j in range(3)], axis=2)
    similar = np.einsum("rcni,rci->rcn", around, face) > np.cos(crease)
    around = around * similar[..., None]
    # The neighbours of a cell, numbered row by row with the cell itself as 4, which share each of its four corners.
    shared = ((0, 1, 3, 4), (1, 2, 4, 5), (4, 5, 7, 8), (3, 4, 6, 7))
    corner_normals = np.stack([around[:, :, list(cells)].sum(axis=2) for cells in shared], axis=2)
    return _quads_to_surface(quads, _unit(corner_normals))


def fan(loop: Array, normal: ArrayLike) -> Surface:
    """The flat face inside the closed outline `loop` (K, 3), which its centroid must see as a whole."""
    following = np.roll(loop, -1, axis=0)
    centre = np.broadcast_to(loop.mean(axis=0), loop.shape)
    corners = np.stack((centre, loop, following), axis=1)
    return Surface(corners, np.broadcast_to(_unit(np.asarray(normal, dtype=float)), corners.shape))


@lru_cache(maxsize=32)
def _unit_box(divisions: int) -> Surface:
    """The cube [-1/2, 1/2]^3 with each face split into divisions x divisions cells."""
    ticks = np.linspace(-0.5, 0.5, divisions + 1)
    u, v = np.meshgrid(ticks, ticks, indexing="ij")
    faces = []
    for axis in range(3):
        for sign in (-1.0, 1.0):
            points = np.empty((divisions + 1, divisions + 1, 3))
            points[..., axis] = 0.5 * sign
            points[..., (axis + 1) % 3], points[..., (axis + 2) % 3] = u, v
            normals = np.zeros_like(points)
            normals[..., axis] = sign
            faces.append(grid_surface(points, normals))
    return Surface.join(faces)


def box(size: ArrayLike, taper: float | tuple[float, float] = 1.0, divisions: int = 1) -> Surface:
    """A box of edge lengths `size` (3,), centred at the origin.

    `taper` is the size of the top face relative to the bottom one, for x and y together or apart; `divisions` is the
    number of cells along each edge, of which a box to be bent needs several.
    """
    size = np.asarray(size, dtype=float)
    cube = _unit_box(divisions)
    taper_xy = np.broadcast_to(np.asarray(taper, dtype=float), (2,))
    if np.all(taper_xy == 1.0):
        return Surface(cube.corners * size, cube.normals)
    corners = cube.corners.copy()
    factor = 1.0 + (taper_xy - 1.0) * (corners[..., 2:] + 0.5)
    corners[..., :2] *= factor
    corners *= size
    # A side face x = +-w(z) / 2 leans by half the slope of its width.
    normals = cube.normals.copy()
    slope = 0.5 * size[:2] * (1.0 - taper_xy) / size[2]
    normals[..., 2] += np.abs(cube.normals[..., :2]) @ slope
    return Surface(corners, _unit(normals))


def rounded_box(size: ArrayLike, radius: float, steps: int = 3) -> Surface:
    """A box of edge lengths `size` (3,), centred at the origin, with edges rounded to `radius`."""
    size = np.asarray(size, dtype=float)
    radius = min(radius, 0.499 * float(size.min()))
    quarter = np.linspace(0.0, np.pi / 2, steps + 1)
    longitude = np.concatenate([quarter + q * np.pi / 2 for q in range(4)] + [np.array([2 * np.pi])])
    side_x = np.repeat([1.0, -1.0, -1.0, 1.0, 1.0], [steps + 1] * 4 + [1])
    side_y = np.repeat([1.0, 1.0, -1.0, -1.0, 1.0], [steps + 1] * 4 + [1])
    latitude = np.concatenate((quarter - np.pi / 2, quarter))
    side_z = np.repeat([-1.0, 1.0], steps + 1)
    normals = np.stack(
        (
            np.cos(latitude)[:, None] * np.cos(longitude),
            np.cos(latitude)[:, None] * np.sin(longitude),
            np.broadcast_to(np.sin(latitude)[:, None], (len(latitude), len(longitude))),
        ),
        axis=-1,
    )
    sides = np.stack(np.broadcast_arrays(side_x, side_y, side_z[:, None]), axis=-1)
    points = sides * (size / 2 - radius) + radius * normals
    return Surface.join(
        (
            grid_surface(points, normals),
            fan(points[0, :-1], (0.0, 0.0, -1.0)),
            fan(points[-1, :-1], (0.0, 0.0, 1.0)),
        )
    )


def revolve(profile: ArrayLike, segments: int = 18, crease: float = 0.7) -> Surface:
    """The surface of revolution about z of the polyline `profile` (K, 2) of pairs (radius, z).

    Outward is on the right of the direction of travel: up on the outside, down on the inside.
    """
    profile = np.asarray(profile, dtype=float)
    delta = np.diff(profile, axis=0)
    face = np.stack((delta[:, 1], -delta[:, 0]), axis=1)
    face /= np.maximum(np.hypot(face[:, 0], face[:, 1]), 1e-12)[:, None]
    smooth = (np.einsum("ki,ki->k", face[1:], face[:-1]) > np.cos(crease))[:, None]
    start, end = face.copy(), face.copy()
    start[1:] += smooth * face[:-1]
    end[:-1] += smooth * face[1:]
    normals = np.stack((start, end), axis=1)  # (K - 1, 2, 2): at both ends of each piece
    normals /= np.maximum(np.linalg.norm(normals, axis=2, keepdims=True), 1e-12)
    points = np.stack((profile[:-1], profile[1:]), axis=1)
    angle = np.linspace(0.0, 2 * np.pi, segments + 1)
    around = np.stack((np.cos(angle), np.sin(angle)), axis=1)

    def turn(planar: Array) -> Array:
        """(K - 1, 2, 2) in the half plane -> quads (K - 1, segments, 4, 3)."""
        turned = np.empty((*planar.shape[:2], segments + 1, 3))
        turned[..., :2] = planar[:, :, None, :1] * around
        turned[..., 2] = planar[:, :, 1:]
        return np.stack((turned[:, 0, :-1], turned[:, 0, 1:], turned[:, 1, 1:], turned[:, 1, :-1]), axis=2)

    return _quads_to_surface(turn(points), turn(normals))


def cylinder(radius: float, height: float, top_radius: float | None = None, segments: int = 16) -> Surface:
    """A closed cylinder, or with `top_radius` a frustum or (0) a cone, standing on the plane z = 0."""
    top = radius if top_radius is None else top_radius
    return revolve([(0.0, 0.0), (radius, 0.0), (top, height), (0.0, height)], segments)


def disc(radius: float, inner_radius: float = 0.0, segments: int = 18) -> Surface:
    """A disc, or with `inner_radius` an annulus, in the plane z = 0 with its normal along +z."""
    return revolve([(radius, 0.0), (inner_radius, 0.0)], segments)


@lru_cache(maxsize=32)
def _unit_sphere(low: float, high: float, segments: int) -> Surface:
    """The part of the unit sphere between the latitudes `low` and `high` (radians)."""
    latitude = np.linspace(low, high, max(3, round((high - low) / np.pi * segments * 0.6)) + 1)[:, None]
    longitude = np.linspace(0.0, 2 * np.pi, segments + 1)
    points = np.stack(
        np.broadcast_arrays(
            np.cos(latitude) * np.cos(longitude), np.cos(latitude) * np.sin(longitude), np.sin(latitude)
        ),
        axis=-1,
    )
    return grid_surface(points, points)


def ellipsoid(radii: ArrayLike, low: float = -np.pi / 2, high: float = np.pi / 2, segments: int = 16) -> Surface:
    """An ellipsoid about the origin with semi-axes `radii` (one number or three), between two latitudes in radians."""
    return _unit_sphere(low, high, segments).scaled(radii)


def torus(radius: float, tube_radius: float, start: float = 0.0, arc: float = 2 * np.pi, sides: int = 8) -> Surface:
    """A torus about z, or its piece of `arc` radians from the angle `start` on, closed with flat caps."""
    steps = max(4, round(18 * arc / (2 * np.pi)))
    angle = np.linspace(start, start + arc, steps + 1)
    path = np.stack((radius * np.cos(angle), radius * np.sin(angle), np.zeros_like(angle)), axis=1)
    return tube(path, tube_radius, sides, closed=arc > 2 * np.pi - 1e-6)


def tube(path: ArrayLike, radius: ArrayLike, sides: int = 8, closed: bool = False) -> Surface:
    """A tube of circular section along a curve.

    Args:
        path: (M, 3) points of a curve which lies in a plane, or close to one.
        radius: one radius, one for each point (M,), or pairs (M, 2) of semi-axes: first within the plane of the curve,
            then across it.
        sides: number of sides of the section.
        closed: whether the last point repeats the first one; otherwise flat caps close the ends.
    """
    path = np.asarray(path, dtype=float)
    count = len(path)
    radii = np.asarray(radius, dtype=float)
    radii = np.broadcast_to(radii if radii.ndim == 2 else radii[..., None], (count, 2))
    tangent = np.empty_like(path)
    tangent[1:-1] = path[2:] - path[:-2]
    tangent[0], tangent[-1] = path[1] - path[0], path[-1] - path[-2]
    if closed:
        tangent[0] = tangent[-1] = path[1] - path[-2]
    tangent = _unit(tangent)
    # The direction least parallel to the curve (the normal of its plane) serves as the reference of all frames.
    reference = np.linalg.eigh(tangent.T @ tangent)[1][:, 0]
    across = _unit(reference - (tangent @ reference)[:, None] * tangent)
    within = _cross(across, tangent)
    angle = np.linspace(0.0, 2 * np.pi, sides + 1)
    # (within, across, tangent) is right-handed: within x across = tangent.
    cos, sin = np.cos(angle)[:, None], np.sin(angle)[:, None]
    points = path[:, None] + cos * (radii[:, :1] * within)[:, None] + sin * (radii[:, 1:] * across)[:, None]
    if closed:
        points[-1] = points[0]
    surface = grid_surface(points, closed=(closed, True), crease=1.2)
    if closed:
        return surface
    return Surface.join((surface, fan(points[0, :-1], -tangent[0]), fan(points[-1, :-1], tangent[-1])))


def strut(start: ArrayLike, end: ArrayLike, radius: ArrayLike, taper: float = 1.0) -> Surface:
    """A straight bar between two points.

    A number as `radius` makes it round; a pair makes it a box of that width and depth. `taper` is the size of the
    end relative to the start.
    """
    start, end = np.asarray(start, dtype=float), np.asarray(end, dtype=float)
    along = end - start
    length = float(np.linalg.norm(along))
    along = along / length
    reference = np.array((0.0, 1.0, 0.0)) if abs(along[1]) < 0.9 else np.array((0.0, 0.0, 1.0))
    first = _unit(_cross(reference, along))
    frame = np.stack((first, _cross(along, first), along), axis=1)
    section = np.asarray(radius, dtype=float)
    if section.ndim:
        bar = box((*section, length), taper).moved(z=length / 2)
    else:
        bar = cylinder(float(section), length, taper * float(section), segments=10)
    return Surface(bar.corners @ frame.T + start, bar.normals @ frame.T)


def loft(sections: ArrayLike, caps: bool = True, crease: float = 0.7) -> Surface:
    """The skin over closed sections.

    Args:
        sections: (R, K, 3): R outlines of K points each, running counter-clockwise when seen against the direction
            in which the sections follow one another; the last point of an outline does not repeat the first one.
        caps: whether flat faces close the first and the last section.
        crease: angle in radians above which an edge stays sharp.
    """
    sections = np.asarray(sections, dtype=float)
    points = np.concatenate((sections, sections[:, :1]), axis=1)
    skin = grid_surface(points, closed=(False, True), crease=crease)
    if not caps:
        return skin
    forward = sections[-1].mean(axis=0) - sections[0].mean(axis=0)
    surfaces = [skin]
    for loop, sign in ((sections[0], -1.0), (sections[-1], 1.0)):
        normal = _cross(loop - loop.mean(axis=0), np.roll(loop, -1, axis=0) - loop.mean(axis=0)).sum(axis=0)
        surfaces.append(fan(loop, normal * (sign if normal @ forward > 0 else -sign)))
    return Surface.join(surfaces)


def extrude(outline: ArrayLike, height: float, crease: float = 0.7, taper: float = 1.0) -> Surface:
    """The prism over an outline (K, 2), counter-clockwise, between z = 0 and z = `height`; `taper` scales its top."""
    outline = np.asarray(outline, dtype=float)
    bottom = np.column_stack((outline, np.zeros(len(outline))))
    top = np.column_stack((taper * outline, np.full(len(outline), height)))
    return loft((bottom, top), crease=crease)


def ellipse(radius_x: float, radius_y: float, count: int = 16, power: float = 2.0) -> Array:
    """A counter-clockwise outline (count, 2); `power` above 2 turns the ellipse into a rounded rectangle."""
    angle = np.linspace(0.0, 2 * np.pi, count, endpoint=False)
    outline = np.stack((np.cos(angle), np.sin(angle)), axis=1)
    return np.sign(outline) * np.abs(outline) ** (2.0 / power) * (radius_x, radius_y)


def spline(points: Sequence[Sequence[float]] | Array, count: int) -> Array:
    """`count` points of the Catmull-Rom curve through `points` (K, D), evenly spaced in its parameter."""
    knots = np.asarray(points, dtype=float)
    knots = np.concatenate((2 * knots[:1] - knots[1:2], knots, 2 * knots[-1:] - knots[-2:-1]))
    parameter = np.linspace(0.0, len(knots) - 3 - 1e-9, count)
    index = parameter.astype(int)
    t = (parameter - index)[:, None]
    a, b, c, d = (knots[index + i] for i in range(4))
    return 0.5 * (2 * b + (c - a) * t + (2 * a - 5 * b + 4 * c - d) * t**2 + (3 * b - 3 * c + d - a) * t**3)
