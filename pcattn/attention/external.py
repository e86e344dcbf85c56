"""External attention: two small memories, shared by all clouds, instead of keys and values."""

import math
from typing import ClassVar

import torch
from torch import Tensor, nn

from pcattn.attention.geometry import Geometry
from pcattn.attention.maps import AttentionMaps
from pcattn.ops.external_attention import double_normalize
from pcattn.utils.errors import InputError


class ExternalAttention(nn.Module):
    r"""External attention (section 3.2): linear in the number of points.

    .. math::
        u = x W_1^T + b_1, \qquad A = \mathrm{Norm}(u M_k^T), \qquad \mathrm{out} = A M_v

    with memories :math:`M_k, M_v \in \mathbb{R}^{S \times C}`. Norm is a softmax over the points, followed by dividing
    the weights of every point by (1e-9 + their sum over the slots). In PCT's layer this is the paper's EAT (sections
    4.7 and 4.8).

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
        """One map per slot of the memory: how much every point attends to it. At a point, the maps sum to 1."""
        weights = double_normalize(self.query(x) @ self.memory_key.t()).transpose(1, 2)
        return AttentionMaps(weights, [f"slot {slot}" for slot in range(weights.shape[1])], slots=True)
