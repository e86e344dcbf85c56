"""A hierarchical transformer on points: the design of NAT and DiNAT (Hassani et al. 2022) on sampled clouds."""

from collections.abc import Sequence
from numbers import Integral
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from pcattn.attention import AttentionName, Geometry, accepted, layer_kwargs
from pcattn.layers import LBR, AttentionBlock, LocalAggregation, network_input
from pcattn.models.levels import Level, build_levels
from pcattn.models.pct import ClassificationHead
from pcattn.utils.errors import InputError
from pcattn.utils.registry import construct


class Size(NamedTuple):
    """Widths of a network, level by level."""

    dims: tuple[int, ...]  #: channels
    depths: tuple[int, ...]  #: attention blocks
    num_heads: tuple[int, ...]


#: Networks by name.
SIZES = {
    "hierarchical_tiny": Size((48, 64, 96, 128), (2, 2, 2, 2), (3, 4, 6, 8)),
    "hierarchical_small": Size((48, 96, 192, 256), (2, 2, 4, 2), (3, 6, 12, 16)),
    "hierarchical_base": Size((64, 128, 256, 512), (3, 4, 8, 3), (4, 8, 16, 32)),
}


class HierarchicalBackbone(nn.Module):
    r"""Levels of ever fewer and wider tokens, each a stack of attention blocks (`AttentionBlock`).

    An LBR embeds every point. Each level then samples its points (farthest point sampling), gathers at each of them the
    features and relative positions of its k nearest neighbors in the level before (`LocalAggregation`, a maximum), and
    applies its blocks. These alternate near and far, as in DiNAT: dilation 1, :math:`\delta`, 1, ...

    Relative positions are measured in root mean square distances of a level's neighbors, so that they are numbers
    around one on every level and for any number of points.

    With fewer points lists become shorter, k to N and the dilation to DiNAT's bound
    :math:`\delta \le \lfloor N / k \rfloor`, with N the number of points of the level: any cloud of N >= 1 points will
    do. Sampling and neighbor lists are found once a forward pass, and shared by the blocks of a level.

    Args:
        variant: a name of `SIZES`.
        attention: name of the mechanism, or a list with one a level. A mechanism is given those of `num_heads`, `k`,
            `dilation` and `dilation_mode` that it takes.
        attention_kwargs: further arguments of the mechanism, which win over those; a list of one value a level gives
            each its own, None the level's.
        num_features: channels of a point beside its position (normals: 3).
        dims: channels of each level; None is the variant's own. Their number is that of the levels.
        depths: blocks of each level, likewise.
        num_heads: heads of each level, likewise.
        k: neighbors of a point, itself among them, of aggregation and attention.
        dilation: delta, or a list with one a level. 1: neighborhood attention only.
        dilation_mode: `"class"` or `"rank"`, see `Geometry.neighbors`.
        stride: points of a level for one of the next, from the first level on.
        stem_stride: points of the cloud for one of the first level. 1: every point is a token of it.
        mlp_ratio, layer_scale: see `AttentionBlock`.
        drop_path: stochastic depth, growing linearly from 0 in the first block to this in the last one.

    Shape:
        pos (B, N, 3), features (B, N, num_features) -> the levels, and the tokens (B, M, dim) of each.

    Differs from the papers: their images are grids, whose windows are replaced by nearest points, strided convolutions
    by the sampling above, and tables of biases by functions of the relative position. Widths and depths are fewer.

    Source: Neighborhood Attention Transformer, https://arxiv.org/abs/2204.07143; Dilated Neighborhood Attention
    Transformer, https://arxiv.org/abs/2209.15001.
    """

    def __init__(
        self,
        variant: str = "hierarchical_tiny",
        attention: AttentionName | Sequence[AttentionName] | None = None,
        attention_kwargs: dict[str, Any] | None = None,
        num_features: int = 0,
        dims: Sequence[int] | None = None,
        depths: Sequence[int] | None = None,
        num_heads: Sequence[int] | None = None,
        k: int = 16,
        dilation: int | Sequence[int] = 8,
        dilation_mode: str = "class",
        stride: int = 4,
        stem_stride: int = 2,
        mlp_ratio: float = 2.0,
        layer_scale: float = 0.1,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        if variant not in SIZES:
            raise InputError(f"expected variant to be one of {', '.join(SIZES)}, but got {variant!r}")
        size = SIZES[variant]
        num_levels = len(dims or size.dims)
        self.dims = _per_level("dims", dims or size.dims, num_levels)
        depths = _per_level("depths", depths or size.depths, num_levels, least=0)
        heads = _per_level("num_heads", num_heads or size.num_heads, num_levels)
        dilations = _per_level("dilation", dilation, num_levels)
        attention = attention or "neighborhood"
        names: list[Any] = list(attention) if isinstance(attention, (list, tuple)) else [attention] * num_levels
        if len(names) != num_levels:
            raise InputError(f"expected attention to be one name or {num_levels}, one a level, but got {attention}")
        for name, value in (("k", k), ("stride", stride), ("stem_stride", stem_stride)):
            _per_level(name, value, 1)
        _per_level("num_features", num_features, 1, least=0)
        if not 0 <= drop_path < 1 or mlp_ratio <= 0:
            raise InputError(f"expected drop_path in [0, 1) and mlp_ratio > 0, but got {drop_path} and {mlp_ratio}")
        self.num_features, self.k = num_features, k
        self.strides = [stem_stride] + [stride] * (num_levels - 1)
        self.embedding = LBR(3 + num_features, self.dims[0])
        # Positions go along with the features: relative ones tell an aggregation the shape of its neighborhood.
        self.groups = nn.ModuleList(
            LocalAggregation(3 + below, dim, num_relative=3)
            for below, dim in zip([self.dims[0], *self.dims], self.dims, strict=False)
        )
        self.layers = nn.ModuleList()
        rate, step = 0.0, drop_path / max(1, sum(depths) - 1)
        for level, given in enumerate(layer_kwargs(attention_kwargs, num_levels)):
            dim, name, blocks = self.dims[level], names[level], _Stack()
            offered: dict[str, Any] = {"num_heads": heads[level], "k": k, "dilation_mode": dilation_mode}
            for block in range(depths[level]):
                offered["dilation"] = dilations[level] if block % 2 else 1
                kwargs = {**accepted(name, offered), **given}
                blocks.append(AttentionBlock(dim, name, kwargs, mlp_ratio, layer_scale, rate))
                rate += step
            self.layers.append(blocks)

    def forward(self, pos: Tensor, features: Tensor | None = None) -> tuple[list[Level], list[Tensor]]:
        """Levels and their tokens."""
        x = self.embedding(network_input(pos, features, self.num_features, self.embedding.linear.weight))
        levels, tokens = build_levels(pos, self.strides, self.k), []
        for level, group, blocks in zip(levels, self.groups, self.layers, strict=True):
            relative = _in_units(pos, level.spacing).to(x.dtype)
            x = group(torch.cat((relative, x), dim=2), level.centers, level.neighbors)
            pos = level.geometry.pos
            x = blocks(x, level.geometry)
            tokens.append(x)
        return levels, tokens


def _in_units(pos: Tensor, spacing: Tensor) -> Tensor:
    """Positions (B, N, 3) from the first one, in units of `spacing`, or a thousandth of their extent if that is more.

    Without the bound, clouds most of whose points coincide would leave float32.
    """
    pos = pos - pos[:, :1]
    extent = (pos.amax(dim=1, keepdim=True) - pos.amin(dim=1, keepdim=True)).amax(dim=2, keepdim=True)
    return pos / torch.maximum(spacing, extent * 1e-3)


class _Stack(nn.ModuleList):
    """Attention blocks one after the other."""

    def forward(self, x: Tensor, geometry: Geometry) -> Tensor:
        for block in self:
            x = block(x, geometry)
        return x


def _per_level(name: str, value: int | Sequence[int], num_levels: int, least: int = 1) -> list[int]:
    """One value of each level: an integer >= `least`."""
    values = list(value) if isinstance(value, Sequence) else [value] * num_levels
    if len(values) != num_levels or any(not isinstance(each, Integral) or each < least for each in values):
        raise InputError(
            f"expected {name} to be {'an integer' if num_levels == 1 else f'{num_levels} integers, one a level,'} "
            f">= {least}, but got {value}"
        )
    return values


class HierarchicalClassifier(nn.Module):
    """The hierarchical transformer for classification.

    The tokens of every level of a `HierarchicalBackbone` pass an LBR of the level's own (slope 0.2); their maxima over
    the cloud, side by side, go through PCT's head (`ClassificationHead`).

    Args:
        num_classes: number of logits.
        variant: a name of `SIZES`.
        attention: name of the mechanism, or a list with one a level; None is neighborhood attention.
        attention_kwargs: arguments of the mechanism.
        dropout: probability in the head.
        pool_dim: channels of each level's maximum.
        **backbone: further arguments of `HierarchicalBackbone`.

    Shape:
        pos (B, N, 3), features (B, N, F) or None -> logits (B, num_classes).

    Raises:
        InputError: an argument is out of range, or the input has another shape than the network was built for.
    """

    def __init__(
        self,
        num_classes: int = 40,
        variant: str = "hierarchical_tiny",
        attention: AttentionName | Sequence[AttentionName] | None = None,
        attention_kwargs: dict[str, Any] | None = None,
        dropout: float = 0.5,
        pool_dim: int = 128,
        **backbone: Any,
    ) -> None:
        super().__init__()
        self.backbone = construct(
            "network", variant, HierarchicalBackbone, variant, attention, attention_kwargs, **backbone
        )
        self.pools = nn.ModuleList(LBR(dim, pool_dim, negative_slope=0.2) for dim in self.backbone.dims)
        self.head = ClassificationHead(pool_dim * len(self.pools), num_classes, dropout)

    def forward(self, pos: Tensor, features: Tensor | None = None) -> Tensor:
        """Logits of each cloud."""
        _, tokens = self.backbone(pos, features)
        return self.head(torch.cat([cast(LBR, pool).max(x) for pool, x in zip(self.pools, tokens, strict=True)], dim=1))
