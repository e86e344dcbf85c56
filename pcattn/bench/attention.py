"""Cost of each attention mechanism: time, memory, multiply-adds and parameters by number of points."""

import math
import os
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from pcattn.attention import ATTENTION, Geometry, build_attention
from pcattn.attention.external import ExternalAttention
from pcattn.attention.neighborhood import NeighborhoodAttention
from pcattn.attention.self_attention import SelfAttention
from pcattn.bench.timing import peak_on_gpu
from pcattn.ops import KNN, knn
from pcattn.utils.files import write_figure

SIZES = (256, 512, 1024, 2048, 4096, 8192, 16384, 32768, 65536)

# For fewer points, the time is mostly overhead of the calls.
_FIT_FROM = 2048


class WrittenOutSelfAttention(SelfAttention):
    """Self-attention with its N x N weights in memory, to compare the fused form with."""

    def forward(self, x: Tensor, geometry: Geometry) -> Tensor:
        """Attend from every point to every point."""
        q, k, v = (self._split_heads(project(x)) for project in (self.q, self.k, self.v))
        scale: float = q.shape[-1] ** -0.5
        weights = (q @ k.transpose(2, 3) * scale).softmax(dim=-1)
        return (weights @ v).transpose(1, 2).flatten(2)


class GatheredNeighborhoodAttention(NeighborhoodAttention):
    """Neighborhood attention with the keys and values of all neighbors in memory, (B, N, k, C)."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor, neighbors: Tensor, bias: Tensor | None) -> Tensor:
        """Attention (B, N, H, D) of every point over its list."""
        cloud = torch.arange(len(q), device=q.device)[:, None, None]
        scale: float = q.shape[-1] ** -0.5
        logits = (q[:, :, None] * k[cloud, neighbors]).sum(dim=-1) * scale
        weights = (logits if bias is None else logits + bias).softmax(dim=2)
        return (weights[..., None] * v[cloud, neighbors]).sum(dim=2)


#: Plain implementations to compare the mechanisms with.
REFERENCES = {
    "self, written out": f"{__name__}.{WrittenOutSelfAttention.__name__}",
    "neighborhood, gathered": f"{__name__}.{GatheredNeighborhoodAttention.__name__}",
}


def bench_attention(
    attentions: Sequence[str] = (*ATTENTION, *REFERENCES),
    sizes: Sequence[int] = SIZES,
    dim: int = 128,
    batch: int = 1,
    device: str = "cpu",
    repeats: int = 5,
    max_seconds: float = 20.0,
    max_gib: float | None = None,
    log: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Measure attention mechanisms, without the layer around them, on points of a sphere.

    Args:
        attentions: names of mechanisms, keys of `REFERENCES`, or import paths.
        sizes: numbers of points.
        dim: number of channels.
        batch: number of clouds.
        device: `"cpu"` or `"cuda"`.
        repeats: timed runs; the fastest counts.
        max_seconds: a size is skipped if one forward and backward pass (or one search) would take longer, in seconds.
        max_gib: a size is skipped if it would take more memory, in GiB; None is half of the free memory.
        log: called with a line of text for each measurement.

    Returns:
        `"rows"`: one dictionary per mechanism and size, with times in milliseconds, memory in MiB, multiply-adds, and
        the cost of the neighbor search, which layers share; or the reason why it was skipped. `"exponents"`: the slopes
        of time and memory in N, fitted from 2048 points on. `"table_12"`: see `count_table_12`. `"setting"`: the
        arguments.
    """
    limit = (max_gib * 2**30) if max_gib is not None else _free_memory(device) / 2
    rows: list[dict[str, Any]] = []
    for attention in attentions:
        measured: list[dict[str, Any]] = []
        for num_points in sorted(sizes):
            reason = _too_much(measured, num_points, max_seconds, limit)
            row: dict[str, Any] = {"attention": attention, "num_points": num_points}
            if reason:
                row["skipped"] = reason
            else:
                row |= _measure(REFERENCES.get(attention, attention), num_points, dim, batch, device, repeats)
                measured.append(row)
            rows.append(row)
            log(_format_row(row))
    return {
        "setting": {
            "dim": dim,
            "batch": batch,
            "device": device,
            "threads": torch.get_num_threads(),
            "repeats": repeats,
        },
        "rows": rows,
        "exponents": {name: _exponents([row for row in rows if row["attention"] == name]) for name in attentions},
        "table_12": count_table_12(),
    }


