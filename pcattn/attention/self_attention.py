"""Scaled dot-product self-attention, as in the naive point cloud transformer."""

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pcattn.attention.geometry import Geometry
from pcattn.attention.maps import AttentionMaps, head_maps
from pcattn.utils.errors import InputError


class SelfAttention(nn.Module):
    r"""Self-attention of PCT (section 3.2, equations 2 to 6).

    .. math::
        \mathrm{out}_i = \sum_j \mathrm{softmax}_j\!\left(\frac{q_i \cdot k_j}{\sqrt{d_a}}\right) v_j,
        \qquad q, k \in \mathbb{R}^{C/4},\; v \in \mathbb{R}^{C}

    The N x N weights are never held in memory. For this, queries and keys are padded with zeros to the width of the
    values: fused kernels take one width only, and torch would silently fall back to the full matrix.

    Args:
        dim: channels C, divisible by `4 * num_heads`.
        num_heads: heads, each of width C/4/heads for queries and keys and C/heads for values.
        tied: share one weight between queries and keys, which the paper leaves open.

    Shape:
        x (B, N, C) -> (B, N, C).

    Source: Point Cloud Transformer, Guo et al. 2021, https://arxiv.org/abs/2012.09688.
    """

    update: ClassVar[str] = "residual"

    def __init__(self, dim: int, num_heads: int = 1, tied: bool = False) -> None:
        super().__init__()
        if num_heads < 1 or dim % (4 * num_heads):
            raise InputError(f"expected dim to be divisible by 4 * num_heads, but got dim={dim}, num_heads={num_heads}")
        self.num_heads = num_heads
        self.q = nn.Linear(dim, dim // 4, bias=False)
        self.k = self.q if tied else nn.Linear(dim, dim // 4, bias=False)
        self.v = nn.Linear(dim, dim)

    def forward(self, x: Tensor, geometry: Geometry) -> Tensor:
        """Attend from every point to every point."""
        q, k, v = (self._split_heads(project(x)) for project in (self.q, self.k, self.v))
        scale = q.shape[-1] ** -0.5
        padding = (0, v.shape[-1] - q.shape[-1])
        out = F.scaled_dot_product_attention(F.pad(q, padding), F.pad(k, padding), v, scale=scale)
        return out.transpose(1, 2).flatten(2)

    def attention_map(self, x: Tensor, geometry: Geometry, point: int) -> AttentionMaps:
        """One map per head: the weights softmax_j(q_i . k_j / sqrt(d_a)) of a point i, which sum to 1."""
        q, k = self._split_heads(self.q(x[:, point, None])), self._split_heads(self.k(x))
        return head_maps((q @ k.transpose(2, 3) * q.shape[-1] ** -0.5).softmax(dim=-1).squeeze(2))

    def _split_heads(self, x: Tensor) -> Tensor:
        return torch.unflatten(x, -1, (self.num_heads, -1)).transpose(1, 2)  # (B, H, N, C / H)
