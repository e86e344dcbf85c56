"""`pcattn bench ops`: neighbor search and farthest point sampling, ours beside the installed peers."""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from pcattn import ops
from pcattn.bench.peers import sample_peers, search_peers
from pcattn.bench.timing import interleave, measure_of_peak, peak_mib, summary, synchronize
from pcattn.ops.neighbors.reference import distances

#: (B, N, k) of the neighbor search, (B, N, samples) of the sampling
SEARCHES = ((32, 1024, 32), (1, 16384, 32))
SAMPLINGS = ((32, 1024, 512), (1, 16384, 4096))
CUDA_SEARCHES = ((32, 1024, 32), (1, 65536, 32))
CUDA_SAMPLINGS = ((32, 2048, 512),)

# How many queries of each cloud are compared with brute force.
_CHECKED_QUERIES = 256


def bench_ops(
    device: str = "cpu",
    repeats: int = 7,
    quick: bool = False,
    report: Callable[[str], Any] = lambda line: None,
) -> list[dict[str, Any]]:
    """Measure every implementation of each task in turns.

    Args:
        device: `"cpu"` or `"cuda"`.
        repeats: calls of each implementation after a warm-up call.
        quick: small clouds, to see that everything runs.
        report: called with lines of text on the way.

    Returns:
        One dictionary for each task and implementation: `task`, `name`, `median_ms`, `spread_ms` (half the distance of
        the quartiles), `ratio` (to the first implementation, the textbook one), `exact` (share of queries, or samples,
        for which it gives the distances of float64 brute force; `shifted` the same for a cloud 1,000 units from the
        origin), `peak_mib` (None where it is not known) or, where an implementation failed, `error`.
    """
    on_cuda = device == "cuda"
    searches: tuple[tuple[int, int, int], ...] = CUDA_SEARCHES if on_cuda else SEARCHES
    samplings: tuple[tuple[int, int, int], ...] = CUDA_SAMPLINGS if on_cuda else SAMPLINGS
    if quick:
        searches, samplings = ((2, 256, 8),), ((2, 256, 32),)
    rows = []
    for batch, num_points, k in searches:
        cloud = _surface(batch, num_points).to(device)
        functions: dict[str, Callable[[Tensor], Tensor]] = {
            name: partial(_search_with, function, k) for name, function in search_peers(device).items()
        }
        for backend in _backends(device, num_points):
            functions[f"pcattn, {backend}"] = partial(_search_with, partial(_own_search, backend), k)
        task = f"kNN B={batch} N={num_points} k={k}"
        rows += _measure(task, functions, cloud, _exact_neighbors, device, repeats, report)
    for batch, num_points, num_samples in samplings:
        cloud = _surface(batch, num_points).to(device)
        functions = {name: partial(_sample_with, f, num_samples) for name, f in sample_peers(device).items()}
        for backend in _backends(device, num_points):
            functions[f"pcattn, {backend}"] = partial(_sample_with, partial(_own_sample, backend), num_samples)
        task = f"FPS B={batch} N={num_points} -> {num_samples}"
        rows += _measure(task, functions, cloud, _exact_samples, device, repeats, report)
    return rows


def main(argv: Sequence[str]) -> int:
    """The command; see `--help`. Returns the exit status."""
    parser = argparse.ArgumentParser(prog="pcattn bench ops", description=__doc__)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--repeats", type=int, default=7, help="calls of each implementation (default: %(default)s)")
    parser.add_argument("--threads", type=int, help="threads of torch (default: its own choice)")
    parser.add_argument("--quick", action="store_true", help="small clouds, to see that everything runs")
    parser.add_argument("--json", action="store_true", help="print the measurements as JSON")
    arguments = parser.parse_args(argv)
    if arguments.device == "cuda" and not torch.cuda.is_available():
        parser.error("expected a CUDA device for --device cuda, but torch sees none")
    if arguments.repeats < 1:
        parser.error(f"expected --repeats of at least 1, but got {arguments.repeats}")
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    rows = bench_ops(arguments.device, arguments.repeats, arguments.quick, partial(print, file=sys.stderr, flush=True))
    if arguments.json:
        settings = {"device": arguments.device, "threads": torch.get_num_threads(), "torch": torch.__version__}
        print(json.dumps({**settings, "rows": rows}, indent=1))
    else:
        print(table(rows, arguments.device))
    return 0


