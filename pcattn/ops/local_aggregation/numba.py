"""Compiled passes over groups of neighbors, for `pcattn.ops.local_aggregation.op`: channels innermost.

In float64, as those of `pcattn.ops.batch_norm.numba`. What a group holds is gathered where it is needed: the points lie
in the cache, which k times as much would not.
"""

import numpy as np
from numpy.typing import NDArray

from pcattn.ops.batch_norm.numba import FUSED, Array, Coefficients
from pcattn.ops.threads import jit

Indices = NDArray[np.int64]


def _moments(neighbors: Indices, centers: Array, points: Array, origin: Coefficients, sums: Coefficients) -> None:
    """Sums of points[neighbors[i, j]] + centers[i] - origin, and of its squares."""
    num_groups, k = neighbors.shape
    dim = points.shape[1]
    total = np.zeros((2, dim))
    for i in range(num_groups):
        for j in range(k):
            row = neighbors[i, j]
            for c in range(dim):
                difference = (points[row, c] + centers[i, c]) - origin[c]
                total[0, c] += difference
                total[1, c] += difference * difference
    sums += total


def _activate(
    neighbors: Indices, centers: Array, points: Array, scale: Coefficients, shift: Coefficients, hidden: Array
) -> None:
    """hidden[i, j] = ReLU(scale * (points[neighbors[i, j]] + centers[i]) + shift), NaN included."""
    num_groups, k, dim = hidden.shape
    for i in range(num_groups):
        for j in range(k):
            row = neighbors[i, j]
            for c in range(dim):
                value = scale[c] * (points[row, c] + centers[i, c]) + shift[c]
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


def _propagate(
    neighbors: Indices,
    centers: Array,
    hidden: Array,
    where: NDArray[np.int32],
    chosen: Array,
    points: Array,
    linear: Array,
    constant: Coefficients,
    mean: Coefficients,
    error: Array,
    sums: Coefficients,
) -> None:
    """Add `constant` to `error`, and chosen * linear where the maximum is; set it to 0 where `hidden` is.

    Sums of its rows, of their products with what `mean` is the mean of, and of the rows of `hidden`; then, for each
    channel of the output, of chosen * hidden where the maximum is.
    """
    num_groups, k, dim = error.shape
    out_dim = len(linear)
    total = np.zeros((3 + out_dim, dim))
    zero = error.dtype.type(0)
    for i in range(num_groups):
        for d in range(out_dim):
            extra = chosen[i, d]
            if extra != zero:
                j = where[i, d]
                for c in range(dim):
                    error[i, j, c] += extra * linear[d, c]
                for c in range(dim):
                    total[3 + d, c] += extra * hidden[i, j, c]
        for j in range(k):
            row = neighbors[i, j]
            for c in range(dim):  # a loop over more arrays would not be vectorized
                error[i, j, c] = zero if hidden[i, j, c] <= zero else error[i, j, c] + constant[c]
            for c in range(dim):
                value = error[i, j, c]
                total[0, c] += value
                total[1, c] += value * ((points[row, c] + centers[i, c]) - mean[c])
            for c in range(dim):
                total[2, c] += hidden[i, j, c]
    sums += total


def _finish(
    neighbors: Indices,
    centers: Array,
    error: Array,
    points: Array,
    scale: Coefficients,
    factor: Coefficients,
    constant: Coefficients,
    total: Array,
) -> None:
    """error = scale * error + factor * (points[neighbors] + centers) + constant, and its sums over the neighbors."""
    num_groups, k, dim = error.shape
    exact = np.empty(dim)
    for i in range(num_groups):
        exact[:] = 0.0
        for j in range(k):
            row = neighbors[i, j]
            for c in range(dim):
                value = scale[c] * error[i, j, c] + (factor[c] * (points[row, c] + centers[i, c]) + constant[c])
                error[i, j, c] = value
                exact[c] += value
        for c in range(dim):
            total[i, c] = exact[c]


moments, activate, reduce = jit(_moments, **FUSED), jit(_activate, **FUSED), jit(_reduce, **FUSED)
differentiate, propagate, finish = jit(_differentiate, **FUSED), jit(_propagate, **FUSED), jit(_finish, **FUSED)