def _measure(attention: str, num_points: int, dim: int, batch: int, device: str, repeats: int) -> dict[str, Any]:
    torch.manual_seed(0)
    core = build_attention(attention, dim).to(device)
    pos = nn.functional.normalize(torch.randn(batch, num_points, 3, device=device), dim=-1)
    x = torch.randn(batch, num_points, dim, device=device, requires_grad=True)
    search_macs, search_time = 0, 0.0

    def search(query: Tensor, support: Tensor, k: int) -> KNN:
        nonlocal search_macs, search_time
        search_macs += query.shape[0] * query.shape[1] * support.shape[1] * support.shape[2]
        found: list[KNN] = []
        search_time += _seconds(lambda: found.append(knn(query, support, k)), device)
        return found[0]

    geometry = Geometry(pos, search)

    def forward() -> None:
        with torch.no_grad():
            core(x, geometry)

    def step() -> None:
        core(x, geometry).sum().backward()

    core(x[:, :256], Geometry(pos[:, :256]))  # compiles and loads, which is not part of the search
    forward()  # searches; later runs find the neighbors in the geometry, as later layers do
    forward_time = _fastest(forward, device, repeats)
    step()
    step_time = _fastest(step, device, repeats)
    return {
        "forward_ms": 1e3 * forward_time,
        "step_ms": 1e3 * step_time,
        "search_ms": 1e3 * search_time,
        "peak_mib": peak_memory(step, device) / 2**20,
        "multiply_adds": count_multiply_adds(forward),
        "search_multiply_adds": search_macs,
        "parameters": sum(parameter.numel() for parameter in core.parameters()),
    }


def count_multiply_adds(run: Callable[[], object]) -> int:
    """Multiply-adds of the matrix products in `run`, including those in this package's operations.

    Self-attention pads queries and keys with zeros for a fused kernel; on the CPU, this padding is not counted. The
    formulas are in `pcattn.attention.flops`.
    """
    with FlopCounterMode(display=False) as counter:
        run()
    flops: int = counter.get_total_flops()
    return flops // 2


def count_table_12(num_points: int = 128 * 128, dim: int = 512) -> dict[str, dict[str, int]]:
    """Multiply-adds and parameters of self- and external attention as in table 12 of the External Attention paper.

    Self-attention there has queries, keys, values and a projection of full width; external attention has a projection
    before and one after the memories. The paper states 292 G and 1.00 M against 9.2 G and 0.55 M, where M is 2^20.
    """
    with torch.device("meta"):
        x = torch.empty(1, num_points, dim)
        self_layers = nn.ModuleList(nn.Linear(dim, dim, bias=False) for _ in range(4))
        external, after = ExternalAttention(dim), nn.Linear(dim, dim, bias=False)

    def run_self() -> Tensor:
        q, k, v = (layer(x) for layer in self_layers[:3])
        out: Tensor = self_layers[3]((q @ k.transpose(1, 2)).softmax(dim=-1) @ v)
        return out

    geometry = Geometry(torch.empty(1, num_points, 3, device="meta"))
    weights = [self_layers, nn.ModuleList((external, after))]
    result = {}
    for name, run, modules in zip(
        ("self", "external"), (run_self, lambda: after(external(x, geometry))), weights, strict=True
    ):
        result[name] = {
            "multiply_adds": count_multiply_adds(run),
            "parameters": sum(p.numel() for p in modules.parameters() if p.dim() > 1),
        }
    return result


