"""Polarized self-attention: a gate for the channels and a gate for the points."""

from typing import ClassVar

import torch
from torch import Tensor, nn

from pcattn.attention.geometry import Geometry
from pcattn.attention.maps import AttentionMaps
from pcattn.utils.errors import InputError

LAYOUTS = ("parallel", "sequential")
VARIANTS = ("paper", "released")


class PolarizedAttention(nn.Module):
    r"""Polarized self-attention (section 3.1, equations 4 to 8): linear in the number of points, no neighbors.

    One gate per channel and one gate per point,

    .. math::
        g^{ch} &= \sigma\!\left(\mathrm{LN}\!\left(W_z \sum_n \mathrm{softmax}_N(W_q x)_n\, W_v x_n + b_z\right)\right)
        \in \mathbb{R}^{1 \times C} \\
        g^{sp}_n &= \sigma\!\left(\mathrm{softmax}_{C/2}\!\left(\tfrac1N \sum_m W'_q x_m\right) \cdot W'_v x_n\right)
        \in \mathbb{R}^{N \times 1}

    give :math:`x\,g^{ch}(x) + x\,g^{sp}(x)` in parallel, or :math:`z\,g^{sp}(z)` with :math:`z = x\,g^{ch}(x)`.

    `variant="released"` is the authors' code, which differs from their paper. Queries and values have no bias. The
    channel gate has no LayerNorm in the parallel form, and a bottleneck C/2 -> C/8 -> C with a LayerNorm in the
    sequential form. The spatial query is not normalized; the softmax runs over the points instead, on the products
    (parallel) or on the values (sequential). Since that spatial gate tends to 0.5 as the number of points grows, the
    paper's form is the default.

    Differs from the paper: the channel query has no bias, because softmax over the points cancels it.

    Args:
        dim: channels C, divisible by 2 (by 8 for the released sequential form).
        layout: `"parallel"` or `"sequential"`.
        variant: `"paper"` or `"released"`.

    Shape:
        x (B, N, C) -> (B, N, C).

    Source: Polarized Self-Attention: Towards High-quality Pixel-wise Regression, Liu et al. 2021,
    https://arxiv.org/abs/2107.00782.
    """

    update: ClassVar[str] = "residual"

    def __init__(self, dim: int, layout: str = "parallel", variant: str = "paper") -> None:
        super().__init__()
        if layout not in LAYOUTS:
            raise InputError(f"expected layout to be one of {', '.join(LAYOUTS)}, but got {layout!r}")
        if variant not in VARIANTS:
            raise InputError(f"expected variant to be one of {', '.join(VARIANTS)}, but got {variant!r}")
        divisor = 8 if (layout, variant) == ("sequential", "released") else 2
        if dim % divisor:
            raise InputError(f"expected dim to be divisible by {divisor}, but got dim={dim}")
        self.layout = layout
        self.variant = variant
        half, bias = dim // 2, variant == "paper"
        self.channel_q = nn.Linear(dim, 1, bias=False)
        self.channel_v = nn.Linear(dim, half, bias=bias)
        self.channel_up: nn.Module
        if variant == "paper":
            self.channel_up = nn.Sequential(nn.Linear(half, dim), nn.LayerNorm(dim))
        elif layout == "parallel":
            self.channel_up = nn.Linear(half, dim, bias=False)
        else:
            self.channel_up = nn.Sequential(
                nn.Linear(half, dim // 8), nn.LayerNorm(dim // 8), nn.ReLU(), nn.Linear(dim // 8, dim)
            )
        self.spatial_q = nn.Linear(dim, half, bias=bias)
        self.spatial_v = nn.Linear(dim, half, bias=bias)

    def forward(self, x: Tensor, geometry: Geometry) -> Tensor:
        """Gate the channels and the points."""
        if self.layout == "parallel":
            return x * (self.channel_gate(x) + self.spatial_gate(x))
        x = x * self.channel_gate(x)
        return x * self.spatial_gate(x)

    def attention_map(self, x: Tensor, geometry: Geometry, point: int) -> AttentionMaps:
        """Two maps, the same for every point: the gate g^sp of the points, in [0, 1], and the weights of the points in
        the gate of the channels, which sum to 1."""
        z = x if self.layout == "parallel" else x * self.channel_gate(x)
        maps = torch.cat((self.spatial_gate(z), self._channel_query(x)), dim=2).transpose(1, 2)
        return AttentionMaps(maps, ["point gate", "share in the channel gate"])

    def _channel_query(self, x: Tensor) -> Tensor:
        """softmax_N(W_q x), (B, N, 1)."""
        return torch.softmax(self.channel_q(x), dim=1).to(x.dtype)

    def channel_gate(self, x: Tensor) -> Tensor:
        """Gate of every channel, (B, 1, C), in [0, 1]."""
        weights = self._channel_query(x)
        # The values are linear in x, so the points are summed first: one product per cloud instead of one per point.
        pooled = weights.transpose(1, 2) @ x  # (B, 1, C)
        return torch.sigmoid(self.channel_up(self.channel_v(pooled)))

    def spatial_gate(self, x: Tensor) -> Tensor:
        """Gate of every point, (B, N, 1), in [0, 1]."""
        query: Tensor = self.spatial_q(x.mean(dim=1, keepdim=True))  # (B, 1, C / 2)
        value: Tensor = self.spatial_v(x)
        if self.variant == "paper":
            return (value @ query.softmax(dim=2).to(value.dtype).transpose(1, 2)).sigmoid()
        if self.layout == "parallel":
            return (value @ query.transpose(1, 2)).softmax(dim=1).sigmoid()
        return (value.softmax(dim=1) @ query.transpose(1, 2)).sigmoid()
