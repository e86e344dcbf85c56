"""OFF, with its variants for colors and normals at the vertices.

Source: http://www.geomview.org/docs/html/OFF.html
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pcattn.io.columns import Content
from pcattn.io.mesh import triangulate
from pcattn.io.text import parse_rows
from pcattn.utils.errors import InputError

# The counts may follow the first word at once (`OFF490 518 0`), as in many files of ModelNet40.
_HEADER = re.compile(rb"\s*((?:ST)?C?N?)OFF\s*(\d+)\s+(\d+)(?:[ \t]+\d+)?[ \t]*(?=\s|$)")
_COMMENT = re.compile(rb"#[^\r\n]*")


def read(path: Path, columns: Sequence[str] | None) -> Content:
    """Vertices with their normals and colors, and triangles if there are faces; polygons become fans.

    Raises:
        InputError: the file is not OFF, or holds less than its header says.
    """
    body = path.read_bytes()
    if b"#" in body:
        body = _COMMENT.sub(b"", body)
    header = _HEADER.match(body)
    if header is None:
        raise InputError("expected an OFF file, whose first word is `OFF`, and its counts, but got neither")
    num_vertices, num_faces = int(header[2]), int(header[3])
    lines = [line for line in body[header.end() :].splitlines() if line.strip()]
    if len(lines) < num_vertices + num_faces or not num_vertices:
        raise InputError(
            f"expected a mesh of {num_vertices} vertices and {num_faces} faces as the header says, "
            f"but got {len(lines)} lines"
        )
    table = parse_rows(lines[:num_vertices])
    polygons = _read_polygons(lines[num_vertices : num_vertices + num_faces])
    return Content(_name(table, header[1]), triangulate(polygons, num_vertices) if num_faces else None)


def _name(table: np.ndarray, kind: bytes) -> dict[str, np.ndarray]:
    """Columns of the vertices: positions, then normals, then colors, as the header says or the values show."""
    width = table.shape[1]
    if width < 3:
        raise InputError(f"expected vertices of at least 3 numbers, but got {width}")
    result, start = {"pos": table[:, :3]}, 3
    if b"N" in kind and width >= 6:
        result["normals"], start = table[:, 3:6], 6
    if width - start in (3, 4) and (b"C" in kind or not kind):
        result["colors"] = table[:, start : start + 3]  # a fourth number is the opacity
    return result


def _read_polygons(lines: Sequence[bytes]) -> Sequence[np.ndarray]:
    """The vertices of every face; colors behind them are passed over."""
    try:
        table = np.loadtxt(lines, np.float64, comments=None, ndmin=2)
        size = int(table[0, 0])
        if size + 1 <= table.shape[1] and (table[:, 0] == size).all():
            return [table[:, 1 : 1 + size].astype(np.int64)]
    except ValueError:  # faces of several sizes
        pass
    polygons = []
    for line in lines:
        words = line.split()
        polygon = np.array(words[1 : 1 + int(words[0])], np.int64)
        if len(polygon) != int(words[0]):
            raise InputError(f"expected a face of {int(words[0])} vertices, but got {line[:60]!r}")
        polygons.append(polygon)
    return polygons
