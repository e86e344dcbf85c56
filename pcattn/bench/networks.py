"""Time and memory of a training step of segmentation networks by number of points."""

import math
import statistics
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from pcattn.bench.inputs import noisy_spheres
from pcattn.bench.timing import measure_of_peak, peak_mib, synchronize
from pcattn.bench.train import SHARES, OperationTimer
from pcattn.models import build_segmenter
from pcattn.utils.registry import construct

SIZES = (6250, 12500, 25000, 50000, 100000)
NUM_PARTS = 50


def bench_networks(
    networks: Sequence[str] = ("hierarchical_tiny",),
    sizes: Sequence[int] = SIZES,
    attention: str | None = None,
    network_kwargs: dict[str, Any] | None = None,
    device: str = "cpu",
    log: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Measure forward and backward of segmentation networks, with their geometry, on single clouds of several sizes.

    Args:
        networks: variants, keys of `pcattn.models.SEGMENTERS`.
        sizes: numbers of points.
        attention: name of the mechanism; None keeps the network's default.
        network_kwargs: more arguments for all networks.
        device: `"cpu"` or `"cuda"`.
        log: called with a line of text for each measurement.

    Returns:
        `rows`: a dictionary per network and size. On the CPU, `seconds` of a step are processor time, summed over
        threads, which other programs hardly change. `peak_mib` is what the step adds to the memory in use (None if the
        system does not provide it). `shares` are shares of the time, see `OperationTimer`. `exponents`: the slopes of
        time and memory in N by network, fitted to all sizes.

    Raises:
        InputError: there is no such network, or it does not take an argument.
    """
    rows = []
    for name in networks:
        torch.manual_seed(0)
        kwargs = {"attention": attention, **(network_kwargs or {})}
        network = construct("network", name, build_segmenter, NUM_PARTS, None, name, **kwargs).to(device)
        _step(network, noisy_spheres(1, min(sizes)).to(device))  # compiles and loads, which is not part of a step
        for num_points in sorted(set(sizes)):
            step = partial(_step, network, noisy_spheres(1, num_points).to(device))
            peak = peak_mib(step, device)
            timer = OperationTimer(device)
            start = timer.clock()
            step()
            synchronize(device)
            seconds = timer.clock() - start
            with timer:  # in a separate step, because it waits for the GPU after every operation
                step()
            total = sum(timer.seconds.values())
            shares = {where: timer.seconds[where] / total for where in SHARES}
            rows.append(
                {"network": name, "num_points": num_points, "seconds": seconds, "peak_mib": peak, "shares": shares}
            )
            log(_format_row(rows[-1]))
    return {
        "setting": {
            "attention": attention,
            "network_kwargs": network_kwargs or {},
            "device": device,
            "threads": torch.get_num_threads(),
        },
        "rows": rows,
        "exponents": {
            name: {
                key: _exponent([row for row in rows if row["network"] == name], key) for key in ("seconds", "peak_mib")
            }
            for name in networks
        },
    }


def _step(network: nn.Module, pos: Tensor) -> None:
    network.zero_grad()
    logits = network(pos)[0]
    loss = nn.functional.cross_entropy(logits, torch.arange(len(logits), device=pos.device) % NUM_PARTS)
    torch.autograd.backward(loss)


def _exponent(rows: Sequence[dict[str, Any]], key: str) -> float | None:
    """Slope of log(column) in log(number of points); None if it was not measured."""
    if len(rows) < 2 or any(not row[key] for row in rows):
        return None
    sizes, values = ([math.log(row[column]) for row in rows] for column in ("num_points", key))
    return statistics.linear_regression(sizes, values).slope


def _format_row(row: dict[str, Any]) -> str:
    peak = "" if row["peak_mib"] is None else f"{row['peak_mib']:,.0f}"
    shares = " | ".join(f"{row['shares'][where]:.0%}" for where in SHARES)
    return f"| {row['network']} | {row['num_points']:,} | {row['seconds']:.2f} | {peak} | {shares} |"


def table(result: dict[str, Any]) -> str:
    """Format the measurements as a Markdown table with a line per network about its exponents."""
    device = result["setting"]["device"]
    clock, measure = "processor" if device == "cpu" else "GPU", measure_of_peak(device)
    lines = [
        f"| network | points | {clock} seconds a step | peak MiB ({measure}) | {' | '.join(SHARES)} |",
        f"| --- {'| --- ' * (3 + len(SHARES))}|",
        *map(_format_row, result["rows"]),
        "",
    ]
    for name, slopes in result["exponents"].items():
        time_slope, memory_slope = ("-" if slope is None else f"{slope:.2f}" for slope in slopes.values())
        lines.append(f"{name}: time grows with N to the power of {time_slope}, memory of {memory_slope}")
    return "\n".join(lines)
