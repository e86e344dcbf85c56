"""External attention: two small memories, shared by all clouds, in place of keys and values."""

import math
from typing import ClassVar

import torch
from torch import Tensor, nn

from pcattn.attention.geometry import Geometry
from pcattn.attention.maps import AttentionMaps
from pcattn.utils.errors import InputError


def double_normalize(logits: Tensor) -> Tensor:
    """Softmax over the points, then every point's weights divided by their sum over the slots.

    Args:
        logits: (..., N, S).

    Shape:
        (..., N, S), rows sum to 1 - 1e-9 / sum.
    """
    # In float16 the constant 1e-9 is zero, so both normalizations run in at least float32.
    dtype = torch.promote_types(logits.dtype, torch.float32)
    weights = logits.softmax(dim=-2, dtype=dtype)
    weights = weights / (1e-9 + weights.sum(dim=-1, keepdim=True))
    return weights.to(logits.dtype)


class ExternalAttention(nn.Module):
    r"""External attention (section 3.2): linear in the number of points.

    .. math::
        u = x W_1^T + b_1, \qquad A = \mathrm{Norm}(u M_k^T), \qquad \mathrm{out} = A M_v

    with memories :math:`M_k, M_v \in \mathbb{R}^{S \times C}` and the double normalization of `double_normalize`.
    In PCT's layer this gives the paper's EAT (sections 4.7 and 4.8).

    Args:
        dim: channels C.
        num_slots: S, slots of the memories.

    Shape:
        x (B, N, C) -> (B, N, C).

    Source: Beyond Self-attention: External Attention using Two Linear Layers for Visual Tasks, Guo et al. 2021,
    https://arxiv.org/abs/2105.02358.
    """

    update: ClassVar[str] = "residual"

    def __init__(self, dim: int, num_slots: int = 64) -> None:
        super().__init__()
        if num_slots < 1:
            raise InputError(f"expected num_slots >= 1, but got {num_slots}")
        self.query = nn.Linear(dim, dim)
        self.memory_key = nn.Parameter(torch.empty(num_slots, dim))
        self.memory_value = nn.Parameter(torch.empty(num_slots, dim))
        for memory in (self.memory_key, self.memory_value):
            nn.init.normal_(memory, std=math.sqrt(2 / dim))

    def forward(self, x: Tensor, geometry: Geometry) -> Tensor:
        """Attend from every point to the slots of the memory."""
        weights = double_normalize(self.query(x) @ self.memory_key.t())  # (B, N, S)
        return weights @ self.memory_value

    def attention_map(self, x: Tensor, geometry: Geometry, point: int) -> AttentionMaps:
        """A map a slot of the memory: which points attend to it, and how much. At a point the maps sum to 1."""
        weights = double_normalize(self.query(x) @ self.memory_key.t()).transpose(1, 2)
        return AttentionMaps(weights, [f"slot {slot}" for slot in range(weights.shape[1])], slots=True)
