"""Compiling CPU kernels with numba, and running them in threads."""

import functools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any

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
    bounds = split(total, grain)
    parts = len(bounds) - 1
    if parts == 1:
        kernel(0, total)
        return
    pool = _pool(os.getpid())
    futures = [pool.submit(kernel, bounds[part], bounds[part + 1]) for part in range(1, parts)]
    try:
        kernel(bounds[0], bounds[1])
    finally:
        wait(futures)
    for future in futures:
        future.result()


def split(total: int, grain: int) -> list[int]:
    """Bounds of the parts of `run_split`."""
    parts = max(1, min(torch.get_num_threads(), total // grain))
    return [total * part // parts for part in range(parts + 1)]


def part_sums(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Zeros of this shape for every thread: the sums of the parts of `run_parts`."""
    return torch.zeros(torch.get_num_threads(), *shape, dtype=dtype)


def run_parts(
    kernel: Callable[..., None],
    rows: tuple[Tensor, ...],
    shared: tuple[Tensor, ...],
    out: tuple[Tensor, ...],
    sums: tuple[Tensor, ...] = (),
    grain: int = 1,
) -> None:
    """Call a kernel on parts of the rows, one part per thread.

    The kernel is called with a part of each tensor in `rows`, the tensors in `shared`, a part of each tensor in `out`,
    and its own element of each tensor in `sums`. It sees bfloat16 as in `pcattn.ops.bfloat16`.

    Args:
        kernel: compiled function of arrays.
        rows: read; all have the same length and are split along their first dimension.
        shared: read by all parts.
        out: written; as long as `rows`.
        sums: added to; results of `part_sums`.
        grain: see `run_split`.
    """
    reads, common, writes, totals = ([_array(tensor) for tensor in tensors] for tensors in (rows, shared, out, sums))
    bounds = split(len(reads[0]), grain)

    def run(start: int, stop: int) -> None:
        own = (array[bounds.index(start)] for array in totals)
        kernel(*(array[start:stop] for array in reads), *common, *(array[start:stop] for array in writes), *own)

    run_split(run, len(reads[0]), grain)


def _array(tensor: Tensor) -> NDArray[Any]:
    tensor = tensor.detach()
    return (tensor.view(torch.uint16) if tensor.dtype == torch.bfloat16 else tensor).numpy()


@functools.cache
def _pool(process: int) -> ThreadPoolExecutor:
    """The threads of a process. They do not survive a fork, so every process has its own."""
    return ThreadPoolExecutor(os.cpu_count(), f"pcattn-{process}")
