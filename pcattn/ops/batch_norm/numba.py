"""Compiled passes over rows (R, C), for `pcattn.ops.batch_norm.op` and `pcattn.ops.local_aggregation.op`.

What lies between two arrays is computed and added up in float64, and rounded once where it is written: the passes wait
for memory, so that it costs next to nothing. Sums have arrays of their own: those of a caller the compiler would not
vectorize.
"""

import numpy as np
from numpy.typing import NDArray

from pcattn.ops.threads import jit

Array = NDArray[np.floating]
Coefficients = NDArray[np.float64]

#: A product and a sum may be one instruction, which rounds once.
FUSED = {"fastmath": {"contract"}}


def _moments(x: Array, origin: Coefficients, sums: Coefficients) -> None:
    """Sums of x - origin, and of its squares."""
    num_rows, dim = x.shape
    total = np.zeros((2, dim))
    for i in range(num_rows):
        for c in range(dim):
            difference = x[i, c] - origin[c]
            total[0, c] += difference
            total[1, c] += difference * difference
    sums += total


def _affine(x: Array, scale: Coefficients, shift: Coefficients, out: Array) -> None:
    """out = scale * x + shift."""
    num_rows, dim = x.shape
    for i in range(num_rows):
        for c in range(dim):
            out[i, c] = scale[c] * x[i, c] + shift[c]


def _products(grad: Array, x: Array, origin: Coefficients, sums: Coefficients) -> None:
    """Sums of grad, and of its products with x - origin."""
    num_rows, dim = x.shape
    total = np.zeros((2, dim))
    for i in range(num_rows):
        for c in range(dim):
            total[0, c] += grad[i, c]
            total[1, c] += grad[i, c] * (x[i, c] - origin[c])
    sums += total


def _combine(
    grad: Array, x: Array, scale: Coefficients, factor: Coefficients, constant: Coefficients, out: Array
) -> None:
    """out = scale * grad + factor * x + constant."""
    num_rows, dim = x.shape
    for i in range(num_rows):
        for c in range(dim):
            out[i, c] = scale[c] * grad[i, c] + (factor[c] * x[i, c] + constant[c])


moments, affine = jit(_moments, **FUSED), jit(_affine, **FUSED)
products, combine = jit(_products, **FUSED), jit(_combine, **FUSED)
