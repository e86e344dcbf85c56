"""Neighborhood attention over the nearest points, plain and dilated."""

import itertools
from collections.abc import Callable, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pcattn.attention.geometry import DILATION_MODES, Geometry, spacing_of
from pcattn.attention.maps import AttentionMaps, head_maps, neighbor_weights
from pcattn.ops.neighborhood_attention import neighborhood_attention
from pcattn.utils.errors import InputError


class NeighborhoodAttention(nn.Module):
    r"""Neighborhood attention (NA) and its dilated form (DiNA), with nearest points instead of image windows.

    .. math::
        \mathrm{out}_i = W_o \sum_{j \in \mathcal{N}(i)}
            \mathrm{softmax}_j\!\left(\frac{q_i \cdot k_j}{\sqrt{d_h}} + b_h(p_j - p_i)\right) v_j + b_o

    The k neighbors are the nearest points, including the point itself, or with a `dilation` every dilation-th of them,
    see `Geometry.neighbors`. Networks alternate plain and dilated layers: `dilation: [1, 4, 1, 4]`. Without the
    neighbor search, cost is linear in N. Keys and values of the neighbors are read in place and never gathered.

    Differs from the papers, which have a table of biases by relative pixel: positions are continuous, so b_h is a
    function of the relative position in units of the cloud's root mean square neighbor distance (or of `cell`).

    Args:
        dim: channels C, divisible by `num_heads`.
        num_heads: heads.
        k: number of neighbors, including the point itself.
        dilation: 1 is plain neighborhood attention; at most floor(N / k).
        dilation_mode: `"rank"` or `"class"`, see `Geometry.neighbors`.
        bias: b_h is a small network (`"mlp"`), a linearly interpolated table (`"table"`) or zero (`"none"`).
        table_size: entries of the table along each axis, or three numbers for x, y and z. Odd, because the middle entry
            is relative position 0; positions beyond the table are clamped. A list in `attention_kwargs` has one value
            per layer, so three numbers are given as `[[5, 5, 7], [5, 5, 7]]`.
        cell: distance between two entries of the table in units of the positions; None selects the scale of the cloud.

    Shape:
        x (B, N, C) -> (B, N, C).

    Source: Neighborhood Attention Transformer, Hassani et al. 2022, https://arxiv.org/abs/2204.07143; Dilated
    Neighborhood Attention Transformer, Hassani and Shi 2022, https://arxiv.org/abs/2209.15001.
    """

    update: ClassVar[str] = "residual"

    def __init__(
        self,
        dim: int,
        num_heads: int = 4,
        k: int = 16,
        dilation: int = 1,
        dilation_mode: str = "rank",
        bias: str = "mlp",
        table_size: int | Sequence[int] = 5,
        cell: float | None = None,
    ) -> None:
        super().__init__()
        if num_heads < 1 or dim % num_heads:
            raise InputError(f"expected dim to be divisible by num_heads, but got dim={dim}, num_heads={num_heads}")
        if k < 1 or dilation < 1:
            raise InputError(f"expected k >= 1 and dilation >= 1, but got k={k}, dilation={dilation}")
        if dilation_mode not in DILATION_MODES:
            raise InputError(
                f"expected dilation_mode to be one of {', '.join(DILATION_MODES)}, but got {dilation_mode!r}"
            )
        if bias not in _BIASES:
            raise InputError(f"expected bias to be one of {', '.join(_BIASES)}, but got {bias!r}")
        if cell is not None and cell <= 0:
            raise InputError(f"expected cell > 0, but got {cell}")
        self.num_heads = num_heads
        self.k, self.dilation, self.dilation_mode, self.cell = k, dilation, dilation_mode, cell
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.bias = _BIASES[bias](num_heads, table_size)

    def forward(self, x: Tensor, geometry: Geometry) -> Tensor:
        """Attend from every point to its neighbors."""
        out: Tensor = self.proj(self.attend(*self._inputs(x, geometry)).flatten(2))
        return out

    def attention_map(self, x: Tensor, geometry: Geometry, point: int) -> AttentionMaps:
        """One map per head: the softmax of a point over its neighbors, which sums to 1."""
        q, k, _, neighbors, bias = self._inputs(x, geometry)
        return head_maps(neighbor_weights(q, k, neighbors, bias, point))

    def _inputs(self, x: Tensor, geometry: Geometry) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None]:
        """Arguments of `attend`."""
        where = (self.k, self.dilation, self.dilation_mode)
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).unbind(2)  # (B, N, H, C / H)
        bias = None
        if self.bias is not None:
            offsets = geometry.offsets(*where)
            bias = self.bias((offsets / (self.cell or spacing_of(offsets)[..., None])).to(x.dtype))
        return q, k, v, geometry.neighbors(*where), bias

    def attend(self, q: Tensor, k: Tensor, v: Tensor, neighbors: Tensor, bias: Tensor | None) -> Tensor:
        """Attention (B, N, H, D) of every point to its neighbors, see `neighborhood_attention`."""
        return neighborhood_attention(q, k, v, neighbors, bias)


class _MLPBias(nn.Sequential):
    """(..., 3) -> (..., num_heads)."""

    def __init__(self, num_heads: int, _: int | Sequence[int], hidden: int = 16) -> None:
        super().__init__(nn.Linear(3, hidden), nn.ReLU(), nn.Linear(hidden, num_heads))


class _TableBias(nn.Module):
    """(..., 3) -> (..., num_heads): trilinear interpolation in a table (num_heads, X, Y, Z)."""

    def __init__(self, num_heads: int, table_size: int | Sequence[int]) -> None:
        super().__init__()
        table_size = (table_size,) * 3 if isinstance(table_size, int) else tuple(table_size)
        if len(table_size) != 3 or any(size < 1 or size % 2 == 0 for size in table_size):
            raise InputError(f"expected table_size to be three odd numbers, but got {table_size}")
        self.table = nn.Parameter(torch.empty(num_heads, *table_size))
        nn.init.trunc_normal_(self.table, std=0.02)

    def forward(self, offsets: Tensor) -> Tensor:
        """Interpolate."""
        lows, fractions = [], []
        for axis, size in enumerate(self.table.shape[1:]):
            place = (offsets[..., axis] + (size - 1) / 2).clamp(0, size - 1)
            # The upper border belongs to the last cell, not to one behind it.
            low = place.detach().floor().clamp(max=max(size - 2, 0))
            lows.append(low.long())
            fractions.append(place - low)
        table = self.table.flatten(1).t()  # (X * Y * Z, H)
        _, size_x, size_y, size_z = self.table.shape
        out = torch.zeros((), device=table.device, dtype=table.dtype)
        for corner in itertools.product(*(range(min(size, 2)) for size in (size_x, size_y, size_z))):
            x, y, z = (low + step for low, step in zip(lows, corner, strict=True))
            weight = torch.ones((), device=table.device, dtype=table.dtype)
            for fraction, step in zip(fractions, corner, strict=True):
                weight = weight * (fraction if step else 1 - fraction)
            out = out + weight[..., None] * F.embedding((x * size_y + y) * size_z + z, table)
        return out


_BIASES: dict[str, Callable[[int, int | Sequence[int]], nn.Module | None]] = {
    "mlp": _MLPBias,
    "table": _TableBias,
    "none": lambda *_: None,
}
