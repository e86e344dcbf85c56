"""What a point attends to: the result of a core's `attention_map(x, geometry, point)`."""

from typing import NamedTuple

import torch
from torch import Tensor


class AttentionMaps(NamedTuple):
    """Weights over the points of each cloud, one map per head, memory slot or gate."""

    weights: Tensor  #: (B, M, N)
    names: list[str]  #: M names
    slots: bool = False  #: maps of memory slots: the value at a point is how much it attends to the slot


def head_maps(weights: Tensor, prefix: str = "") -> AttentionMaps:
    """Maps (B, H, N), one per head."""
    return AttentionMaps(weights, [f"{prefix}head {head}" for head in range(weights.shape[1])])


def neighbor_weights(q: Tensor, k: Tensor, neighbors: Tensor, bias: Tensor | None, point: int) -> Tensor:
    """The softmax of `neighborhood_attention` for one point: q, k (B, N, H, D), neighbors (B, N, K) -> (B, H, N)."""
    own = neighbors[:, point]  # (B, K)
    rows = torch.arange(len(k), device=k.device)[:, None]
    logits = torch.einsum("bhd,bkhd->bhk", q[:, point] * q.shape[-1] ** -0.5, k[rows, own])
    if bias is not None:
        logits = logits + bias[:, point].transpose(1, 2)
    weights = logits.softmax(dim=-1)  # (B, H, K)
    out = weights.new_zeros(*weights.shape[:2], k.shape[1])
    return out.scatter_add_(2, own[:, None].expand_as(weights), weights)
