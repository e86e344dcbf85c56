"""A hierarchical point transformer: the design of NAT and DiNAT (Hassani et al. 2022) on sampled clouds."""

from collections.abc import Sequence
from numbers import Integral
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from pcattn.attention import AttentionName, Geometry, layer_kwargs, supported_kwargs
from pcattn.layers import LBR, AttentionBlock, LocalAggregation, network_input
from pcattn.models.levels import Level, build_levels
from pcattn.models.pct import ClassificationHead
from pcattn.utils.errors import InputError
from pcattn.utils.registry import construct


class Size(NamedTuple):
    """Size of a network: one entry per level."""

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
    r"""Levels with fewer and wider tokens each, and a stack of attention blocks (`AttentionBlock`) in every level.

    An LBR embeds every point. Each level samples points of the previous level (farthest point sampling), aggregates the
    features and relative positions of their k nearest neighbors in that level (`LocalAggregation`), and applies its
    blocks. As in DiNAT, blocks alternate between plain and dilated neighborhoods: dilation 1, :math:`\delta`, 1, ...

    Relative positions are divided by the root mean square distance of neighbors in the level. They are therefore close
    to one in every level and for any number of points.

    In a level with few points, k is reduced to N and the dilation to DiNAT's bound
    :math:`\delta \le \lfloor N / k \rfloor`, where N is the number of points of the level. The network thus accepts any
    cloud with at least one point. Samples and neighbors are computed once per forward pass and shared by all blocks of
    a level.

    Args:
        variant: a key of `SIZES`.
        attention: name, import path or class of the attention, or a list with one per level; None selects
            neighborhood attention. It receives those of `num_heads`, `k`, `dilation` and `dilation_mode` that it has
            parameters for.
        attention_kwargs: further arguments of the attention, which override those. A list has one value per level; None
            in it selects the default.
        num_features: channels of a point in addition to its position (3 for normals).
        dims: channels of each level; None selects the variant's default. Its length is the number of levels.
        depths: number of blocks of each level; None selects the variant's default.
        num_heads: number of heads in each level; None selects the variant's default.
        k: number of neighbors in aggregation and attention, including the point itself.
        dilation: delta, or a list with one per level; 1 is plain neighborhood attention.
        dilation_mode: `"class"` or `"rank"`, see `Geometry.neighbors`.
        stride: ratio of the numbers of points of two successive levels.
        stem_stride: ratio of the number of points in the cloud to that in the first level; 1 makes every point a token.
        mlp_ratio, layer_scale: see `AttentionBlock`.
        drop_path: probability of stochastic depth in the last block; it grows linearly from 0 in the first block.

    Shape:
        pos (B, N, 3), features (B, N, num_features) -> the levels, and the tokens (B, M, dim) of each.

    Differs from the papers, which use grids of pixels: nearest points replace windows, sampling and aggregation replace
    strided convolutions, and functions of the relative position replace tables of biases. The networks are smaller.

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
            raise InputError(
                f"expected attention to be one name or a list of {num_levels}, one per level, but got {attention}"
            )
        for name, value in (("k", k), ("stride", stride), ("stem_stride", stem_stride)):
            _per_level(name, value, 1)
        _per_level("num_features", num_features, 1, least=0)
        if not 0 <= drop_path < 1 or mlp_ratio <= 0:
            raise InputError(f"expected drop_path in [0, 1) and mlp_ratio > 0, but got {drop_path} and {mlp_ratio}")
        self.num_features, self.k = num_features, k
        self.strides = [stem_stride] + [stride] * (num_levels - 1)
        self.embedding = LBR(3 + num_features, self.dims[0])
        # Positions are aggregated with the features, because relative positions describe the shape of a neighborhood.
        self.groups = nn.ModuleList(
            LocalAggregation(3 + previous, dim, num_relative=3)
            for previous, dim in zip([self.dims[0], *self.dims], self.dims, strict=False)
        )
        self.layers = nn.ModuleList()
        rate, step = 0.0, drop_path / max(1, sum(depths) - 1)
        for level, given in enumerate(layer_kwargs(attention_kwargs, num_levels)):
            dim, name, blocks = self.dims[level], names[level], _Stack()
            offered: dict[str, Any] = {"num_heads": heads[level], "k": k, "dilation_mode": dilation_mode}
            for block in range(depths[level]):
                offered["dilation"] = dilations[level] if block % 2 else 1
                kwargs = {**supported_kwargs(name, offered), **given}
                blocks.append(AttentionBlock(dim, name, kwargs, mlp_ratio, layer_scale, rate))
                rate += step
            self.layers.append(blocks)

    def forward(self, pos: Tensor, features: Tensor | None = None) -> tuple[list[Level], list[Tensor]]:
        """The levels and their tokens."""
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
    """Positions (B, N, 3) relative to the first point, in units of `spacing`, but at least a thousandth of the extent.

    Without this bound, the results would leave the range of float32 for clouds in which most points coincide.
    """
    pos = pos - pos[:, :1]
    extent = (pos.amax(dim=1, keepdim=True) - pos.amin(dim=1, keepdim=True)).amax(dim=2, keepdim=True)
    return pos / torch.maximum(spacing, extent * 1e-3)


class _Stack(nn.ModuleList):
    """Attention blocks, applied in order."""

    def forward(self, x: Tensor, geometry: Geometry) -> Tensor:
        for block in self:
            x = block(x, geometry)
        return x


def _per_level(name: str, value: int | Sequence[int], num_levels: int, least: int = 1) -> list[int]:
    """One integer >= `least` per level, from a list or from one value for all levels."""
    values = list(value) if isinstance(value, Sequence) else [value] * num_levels
    if len(values) != num_levels or any(not isinstance(each, Integral) or each < least for each in values):
        raise InputError(
            f"expected {name} to be {'an integer' if num_levels == 1 else f'{num_levels} integers, one per level,'} "
            f">= {least}, but got {value}"
        )
    return values


class HierarchicalClassifier(nn.Module):
    """The hierarchical transformer for classification.

    Every level of a `HierarchicalBackbone` has its own LBR (slope 0.2), followed by the maximum over the cloud. The
    concatenated maxima are the input of PCT's head (`ClassificationHead`).

    Args:
        num_classes: number of logits.
        variant: a key of `SIZES`.
        attention: name, import path or class of the attention, or a list with one per level; None selects
            neighborhood attention.
        attention_kwargs: arguments of the attention.
        dropout: probability in the head.
        pool_dim: channels of the maximum of each level.
        **backbone: further arguments of `HierarchicalBackbone`.

    Shape:
        pos (B, N, 3), features (B, N, F) or None -> logits (B, num_classes).

    Raises:
        InputError: an argument is out of range, or the shape of an input does not fit the network.
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
        maxima = [cast("LBR", pool).max(x) for pool, x in zip(self.pools, tokens, strict=True)]
        logits: Tensor = self.head(torch.cat(maxima, dim=1))
        return logits
