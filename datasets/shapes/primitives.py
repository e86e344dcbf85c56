"""Parametric surfaces with outward normals, which the objects of `Shapes` are made of."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike

from pcattn.utils.surface import Array, Surface, cross, rotation, unit

__all__ = [
    "Array",
    "Surface",
    "box",
    "cylinder",
    "disc",
    "ellipse",
    "ellipsoid",
    "extrude",
    "fan",
    "grid_surface",
    "loft",
    "revolve",
    "rotation",
    "rounded_box",
    "spline",
    "strut",
    "torus",
    "tube",
]


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
    face = unit(cross(quads[:, :, 2] - quads[:, :, 0], quads[:, :, 3] - quads[:, :, 1]))
    padded = np.pad(face, ((1, 1), (1, 1), (0, 0)))
    if closed[0]:
        padded[0], padded[-1] = padded[-2], padded[1]
    if closed[1]:
        padded[:, 0], padded[:, -1] = padded[:, -2], padded[:, 1]
    rows, columns = face.shape[:2]
    around = np.stack([padded[i : i + rows, j : j + columns] for i in range(3) for j in range(3)], axis=2)
    similar = np.einsum("rcni,rci->rcn", around, face) > np.cos(crease)
    around = around * similar[..., None]
    # The neighbors of a cell, numbered row by row with the cell itself as 4, which share each of its four corners.
    shared = ((0, 1, 3, 4), (1, 2, 4, 5), (4, 5, 7, 8), (3, 4, 6, 7))
    corner_normals = np.stack([around[:, :, list(cells)].sum(axis=2) for cells in shared], axis=2)
    return _quads_to_surface(quads, unit(corner_normals))


def fan(loop: Array, normal: ArrayLike) -> Surface:
    """The flat face inside the closed outline `loop` (K, 3), which its centroid must see as a whole."""
    following = np.roll(loop, -1, axis=0)
    center = np.broadcast_to(loop.mean(axis=0), loop.shape)
    corners = np.stack((center, loop, following), axis=1)
    return Surface(corners, np.broadcast_to(unit(np.asarray(normal, dtype=float)), corners.shape))


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
    """A box of edge lengths `size` (3,), centered at the origin.

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
    return Surface(corners, unit(normals))


def rounded_box(size: ArrayLike, radius: float, steps: int = 3) -> Surface:
    """A box of edge lengths `size` (3,), centered at the origin, with edges rounded to `radius`."""
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
    tangent = unit(tangent)
    # The direction least parallel to the curve (the normal of its plane) serves as the reference of all frames.
    reference = np.linalg.eigh(tangent.T @ tangent)[1][:, 0]
    across = unit(reference - (tangent @ reference)[:, None] * tangent)
    within = cross(across, tangent)
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
    first = unit(cross(reference, along))
    frame = np.stack((first, cross(along, first), along), axis=1)
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
        normal = cross(loop - loop.mean(axis=0), np.roll(loop, -1, axis=0) - loop.mean(axis=0)).sum(axis=0)
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
