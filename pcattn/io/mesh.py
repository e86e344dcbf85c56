"""Triangle meshes: what their formats share, and points drawn from them."""

from __future__ import annotations

import io
import logging
from collections.abc import Sequence
from typing import Any

import numpy as np

from pcattn.io.columns import Content
from pcattn.utils.errors import InputError
from pcattn.utils.surface import Surface


def load(body: bytes, kind: str) -> Content:
    """Vertices and triangles of a file, read by trimesh.

    Args:
        body: the content of the file.
        kind: `"obj"` or `"stl"`.

    Raises:
        InputError: it is not such a mesh.
    """
    import trimesh  # slow to import, and only meshes need it

    logger = logging.getLogger("trimesh.util")
    silent, logger.disabled = logger.disabled, True  # it prints tracebacks of damaged files
    try:
        # No materials: they are in other files, and points do not use them. No merging of vertices either.
        mesh = trimesh.load_mesh(io.BytesIO(body), file_type=kind, process=False, skip_materials=True)
        pos, faces = np.asarray(mesh.vertices, np.float64), np.asarray(mesh.faces, np.int64)
        visual: Any = mesh.visual
        colors = visual.vertex_colors[:, :3] if visual.kind == "vertex" else None
    except Exception as error:  # whatever damaged content makes the library raise
        raise InputError(f"expected a mesh ({kind.upper()}), but reading it failed: {error}") from error
    finally:
        logger.disabled = silent
    if not len(pos):
        raise InputError(f"expected a mesh ({kind.upper()}), but it holds no vertices")
    columns = {"pos": pos}
    if colors is not None and len(colors) == len(pos):
        columns["colors"] = colors
    return Content(columns, triangulate([faces], len(pos)) if len(faces) else None)


def triangulate(polygons: Sequence[np.ndarray] | np.ndarray, num_vertices: int) -> np.ndarray:
    """Triangles (T, 3) of polygons, each a fan around its first corner.

    Args:
        polygons: (P, S) indices of the vertices; or a list of such arrays and of (S,) for single polygons.
        num_vertices: number of vertices of the mesh.

    Raises:
        InputError: an index is not that of a vertex.
    """
    if isinstance(polygons, np.ndarray):  # (P, S): all of one size
        polygons = [polygons]
    by_size: dict[int, list[np.ndarray]] = {}
    for polygon in polygons:
        by_size.setdefault(polygon.shape[-1], []).append(polygon)
    groups = [np.concatenate([np.atleast_2d(p) for p in same]) for size, same in sorted(by_size.items()) if size >= 3]
    fans = [group[:, [0, i, i + 1]] for group in groups for i in range(1, group.shape[1] - 1)]
    triangles = np.concatenate(fans).astype(np.int64) if fans else np.empty((0, 3), np.int64)
    if len(triangles) and not 0 <= triangles.min() <= triangles.max() < num_vertices:
        wrong = triangles.min() if triangles.min() < 0 else triangles.max()
        raise InputError(f"expected a mesh with faces of vertices 0 to {num_vertices - 1}, but got {wrong}")
    return triangles


def sample(
    pos: np.ndarray, attributes: dict[str, np.ndarray], faces: np.ndarray, num_points: int, seed: int
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Draw points from the faces, uniformly by area.

    Args:
        pos: (V, 3) vertices.
        attributes: (V,) or (V, C) each.
        faces: (T, 3) indices of the vertices.
        num_points: number N of points.
        seed: of the random numbers.

    Returns:
        Positions (N, 3), and attributes: the normals of the faces, and the others from the nearest corner.

    Raises:
        InputError: the faces have no area.
    """
    corners = pos.astype(np.float64)[faces]
    cross = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    length = np.linalg.norm(cross, axis=1, keepdims=True)
    if not 0 < length.sum() < np.inf:
        raise InputError("expected a mesh with a surface, but its faces have no area")
    normals = cross / np.maximum(length, np.finfo(float).tiny)
    surface = Surface(corners, np.repeat(normals[:, None], 3, axis=1))
    points, point_normals, chosen = surface.sample(num_points, np.random.default_rng(seed))
    nearest = np.linalg.norm(corners[chosen] - points[:, None], axis=2).argmin(axis=1)
    vertex = faces[chosen, nearest]
    carried = {name: values[vertex] for name, values in attributes.items() if name != "normals"}
    return points.astype(pos.dtype), {"normals": point_normals.astype(np.float32), **carried}
