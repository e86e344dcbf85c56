"""A web page of clouds in one file, which loads nothing from elsewhere and opens in any browser."""

from __future__ import annotations

import base64
import html
import json
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pcattn.utils.errors import InputError
from pcattn.utils.files import write_text
from pcattn.utils.text import escape_unprintable
from pcattn.visualize.camera import AXES
from pcattn.visualize.colors import MARKED, sequential, to_hex
from pcattn.visualize.scene import Cloud, Field, field_names

# Points of a cloud in a page: browsers turn them all at once.
_MAX_POINTS = 20_000


def page(
    clouds: Sequence[Cloud],
    path: str | Path,
    fields: Sequence[str] | None = None,
    *,
    up: str = "z",
    heading: str = "Point clouds",
    flat: bool = False,
) -> Path:
    """Write a page on which the clouds turn side by side, once for every field.

    Positions are rounded to 1 / 65,000 of a cloud's size, quantities to 1 / 255: sixteen clouds of 2,048 points with
    four fields take 0.5 MB.

    Args:
        clouds: what to show, in this order.
        path: `.html`.
        fields: those that are shown at first; the others can be switched on. Default: all.
        up: coordinate that points up.
        heading: title of the page.
        flat: draw without WebGL, as a browser that has none does.

    Raises:
        InputError: no clouds, no such field, or another `up`.
    """
    if not clouds:
        raise InputError("expected clouds to show, but got none")
    if up not in AXES:
        raise InputError(f"expected up to be one of {', '.join(AXES)}, but got {up!r}")
    names = field_names(clouds)
    if unknown := [name for name in fields or () if name not in names]:
        raise InputError(f"expected fields among {', '.join(names)}, but got {', '.join(unknown)}")
    content = {
        "names": names,
        "shown": list(names if fields is None else fields),
        "sequence": sequential(np.linspace(0, 1, 256)).tolist(),
        "marked": to_hex(MARKED),
        "flat": flat,
        "clouds": [_cloud(cloud.thinned(_MAX_POINTS), up) for cloud in clouds],
    }
    template = files("pcattn.visualize").joinpath("page.html").read_text(encoding="utf-8")
    path = Path(path)
    # A name of a class must not end the script that holds it.
    data = json.dumps(content, separators=(",", ":")).replace("<", "\\u003c")
    write_text(path, template.replace("{{title}}", html.escape(escape_unprintable(heading))).replace("{{data}}", data))
    return path


def _cloud(cloud: Cloud, up: str) -> dict[str, Any]:
    """One cloud as JSON: numbers as base64, the coordinate `up` last."""
    last = AXES.index(up)
    pos = np.asarray(cloud.pos, dtype=np.float64)[:, [(last + 1) % 3, (last + 2) % 3, last]]
    center = (pos.min(axis=0) + pos.max(axis=0)) / 2
    pos = pos - center
    pos /= max(1.04 * float(np.linalg.norm(pos, axis=1).max()), 1e-12)
    return {
        "title": cloud.title,
        "note": cloud.note,
        "good": cloud.good,
        "marked": cloud.marked,
        "pos": _base64(((pos + 1) * 32767.5).round().astype("<u2")),
        "fields": [_field(name, each) for name, each in cloud.fields.items()],
    }


def _field(name: str, field: Field) -> dict[str, Any]:
    if field.is_quantity:
        values = (np.nan_to_num(field.normalized()) * 255).round().astype(np.uint8)
    elif len(field.entries) <= 256:
        values = field.values.astype(np.uint8)
    else:
        raise InputError(f"expected at most 256 names in {name!r} of a page, but got {len(field.entries)}")
    return {
        "name": name,
        "kind": "quantity" if field.is_quantity else "entries" if field.entries else "colors",
        "entries": field.entries,
        "low": float(field.low),
        "high": float(field.high),
        "values": _base64(values),
    }


def _base64(array: NDArray[Any]) -> str:
    return base64.b64encode(array.tobytes()).decode()
