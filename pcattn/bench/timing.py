"""Timing of several functions in turns, and their peak memory."""

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
    """Time functions in turns, so that all of them see the same state of the machine.

    Args:
        functions: functions by name, which were called before, so that they are compiled.
        repeats: calls of each function.
        device: `"cpu"` or `"cuda"`.
        time_limit: a function that took longer in total, in seconds, is not called again.
        clock: returns the time in seconds.

    Returns:
        Seconds of every call, by name of the function.
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
    """Wait for the operations on a CUDA device."""
    if device == "cuda":
        torch.cuda.synchronize()


def summary(times: list[float]) -> dict[str, float]:
    """Median and spread (half the distance of the quartiles), in milliseconds, of times in seconds."""
    milliseconds = sorted(1e3 * t for t in times)
    if len(milliseconds) < 2:
        return {"median_ms": milliseconds[0], "spread_ms": 0.0}
    low, _, high = statistics.quantiles(milliseconds, n=4, method="inclusive")
    return {"median_ms": statistics.median(milliseconds), "spread_ms": (high - low) / 2}


def peak_mib(function: Callable[[], Any], device: str) -> float | None:
    """Peak memory of a call beyond the memory in use before, in MiB; None if the system does not provide it.

    On the CPU, it is the resident memory of the process, which Linux provides; on a GPU, the memory that torch
    allocates.
    """
    if device == "cuda":
        return peak_on_gpu(function) / 2**20
    try:
        ctypes.CDLL(None).malloc_trim(0)  # return freed memory to the system, which would hide new use
        Path("/proc/self/clear_refs").write_text("5")  # 5: reset the peak
        before = _resident_kib("VmRSS")
        function()
        return (_resident_kib("VmHWM") - before) / 2**10
    except (OSError, AttributeError, TypeError):  # not Linux, or not glibc
        return None


def measure_of_peak(device: str) -> str:
    """What `peak_mib` measures, for headings: memory of the `process`, or allocations of `torch`."""
    return "torch" if device == "cuda" else "process"


def peak_on_gpu(function: Callable[[], Any]) -> int:
    """Peak of the bytes that torch allocates on the GPU during a call, beyond those allocated before."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    function()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def _resident_kib(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))
