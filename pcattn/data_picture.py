"""A picture of samples of a data set, one row a class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from torch_geometric.data import Data, InMemoryDataset

MAX_ROWS = 24
MAX_POINTS = 2000


def draw_samples(
    splits: Mapping[str, InMemoryDataset], class_names: Sequence[str], path: Path, num_samples: int = 6
) -> None:
    """Draw the first clouds of every class, seen from the front, right and above, z up.

    Points have the colours of their parts, else their own, else those of their height.

    Args:
        splits: the data sets; clouds of the first one are drawn first.
        class_names: rows, at most `MAX_ROWS` of them.
        path: the picture, in any format that matplotlib writes.
        num_samples: clouds a class.
    """
    from matplotlib.figure import Figure  # no pyplot: no window system, and nothing global

    rows = min(len(class_names), MAX_ROWS)
    figure = Figure(figsize=(1.3 + 1.5 * num_samples, 1.5 * rows + 0.4), layout="constrained")
    axes = figure.subplots(rows, num_samples, squeeze=False)
    chosen = _choose(splits, rows, num_samples)
    for label in range(rows):
        for column in range(num_samples):
            axis = axes[label, column]
            axis.set_xticks([])
            axis.set_yticks([])
            for spine in axis.spines.values():
                spine.set_visible(False)
            if column < len(chosen[label]):
                _draw(axis, chosen[label][column])
        axes[label, 0].set_ylabel(class_names[label], rotation=0, ha="right", va="center", fontsize=9)
    if rows < len(class_names):
        figure.suptitle(f"{rows} of {len(class_names)} classes", fontsize=10)
    figure.savefig(path, dpi=110)


def _choose(splits: Mapping[str, InMemoryDataset], rows: int, num_samples: int) -> list[list[Data]]:
    chosen: list[list[Data]] = [[] for _ in range(rows)]
    for dataset in splits.values():
        classes = dataset._data.category if "category" in dataset._data else dataset._data.y
        classes = classes.reshape(-1)
        for label in range(rows):
            missing = num_samples - len(chosen[label])
            members = (classes == label).nonzero().flatten()[:missing].tolist()
            chosen[label] += [dataset[index] for index in members]
    return chosen


def _draw(axis, data: Data) -> None:  # type: ignore[no-untyped-def]  # matplotlib's axes
    pos = data.pos.numpy().astype(np.float64)
    keep = np.linspace(0, len(pos) - 1, min(len(pos), MAX_POINTS)).astype(int)
    pos = pos[np.isfinite(pos).all(axis=1)] if not np.isfinite(pos).all() else pos
    keep = keep[keep < len(pos)]
    centre = (pos.max(axis=0) + pos.min(axis=0)) / 2
    azimuth, elevation = np.radians(-55.0), np.radians(22.0)
    view = np.array([np.cos(elevation) * np.cos(azimuth), np.cos(elevation) * np.sin(azimuth), np.sin(elevation)])
    right = np.array([-np.sin(azimuth), np.cos(azimuth), 0.0])
    up = np.cross(view, right)
    seen = pos[keep] - centre
    order = np.argsort(seen @ view)  # the nearest are drawn last
    size = float(np.clip(1500 / max(len(keep), 1), 0.6, 12))
    axis.scatter((seen @ right)[order], (seen @ up)[order], s=size, linewidths=0, **_colors(data, keep, seen, order))
    reach = max(float(np.linalg.norm(seen, axis=1).max()), 1e-12)
    axis.set_xlim(-reach, reach)
    axis.set_ylim(-reach, reach)
    axis.set_aspect("equal")


def _colors(data: Data, keep: np.ndarray, seen: np.ndarray, order: np.ndarray) -> dict:
    if data.y.numel() == data.pos.shape[0] > 1:
        parts = data.y.reshape(-1).numpy()
        local = np.unique(parts, return_inverse=True)[1][keep][order]
        return {"c": local % 10, "cmap": "tab10", "vmin": 0, "vmax": 9}
    return {"c": seen[order, 2], "cmap": "viridis"}
