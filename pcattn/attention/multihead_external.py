"""Multi-head external attention: external attention whose heads share one small memory."""

from typing import ClassVar

import torch
from torch import Tensor, nn

from pcattn.attention.geometry import Geometry
from pcattn.attention.maps import AttentionMaps
from pcattn.ops.external_attention import double_normalize, multihead_external_attention
from pcattn.utils.errors import InputError

# The released code widens the features and multiplies the number of heads by this factor.
_EXPANSION = 4


class MultiheadExternalAttention(nn.Module):
    r"""Multi-head external attention (section 3.3), the core of EAMLP: linear in the number of points.

    .. math::
        z = x W_t^T + b_t \in \mathbb{R}^{4C}, \qquad
        \mathrm{head}_h = \mathrm{Norm}(z_h M_k^T) M_v^T + b_v, \qquad
        \mathrm{out} = [\mathrm{head}_1, \dots, \mathrm{head}_{4H}] W_o^T + b_o

    4 H heads of width C / H share one pair of memories, :math:`M_k \in \mathbb{R}^{S \times C/H}` and
    :math:`M_v \in \mathbb{R}^{C/H \times S}`; Norm is `double_normalize` in each head.

    Differs from the released code: the keys have no bias, because softmax over the points cancels it.

    Args:
        dim: channels C, divisible by `num_heads`.
        num_heads: H; there are 4 H heads.
        num_slots: S, slots of the memories.

    Shape:
        x (B, N, C) -> (B, N, C).

    Source: Beyond Self-attention: External Attention using Two Linear Layers for Visual Tasks, Guo et al. 2021,
    https://arxiv.org/abs/2105.02358.
    """

    update: ClassVar[str] = "residual"

    def __init__(self, dim: int, num_heads: int = 4, num_slots: int = 64) -> None:
        super().__init__()
        if num_heads < 1 or dim % num_heads:
            raise InputError(f"expected dim to be divisible by num_heads, but got dim={dim}, num_heads={num_heads}")
        if num_slots < 1:
            raise InputError(f"expected num_slots >= 1, but got {num_slots}")
        self.num_heads = _EXPANSION * num_heads
        self.expand = nn.Linear(dim, _EXPANSION * dim)
        self.memory_key = nn.Parameter(torch.empty(num_slots, dim // num_heads))
        self.memory_value = nn.Linear(num_slots, dim // num_heads)
        self.proj = nn.Linear(_EXPANSION * dim, dim)
        for weight in (self.expand.weight, self.memory_key, self.memory_value.weight, self.proj.weight):
            nn.init.trunc_normal_(weight, std=0.02)
        for linear in (self.expand, self.memory_value, self.proj):
            nn.init.zeros_(linear.bias)

    def forward(self, x: Tensor, geometry: Geometry) -> Tensor:
        """Attend from every point to the slots of the memory."""
        out: Tensor = multihead_external_attention(self._heads(x), self.memory_key, self.memory_value.weight)
        out = self.proj((out + self.memory_value.bias).transpose(1, 2).flatten(2))
        return out

    def attention_map(self, x: Tensor, geometry: Geometry, point: int) -> AttentionMaps:
        """One map per slot and head: how much every point attends to it. At a point, the maps of a head sum to 1."""
        weights = double_normalize(self._heads(x) @ self.memory_key.t())  # (B, 4H, N, S)
        maps = weights.transpose(2, 3).flatten(1, 2)  # (B, 4H * S, N)
        num_slots = len(self.memory_key)
        names = [f"head {head}, slot {slot}" for head in range(self.num_heads) for slot in range(num_slots)]
        return AttentionMaps(maps, names, slots=True)

    def _heads(self, x: Tensor) -> Tensor:
        """The widened features, (B, 4H, N, C / H)."""
        return torch.unflatten(self.expand(x), -1, (self.num_heads, -1)).transpose(1, 2)
