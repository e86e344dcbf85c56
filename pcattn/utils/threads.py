"""Threads for work that waits for files."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from os import cpu_count
from typing import Any, TypeVar

T = TypeVar("T")
S = TypeVar("S")


def in_threads(function: Callable[[T], S], items: Sequence[T], description: str | None = None) -> Iterator[S]:
    """Call `function` on every item in threads, and yield the results in order.

    Only a few results per core wait for the caller, so the results of many files need not fit in memory.

    Args:
        function: called on each item.
        items: its arguments.
        description: text of the progress bar; None shows no bar.
    """
    from tqdm import tqdm

    workers = cpu_count() or 1
    with ThreadPoolExecutor(workers) as pool, tqdm(total=len(items), desc=description, disable=not description) as bar:
        left: Iterable[T] = iter(items)
        waiting: list[Future[Any]] = [pool.submit(function, item) for item in islice(left, 4 * workers)]
        try:
            while waiting:
                yield waiting.pop(0).result()
                waiting.extend(pool.submit(function, item) for item in islice(left, 1))
                bar.update()
        finally:  # the caller stopped or a call failed: do not start the rest
            for future in waiting:
                future.cancel()
