"""Position-sensitive axial attention, on points: attention inside pencils along x, y and z."""

import math
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from pcattn.attention.geometry import Geometry
from pcattn.attention.maps import AttentionMaps, head_maps
from pcattn.ops.axial_attention import pencil_attention, pencil_variances
from pcattn.ops.batch_norm import normalize
from pcattn.utils.errors import InputError


class AxialAttention(nn.Module):
    r"""Axial attention: one `PencilAttention` along each axis in turn.

    Points are sorted into cells. A pencil is a line of cells along the axis, and the points of one pencil attend to
    each other. The cost is O(N m C) for pencils of m points. Fine cells isolate the points, coarse cells make long
    pencils. By default, a cloud has sqrt(N) / 4 cells along its longest side, which gives about 20 points per pencil on
    a surface.

    Differs from the paper, whose pencils are the rows and columns of an image. On the points of a grid it is the
    paper's layer.

    Args:
        dim: channels C, divisible by `2 * num_groups`.
        num_groups: groups (heads) G; None selects 8, or fewer if 2 * 8 does not divide dim.
        axes: axes in the order in which they are attended to, letters of `"xyz"`.
        span: K, the table of relative positions covers -(K - 1) to K - 1 cells; larger distances are clamped.
        gated: learn a gate on each relative term, as in Medical Transformer (Valanarasu et al. 2021).
        grid: number of cells along the longest side of a cloud; None derives it from the number of points.
        cell: size of a cell in units of the positions, instead of `grid`.

    Shape:
        x (B, N, C) -> (B, N, C).

    Source: Axial-DeepLab: Stand-Alone Axial-Attention for Panoptic Segmentation, Wang et al. 2020,
    https://arxiv.org/abs/2003.07853.
    """

    update: ClassVar[str] = "residual"

    def __init__(
        self,
        dim: int,
        num_groups: int | None = None,
        axes: str = "xyz",
        span: int = 16,
        gated: bool = False,
        grid: int | None = None,
        cell: float | None = None,
    ) -> None:
        super().__init__()
        if not axes or set(axes) - set("xyz"):
            raise InputError(f"expected axes to be letters of 'xyz', but got {axes!r}")
        if (grid is not None and grid < 1) or (cell is not None and cell <= 0):
            raise InputError(f"expected grid >= 1 and cell > 0, but got grid={grid}, cell={cell}")
        if num_groups is None:
            num_groups = math.gcd(8, dim // 2)
        self.pencils = nn.ModuleList(
            PencilAttention(dim, dim, "xyz".index(axis), num_groups, span, gated, grid, cell) for axis in axes
        )

    def forward(self, x: Tensor, geometry: Geometry) -> Tensor:
        """Attend along each axis."""
        for pencil in self.pencils:
            x = pencil(x, geometry)
        return x

    def attention_map(self, x: Tensor, geometry: Geometry, point: int) -> AttentionMaps:
        """One map per group and axis: the softmax of a point over its pencil, which sums to 1."""
        maps = []
        pencils: list[Any] = list(self.pencils)
        for pencil in pencils:
            maps.append(pencil.attention_map(x, geometry, point))
            x = pencil(x, geometry)
        return AttentionMaps(
            torch.cat([each.weights for each in maps], dim=1), [n for each in maps for n in each.names]
        )


class PencilAttention(nn.Module):
    r"""Position-sensitive attention (section 3.2, equation 4) among the points of each pencil along one axis.

    With :math:`q, k, v` from BN(x W^T), in each of G groups of :math:`g = C_{out} / G` channels (g / 2 for q and k),

    .. math::
        \ell_{ij} &= \mathrm{BN}_1(q_i \cdot k_j) + \mathrm{BN}_2(q_i \cdot r^q_{i-j})
            + \mathrm{BN}_3(k_j \cdot r^k_{j-i}) \\
        \mathrm{out}_i &= \mathrm{BN}\Big(\sum_j a_{ij} v_j\Big) + \mathrm{BN}\Big(\sum_j a_{ij} r^v_{i-j}\Big),
        \qquad a = \mathrm{softmax}_j\, \ell

    over all j in the pencil of i. The index i - j is the difference of the positions along the axis in cells, rounded
    and clamped to the table. Statistics of the logits are taken over the pairs that share a pencil.

    Differs from the released code: BN of the logits has no shift and no mean, because softmax cancels them.

    Args:
        in_dim: channels of the input.
        out_dim: channels of the output, divisible by `2 * num_groups`.
        axis: 0, 1 or 2.
        num_groups: G.
        span: K, the table has 2 K - 1 entries.
        gated: learn gates on the terms. They start at 0.1 for the relative terms and at 1 for the sum of the values.
        grid: number of cells along the longest side of a cloud, see `Geometry.pencils`.
        cell: size of a cell in units of the positions, instead of `grid`.

    Shape:
        x (B, N, in_dim) -> (B, N, out_dim).
    """

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        axis: int,
        num_groups: int = 8,
        span: int = 16,
        gated: bool = False,
        grid: int | None = None,
        cell: float | None = None,
    ) -> None:
        super().__init__()
        if num_groups < 1 or out_dim % (2 * num_groups):
            raise InputError(
                f"expected dim to be divisible by 2 * num_groups, but got dim={out_dim}, num_groups={num_groups}"
            )
        if span < 1:
            raise InputError(f"expected span >= 1, but got {span}")
        self.axis, self.num_groups, self.grid, self.cell = axis, num_groups, grid, cell
        width = out_dim // num_groups
        self.widths = [width // 2, width // 2, width]
        self.qkv = nn.Linear(in_dim, 2 * out_dim, bias=False)
        self.qkv_norm = nn.BatchNorm1d(2 * out_dim)
        self.relative = nn.Parameter(torch.empty(2 * width, 2 * span - 1))
        self.logit_norm = PairNorm(3, num_groups)
        self.out_norm = nn.BatchNorm1d(2 * out_dim)
        self.gates = nn.Parameter(torch.tensor([0.1, 0.1, 1.0, 0.1])) if gated else None
        nn.init.normal_(self.qkv.weight, std=math.sqrt(1 / in_dim))
        nn.init.normal_(self.relative, std=math.sqrt(1 / width))

    def forward(self, x: Tensor, geometry: Geometry) -> Tensor:
        """Attend from every point to the points of its pencil."""
        pencils = geometry.pencils(self.axis, self.grid, self.cell)
        q, k, v, q_table, k_table = self._inputs(x)
        scales = self.logit_norm(q, k, q_table, k_table, *pencils)
        values, mass = pencil_attention(q, k, v, q_table, k_table, scales, *pencils)
        _, _, relative_v = torch.split(self.relative.to(v.dtype), self.widths)
        positions = mass @ relative_v.t()
        if self.gates is not None:
            values, positions = values * self.gates[2], positions * self.gates[3]
        # One BN over both sums, channel c of the first at 2 c and of the second at 2 c + 1.
        both = torch.stack((values, positions.to(values.dtype)), dim=-1).flatten(2)
        return torch.unflatten(normalize(self.out_norm, both), -1, (-1, 2)).sum(dim=-1)

    def attention_map(self, x: Tensor, geometry: Geometry, point: int) -> AttentionMaps:
        """One map per group: the weights a_ij of a point i."""
        order, label, coordinate = geometry.pencils(self.axis, self.grid, self.cell)
        q, k, _, q_table, k_table = self._inputs(x)
        scales = self.logit_norm(q, k, q_table, k_table, order, label, coordinate).to(q.dtype)
        pencil = torch.empty_like(label).scatter_(0, order, label).view(coordinate.shape)  # (B, N)
        center = q_table.shape[-1] // 2
        distance = (coordinate[:, point, None] - coordinate).round().clamp(-center, center).long()  # (B, N)
        entry = (center + distance)[:, None].expand(-1, self.num_groups, -1)
        back = (center - distance)[..., None, None].expand(-1, -1, self.num_groups, 1)
        maps = (
            torch.einsum("bgd,bngd->bgn", q[:, point], k),
            q_table[:, point].gather(2, entry),
            k_table.gather(3, back).squeeze(3).transpose(1, 2),
        )
        logits = sum(scale[:, None] * each for scale, each in zip(scales, maps, strict=True))
        logits = logits.masked_fill((pencil != pencil[:, point, None])[:, None], -torch.inf)
        return head_maps(logits.softmax(dim=-1), prefix=f"{'xyz'[self.axis]}, ")

    def _inputs(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Queries, keys, values (B, N, G, D), and the products of queries and keys with the tables."""
        qkv = torch.unflatten(normalize(self.qkv_norm, self.qkv(x)), -1, (self.num_groups, -1))  # (B, N, G, 2 g)
        q, k, v = torch.split(qkv, self.widths, dim=-1)
        relative_q, relative_k, _ = torch.split(self.relative.to(qkv.dtype), self.widths)
        q_table, k_table = q @ relative_q, k @ relative_k  # (B, N, G, 2 K - 1)
        if self.gates is not None:
            q_table, k_table = q_table * self.gates[0], k_table * self.gates[1]
        q, k, v, q_table, k_table = (y.to(qkv.dtype) for y in (q, k, v, q_table, k_table))
        return q, k, v, q_table, k_table


class PairNorm(nn.Module):
    """Batch normalization of maps over pairs of points. Returns the factors (maps, groups) to multiply the maps by.

    The mean and the shift are left out, because the softmax that follows cancels what is the same for all keys.
    """

    running_var: Tensor

    def __init__(self, num_maps: int, num_groups: int, eps: float = 1e-5, momentum: float = 0.1) -> None:
        super().__init__()
        self.eps = eps
        self.momentum = momentum
        self.weight = nn.Parameter(torch.ones(num_maps, num_groups))
        self.register_buffer("running_var", torch.ones(num_maps, num_groups))

    def forward(
        self, q: Tensor, k: Tensor, q_table: Tensor, k_table: Tensor, order: Tensor, label: Tensor, coordinate: Tensor
    ) -> Tensor:
        """Factors from the running variances, or in training from the variances of the batch."""
        variances = self.running_var
        if self.training:
            variances, num_pairs = pencil_variances(q, k, q_table, k_table, order, label, coordinate)
            with torch.no_grad():
                unbiased = variances * (num_pairs / (num_pairs - 1).clamp_min(1))
                self.running_var.lerp_(unbiased.to(self.running_var.dtype), self.momentum)
        return self.weight * (variances + self.eps).rsqrt().to(self.weight.dtype)
