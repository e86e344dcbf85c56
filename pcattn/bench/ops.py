"""Time of neighbor search and farthest point sampling, compared with other installed libraries."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from pcattn import ops
from pcattn.bench.inputs import noisy_spheres
from pcattn.bench.peers import sample_peers, search_peers
from pcattn.bench.timing import interleave, measure_of_peak, peak_mib, summary, synchronize
from pcattn.ops.neighbors.reference import distances

#: (B, N, k) of the neighbor search, (B, N, samples) of the sampling
SEARCHES = ((32, 1024, 32), (1, 16384, 32))
SAMPLINGS = ((32, 1024, 512), (1, 16384, 4096))
CUDA_SEARCHES = ((32, 1024, 32), (1, 65536, 32))
CUDA_SAMPLINGS = ((32, 2048, 512),)

# Number of queries of each cloud that are compared with brute force.
_CHECKED_QUERIES = 256


def bench_ops(
    device: str = "cpu",
    repeats: int = 7,
    quick: bool = False,
    log: Callable[[str], Any] = lambda line: None,
) -> list[dict[str, Any]]:
    """Measure every implementation of each task in turns.

    Args:
        device: `"cpu"` or `"cuda"`.
        repeats: calls of each implementation after a warm-up call.
        quick: use small clouds, to see that everything runs.
        log: called with a line of text for each measurement.

    Returns:
        One dictionary for each task and implementation: `task`, `name`, `median_ms`, `spread_ms` (half the distance of
        the quartiles), `ratio` (to the first implementation, the textbook one), `exact` (share of queries, or samples,
        with the same distances as float64 brute force), `shifted` (the same for a cloud 1,000 units from the origin),
        `peak_mib` (None if unknown) or, if an implementation failed, `error`.
    """
    on_cuda = device == "cuda"
    searches: tuple[tuple[int, int, int], ...] = CUDA_SEARCHES if on_cuda else SEARCHES
    samplings: tuple[tuple[int, int, int], ...] = CUDA_SAMPLINGS if on_cuda else SAMPLINGS
    if quick:
        searches, samplings = ((2, 256, 8),), ((2, 256, 32),)
    rows = []
    for batch, num_points, k in searches:
        cloud = noisy_spheres(batch, num_points).to(device)
        functions: dict[str, Callable[[Tensor], Tensor]] = {
            name: partial(_search_with, function, k) for name, function in search_peers(device).items()
        }
        for backend in _backends(device, num_points):
            functions[f"pcattn, {backend}"] = partial(_search_with, partial(_own_search, backend), k)
        task = f"kNN B={batch} N={num_points} k={k}"
        rows += _measure(task, functions, cloud, _exact_neighbors, device, repeats, log)
    for batch, num_points, num_samples in samplings:
        cloud = noisy_spheres(batch, num_points).to(device)
        functions = {name: partial(_sample_with, f, num_samples) for name, f in sample_peers(device).items()}
        for backend in _backends(device, num_points):
            functions[f"pcattn, {backend}"] = partial(_sample_with, partial(_own_sample, backend), num_samples)
        task = f"FPS B={batch} N={num_points} -> {num_samples}"
        rows += _measure(task, functions, cloud, _exact_samples, device, repeats, log)
    return rows


def table(rows: list[dict[str, Any]], device: str) -> str:
    """Format the measurements as a Markdown table."""
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
    log: Callable[[str], Any],
) -> list[dict[str, Any]]:
    rows: dict[str, dict[str, Any]] = {}
    # The first call compiles and warms up. Implementations that fail are not measured.
    for name, function in functions.items():
        log(f"{task}: {name}")
        row: dict[str, Any] = {"task": task, "name": name}
        rows[name] = row
        try:
            row["exact"] = exactness(cloud, function(cloud))
            shifted = cloud + 1000
            row["shifted"] = exactness(shifted, function(shifted))
            row["peak_mib"] = peak_mib(partial(function, cloud), device)
            synchronize(device)
        except Exception as error:  # other libraries may fail in any way
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


def _exact_neighbors(cloud: Tensor, indices: Tensor) -> float:
    """Share of the first queries whose neighbors have the same distances as float64 brute force."""
    queries = min(_CHECKED_QUERIES, cloud.shape[1])
    everything = distances(cloud[:, :queries], cloud)
    expected = everything.topk(indices.shape[2], largest=False).values.sort(-1).values
    found = everything.gather(2, indices[:, :queries]).sort(-1).values
    return float((found == expected).all(-1).double().mean())


def _exact_samples(cloud: Tensor, indices: Tensor) -> float:
    """Share of the first samples that are the farthest point from all samples before them, in float64."""
    wrong = 0
    steps = min(_CHECKED_QUERIES, indices.shape[1])
    nearest = distances(ops.gather(cloud, indices[:, :1]), cloud)[:, 0]
    for i in range(1, steps):
        own = nearest.gather(1, indices[:, i : i + 1])[:, 0]
        wrong += int((own < nearest.amax(1)).sum())
        center = ops.gather(cloud, indices[:, i : i + 1])
        nearest = torch.minimum(nearest, distances(center, cloud)[:, 0])
    return 1.0 - wrong / max(1, (steps - 1) * cloud.shape[0])
