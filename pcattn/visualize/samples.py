"""A picture of samples of a data set, a row per class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch_geometric.data import InMemoryDataset

from pcattn.utils.files import write_figure
from pcattn.utils.text import escape_unprintable
from pcattn.visualize.camera import fade, look, radius
from pcattn.visualize.colors import Colors, palette, sequential
from pcattn.visualize.text import plain_text

#: Rows in a column; further rows start a new column.
MAX_ROWS = 14

#: The most classes that are drawn.
MAX_CLASSES = 42

_MAX_POINTS = 2000
_CELL = 1.5  # inches
_MARGIN = 1.08  # of the picture's extent to that of the cloud


class _Sample(NamedTuple):
    pos: NDArray[np.float32]
    colors: Colors


@plain_text()
def draw_samples(
    splits: Mapping[str, InMemoryDataset],
    class_names: Sequence[str],
    path: Path,
    num_samples: int = 6,
    up: str = "z",
) -> None:
    """Draw the first clouds of every class, colored by their parts, else by their own colors, else by height.

    Args:
        splits: the data sets; clouds of the first one are drawn first.
        class_names: names of the classes; those without clouds are left out, and `MAX_CLASSES` at most are drawn.
        path: the picture, in any format that matplotlib writes.
        num_samples: clouds per class; fewer if there are several columns of rows.
        up: the axis that points up.
    """
    from matplotlib.figure import Figure  # no pyplot: no window system, and nothing global

    chosen = _choose(splits, len(class_names), num_samples, up)
    present = [label for label, samples in enumerate(chosen) if samples]
    shown = present[:MAX_CLASSES]
    blocks = -(-len(shown) // MAX_ROWS)
    rows = -(-len(shown) // blocks)
    num_samples = min(max(num_samples // blocks, 3), max(len(chosen[label]) for label in shown))
    figure = Figure(figsize=(blocks * (1.1 + _CELL * num_samples), _CELL * rows + 0.3), layout="constrained")
    axes = figure.subplots(rows, blocks * num_samples, squeeze=False)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[], xlim=(-_MARGIN, _MARGIN), ylim=(-_MARGIN, _MARGIN), aspect="equal")
        axis.spines[:].set_visible(False)
    for place, label in enumerate(shown):
        block, row = divmod(place, rows)
        first = block * num_samples
        axes[row, first].set_ylabel(
            escape_unprintable(class_names[label]), rotation=0, ha="right", va="center", fontsize=9
        )
        for column, sample in enumerate(chosen[label][:num_samples]):
            view = look(sample.pos, up)
            order = view.depth.argsort()  # far points first
            size = (radius(len(order)) * _CELL * 36) ** 2
            shade = fade(sample.colors, view.depth)[order]
            axes[row, first + column].scatter(*view.xy[order].T, s=size, c=shade, linewidths=0)
    if len(shown) < len(present):
        figure.suptitle(f"{len(shown)} of {len(present)} classes", fontsize=10)
    write_figure(path, figure, dpi=100)


def _choose(splits: Mapping[str, InMemoryDataset], num_classes: int, num_samples: int, up: str) -> list[list[_Sample]]:
    chosen: list[list[_Sample]] = [[] for _ in range(num_classes)]
    for dataset in splits.values():
        data = dataset._data
        classes = (data.category if "category" in data else data.y).reshape(-1)
        for label in range(num_classes):
            members = (classes == label).nonzero().flatten()[: num_samples - len(chosen[label])]
            chosen[label] += [_sample(dataset, dataset[index], label, up) for index in members.tolist()]
    return chosen


def _sample(dataset: InMemoryDataset, item: Any, label: int, up: str) -> _Sample:
    pos = item.pos.numpy()
    keep = np.flatnonzero(np.isfinite(pos).all(axis=1))
    keep = keep[np.linspace(0, len(keep) - 1, min(len(keep), _MAX_POINTS)).astype(int)] if len(keep) else keep
    names = list(getattr(dataset, "feature_names", None) or [])
    if item.y.numel() == len(pos) > 1:
        parts = item.y.reshape(-1).numpy()
        of_class = (getattr(dataset, "parts", None) or {label: np.unique(parts)})[label]
        place = np.clip(np.searchsorted(of_class, parts[keep]), 0, len(of_class) - 1)
        return _Sample(pos[keep], palette(len(of_class))[place])
    if {"red", "green", "blue"} <= set(names):
        own = item.x[:, [names.index(name) for name in ("red", "green", "blue")]].numpy()[keep]
        return _Sample(pos[keep], (own.clip(0, 1) * 255).astype(np.uint8))
    height = pos[keep, "xyz".index(up)]
    span = max(float(np.ptp(height)), 1e-12) if len(height) else 1.0
    return _Sample(pos[keep], sequential(0.25 + 0.75 * (height - height.min(initial=np.inf)) / span))
