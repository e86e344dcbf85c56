"""STL, text and binary, read by trimesh."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path

from pcattn.io.columns import Content
from pcattn.io.mesh import load
from pcattn.utils.errors import InputError

_HEADER, _TRIANGLE = 84, 50  # bytes


def read(path: Path, columns: Sequence[str] | None) -> Content:
    """Triangles with three vertices each.

    A binary file may have bytes behind its triangles, and a count of 0, which some programs write and never correct.

    Raises:
        InputError: a binary file holds fewer triangles than it says, or the file is not STL.
    """
    body = path.read_bytes()
    count = int.from_bytes(body[80:84], "little")
    whole = len(body) == _HEADER + _TRIANGLE * count and len(body) >= _HEADER
    if not whole and body.lstrip()[:5].lower() == b"solid" and b"vertex" in body:
        return load(body.decode(errors="replace").encode(), "stl")
    available = max(len(body) - _HEADER, 0) // _TRIANGLE
    count = count or available
    if count > available:
        raise InputError(f"expected a mesh of {count} triangles as the header says, but got {available}")
    triangles = body[_HEADER : _HEADER + _TRIANGLE * count]
    return load(bytes(80) + struct.pack("<I", count) + triangles, "stl")  # the text of the header is not needed
