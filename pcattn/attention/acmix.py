"""ACmix: self-attention over neighborhoods and a point convolution, from one projection."""

import math
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pcattn.attention.geometry import Geometry
from pcattn.attention.maps import AttentionMaps, head_maps, neighbor_weights
from pcattn.ops.neighborhood_attention import neighborhood_attention
from pcattn.utils.errors import InputError

#: The center and the corners of a cube, at unit distance from it.
_KERNEL_POINTS = [[0.0, 0.0, 0.0]] + [
    [x / math.sqrt(3), y / math.sqrt(3), z / math.sqrt(3)] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)
]


class ACmixAttention(nn.Module):
    r"""ACmix (section 4): a mixture of local self-attention and convolution that share queries, keys and values.

    .. math::
        \mathrm{att}_i &= \sum_{j \in \mathcal{N}(i)}
            \mathrm{softmax}_j\!\left(\tfrac{1}{\sqrt{d_h}}\, q_i \cdot (k_j + W_p (p_i - p_j))\right) v_j \\
        f_{t,d} &= \mathrm{fc}_t [q^{1..h}_d, k^{1..h}_d, v^{1..h}_d], \qquad
        \mathrm{conv}_o(i) = \sum_{j \in \mathcal{N}(i)} \sum_{t,a}
            \kappa_a(p_j - p_i)\, W_{o,t,a}\, f_{t,\lfloor o/h \rfloor}(j) \\
        \mathrm{out} &= r_1\, \mathrm{att} + r_2\, \mathrm{conv}, \qquad r_1 = r_2 = \tfrac12 \text{ at first}

    The convolution has one map t per kernel point and is initialized to shift map t to kernel point t.

    Differs from the paper, whose windows are squares of pixels: N(i) holds the k nearest points, and neighbors
    contribute to a kernel point x_a by the correlation :math:`\kappa_a(D) = \max(0, 1 - |D - x_a| / \sigma)` of KPConv,
    with D in units of the mean distance to the neighbors of the point (or of `spacing`). With r_2 = 0 this is
    neighborhood attention, with r_1 = 0 a point convolution. Without the neighbor search, cost is linear in N.

    Args:
        dim: channels C, divisible by `num_heads`.
        num_heads: h.
        k: number of neighbors, including the point itself.
        kernel_points: x_a, a list of [x, y, z]; None selects the center and the eight corners of a cube around it.
        sigma: distance from a kernel point at which its weight is zero.
        spacing: unit of `kernel_points` and `sigma`, in units of the positions; None selects the local spacing.

    Shape:
        x (B, N, C) -> (B, N, C).

    Source: On the Integration of Self-Attention and Convolution, Pan et al. 2022, https://arxiv.org/abs/2111.14556;
    the correlation: KPConv, Thomas et al. 2019, https://arxiv.org/abs/1904.08889.
    """

    update: ClassVar[str] = "residual"
    kernel_points: Tensor

    def __init__(
        self,
        dim: int,
        num_heads: int = 4,
        k: int = 9,
        kernel_points: list[list[float]] | None = None,
        sigma: float = 1.25,
        spacing: float | None = None,
    ) -> None:
        super().__init__()
        if num_heads < 1 or dim % num_heads:
            raise InputError(f"expected dim to be divisible by num_heads, but got dim={dim}, num_heads={num_heads}")
        if k < 1 or sigma <= 0 or (spacing is not None and spacing <= 0):
            raise InputError(f"expected k >= 1, sigma > 0 and spacing > 0, but got {k}, {sigma} and {spacing}")
        points = torch.tensor(
            _KERNEL_POINTS if kernel_points is None else kernel_points, dtype=torch.get_default_dtype()
        )
        if points.dim() != 2 or points.shape[1] != 3:
            raise InputError(f"expected kernel_points to be a list of [x, y, z], but got shape {tuple(points.shape)}")
        self.num_heads, self.k, self.sigma, self.spacing = num_heads, k, sigma, spacing
        self.register_buffer("kernel_points", points, persistent=False)
        num_maps = len(points)
        self.q = nn.Linear(dim, dim)
        self.k_proj = nn.Linear(dim, dim)
        self.v = nn.Linear(dim, dim)
        self.position = nn.Linear(3, dim // num_heads, bias=False)
        self.mix = nn.Linear(3 * num_heads, num_maps, bias=False)
        self.conv = nn.Parameter(torch.eye(num_maps).expand(dim, -1, -1).clone())  # (C, maps, kernel points)
        self.rate_attention = nn.Parameter(torch.tensor(0.5))
        self.rate_conv = nn.Parameter(torch.tensor(0.5))

    def forward(self, x: Tensor, geometry: Geometry) -> Tensor:
        """Mix the two paths."""
        q, k, v = (project(x).unflatten(-1, (self.num_heads, -1)) for project in (self.q, self.k_proj, self.v))
        attention, conv = self.attention_path(q, k, v, geometry), self.conv_path(q, k, v, geometry)
        return self.rate_attention * attention + self.rate_conv * conv

    def attention_path(self, q: Tensor, k: Tensor, v: Tensor, geometry: Geometry) -> Tensor:
        """Attention of every point to its neighbors: q, k, v (B, N, h, C / h) -> (B, N, C)."""
        return neighborhood_attention(q, k, v, geometry.neighbors(self.k), self._bias(q, geometry)).flatten(2)

    def attention_map(self, x: Tensor, geometry: Geometry, point: int) -> AttentionMaps:
        """One map per head of the attention path: the softmax of a point over its neighbors, which sums to 1."""
        q, k = (project(x).unflatten(-1, (self.num_heads, -1)) for project in (self.q, self.k_proj))
        return head_maps(neighbor_weights(q, k, geometry.neighbors(self.k), self._bias(q, geometry), point))

    def _bias(self, q: Tensor, geometry: Geometry) -> Tensor:
        """q_i . W_p (p_i - p_j) / sqrt(d_h), (B, N, k, h)."""
        # q . W_p (p_i - p_j) = (W_p^T q) . (p_i - p_j): three numbers per head instead of the width of the head.
        scale: float = q.shape[-1] ** -0.5
        direction = q @ self.position.weight * scale  # (B, N, h, 3)
        return -geometry.offsets(self.k).to(direction.dtype) @ direction.transpose(2, 3)

    def conv_path(self, q: Tensor, k: Tensor, v: Tensor, geometry: Geometry) -> Tensor:
        """Convolution over the neighbors: q, k, v (B, N, h, C / h) -> (B, N, C)."""
        maps: Tensor = self.mix(torch.cat((q, k, v), dim=2).transpose(2, 3))  # (B, N, C / h, maps)
        # Weights are applied to the points before they are gathered. The rest is a weighted sum of rows, which
        # embedding_bag computes without holding the gathered rows.
        weight = torch.unflatten(self.conv, 0, (-1, self.num_heads))  # (C / h, h, maps, kernel points)
        batch, num_points, width, _ = maps.shape
        by_channel = maps.flatten(0, 1).transpose(0, 1)  # (C / h, B * N, maps)
        rows = by_channel @ weight.permute(0, 2, 3, 1).flatten(2).to(maps.dtype)  # (C / h, B * N, kernel points * h)
        num_kernel_points = self.kernel_points.shape[0]
        rows = torch.unflatten(rows, 2, (num_kernel_points, -1)).permute(1, 2, 0, 3).flatten(2).flatten(0, 1)
        starts = torch.arange(batch, device=maps.device)[:, None, None] * num_points
        points = (geometry.neighbors(self.k) + starts)[..., None] * num_kernel_points
        points = points + torch.arange(num_kernel_points, device=maps.device)  # (B, N, k, kernel points)
        correlation = self.correlation(geometry.offsets(self.k)).to(rows.dtype)
        out = F.embedding_bag(
            points.flatten(2).flatten(0, 1), rows, mode="sum", per_sample_weights=correlation.flatten(2).flatten(0, 1)
        )
        return out.view(batch, num_points, width * self.num_heads)

    def correlation(self, offsets: Tensor) -> Tensor:
        """Correlation (B, N, k, A) of the neighbors at `offsets` (B, N, k, 3) with each kernel point."""
        if self.spacing is None:
            others = max(1, offsets.shape[2] - 1)
            spacing = offsets.norm(dim=-1).sum(dim=2)[..., None, None] / others
            offsets = offsets / spacing.clamp_min(torch.finfo(offsets.dtype).tiny)
        else:
            offsets = offsets / self.spacing
        distance: Tensor = (offsets[..., None, :] - self.kernel_points.to(offsets.dtype)).norm(dim=-1)
        return (1 - distance / self.sigma).clamp_min(0)
