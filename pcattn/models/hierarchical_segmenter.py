"""The hierarchical transformer for segmentation: its levels, and feature propagation back to all points."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pcattn.attention import AttentionName
from pcattn.layers import LBR
from pcattn.models.hierarchical import HierarchicalBackbone
from pcattn.models.segmenter import SegmentationHead, cloud_features
from pcattn.ops import interpolate
from pcattn.ops.batch_norm.op import normalize
from pcattn.utils.errors import InputError
from pcattn.utils.registry import construct


class HierarchicalSegmenter(nn.Module):
    """The hierarchical transformer for part segmentation.

    Starting at the last level of a `HierarchicalBackbone`, features are interpolated to the points of the previous
    level and combined with its features (`FeaturePropagation`). The head is that of PCT's segmenter. Its input is each
    token of the first level with the maximum and the mean of the last level and an embedding of the cloud's category.
    Row n of the result belongs to point n of the input.

    Args:
        num_parts: number of logits of a point.
        num_categories: number of categories that condition the network; None leaves the category out.
        variant: a key of `pcattn.models.hierarchical.SIZES`.
        attention: name, import path or class of the attention, or a list with one per level; None selects
            neighborhood attention.
        attention_kwargs: arguments of the attention.
        dropout: probability in the head.
        stem_stride: ratio of the number of points in the cloud to that in the first level. With 1, every point is a
            token; otherwise features are interpolated from the tokens to the points, see `SegmentationHead`.
        **backbone: further arguments of `HierarchicalBackbone`.

    Shape:
        pos (B, N, 3), category (B,) integers, features (B, N, F) or None -> logits (B, N, num_parts).

    Raises:
        InputError: an argument is out of range, or the shape of an input does not fit the network.
    """

    def __init__(
        self,
        num_parts: int = 50,
        num_categories: int | None = 16,
        variant: str = "hierarchical_tiny",
        attention: AttentionName | Sequence[AttentionName] | None = None,
        attention_kwargs: dict[str, Any] | None = None,
        dropout: float = 0.5,
        stem_stride: int = 1,
        **backbone: Any,
    ) -> None:
        super().__init__()
        if num_parts < 1 or (num_categories or 0) < 0:
            raise InputError(
                f"expected num_parts >= 1 and num_categories >= 0, but got {num_parts} and {num_categories}"
            )
        self.backbone = construct(
            "network", variant, HierarchicalBackbone, variant, attention, attention_kwargs, stem_stride=stem_stride,
            **backbone,
        )  # fmt: skip
        dims = self.backbone.dims
        self.upwards = nn.ModuleList(FeaturePropagation(*pair) for pair in zip(dims[1:], dims, strict=False))
        self.category = LBR(num_categories, 64, negative_slope=0.2) if num_categories else None
        cloud_dim = 2 * dims[-1] + (64 if self.category is not None else 0)
        self.head = SegmentationHead(dims[0], cloud_dim, num_parts, dropout)

    def forward(self, pos: Tensor, category: Tensor | None = None, features: Tensor | None = None) -> Tensor:
        """Logits of every point, in the order of the points."""
        levels, tokens = self.backbone(pos, features)
        x = tokens[-1]
        cloud = cloud_features(x, pos, category, self.category)
        positions = [level.geometry.pos for level in levels]
        for level in reversed(range(len(self.upwards))):
            x = self.upwards[level](x, tokens[level], positions[level + 1], positions[level])
        points = None if levels[0].centers is None else (pos, positions[0])
        logits: Tensor = self.head(x, cloud, points)
        return logits


class FeaturePropagation(nn.Module):
    r"""Propagates features from the points of a level to those of the previous level (PointNet++ section 3.4).

    .. math::
        y_i = \mathrm{LBR}([\mathrm{interpolate}(x)_i,\; s_i])

    The linear map is applied to x before the interpolation. This is the same function, because interpolation weights
    sum to one, with fewer products.

    Args:
        in_dim: channels of x.
        dim: channels of s and of the result.

    Shape:
        x (B, M, in_dim), s (B, N, dim), positions (B, M, 3) of x and (B, N, 3) of s -> (B, N, dim).

    Source: PointNet++, Qi et al. 2017, https://arxiv.org/abs/1706.02413.
    """

    def __init__(self, in_dim: int, dim: int) -> None:
        super().__init__()
        self.dims = [in_dim, dim]
        self.lbr = LBR(in_dim + dim, dim)

    def forward(self, x: Tensor, skip: Tensor, x_pos: Tensor, skip_pos: Tensor) -> Tensor:
        """Interpolate x and combine it with the features of the previous level."""
        x_weight, skip_weight = torch.split(self.lbr.linear.weight, self.dims, dim=1)
        x = interpolate(skip_pos, x_pos, F.linear(x, x_weight)) + F.linear(skip, skip_weight)
        x = self.lbr.act(normalize(self.lbr.norm, x))
        return x
