"""Triangle meshes: OFF, OBJ and STL by trimesh, and points on any mesh."""

from __future__ import annotations

import io
import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pcattn.utils.errors import InputError
from pcattn.utils.surface import Surface


def read(path: Path, columns: Sequence[str] | None) -> tuple[dict[str, np.ndarray], np.ndarray | None]:
    """Columns of the vertices, and the triangles (T, 3) if there are faces.

    OFF files whose first line runs into the counts (`OFF490 518 0`, many of ModelNet40's) are read as well.

    Raises:
        InputError: the file is no such mesh.
    """
    import trimesh  # imported here: only meshes need it

    kind = path.suffix.lower()[1:]
    body = path.read_bytes()
    if kind == "obj" and not any(line.lstrip().startswith(b"f ") for line in body.splitlines()):
        return _read_vertices(body), None
    if kind == "off" and not body.lstrip().startswith((b"OFF", b"COFF", b"#")):
        raise InputError("expected an OFF file, whose first word is `OFF`")
    if kind == "off" and (counts := re.search(rb"OFF\s*(?:#.*\s+)*(\d+)\s+(\d+)", body)) is not None:
        expected, lines = int(counts[1]) + int(counts[2]), len(body.splitlines())
        if lines <= expected:  # the library would take what is there
            raise InputError(
                f"expected a mesh of {expected} vertices and faces as the header says, but got {lines} lines"
            )
    logger = logging.getLogger("trimesh.util")
    silent, logger.disabled = logger.disabled, True  # it tells of damaged files in tracebacks
    try:
        # No materials: they lie in other files, and the points have no use for them. No merging of vertices either.
        mesh = trimesh.load_mesh(io.BytesIO(_in_utf8(body, kind)), file_type=kind, process=False, skip_materials=True)
        pos, faces = np.asarray(mesh.vertices, np.float64), np.asarray(mesh.faces, np.int64)
        visual: Any = mesh.visual
        colors = visual.vertex_colors[:, :3] if visual.kind == "vertex" else None
    except Exception as error:  # whatever a file that is no mesh makes the library raise
        raise InputError(f"expected a mesh ({kind.upper()}), but reading it failed: {error}") from error
    finally:
        logger.disabled = silent
    if not len(pos):
        raise InputError(f"expected a mesh ({kind.upper()}), but it holds no vertices")
    if len(faces) and not 0 <= faces.min() <= faces.max() < len(pos):
        raise InputError(
            f"expected a mesh with faces of vertices 0 to {len(pos) - 1}, but got {faces.min()} to {faces.max()}"
        )
    fields: dict[str, np.ndarray] = {axis: pos[:, index] for index, axis in enumerate("xyz")}
    if colors is not None and len(colors) == len(pos):
        fields["colors"] = colors
    return fields, faces if len(faces) else None


def sample(
    pos: np.ndarray, attributes: dict[str, np.ndarray], faces: np.ndarray, num_points: int, seed: int
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Points on the faces, uniformly by area: positions (N, 3), the normals of the faces, and what the nearest corner
    has of the other attributes.

    Args:
        pos: (V, 3) vertices.
        attributes: (V,) or (V, C) each.
        faces: (T, 3) indices of the vertices.
        num_points: number N of points.
        seed: of the sampling.

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


def _read_vertices(body: bytes) -> dict[str, np.ndarray]:
    """Vertices of an OBJ file without faces, with their colors if any."""
    lines = [line.lstrip()[2:] for line in body.splitlines() if line.lstrip().startswith(b"v ")]
    if not lines:
        raise InputError("expected vertices (lines `v x y z`), but got none")
    table = np.loadtxt(lines, np.float64, comments=None, ndmin=2)
    names = {3: "xyz", 4: "xyzw", 6: "xyzrgb"}.get(table.shape[1])
    if names is None:
        raise InputError(f"expected vertices of 3, 4 or 6 numbers, but got {table.shape[1]}")
    return {name: table[:, index] for index, name in enumerate(names) if name != "w"}


def _in_utf8(body: bytes, kind: str) -> bytes:
    """The same in UTF-8. The library would guess the alphabet of anything else, which takes longer than to read it, and
    concerns names alone, none of which is kept."""
    binary = kind == "stl" and len(body) >= 84 and len(body) == 84 + 50 * int.from_bytes(body[80:84], "little")
    try:
        (body[:80] if binary else body).decode()
    except UnicodeDecodeError:
        return bytes(80) + body[80:] if binary else body.decode(errors="replace").encode()
    return body
