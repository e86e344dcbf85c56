"""bfloat16 in compiled kernels. numba has no such type: a kernel sees arrays of it as the integers with these bits."""

import time
import warnings
from functools import cache
from typing import Any

import numpy as np
import torch
from numba import types
from numba.extending import overload


def widen(value: Any) -> Any:
    """The value of an array element as a float: bfloat16 becomes float32, other types stay."""
    raise NotImplementedError("widen is for compiled code")


def narrow(value: Any, array: Any) -> Any:
    """A float as an element of `array`, rounded to nearest even where the array is bfloat16."""
    raise NotImplementedError("narrow is for compiled code")


@overload(widen)
def _widen(value):  # type: ignore[no-untyped-def]
    if value == types.uint16:
        return lambda value: np.uint32(np.uint32(value) << np.uint32(16)).view(np.float32)
    return lambda value: value


@overload(narrow)
def _narrow(value, array):  # type: ignore[no-untyped-def]
    if array.dtype != types.uint16:
        return lambda value, array: value

    def rounded(value, array):  # type: ignore[no-untyped-def]
        bits = np.float32(value).view(np.uint32)
        even = (bits >> np.uint32(16)) & np.uint32(1)
        return np.uint16((bits + np.uint32(0x7FFF) + even) >> np.uint32(16))

    return rounded


@cache
def warn_if_slow() -> None:
    """Warn once per process if products of this processor are slower in bfloat16 than in float32."""
    seconds = {dtype: _product_seconds(dtype) for dtype in (torch.bfloat16, torch.float32)}
    if seconds[torch.bfloat16] > seconds[torch.float32]:
        warnings.warn(
            "products in bfloat16 are slower than in float32 on this processor: precision 32-true is faster here",
            stacklevel=2,
        )


@torch.autocast("cpu", enabled=False)
def _product_seconds(dtype: torch.dtype) -> float:
    rows, weight = torch.ones(4096, 128, dtype=dtype), torch.ones(128, 128, dtype=dtype)
    best = float("inf")
    for _ in range(5):
        start = time.perf_counter()
        torch.mm(rows, weight)
        best = min(best, time.perf_counter() - start)
    return best