def peak_memory(run: Callable[[], object], device: str = "cpu") -> int:
    """Peak of the bytes that torch allocates during `run`, beyond those allocated before."""
    if device != "cpu":
        return peak_on_gpu(run)
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # else it prints a line at every start and stop
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        run()
    assert profile.profiler is not None
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


def _seconds(run: Callable[[], object], device: str) -> float:
    if device != "cpu":
        torch.cuda.synchronize()
    start = time.perf_counter()
    run()
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def _fastest(run: Callable[[], object], device: str, repeats: int) -> float:
    """Seconds of the fastest run: other programs on the machine only add to the time."""
    first = _seconds(run, device)
    return first if first > 2 else min(first, *(_seconds(run, device) for _ in range(repeats)))


def _free_memory(device: str) -> int:
    if device != "cpu":
        return torch.cuda.mem_get_info()[0]
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # the system does not provide it
        return 8 * 2**30


def _too_much(measured: list[dict[str, Any]], num_points: int, max_seconds: float, limit: float) -> str | None:
    """Why the next size would not fit, extrapolated from the last two sizes; None if it fits."""
    if not measured:
        return None
    last = measured[-1]
    for key, unit, allowed in (("step_ms", "s", 1e3 * max_seconds), ("search_ms", "s of search", 1e3 * max_seconds)):
        expected = _extrapolate(measured, key, num_points)
        if expected > allowed:
            return f"would take about {expected / 1e3:.0f} {unit}, more than {max_seconds:.0f} s"
    expected = _extrapolate(measured, "peak_mib", num_points)
    if expected * 2**20 > limit:
        return f"would take about {expected:,.0f} MiB (it was {last['peak_mib']:,.0f}), more than {limit / 2**20:,.0f}"
    return None


def _extrapolate(measured: list[dict[str, Any]], key: str, num_points: int) -> float:
    last = measured[-1]
    exponent = 2.0
    if len(measured) > 1 and measured[-2][key] > 0 and last[key] > 0:
        before = measured[-2]
        exponent = math.log(last[key] / before[key]) / math.log(last["num_points"] / before["num_points"])
    growth: float = (num_points / last["num_points"]) ** max(1.0, exponent)
    return float(last[key]) * growth


def _exponents(rows: list[dict[str, Any]]) -> dict[str, float | None]:
    rows = [row for row in rows if "skipped" not in row and row["num_points"] >= _FIT_FROM]
    columns: dict[str, Callable[[dict[str, Any]], float]] = {
        "forward": lambda row: row["forward_ms"],
        "step": lambda row: row["step_ms"],
        "step_and_search": lambda row: row["step_ms"] + row["search_ms"],
        "memory": lambda row: row["peak_mib"],
        "multiply_adds": lambda row: row["multiply_adds"],
    }
    if len(rows) < 2:
        return dict.fromkeys(columns)
    sizes = [math.log(row["num_points"]) for row in rows]
    return {
        name: statistics.linear_regression(sizes, [math.log(max(value(row), 1e-9)) for row in rows]).slope
        for name, value in columns.items()
    }


#: Headings of the lines that `log` gets.
HEADER = (
    f"{'attention':<24}{'N':>7}{'forward ms':>12}{'step ms':>11}{'search ms':>11}{'torch MiB':>11}"
    f"{'M mult-adds':>13}{'M search':>10}{'parameters':>12}"
)


def _format_row(row: dict[str, Any]) -> str:
    start = f"{row['attention'].rpartition('.')[2]:<24}{row['num_points']:>7}"
    if "skipped" in row:
        return f"{start}  skipped: {row['skipped']}"
    return (
        f"{start}{row['forward_ms']:>12.2f}{row['step_ms']:>11.2f}{row['search_ms']:>11.2f}{row['peak_mib']:>11.1f}"
        f"{row['multiply_adds'] / 1e6:>13,.1f}{row['search_multiply_adds'] / 1e6:>10,.1f}{row['parameters']:>12,}"
    )


