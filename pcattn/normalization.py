"""Batch normalisation of points-first tensors (..., C)."""

from typing import Any

import torch
from torch import Tensor, nn


def normalize(norm: nn.Module, x: Tensor) -> Tensor:
    """Batch normalisation over all leading dimensions of (..., C).

    In training on the CPU the statistics are pairwise sums of differences from the mean: those that torch takes of
    (rows, C) are a plain sum, 20 to 200 times less exact, which moves points across the kinks of ReLU and maximum.

    `norm` is an `nn.BatchNorm1d`, or what Lightning puts in its place to normalise over several GPUs
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


class _Normalize(torch.autograd.Function):
    """Of rows (R, C); returns mean and biased variance as well."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
        mean = x.mean(dim=0)
        centred = x - mean
        variance = centred.square().mean(dim=0)
        inverse = (variance + eps).rsqrt()
        ctx.save_for_backward(x, weight, mean, inverse)
        ctx.eps = eps
        ctx.mark_non_differentiable(mean, variance)
        return torch.addcmul(bias, centred, weight * inverse), mean, variance

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        x, weight, mean, inverse = ctx.saved_tensors
        gradients = torch.ops.aten.native_batch_norm_backward(
            grad.contiguous(), x, weight, None, None, mean, inverse, True, ctx.eps, [True, True, True]
        )
        return (*gradients, None)
