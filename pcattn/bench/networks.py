"""`pcattn bench networks`: what a step of a segmentation network costs against the number of points of a cloud."""

import argparse
import json
import math
import statistics
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from pcattn.bench.timing import measure_of_peak, peak_mib, synchronize
from pcattn.bench.train import SHARES, OperationTimer, clouds
from pcattn.cli.messages import fail
from pcattn.models import SEGMENTERS, build_segmenter

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
    """Measure forward and backward of segmentation networks on one cloud of growing size, geometry included.

    Args:
        networks: variants, keys of `SEGMENTERS`.
        sizes: numbers of points.
        attention: name of the mechanism; None is the network's own.
        network_kwargs: further arguments of all networks.
        device: `"cpu"` or `"cuda"`.
        log: told one line a measurement.

    Returns:
        `rows`: a dictionary a network and size. `seconds` of a step are those of the processor on the CPU, added up
        over its threads, which other programs on the machine hardly change; `peak_mib` is what the step adds to the
        memory in use (None where the system does not tell); `shares` are those of the time, see `OperationTimer`.
        `exponents`: by network, the slopes of time and memory in N, fitted to all sizes.

    Raises:
        ValueError: no such network, or it does not take an argument.
    """
    rows = []
    for name in networks:
        torch.manual_seed(0)
        network = build_segmenter(NUM_PARTS, None, name, attention=attention, **(network_kwargs or {})).to(device)
        _step(network, clouds(1, min(sizes)).to(device))  # whatever is loaded on first use is not part of a step
        for num_points in sorted(set(sizes)):
            step = partial(_step, network, clouds(1, num_points).to(device))
            peak = peak_mib(step, device)
            timer = OperationTimer(device)
            start = timer.clock()
            step()
            synchronize(device)
            seconds = timer.clock() - start
            with timer:  # a step for itself: it waits for a GPU after every operation
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
    nn.functional.cross_entropy(logits, torch.arange(len(logits), device=pos.device) % NUM_PARTS).backward()


def _exponent(rows: Sequence[dict[str, Any]], key: str) -> float | None:
    """Slope of the logarithm of a column in that of the number of points; None where it was not measured."""
    if len(rows) < 2 or any(not row[key] for row in rows):
        return None
    sizes, values = ([math.log(row[column]) for row in rows] for column in ("num_points", key))
    return statistics.linear_regression(sizes, values).slope


def _format_row(row: dict[str, Any]) -> str:
    peak = "" if row["peak_mib"] is None else f"{row['peak_mib']:,.0f}"
    shares = " | ".join(f"{row['shares'][where]:.0%}" for where in SHARES)
    return f"| {row['network']} | {row['num_points']:,} | {row['seconds']:.2f} | {peak} | {shares} |"


def table(result: dict[str, Any]) -> str:
    """The measurements as a Markdown table, and the exponents in words."""
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


def main(argv: Sequence[str]) -> int:
    """The command; see `--help`. Returns the exit status."""
    parser = argparse.ArgumentParser(prog="pcattn bench networks", description=__doc__)
    parser.add_argument("--networks", nargs="+", choices=tuple(SEGMENTERS), default=("hierarchical_tiny",),
                        metavar="NAME", help=f"of {', '.join(SEGMENTERS)} (default: hierarchical_tiny)")  # fmt: skip
    parser.add_argument("--sizes", nargs="+", type=int, default=SIZES, help="numbers of points (default: %(default)s)")
    parser.add_argument("--attention", help="mechanism (default: the network's own)")
    parser.add_argument("--network-kwargs", type=json.loads, default={}, metavar="JSON",
                        help="further arguments of the networks: '{\"stem_stride\": 4}'")  # fmt: skip
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, help="threads of torch (default: its own choice)")
    parser.add_argument("--json", action="store_true", help="print the measurements as JSON")
    args = parser.parse_args(argv)
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("expected a CUDA device for --device cuda, but torch sees none")
    if min(args.sizes) < 2:
        parser.error(f"expected --sizes of at least 2, but got {min(args.sizes)}")
    if not isinstance(args.network_kwargs, dict):
        parser.error(f"expected --network-kwargs to be a JSON object, but got {json.dumps(args.network_kwargs)}")
    if args.threads:
        torch.set_num_threads(args.threads)
    say = partial(print, file=sys.stderr, flush=True)
    try:
        result = bench_networks(args.networks, args.sizes, args.attention, args.network_kwargs, args.device, say)
    except (TypeError, ValueError) as error:
        fail(str(error), error)
    print(json.dumps(result, indent=1) if args.json else table(result))
    return 0
