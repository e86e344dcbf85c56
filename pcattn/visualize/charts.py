"""Charts of a run: curves, bars of categories, and confusion matrices."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pcattn.utils.files import write_figure
from pcattn.utils.text import escape_unprintable
from pcattn.visualize.colors import palette, sequential, to_hex
from pcattn.visualize.text import plain_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.image import AxesImage

#: Names of the losses in the legend. With smoothed labels the training loss may stay far above the validation loss.
_LEGEND = {"train/loss": "train/loss (as minimized)", "val/loss": "val/loss (cross-entropy alone)"}


def read_curves(run: Path) -> dict[str, list[tuple[float, float]]]:
    """The logged values of every metric by epoch, from `metrics.csv`; the last one of each epoch."""
    path = run / "metrics.csv"
    if not path.is_file():
        return {}
    curves: dict[str, dict[float, float]] = {}
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            for name, value in row.items():
                if value and row.get("epoch") and name not in ("epoch", "step"):
                    curves.setdefault(name, {})[float(row["epoch"])] = float(value)
    return {name: sorted(values.items()) for name, values in curves.items()}


def draw_curves(curves: dict[str, list[tuple[float, float]]], path: Path) -> Path | None:
    """Losses on the left, metrics of the validation on the right; None if there is nothing to draw.

    The levels of the losses differ: the training loss includes smoothed and mixed labels.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    losses = {name: values for name, values in curves.items() if name in ("train/loss", "val/loss")}
    metrics = {n: values for n, values in curves.items() if n.startswith("val/") and n != "val/loss"}
    if not losses and not metrics:
        return None
    figure = Figure(figsize=(9.5, 3), layout="constrained")
    for axes, chosen, label in zip(figure.subplots(1, 2), (losses, metrics), ("loss", "validation"), strict=True):
        # Different markers, because curves may overlap.
        for (name, values), color, marker in zip(sorted(chosen.items()), palette(len(chosen)), cycle("os^D")):
            epochs, numbers = zip(*values, strict=True)
            axes.plot(
                [epoch + 1 for epoch in epochs],
                numbers,
                marker=marker,
                fillstyle="none",
                ms=5,
                lw=1.5,
                color=to_hex(color),
                label=_LEGEND.get(name, name),
            )
        axes.set(xlabel="epoch", ylabel=label)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        if chosen:
            axes.legend(frameon=False, fontsize=8)
    write_figure(path, figure, dpi=110)
    return path


@plain_text()
def draw_bars(
    names: Sequence[str], values: Sequence[float | None], counts: Sequence[int], what: str, path: Path
) -> Path:
    """A bar per category, the best first, with its value and the number of shapes."""
    from matplotlib.figure import Figure

    order = sorted(range(len(names)), key=lambda i: -1 if values[i] is None else values[i])  # type: ignore[arg-type,return-value]
    figure = Figure(figsize=(7.5, 0.6 + 0.21 * len(names)), layout="constrained")
    axes = figure.subplots()
    axes.barh(range(len(order)), [100 * (values[i] or 0.0) for i in order], color=to_hex(palette(1)[0]), height=0.72)
    axes.set_yticks(range(len(order)), [f"{escape_unprintable(names[i])} ({counts[i]})" for i in order], fontsize=8)
    for place, i in enumerate(order):
        value = values[i]
        text = "-" if value is None else f"{100 * value:.1f}"
        axes.text(100 * (value or 0.0) + 0.8, place, text, va="center", fontsize=7.5)
    axes.set(xlim=(0, 107), ylim=(-0.6, len(order) - 0.4), xlabel=f"{what} (number of shapes)")
    axes.spines[["top", "right"]].set_visible(False)
    write_figure(path, figure, dpi=110)
    return path


class Confusion(NamedTuple):
    """A confusion matrix: `matrix` (R, C) counts how often the class of a row was predicted as that of a column."""

    title: str
    matrix: NDArray[Any]
    rows: Sequence[str]
    columns: Sequence[str]


@plain_text()
def draw_confusion(confusions: Sequence[Confusion], path: Path) -> Path:
    """Draw confusion matrices side by side, each row normalized by its sum: truth in rows, predictions in columns."""
    from matplotlib.figure import Figure

    wide = min(4, len(confusions))
    high = -(-len(confusions) // wide)
    if len(confusions) == 1:
        side = float(np.clip(1.6 + 0.21 * len(confusions[0].rows), 3.5, 13))
        size = (side + 0.8, side)
    else:
        size = (2.5 * wide, 2.4 * high)
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(high, wide, squeeze=False)
    for axes in grid.flat[len(confusions) :]:
        axes.remove()
    for axes, confusion in zip(grid.flat, confusions, strict=False):
        image = _draw_shares(axes, confusion)
        axes.set_title(escape_unprintable(confusion.title), fontsize=9)
    figure.supxlabel("prediction")
    figure.supylabel("truth")
    if len(confusions) == 1:  # several small ones show their numbers instead
        figure.colorbar(image, ax=axes, shrink=0.6, label="share of the truth")
    write_figure(path, figure, dpi=110)
    return path


def _draw_shares(axes: Axes, confusion: Confusion) -> AxesImage:
    from matplotlib.colors import ListedColormap

    sums = confusion.matrix.sum(axis=1, keepdims=True)
    shares = np.divide(confusion.matrix, sums, out=np.full(confusion.matrix.shape, np.nan), where=sums > 0)
    colors = ListedColormap(np.vstack(([[1, 1, 1]], sequential(np.linspace(0, 1, 255)) / 255)))
    image = axes.imshow(shares, cmap=colors, vmin=0, vmax=1)
    size = 8 if len(confusion.rows) <= 45 else 5.5
    axes.set_xticks(
        range(len(confusion.columns)), list(map(escape_unprintable, confusion.columns)), rotation=90, fontsize=size
    )
    axes.set_yticks(range(len(confusion.rows)), list(map(escape_unprintable, confusion.rows)), fontsize=size)
    if len(confusion.rows) <= 30:
        for i, j in zip(*np.nonzero(shares >= 0.005), strict=True):
            color = "white" if shares[i, j] > 0.45 else "#222222"
            axes.text(j, i, f"{100 * shares[i, j]:.0f}", ha="center", va="center", fontsize=6, color=color)
    return image
