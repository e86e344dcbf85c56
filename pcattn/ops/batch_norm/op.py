"""Batch normalization of points-first tensors (..., C)."""

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pcattn.ops.threads import run_parts

# The fewest rows that are worth a thread.
_GRAIN = 256


def normalize(norm: nn.Module, x: Tensor) -> Tensor:
    """Batch normalization over all leading dimensions of (..., C).

    In training on the CPU all is computed in float64 and rounded once (`pcattn.ops.batch_norm.numba`): the sums that
    torch takes of (rows, C) are plain ones in float32, 20 to 200 times less exact, which moves points across the kinks
    of ReLU and maximum.

    `norm` is an `nn.BatchNorm1d`, or what Lightning puts in its place to normalize over several GPUs
    (`sync_batchnorm`): both take (B, C), and would mistake the points of (B, N, C) for channels.
    """
    rows = x.flatten(0, -2)
    if (
        not is_plain_training(rows, norm) or len(rows) < 2
    ):  # in this order: len() would fix a batch that export leaves free
        return norm(rows).view_as(x)
    out, mean, variance = _Normalize.apply(rows, norm.weight, norm.bias, norm.eps)
    update_statistics(norm, mean, variance, len(rows))
    return out.view_as(x)


def is_plain_training(x: Tensor, *norms: nn.Module) -> bool:
    """Whether this is a step of training on the CPU, in full precision, with `nn.BatchNorm1d` as they come."""
    return (
        x.device.type == "cpu"
        and x.dtype in (torch.float32, torch.float64)
        and not torch.compiler.is_compiling()
        and not torch.is_autocast_enabled("cpu")
        and all(type(norm) is nn.BatchNorm1d and norm.training and norm.momentum is not None for norm in norms)
    )


@torch.no_grad()
def update_statistics(norm: nn.Module, mean: Tensor, variance: Tensor, num_rows: int) -> None:
    """Running statistics after a batch with this mean and biased variance, as `nn.BatchNorm1d` has them."""
    if isinstance(norm, nn.BatchNorm1d) and norm.running_mean is not None and norm.running_var is not None:
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
        cls, sums: NDArray[np.float64], origin: Tensor, num_rows: int, weight: Tensor, bias: Tensor, eps: float
    ) -> "Normalization":
        """From sums (2, C) of the differences of all rows from one of them, `origin` (C,), and of their squares."""
        difference, square = torch.from_numpy(sums) / num_rows
        mean, variance = origin + difference, (square - difference**2).clamp_min(0)
        inverse = (variance + eps).rsqrt()
        scale = weight * inverse
        return cls(mean, variance, inverse, scale, bias - mean * scale, num_rows)

    def backward(self, sums: NDArray[np.float64]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """From sums (2, C) of the gradients of all normalized rows, and of their products with x - mean.

        Returns:
            Gradients of weight and bias; factor and constant: the gradient of a row x is `scale` times that of its
            normalized form, plus factor x + constant.
        """
        grad_bias, product = torch.from_numpy(sums)
        factor = -self.scale * self.inverse**2 * product / self.num_rows
        return product * self.inverse, grad_bias, factor, -self.scale * grad_bias / self.num_rows - factor * self.mean


class _Normalize(torch.autograd.Function):
    """Of rows (R, C); returns mean and biased variance as well."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
        from pcattn.ops.batch_norm import numba as kernels

        x = x.contiguous()
        origin, sums, out = x[0].double(), np.zeros((2, x.shape[1])), torch.empty_like(x)
        run_parts(kernels.moments, (x,), (origin,), (), sums, grain=_GRAIN)
        norm = Normalization.of_sums(sums, origin, len(x), weight, bias, eps)
        run_parts(kernels.affine, (x,), (norm.scale, norm.shift), (out,), grain=_GRAIN)
        ctx.save_for_backward(x)
        ctx.norm = norm
        statistics = norm.mean.to(x.dtype), norm.variance.to(x.dtype)
        ctx.mark_non_differentiable(*statistics)
        return out, *statistics

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        from pcattn.ops.batch_norm import numba as kernels

        (x,), norm, grad = ctx.saved_tensors, ctx.norm, grad.contiguous()
        sums, out = np.zeros((2, x.shape[1])), torch.empty_like(x)
        run_parts(kernels.products, (grad, x), (norm.mean,), (), sums, grain=_GRAIN)
        grad_weight, grad_bias, *terms = norm.backward(sums)
        run_parts(kernels.combine, (grad, x), (norm.scale, *terms), (out,), grain=_GRAIN)
        return out, grad_weight.to(x.dtype), grad_bias.to(x.dtype), None
