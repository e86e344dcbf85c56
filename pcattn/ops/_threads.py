"""Threads for the compiled CPU kernels, which release the interpreter's lock."""

import functools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any

import torch


def jit(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    """Compile with numba on the first call, without the interpreter's lock, and keep the machine code on disk."""
    import numba

    try:
        return numba.njit(nogil=True, cache=True, error_model="numpy", **options)(function)
    except RuntimeError:  # no folder for the cache can be written: compile in every process
        return numba.njit(nogil=True, error_model="numpy", **options)(function)


def inlined(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile as a part of the functions that call it: a call with arrays costs as much as a scan of one leaf."""
    import numba

    return numba.njit(inline="always", error_model="numpy")(function)


def run_split(kernel: Callable[[int, int], Any], total: int, grain: int = 1) -> None:
    """Call `kernel(start, stop)` on consecutive parts of `range(total)`, one for each of torch's threads.

    No part is smaller than `grain`, the least work that is worth a thread.

    The threads are Python's: numba's own pools abort the process when it forks (a DataLoader does) or when two threads
    of the user search at once. Kernels call no others, so that none waits for a thread.
    """
    parts = min(torch.get_num_threads(), total // grain)
    if parts <= 1:
        kernel(0, total)
        return
    bounds = [total * part // parts for part in range(parts + 1)]
    pool = _pool(os.getpid())
    futures = [pool.submit(kernel, bounds[part], bounds[part + 1]) for part in range(1, parts)]
    try:
        kernel(bounds[0], bounds[1])
    finally:
        wait(futures)
    for future in futures:
        future.result()


@functools.cache
def _pool(process: int) -> ThreadPoolExecutor:
    """The threads of a process, started as they are needed. They do not outlive a fork, hence one for each process."""
    return ThreadPoolExecutor(os.cpu_count(), f"pcattn-{process}")