def format_summary(result: dict[str, Any]) -> str:
    """Format the exponents, and table 12 of the External Attention paper, as text."""
    lines = [f"exponents in N, from {_FIT_FROM} points on"]
    lines.append(f"{'attention':<24}{'forward':>10}{'step':>10}{'+ search':>10}{'memory':>10}{'mult-adds':>10}")
    for name, slopes in result["exponents"].items():
        cells = ("-" if slope is None else f"{slope:.2f}" for slope in slopes.values())
        lines.append(f"{name.rpartition('.')[2]:<24}" + "".join(f"{cell:>10}" for cell in cells))
    lines.append("External Attention, table 12 (N = 16,384, C = 512): the paper has 292 G and 9.2 G multiply-adds")
    for name, counts in result["table_12"].items():
        macs, parameters = counts["multiply_adds"] / 1e9, counts["parameters"] / 2**20
        lines.append(f"{name:<24}{macs:>10.2f} G multiply-adds{parameters:>8.2f} M parameters")
    return "\n".join(lines)


def format_markdown(result: dict[str, Any]) -> str:
    """Format the result as Markdown: time of a step by number of points; exponents, costs and parameters."""
    setting, rows = result["setting"], result["rows"]
    sizes = sorted({row["num_points"] for row in rows})
    by_size = {(row["attention"], row["num_points"]): row for row in rows}

    def step(name: str, size: int) -> str:
        row = by_size[name, size]
        return "skipped" if "skipped" in row else f"{row['step_ms']:,.1f}"

    lines = [
        f"Forward and backward of one core in milliseconds, C = {setting['dim']}, {setting['batch']} cloud(s), "
        f"{setting['device']}, {setting['threads']} thread(s), the fastest of {setting['repeats']} runs; without the "
        "neighbor search, which layers share.",
        "",
        "| attention | " + " | ".join(f"N = {size:,}" for size in sizes) + " |",
        "| --- " * (1 + len(sizes)) + "|",
    ]
    for name in result["exponents"]:
        lines.append(f"| {name} | " + " | ".join(step(name, size) for size in sizes) + " |")
    headings = ["time", "time with search", "memory"]
    lines += [
        "",
        f"Exponents in N from {_FIT_FROM:,} points on (forward and backward); peak memory, multiply-adds and search at "
        "the N in brackets, the largest that was measured.",
        "",
        f"| attention | {' | '.join(headings)} | parameters | peak MiB (torch) | M multiply-adds | search ms |",
        "| --- " * (len(headings) + 5) + "|",
    ]
    for name, slopes in result["exponents"].items():
        largest = [by_size[name, size] for size in sizes if "skipped" not in by_size[name, size]][-1]
        exponents = (slopes[key] for key in ("step", "step_and_search", "memory"))
        cells = ["-" if slope is None else f"{slope:.2f}" for slope in exponents]
        cells += [f"{largest['parameters']:,}", f"{largest['peak_mib']:,.0f} ({largest['num_points']:,})"]
        cells += [f"{largest['multiply_adds'] / 1e6:,.0f}", f"{largest['search_ms']:,.0f}"]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    skipped = [row for row in rows if "skipped" in row]
    lines += ["", *(f"- {row['attention']}, N = {row['num_points']:,}: {row['skipped']}" for row in skipped)]
    return "\n".join(lines).strip() + "\n"


def plot(result: dict[str, Any], path: Path) -> None:
    """Plot time and memory of forward and backward by number of points."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.5), layout="constrained")
    panels = figure.subplots(1, 2)
    for axes, key, label in zip(
        panels, ("step_ms", "peak_mib"), ("forward + backward, ms", "peak of torch, MiB"), strict=True
    ):
        for name in result["exponents"]:
            rows = [row for row in result["rows"] if row["attention"] == name and "skipped" not in row]
            style = "--" if name in REFERENCES else "-"
            axes.loglog([row["num_points"] for row in rows], [row[key] for row in rows], f"o{style}", label=name, ms=3)
        axes.set_xlabel("points")
        axes.set_ylabel(label)
        axes.grid(alpha=0.3)
    panels[1].legend(fontsize=7)
    write_figure(path, figure, dpi=150)
