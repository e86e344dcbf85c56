"""Pictures of clouds by matplotlib, which works everywhere: discs sorted by depth."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pcattn.visualize.camera import fade, look, radius

#: Share of the picture that stays empty on each side.
MARGIN = 0.04


def render(clouds: list[tuple[NDArray[Any], NDArray[Any]]], size: int, up: str) -> list[NDArray[np.uint8]]:
    """Pictures (size, size, 3) of clouds, each positions (N, 3) with colors (N, 3)."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    pictures = []
    for pos, colors in clouds:
        view = look(pos, up)
        order = view.depth.argsort()  # far points first
        shade = fade(colors, view.depth)[order]
        figure = Figure(figsize=(size / 100, size / 100), dpi=100)
        canvas = FigureCanvasAgg(figure)
        axes = figure.add_axes((0, 0, 1, 1))
        limit = 1 + 2 * MARGIN
        axes.set(xlim=(-limit, limit), ylim=(-limit, limit))
        axes.axis("off")
        diameter = radius(len(pos)) / limit * size * 0.72  # points of 1/72 inch at 100 dots an inch
        x, y = view.xy[order].T
        edges: Any = shade * 0.72
        axes.scatter(x, y, s=diameter**2, c=shade, edgecolors=edges, linewidths=0.04 * diameter)
        canvas.draw()
        pictures.append(np.asarray(canvas.buffer_rgba())[..., :3].copy())
    return pictures
