"""Compiling CPU kernels with numba, and running them in threads."""

import functools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def jit(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    """Compile on the first call, to code that releases the interpreter's lock, and cache it on disk."""
    import numba

    compiled: Callable[..., Any]
    try:
        compiled = numba.njit(nogil=True, cache=True, error_model="numpy", **options)(function)
    except RuntimeError:  # no cache folder is writable: compile in every process
        compiled = numba.njit(nogil=True, error_model="numpy", **options)(function)
    return compiled


def inlined(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile into the calling functions: a call with arrays costs as much as scanning one leaf."""
    import numba

    return numba.njit(inline="always", error_model="numpy")(function)


def run_split(kernel: Callable[[int, int], Any], total: int, grain: int = 1) -> None:
    """Call `kernel(start, stop)` on consecutive parts of `range(total)`, one per thread of torch.

    No part is smaller than `grain`, the smallest amount of work that is worth a thread.

    These are Python threads, because numba's pools abort the process when it forks, as a DataLoader does, or when two
    user threads search at once. Kernels must not call `run_split`, so that none waits for a thread.
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


def run_parts(
    kernel: Callable[..., None],
    rows: tuple[Tensor, ...],
    shared: tuple[Tensor, ...],
    out: tuple[Tensor, ...],
    sums: NDArray[np.float64] | None = None,
    grain: int = 1,
) -> None:
    """Call a kernel on parts of the rows, one per thread, and add up the sums of the parts in order.

    Args:
        kernel: called with a part of `rows`, with `shared`, with a part of `out`, and with zeros like `sums` if given.
        rows: read; of equal length, split along the first dimension.
        shared: read by all parts.
        out: written; as long as `rows`.
        sums: the sums of the parts are added to it.
        grain: see `run_split`.
    """
    reads, common, writes = ([tensor.detach().numpy() for tensor in tensors] for tensors in (rows, shared, out))
    partial: dict[int, NDArray[np.float64]] = {}

    def run(start: int, stop: int) -> None:
        arguments = [array[start:stop] for array in reads] + common + [array[start:stop] for array in writes]
        if sums is not None:
            arguments.append(partial.setdefault(start, np.zeros_like(sums)))
        kernel(*arguments)

    run_split(run, len(reads[0]), grain)
    if sums is not None:
        for start in sorted(partial):
            sums += partial[start]


@functools.cache
def _pool(process: int) -> ThreadPoolExecutor:
    """The threads of a process. They do not survive a fork, so every process has its own."""
    return ThreadPoolExecutor(os.cpu_count(), f"pcattn-{process}")
