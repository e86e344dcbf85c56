"""Interleaved timing of several functions that do the same work."""

import ctypes
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch


def interleave(
    functions: Mapping[str, Callable[[], Any]],
    repeats: int,
    device: str,
    time_limit: float = 30.0,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Seconds of every repeat of each function, called in turns so that all see the same state of the machine.

    Args:
        functions: by name; each was called before (compiled, warmed up).
        repeats: calls of each.
        device: `"cpu"` or `"cuda"`; on the latter the device is waited for.
        time_limit: a function that took longer than this in total is not called again.
        clock: seconds.
    """
    times: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(repeats):
        for name, function in functions.items():
            if sum(times[name]) > time_limit:
                continue
            synchronize(device)
            start = clock()
            function()
            synchronize(device)
            times[name].append(clock() - start)
    return times


def synchronize(device: str) -> None:
    """Wait for a CUDA device; nothing to do on the CPU."""
    if device == "cuda":
        torch.cuda.synchronize()


def summary(times: list[float]) -> dict[str, float]:
    """Median and spread (half the distance of the quartiles) of times in seconds, in milliseconds."""
    milliseconds = sorted(1e3 * t for t in times)
    if len(milliseconds) < 2:
        return {"median_ms": milliseconds[0], "spread_ms": 0.0}
    low, _, high = statistics.quantiles(milliseconds, n=4, method="inclusive")
    return {"median_ms": statistics.median(milliseconds), "spread_ms": (high - low) / 2}


def peak_mib(function: Callable[[], Any], device: str) -> float | None:
    """By how much a call raises the memory in use at its peak, in MiB; None where the system does not tell.

    On the CPU it is the resident memory of the process, which Linux tells; on a GPU what torch allocates there.
    """
    if device == "cuda":
        return peak_on_gpu(function) / 2**20
    try:
        ctypes.CDLL(None).malloc_trim(0)  # give back what earlier calls freed, so that it does not hide new use
        Path("/proc/self/clear_refs").write_text("5")  # 5: reset the peak
        before = _resident_kib("VmRSS")
        function()
        return (_resident_kib("VmHWM") - before) / 2**10
    except (OSError, AttributeError, TypeError):  # not Linux, or not glibc
        return None


def measure_of_peak(device: str) -> str:
    """What `peak_mib` is the peak of, as headings have it: memory of the `process`, or allocations of `torch`."""
    return "torch" if device == "cuda" else "process"


def peak_on_gpu(function: Callable[[], Any]) -> int:
    """Bytes that torch allocates on the GPU at most during a call, beyond what was there before."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    function()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def _resident_kib(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))
