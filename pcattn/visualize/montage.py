"""A picture of many clouds: a column per cloud, a row per field, with legends. Needs no screen."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pcattn.utils.errors import InputError
from pcattn.utils.files import write_figure
from pcattn.utils.text import escape_unprintable
from pcattn.visualize import flat, offscreen
from pcattn.visualize.camera import look
from pcattn.visualize.colors import MARKED, RIGHT, UNKNOWN, WRONG, sequential, to_hex
from pcattn.visualize.flat import MARGIN
from pcattn.visualize.scene import Cloud, Field, field_names
from pcattn.visualize.text import plain_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: How clouds are drawn; `"auto"` is Open3D, or matplotlib if Open3D cannot draw.
RENDERERS = ("auto", "open3d", "matplotlib")

# Points of a cloud that are drawn.
_MAX_POINTS = 8192

# Inches.
_CELL, _ROW_LABEL, _TITLE, _LINE, _GAP = 1.75, 0.3, 0.4, 0.165, 0.06


def montage(
    clouds: Sequence[Cloud],
    path: str | Path,
    fields: Sequence[str] | None = None,
    *,
    columns: int = 8,
    up: str = "z",
    renderer: str = "auto",
    heading: str = "",
    warn: Callable[[str], None] = print,
) -> Path:
    """Write a picture that shows each cloud once for every field, with title and legend.

    Args:
        clouds: clouds to draw, in this order.
        path: `.png`, or any other format that matplotlib writes.
        fields: fields to draw, from top to bottom; default: all.
        columns: clouds side by side.
        up: coordinate that points up.
        renderer: one of `RENDERERS`.
        heading: line at the top.
        warn: called with a message if Open3D cannot draw.

    Raises:
        InputError: no clouds, no such field or renderer.
        Open3DError: with `renderer="open3d"`, where it cannot draw.
    """
    if not clouds:
        raise InputError("expected clouds to draw, but got none")
    known = field_names(clouds)
    rows = list(known if fields is None else fields)
    if unknown := [name for name in rows if name not in known]:
        raise InputError(f"expected fields among {', '.join(known)}, but got {', '.join(unknown)}")
    clouds = [cloud.thinned(_MAX_POINTS) for cloud in clouds]
    cells = [
        (cloud.pos, cloud.fields[name].colors() if name in cloud.fields else np.full((len(cloud.pos), 3), UNKNOWN))
        for cloud in clouds
        for name in rows or [""]
    ]
    pictures = render(cells, 300, up, renderer, warn)
    path = Path(path)
    with plain_text():
        write_figure(path, _layout(clouds, rows, pictures, min(columns, len(clouds)), up, heading), dpi=150)
    return path


def render(
    cells: list[tuple[NDArray[Any], NDArray[Any]]], size: int, up: str, renderer: str, warn: Callable[[str], None]
) -> list[NDArray[np.uint8]]:
    """Pictures (size, size, 3) of clouds, each positions (N, 3) with colors (N, 3), by a renderer that works."""
    if renderer not in RENDERERS:
        raise InputError(f"expected renderer to be one of {', '.join(RENDERERS)}, but got {renderer!r}")
    if renderer != "matplotlib":
        try:
            return offscreen.render(cells, size, up)
        except offscreen.Open3DError as error:
            if renderer == "open3d":
                raise
            warn(f"{error}; drawn with matplotlib instead")
    return flat.render(cells, size, up)


def _layout(
    clouds: Sequence[Cloud], rows: list[str], pictures: list[NDArray[np.uint8]], columns: int, up: str, heading: str
) -> Figure:
    """The figure: bands of `columns` clouds, each with titles, a row of pictures for every field, and legends."""
    from matplotlib.figure import Figure

    per_cloud = max(1, len(rows))
    legends = [_legend(cloud, rows) for cloud in clouds]
    bands = [range(i, min(i + columns, len(clouds))) for i in range(0, len(clouds), columns)]
    lines = [max(len(legends[i]) for i in band) for band in bands]
    heights = [_TITLE + per_cloud * _CELL + (_LINE * count + _GAP if count else 0) + _GAP for count in lines]
    left = _ROW_LABEL if rows else _GAP
    key = _key(clouds, rows)
    top, bottom = 0.32 if heading else _GAP, 0.4 if key else _GAP
    width, height = left + columns * _CELL + _GAP, top + sum(heights) + bottom
    figure = Figure(figsize=(width, height), dpi=150, facecolor="white")

    def text(x: float, y: float, words: str, **style: Any) -> None:
        figure.text(x / width, 1 - y / height, words, **style)

    if heading:
        text(left, 0.08, heading, fontsize=9, fontweight="bold", va="top")
    y = top
    for band, band_height in zip(bands, heights, strict=True):
        for place, index in enumerate(band):
            cloud, x = clouds[index], left + place * _CELL
            middle = x + _CELL / 2
            text(middle, y + 0.05, _shorten(cloud.title), fontsize=8, fontweight="bold", ha="center", va="top")
            note_color = "#444444" if cloud.good is not False else to_hex(WRONG)
            text(
                middle,
                y + 0.2,
                _shorten(cloud.note.partition(";")[0], 34),
                fontsize=7,
                color=note_color,
                ha="center",
                va="top",
            )
            for row in range(per_cloud):
                bottom_edge = y + _TITLE + (row + 1) * _CELL
                axes = figure.add_axes((x / width, 1 - bottom_edge / height, _CELL / width, _CELL / height))
                axes.imshow(pictures[index * per_cloud + row], extent=(-1, 1, -1, 1), interpolation="lanczos")
                axes.axis("off")
                if cloud.marked is not None:
                    spot = look(cloud.pos, up).xy[cloud.marked] / (1 + 2 * MARGIN)
                    axes.plot(*spot, "o", ms=7, mfc="none", mec="white", mew=3.2)
                    axes.plot(*spot, "o", ms=7, mfc="none", mec=to_hex(MARKED), mew=1.6)
            for line, (name, color) in enumerate(legends[index]):
                at = y + _TITLE + per_cloud * _CELL + _GAP + _LINE * line
                text(x + 0.2, at, "●", fontsize=9, color=to_hex(color), ha="center", va="top")
                text(x + 0.31, at + 0.015, _shorten(name, 25), fontsize=7, va="top", color="#222222")
        for row, name in enumerate(rows):
            at = y + _TITLE + (row + 0.5) * _CELL
            text(0.16, at, name, fontsize=8, rotation=90, ha="center", va="center", color="#444444")
        y += band_height
    _draw_key(figure, key, left, height - bottom + 0.12, width, height)
    return figure


def _legend(cloud: Cloud, rows: list[str]) -> list[tuple[str, tuple[int, int, int]]]:
    """Names and colors of the entries of a cloud over all rows, without those that its note names."""
    present: dict[str, tuple[int, int, int]] = {}
    for name in rows:
        if name in cloud.fields and name != "error":
            chosen = cloud.fields[name]
            seen = {entry for entry, _ in chosen.present()}
            present |= {entry: color for entry, color in chosen.entries if entry in seen}
    order = [entry for name in rows if name in cloud.fields for entry, _ in cloud.fields[name].entries]
    return [
        (entry, present[entry])
        for entry in dict.fromkeys(order)
        if entry in present and not cloud.note.startswith(entry)
    ]


def _key(clouds: Sequence[Cloud], rows: list[str]) -> list[tuple[str, Field | None]]:
    """What all clouds share: the colors of errors and the scale of each quantity."""
    key: list[tuple[str, Field | None]] = []
    if "error" in rows:
        key.append(("error", None))
    for name in rows:
        fields = [cloud.fields[name] for cloud in clouds if name in cloud.fields]
        if not fields or not fields[0].is_quantity:
            continue
        if len({(field.low, field.high) for field in fields}) == 1 and not name.startswith("layer"):
            key.append((name, fields[0]))
        elif all(label != "" for label, _ in key):  # every picture has its own scale, which is said once
            key.append(("", Field(fields[0].values, (), math.nan, math.nan)))
    return key


def _draw_key(
    figure: Figure, key: list[tuple[str, Field | None]], x: float, y: float, width: float, height: float
) -> None:
    def text(at: float, words: str, **style: Any) -> None:
        figure.text(at / width, 1 - (y + 0.06) / height, words, fontsize=7, va="center", **style)

    for name, shared in key:
        if shared is None:
            for label, color in (("right", RIGHT), ("wrong", WRONG)):
                text(x + 0.07, "●", color=to_hex(color), ha="center")
                text(x + 0.17, label)
                x += 0.6
        else:
            known = not math.isnan(shared.low)
            words = f"{name}: {shared.low:.2g}" if known else "lowest of a picture"
            text(x, words)
            x += 0.08 + 0.062 * len(words)
            axes = figure.add_axes((x / width, 1 - (y + 0.12) / height, 1.0 / width, 0.12 / height))
            axes.imshow(sequential(np.linspace(0, 1, 128))[None], aspect="auto")
            axes.axis("off")
            text(x + 1.05, f"{shared.high:.2g}" if known else "highest")
            x += 1.9


def _shorten(words: str, length: int = 26) -> str:
    words = escape_unprintable(words)
    return words if len(words) <= length else words[: length - 1] + "…"
