"""Batch normalization of points-first tensors (..., C), exact to the last rounding in training on the CPU."""

import torch
from torch import Tensor, nn

from pcattn.ops import backends
from pcattn.ops.batch_norm import reference


def normalize(norm: nn.Module, x: Tensor, backend: str = "auto") -> Tensor:
    """Batch normalization over all leading dimensions of x.

    In training on the CPU everything is computed in float64 and rounded once. The sums over (R, C) that torch takes in
    float32 are 20 to 200 times less exact, which moves points across the kinks of ReLU and maximum.

    Args:
        norm: an `nn.BatchNorm1d`, or the `nn.SyncBatchNorm` that Lightning puts in its place (`sync_batchnorm`). Both
            take (B, C) and would mistake the points of (B, N, C) for channels.
        x: (..., C).
        backend: `"auto"`, `"numba"` or `"reference"`.

    Shape:
        (..., C).

    Raises:
        InputError: `backend` cannot run; the message lists the reasons.
    """
    rows = x.flatten(0, -2)
    return _KERNELS.choose(backend, rows, norm).normalize(norm, rows).view_as(x)


def why_not_numba(x: Tensor, *norms: nn.Module) -> list[str]:
    """Reasons why compiled passes cannot normalize x (..., C): they are for training steps."""
    if reasons := why_not_rows(x, *norms):
        return reasons
    if x.shape[:-1].numel() < 2:
        reasons.append("one row has no variance")
    if not all(type(norm) is nn.BatchNorm1d and norm.training and norm.momentum is not None for norm in norms):
        reasons.append("the normalization is not an nn.BatchNorm1d with momentum in training mode")
    return reasons


def why_not_rows(x: Tensor, *norms: nn.Module) -> list[str]:
    """Reasons why no compiled pass can take x (..., C) and the weights of `norms`."""
    # First, because a graph has no sizes to look at.
    if torch.compiler.is_compiling() or torch.jit.is_tracing():  # type: ignore[attr-defined, no-untyped-call]
        return ["the model is being compiled, exported or traced"]
    reasons = backends.why_not_numba(x)
    if x.dtype not in (torch.float32, torch.float64, torch.bfloat16):
        reasons.append(f"{x.dtype} is none of torch.float32, torch.float64 and torch.bfloat16")
    if any(weight.dtype not in (torch.float32, torch.float64) for norm in norms for weight in norm.parameters()):
        reasons.append("the weights are in half precision")
    return reasons


_KERNELS = backends.Kernels(reference, numba=why_not_numba)
