"""Compiled passes over a block of groups, for `pcattn.aggregation_op`: channels innermost, every value touched once.

At most `_ROWS` rows are added up in the precision of the data, all else in float64. For statistics they are differences
from a row of the block, so that a mean far from zero costs no digits.
"""

import numpy as np
from numpy.typing import NDArray

from pcattn.ops._threads import jit

Array = NDArray[np.floating]
Indices = NDArray[np.int64]
Sums = NDArray[np.float64]

_ROWS = 64


def _gather(centres: Array, neighbours: Indices, points: Array, origin: Array, grouped: Array, sums: Sums) -> None:
    """grouped[i, j] = points[neighbours[i, j]] + centres[i]; sums of its rows minus origin, and of their squares."""
    num_groups, k, dim = grouped.shape
    partial = np.empty((2, dim), grouped.dtype)
    for i in range(num_groups):
        partial[:] = 0
        for j in range(k):
            row = neighbours[i, j]
            for c in range(dim):
                value = points[row, c] + centres[i, c]
                grouped[i, j, c] = value
                difference = value - origin[c]
                partial[0, c] += difference
                partial[1, c] += difference * difference
        sums += partial


def _activate(grouped: Array, scale: Array, shift: Array, hidden: Array) -> None:
    """hidden = ReLU(scale * grouped + shift), NaN included."""
    num_groups, k, dim = grouped.shape
    zero = hidden.dtype.type(0)
    for i in range(num_groups):
        for j in range(k):
            for c in range(dim):
                value = scale[c] * grouped[i, j, c] + shift[c]
                hidden[i, j, c] = zero if value < zero else value


def _reduce(mapped: Array, origin: Array, best: Array, where: NDArray[np.int32], sums: Sums) -> None:
    """Maximum over each group, the first place where it is; sums of all rows minus origin, and of their squares."""
    num_groups, k, dim = mapped.shape
    partial = np.empty((2, dim), mapped.dtype)
    for i in range(num_groups):
        partial[:] = 0
        for c in range(dim):
            best[i, c] = mapped[i, 0, c]
            where[i, c] = 0
        for j in range(k):
            place = np.int32(j)
            for c in range(dim):
                value = mapped[i, j, c]
                difference = value - origin[c]
                partial[0, c] += difference
                partial[1, c] += difference * difference
                where[i, c] = place if value > best[i, c] else where[i, c]
                best[i, c] = value if value > best[i, c] else best[i, c]
            if j % _ROWS == _ROWS - 1:
                sums += partial
                partial[:] = 0
        sums += partial


def _differentiate(
    mapped: Array, where: NDArray[np.int32], chosen: Array, constant: Array, factor: Array, out: Array
) -> None:
    """out = constant + factor * mapped, plus `chosen` where the maximum is."""
    num_groups, k, dim = mapped.shape
    zero = out.dtype.type(0)
    for i in range(num_groups):
        for j in range(k):
            place = np.int32(j)
            for c in range(dim):
                extra = chosen[i, c] if where[i, c] == place else zero
                out[i, j, c] = constant[c] + factor[c] * mapped[i, j, c] + extra


def _mask(error: Array, hidden: Array, grouped: Array, mean: Array, sums: Sums) -> None:
    """Set `error` to 0 where `hidden` is; sums of its rows, and of their products with grouped - mean."""
    num_groups, k, dim = error.shape
    zero = error.dtype.type(0)
    partial = np.empty((2, dim), error.dtype)
    for i in range(num_groups):
        partial[:] = 0
        for j in range(k):
            for c in range(dim):
                value = zero if hidden[i, j, c] <= zero else error[i, j, c]
                error[i, j, c] = value
                partial[0, c] += value
                partial[1, c] += value * (grouped[i, j, c] - mean[c])
        sums += partial


def _finish(error: Array, grouped: Array, scale: Array, constant: Array, factor: Array, total: Array) -> None:
    """error = scale * error + constant + factor * grouped, and its sums over the neighbours."""
    num_groups, k, dim = error.shape
    for i in range(num_groups):
        total[i] = 0
        for j in range(k):
            for c in range(dim):
                value = scale[c] * error[i, j, c] + constant[c] + factor[c] * grouped[i, j, c]
                error[i, j, c] = value
                total[i, c] += value


gather, activate, reduce = jit(_gather), jit(_activate), jit(_reduce)
differentiate, mask, finish = jit(_differentiate), jit(_mask), jit(_finish)
