"""Offset-attention in torch, with the N x N weights in memory."""

import torch
from torch import Tensor


def offset_attention(q: Tensor, v: Tensor) -> Tensor:
    """See `pcattn.ops.offset_attention.op.offset_attention`."""
    return attention_weights(q).to(v.dtype).transpose(1, 2) @ v


def attention_weights(q: Tensor) -> Tensor:
    """Weights s_ij / (1e-9 + sum_j s_ij) for q (B, N, D), as (B, keys, queries)."""
    weights = normalize_queries(q, q)
    return weights / (1e-9 + weights.sum(dim=1, keepdim=True))


def normalize_queries(keys: Tensor, q: Tensor) -> Tensor:
    """Softmax over the queries of the products of keys (..., M, D) and q (..., N, D), (..., M, N)."""
    energy = keys @ q.transpose(-1, -2)
    # In float16 the constant 1e-9 is zero, so both normalizations run in at least float32.
    return energy.softmax(dim=-1, dtype=torch.promote_types(energy.dtype, torch.float32))


def widen(x: Tensor) -> Tensor:
    """Float16 as float32: energies, and weights of size 1 / N, leave its range. bfloat16 holds them."""
    return x.float() if x.dtype == torch.float16 else x
