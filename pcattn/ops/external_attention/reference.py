"""Multi-head external attention in torch, with the weights of all heads in memory."""

import torch
from torch import Tensor


def multihead_external_attention(heads: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """See `pcattn.ops.external_attention.op.multihead_external_attention`."""
    return double_normalize(heads @ key.t()) @ value.t()


def double_normalize(logits: Tensor) -> Tensor:
    """Softmax over the points, then the weights of every point divided by (1e-9 + their sum over the slots).

    Args:
        logits: (..., N, S).

    Shape:
        (..., N, S).
    """
    # In float16 the constant 1e-9 is zero, so both normalizations run in at least float32.
    weights = logits.softmax(dim=-2, dtype=torch.promote_types(logits.dtype, torch.float32))
    weights = weights / (1e-9 + weights.sum(dim=-1, keepdim=True))
    return weights.to(logits.dtype)
