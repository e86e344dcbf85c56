"""Wavefront OBJ: meshes by trimesh, and points without faces."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pcattn.io.columns import Content
from pcattn.io.mesh import load
from pcattn.io.text import parse_rows
from pcattn.utils.errors import InputError


def read(path: Path, columns: Sequence[str] | None) -> Content:
    """Vertices with their colors, and triangles if there are faces.

    Raises:
        InputError: the file holds no vertices, or is damaged.
    """
    # One blank between words and none in front: trimesh reads nothing else. Names may be in any alphabet.
    lines = [b" ".join(line.split()) for line in path.read_bytes().splitlines()]
    if any(line.startswith(b"f ") for line in lines):
        return load(b"\n".join(lines).decode(errors="replace").encode(), "obj")
    vertices = [line[2:] for line in lines if line.startswith(b"v ")]
    if not vertices:
        raise InputError("expected vertices (lines `v x y z`), but got none")
    table = parse_rows([vertex.partition(b"#")[0] for vertex in vertices])
    width = table.shape[1]
    if width not in (3, 4, 6, 7):
        raise InputError(f"expected vertices of 3, 4, 6 or 7 numbers, but got {width}")
    # A fourth number is a weight, and the last three are colors.
    return Content({"pos": table[:, :3], **({"colors": table[:, -3:]} if width > 4 else {})})
