"""Threads for the compiled CPU kernels, which release the interpreter's lock."""

import functools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor


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
    """The threads of a process, started as they are needed. They do not outlive a fork, hence one for each process."""
    return ThreadPoolExecutor(os.cpu_count(), f"pcattn-{process}")
