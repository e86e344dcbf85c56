"""Threads for the compiled CPU kernels, which release the interpreter's lock."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
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

    Threads live for one call: numba's own pools abort the process when it forks (a DataLoader does) or when two
    threads of the user search at once.
    """
    parts = min(torch.get_num_threads(), total // grain)
    if parts <= 1:
        kernel(0, total)
        return
    bounds = [total * part // parts for part in range(parts + 1)]
    with ThreadPoolExecutor(parts - 1) as pool:
        futures = [pool.submit(kernel, bounds[part], bounds[part + 1]) for part in range(1, parts)]
        kernel(bounds[0], bounds[1])
        for future in futures:
            future.result()
