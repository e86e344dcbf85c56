"""Batch normalization of rows (R, C) in training on the CPU.

Everything between two arrays is computed and summed in float64 and rounded once when it is written. The passes wait for
memory, so that this costs next to nothing. Kernels sum into arrays of their own, because the compiler does not
vectorize sums into an argument.
"""

from typing import Any, NamedTuple, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pcattn.ops.bfloat16 import narrow, widen
from pcattn.ops.threads import jit, part_sums, run_parts

Array = NDArray[np.floating]
Coefficients = NDArray[np.float64]

#: Allows a product and a sum to be one instruction, which rounds once.
FUSED = {"fastmath": {"contract"}}

# The fewest rows that are worth a thread.
_GRAIN = 256


def normalize(norm: nn.BatchNorm1d, rows: Tensor) -> Tensor:
    """Rows (R, C), normalized; updates the running statistics."""
    out, mean, variance = _Normalize.apply(rows, norm.weight, norm.bias, norm.eps)  # type: ignore[no-untyped-call]
    update_statistics(norm, mean, variance, len(rows))
    return out


@torch.no_grad()
def update_statistics(norm: nn.BatchNorm1d, mean: Tensor, variance: Tensor, num_rows: int) -> None:
    """Update the running statistics after a batch with this mean and biased variance, as `nn.BatchNorm1d` does."""
    if norm.running_mean is not None and norm.running_var is not None:
        momentum = norm.momentum or 0.0
        if norm.num_batches_tracked is not None:
            norm.num_batches_tracked += 1
        norm.running_mean.lerp_(mean, momentum)
        norm.running_var.lerp_(variance * (num_rows / max(1, num_rows - 1)), momentum)


class Normalization(NamedTuple):
    """Batch normalization of rows x (R, C) as scale x + shift; every tensor is (C,) and float64."""

    mean: Tensor
    variance: Tensor  #: biased
    inverse: Tensor  #: one over the standard deviation
    scale: Tensor
    shift: Tensor
    num_rows: int

    @classmethod
    def of_sums(
        cls, sums: Tensor, origin: Tensor, num_rows: int, weight: Tensor, bias: Tensor, eps: float
    ) -> "Normalization":
        """From sums (2, C) of x - origin over all rows x, and of its squares; `origin` (C,) is one of the rows."""
        difference, square = sums / num_rows
        mean, variance = origin + difference, (square - difference**2).clamp_min(0)
        inverse = (variance + eps).rsqrt()
        scale = weight * inverse
        return cls(mean, variance, inverse, scale, bias - mean * scale, num_rows)

    @classmethod
    def running(cls, norm: nn.BatchNorm1d) -> "Normalization":
        """With the running statistics."""
        mean, variance = (cast("Tensor", values).double() for values in (norm.running_mean, norm.running_var))
        inverse = (variance + norm.eps).rsqrt()
        scale = norm.weight * inverse
        return cls(mean, variance, inverse, scale, norm.bias - mean * scale, 0)

    def coefficients(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Scale and shift, rounded."""
        return self.scale.to(dtype), self.shift.to(dtype)

    def backward(self, sums: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """From sums (2, C) of the gradients of all normalized rows, and of their products with x - mean.

        Returns:
            The gradients of weight and bias, then a factor and a constant: the gradient of a row x is scale times that
            of its normalized form, plus factor x + constant.
        """
        grad_bias, product = sums
        factor = -self.scale * self.inverse**2 * product / self.num_rows
        return product * self.inverse, grad_bias, factor, -self.scale * grad_bias / self.num_rows - factor * self.mean


class _Normalize(torch.autograd.Function):
    """Normalized rows (R, C), and the mean and biased variance of the rows."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
        x = x.contiguous()
        origin, sums, out = x[0].double(), part_sums(2, x.shape[1]), torch.empty_like(x)
        run_parts(moments, (x,), (origin,), (), (sums,), grain=_GRAIN)
        norm = Normalization.of_sums(sums.sum(0), origin, len(x), weight, bias, eps)
        run_parts(affine, (x,), (norm.scale, norm.shift), (out,), grain=_GRAIN)
        ctx.save_for_backward(x, weight)
        ctx.norm = norm
        statistics = norm.mean.to(weight.dtype), norm.variance.to(weight.dtype)
        ctx.mark_non_differentiable(*statistics)
        return out, *statistics

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        (x, weight), norm, grad = ctx.saved_tensors, ctx.norm, grad.contiguous()
        sums, out = part_sums(2, x.shape[1]), torch.empty_like(x)
        run_parts(products, (grad, x), (norm.mean,), (), (sums,), grain=_GRAIN)
        grad_weight, grad_bias, *terms = norm.backward(sums.sum(0))
        run_parts(combine, (grad, x), (norm.scale, *terms), (out,), grain=_GRAIN)
        return out, grad_weight.to(weight.dtype), grad_bias.to(weight.dtype), None


def _moments(x: Array, origin: Coefficients, sums: Coefficients) -> None:
    """Sum x - origin, and its squares."""
    num_rows, dim = x.shape
    total = np.zeros((2, dim))
    for i in range(num_rows):
        for c in range(dim):
            difference = widen(x[i, c]) - origin[c]
            total[0, c] += difference
            total[1, c] += difference * difference
    sums += total


def _affine(x: Array, scale: Coefficients, shift: Coefficients, out: Array) -> None:
    """out = scale * x + shift."""
    num_rows, dim = x.shape
    for i in range(num_rows):
        for c in range(dim):
            out[i, c] = narrow(scale[c] * widen(x[i, c]) + shift[c], out)


def _products(grad: Array, x: Array, origin: Coefficients, sums: Coefficients) -> None:
    """Sum grad, and its products with x - origin."""
    num_rows, dim = x.shape
    total = np.zeros((2, dim))
    for i in range(num_rows):
        for c in range(dim):
            error = widen(grad[i, c])
            total[0, c] += error
            total[1, c] += error * (widen(x[i, c]) - origin[c])
    sums += total


def _combine(
    grad: Array, x: Array, scale: Coefficients, factor: Coefficients, constant: Coefficients, out: Array
) -> None:
    """out = scale * grad + factor * x + constant."""
    num_rows, dim = x.shape
    for i in range(num_rows):
        for c in range(dim):
            out[i, c] = narrow(scale[c] * widen(grad[i, c]) + (factor[c] * widen(x[i, c]) + constant[c]), out)


moments, affine = jit(_moments, **FUSED), jit(_affine, **FUSED)
products, combine = jit(_products, **FUSED), jit(_combine, **FUSED)