def table(rows: list[dict[str, Any]], device: str) -> str:
    """The measurements on a device as a Markdown table."""
    peak = f"peak MiB ({measure_of_peak(device)})"
    lines = [
        f"| task | implementation | ms (median ± spread) | ratio | exact | exact at offset 1000 | {peak} |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        if "error" in row:
            lines.append(f"| {row['task']} | {row['name']} | failed: {row['error']} | | | | |")
            continue
        memory = "" if row["peak_mib"] is None else f"{row['peak_mib']:.0f}"
        lines.append(
            f"| {row['task']} | {row['name']} | {row['median_ms']:.2f} ± {row['spread_ms']:.2f} | {row['ratio']:.3f} "
            f"| {row['exact']:.1%} | {row['shifted']:.1%} | {memory} |"
        )
    return "\n".join(lines)


def _measure(
    task: str,
    functions: dict[str, Callable[[Tensor], Tensor]],
    cloud: Tensor,
    exactness: Callable[[Tensor, Tensor], float],
    device: str,
    repeats: int,
    report: Callable[[str], Any],
) -> list[dict[str, Any]]:
    rows: dict[str, dict[str, Any]] = {}
    # The first call compiles and warms up; what fails is left out of the measurement.
    for name, function in functions.items():
        report(f"{task}: {name}")
        row: dict[str, Any] = {"task": task, "name": name}
        rows[name] = row
        try:
            row["exact"] = exactness(cloud, function(cloud))
            shifted = cloud + 1000
            row["shifted"] = exactness(shifted, function(shifted))
            row["peak_mib"] = peak_mib(partial(function, cloud), device)
            synchronize(device)
        except Exception as error:  # a peer may fail in any way; the others are still measured
            row["error"] = f"{type(error).__name__}: {error}".splitlines()[0]
    working = {name: partial(functions[name], cloud) for name, row in rows.items() if "error" not in row}
    for name, times in interleave(working, repeats, device).items():
        rows[name] |= summary(times)
    baseline = next(iter(rows.values()))
    for name in working:
        rows[name]["ratio"] = rows[name]["median_ms"] / baseline.get("median_ms", float("nan"))
    return list(rows.values())


def _backends(device: str, num_points: int) -> list[str]:
    fast = "triton" if device == "cuda" else "numba"
    return [fast, "reference"] if num_points <= 2048 else [fast]


def _own_search(backend: str, query: Tensor, support: Tensor, k: int) -> Tensor:
    return ops.knn(query, support, k, backend=backend).indices


def _own_sample(backend: str, pos: Tensor, num_samples: int) -> Tensor:
    return ops.farthest_point_sample(pos, num_samples, backend=backend)


def _search_with(function: Callable[[Tensor, Tensor, int], Tensor], k: int, cloud: Tensor) -> Tensor:
    return function(cloud, cloud, k)


def _sample_with(function: Callable[[Tensor, int], Tensor], num_samples: int, cloud: Tensor) -> Tensor:
    return function(cloud, num_samples)


def _surface(batch: int, num_points: int) -> Tensor:
    """Points on spheres with a little noise, from a fixed seed."""
    generator = torch.Generator().manual_seed(0)
    points = torch.nn.functional.normalize(torch.randn(batch, num_points, 3, generator=generator), dim=-1)
    return points * (1 + 0.02 * torch.randn(batch, num_points, 1, generator=generator))


def _exact_neighbors(cloud: Tensor, indices: Tensor) -> float:
    """Share of the first queries whose neighbors have the distances of float64 brute force, as sets."""
    queries = min(_CHECKED_QUERIES, cloud.shape[1])
    everything = distances(cloud[:, :queries], cloud)
    expected = everything.topk(indices.shape[2], largest=False).values.sort(-1).values
    found = everything.gather(2, indices[:, :queries]).sort(-1).values
    return float((found == expected).all(-1).double().mean())


def _exact_samples(cloud: Tensor, indices: Tensor) -> float:
    """Share of the first samples that are as far from those before them, in float64, as any point is."""
    wrong = 0
    steps = min(_CHECKED_QUERIES, indices.shape[1])
    nearest = distances(ops.gather(cloud, indices[:, :1]), cloud)[:, 0]
    for i in range(1, steps):
        own = nearest.gather(1, indices[:, i : i + 1])[:, 0]
        wrong += int((own < nearest.amax(1)).sum())
        center = ops.gather(cloud, indices[:, i : i + 1])
        nearest = torch.minimum(nearest, distances(center, cloud)[:, 0])
    return 1.0 - wrong / max(1, (steps - 1) * cloud.shape[0])
