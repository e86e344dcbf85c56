"""The hierarchical transformer on every point: its levels, and the way back up."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pcattn.attention import AttentionName
from pcattn.layers import LBR
from pcattn.models.hierarchical import HierarchicalBackbone
from pcattn.models.segmenter import SegmentationHead, one_hot
from pcattn.ops import interpolate
from pcattn.ops.batch_norm.op import normalize
from pcattn.utils.errors import InputError
from pcattn.utils.registry import construct


class HierarchicalSegmenter(nn.Module):
    """The hierarchical transformer for part segmentation.

    From the last level of a `HierarchicalBackbone` upwards, the features of a level are interpolated to the points of
    the one before, and joined to its own (`FeaturePropagation`). Each token of the first level then goes, with maximum
    and mean of the last level and an embedding of the cloud's category, through the head of PCT's segmenter. Row n of
    the result belongs to point n of the input.

    Args:
        num_parts: number of logits of a point.
        num_categories: number of categories that condition the network; None leaves the category out.
        variant: a name of `pcattn.models.hierarchical.SIZES`.
        attention: name of the mechanism, or a list with one a level; None is neighborhood attention.
        attention_kwargs: arguments of the mechanism.
        dropout: probability in the head.
        stem_stride: points of the cloud for a token of the first level. 1: every point is one; otherwise logits are
            interpolated from the tokens to the points, see `SegmentationHead`.
        **backbone: further arguments of `HierarchicalBackbone`.

    Shape:
        pos (B, N, 3), category (B,) integers, features (B, N, F) or None -> logits (B, N, num_parts).

    Raises:
        InputError: an argument is out of range, or the input has another shape than the network was built for.
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
        self.num_categories = num_categories or 0
        self.category = LBR(self.num_categories, 64, negative_slope=0.2) if self.num_categories else None
        of_cloud = 2 * dims[-1] + (64 if self.category is not None else 0)
        self.head = SegmentationHead(dims[0], of_cloud, num_parts, dropout)

    def forward(self, pos: Tensor, category: Tensor | None = None, features: Tensor | None = None) -> Tensor:
        """Logits of every point, in the order of the points."""
        levels, tokens = self.backbone(pos, features)
        x = tokens[-1]
        of_cloud = [x.max(dim=1).values, x.mean(dim=1)]
        if self.category is not None:
            of_cloud.append(self.category(one_hot(category, pos, self.num_categories).to(x.dtype)))
        at = [level.geometry.pos for level in levels]
        for level in reversed(range(len(self.upwards))):
            x = self.upwards[level](x, tokens[level], at[level + 1], at[level])
        return self.head(x, torch.cat(of_cloud, dim=1), (pos, at[0]) if levels[0].centers is not None else None)


class FeaturePropagation(nn.Module):
    r"""From the points of a level to those of the level before (PointNet++ section 3.4).

    .. math::
        y_i = \mathrm{LBR}([\mathrm{interpolate}(x)_i,\; s_i])

    The linear map of the first is taken before it is interpolated, which is the same function, because interpolation
    weights sum to one, and fewer products.

    Args:
        below_dim: channels of x.
        dim: channels of s and of the result.

    Shape:
        x (B, M, below_dim), s (B, N, dim), positions (B, M, 3) of x and (B, N, 3) of s -> (B, N, dim).

    Source: PointNet++, Qi et al. 2017, https://arxiv.org/abs/1706.02413.
    """

    def __init__(self, below_dim: int, dim: int) -> None:
        super().__init__()
        self.dims = (below_dim, dim)
        self.lbr = LBR(below_dim + dim, dim)

    def forward(self, x: Tensor, skipped: Tensor, at_x: Tensor, at_skipped: Tensor) -> Tensor:
        """Interpolate and join."""
        from_below, from_here = self.lbr.linear.weight.split(self.dims, dim=1)
        x = interpolate(at_skipped, at_x, F.linear(x, from_below)) + F.linear(skipped, from_here)
        return self.lbr.act(normalize(self.lbr.norm, x))
