"""Compiled passes over a block of groups, for `pcattn.aggregation_op`: channels innermost, every value touched once.

In float64, as those of `pcattn.numba_normalization`.
"""

import numpy as np
from numpy.typing import NDArray

from pcattn.numba_normalization import FUSED, Array, Coefficients
from pcattn.ops._threads import jit

Indices = NDArray[np.int64]


def _gather(
    centres: Array, neighbours: Indices, points: Array, origin: Coefficients, grouped: Array, sums: Coefficients
) -> None:
    """grouped[i, j] = points[neighbours[i, j]] + centres[i]; sums of its rows minus origin, and of their squares."""
    num_groups, k, dim = grouped.shape
    total = np.zeros((2, dim))
    for i in range(num_groups):
        for j in range(k):
            row = neighbours[i, j]
            for c in range(dim):
                value = points[row, c] + centres[i, c]
                grouped[i, j, c] = value
                difference = value - origin[c]
                total[0, c] += difference
                total[1, c] += difference * difference
    sums += total


def _activate(grouped: Array, scale: Coefficients, shift: Coefficients, hidden: Array) -> None:
    """hidden = ReLU(scale * grouped + shift), NaN included."""
    num_groups, k, dim = grouped.shape
    for i in range(num_groups):
        for j in range(k):
            for c in range(dim):
                value = scale[c] * grouped[i, j, c] + shift[c]
                hidden[i, j, c] = 0.0 if value < 0.0 else value


def _reduce(mapped: Array, origin: Coefficients, best: Array, where: NDArray[np.int32], sums: Coefficients) -> None:
    """Maximum over each group, the first place where it is; sums of all rows minus origin, and of their squares."""
    num_groups, k, dim = mapped.shape
    total = np.zeros((2, dim))
    for i in range(num_groups):
        for c in range(dim):
            best[i, c] = mapped[i, 0, c]
            where[i, c] = 0
        for j in range(k):
            place = np.int32(j)
            for c in range(dim):
                value = mapped[i, j, c]
                difference = value - origin[c]
                total[0, c] += difference
                total[1, c] += difference * difference
                where[i, c] = place if value > best[i, c] else where[i, c]
                best[i, c] = value if value > best[i, c] else best[i, c]
    sums += total


def _differentiate(
    mapped: Array,
    where: NDArray[np.int32],
    chosen: Array,
    factor: Coefficients,
    constant: Coefficients,
    out: Array,
) -> None:
    """out = factor * mapped + constant, plus `chosen` where the maximum is."""
    num_groups, k, dim = mapped.shape
    zero = chosen.dtype.type(0)
    for i in range(num_groups):
        for j in range(k):
            place = np.int32(j)
            for c in range(dim):
                extra = chosen[i, c] if where[i, c] == place else zero
                out[i, j, c] = factor[c] * mapped[i, j, c] + constant[c] + extra


def _mask(error: Array, hidden: Array, grouped: Array, mean: Coefficients, sums: Coefficients) -> None:
    """Set `error` to 0 where `hidden` is; sums of its rows, and of their products with grouped - mean."""
    num_groups, k, dim = error.shape
    total = np.zeros((2, dim))
    zero = error.dtype.type(0)
    for i in range(num_groups):
        for j in range(k):
            for c in range(dim):
                value = zero if hidden[i, j, c] <= zero else error[i, j, c]
                error[i, j, c] = value
                total[0, c] += value
                total[1, c] += value * (grouped[i, j, c] - mean[c])
    sums += total


def _finish(
    error: Array, grouped: Array, scale: Coefficients, factor: Coefficients, constant: Coefficients, total: Array
) -> None:
    """error = scale * error + factor * grouped + constant, and its sums over the neighbours."""
    num_groups, k, dim = error.shape
    exact = np.empty(dim)
    for i in range(num_groups):
        exact[:] = 0.0
        for j in range(k):
            for c in range(dim):
                value = scale[c] * error[i, j, c] + (factor[c] * grouped[i, j, c] + constant[c])
                error[i, j, c] = value
                exact[c] += value
        for c in range(dim):
            total[i, c] = exact[c]


gather, activate, reduce = jit(_gather, **FUSED), jit(_activate, **FUSED), jit(_reduce, **FUSED)
differentiate, mask, finish = jit(_differentiate, **FUSED), jit(_mask, **FUSED), jit(_finish, **FUSED)
