"""PCT for part segmentation and normal estimation (Guo et al. 2021, sections 3.3 and 4.3)."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pcattn.attention import AttentionName
from pcattn.layers import LBR
from pcattn.models.pct import PCTBackbone
from pcattn.ops import interpolate
from pcattn.ops.batch_norm.op import normalize
from pcattn.utils.checks import check_device, check_labels, is_integer
from pcattn.utils.errors import InputError
from pcattn.utils.registry import construct


class PCTSegmenter(nn.Module):
    """Point Cloud Transformer for part segmentation (PCT section 3.3, figure 2).

    Each token of a `PCTBackbone` is concatenated with the maximum and the mean over the cloud and with an embedding of
    the cloud's category, and mapped 3136 -> 512 -> 256 -> num_parts by `SegmentationHead`. Row n of the result belongs
    to point n of the input. SPCT with 50 parts and 16 categories has 2,446,130 parameters.

    Args:
        num_parts: number of logits of a point.
        num_categories: number of categories that condition the network; None leaves the category out.
        variant: `"npct"` and `"spct"`: point embedding. `"pct"`: neighbor embedding in which every point remains a
            token, as in the paper. `"pct_sampled"`: the neighbor embedding of the classifier, whose N/4 tokens are
            interpolated to the points; attention between all pairs of tokens then costs a sixteenth.
        attention: name, import path or class of the attention; None selects the variant's default: self-attention for
            NPCT, offset-attention for the others.
        attention_kwargs: arguments of the attention; a list of length `depth` gives each layer its own value.
        dropout: probability in the head.
        **backbone: further arguments of `PCTBackbone`.

    Shape:
        pos (B, N, 3), category (B,) integers, features (B, N, F) or None -> logits (B, N, num_parts).

    Raises:
        InputError: an argument is out of range, or the shape of an input does not fit the network.

    Differs from the paper, which gives no layer sizes for `"pct"`: they are those of the released classifier.
    `"pct_sampled"` is not in the paper.

    Source: https://arxiv.org/abs/2012.09688.
    """

    #: variant -> (variant of the backbone, whether the neighbor embedding samples)
    VARIANTS = {  # noqa: RUF012
        "npct": ("npct", False),
        "spct": ("spct", False),
        "pct": ("pct", False),
        "pct_sampled": ("pct", True),
    }

    def __init__(
        self,
        num_parts: int = 50,
        num_categories: int | None = 16,
        variant: str = "pct",
        attention: AttentionName | None = None,
        attention_kwargs: dict[str, Any] | None = None,
        dropout: float = 0.5,
        **backbone: Any,
    ) -> None:
        super().__init__()
        if variant not in self.VARIANTS:
            raise InputError(f"expected variant to be one of {', '.join(self.VARIANTS)}, but got {variant!r}")
        if num_parts < 1 or (num_categories or 0) < 0:
            raise InputError(
                f"expected num_parts >= 1 and num_categories >= 0, but got {num_parts} and {num_categories}"
            )
        base, self.downsample = self.VARIANTS[variant]
        self.backbone = construct(
            "network", variant, PCTBackbone, base, attention, attention_kwargs, downsample=self.downsample, **backbone
        )
        self.category = LBR(num_categories, 64, negative_slope=0.2) if num_categories else None
        cloud_dim = 2 * self.backbone.out_dim + (64 if self.category is not None else 0)
        self.head = SegmentationHead(self.backbone.out_dim, cloud_dim, num_parts, dropout)

    def forward(self, pos: Tensor, category: Tensor | None = None, features: Tensor | None = None) -> Tensor:
        """Logits of every point, in the order of the points."""
        token_pos, tokens = self.backbone(pos, features)
        points = (pos, token_pos) if self.downsample else None
        logits: Tensor = self.head(tokens, cloud_features(tokens, pos, category, self.category), points)
        return logits


def cloud_features(tokens: Tensor, pos: Tensor, category: Tensor | None, embedding: LBR | None) -> Tensor:
    """Maximum and mean of the tokens (B, T, C), and the embedding of the category (B,): (B, 2 C + 64).

    Args:
        tokens: (B, T, C).
        pos: (B, N, 3), for checks.
        category: (B,), integers.
        embedding: of one-hot categories; None leaves the category out.

    Raises:
        InputError: the categories are missing or do not fit the clouds, or on the CPU one is out of range.
    """
    features = [tokens.max(dim=1).values, tokens.mean(dim=1)]
    if embedding is not None:
        features.append(embedding(_one_hot(category, pos, embedding.linear.in_features).to(tokens.dtype)))
    return torch.cat(features, dim=1)


def _one_hot(category: Tensor | None, pos: Tensor, num_categories: int) -> Tensor:
    if category is None or category.shape != pos.shape[:1] or not is_integer(category):
        got = "none" if category is None else f"{category.dtype} of shape {tuple(category.shape)}"
        raise InputError(f"expected category to be integers of shape {tuple(pos.shape[:1])}, but got {got}")
    check_device(pos=pos, category=category)
    check_labels("category", category, num_categories)
    return category[:, None] == torch.arange(num_categories, device=category.device)


class SegmentationHead(nn.Module):
    """token_dim + cloud_dim -> 512 -> 256 -> num_outputs on every point.

    BN and ReLU follow the first two layers, dropout follows the first.

    The first linear map of [token, cloud] is the sum of a map of the token and a map of the cloud, which is computed
    once per cloud. Tokens are mapped before they are interpolated. This is the same function, because interpolation
    weights sum to one, with a quarter of the products.

    Args:
        token_dim: channels of a token.
        cloud_dim: channels of the features of a cloud.
        num_outputs: number of outputs of a point.
        dropout: probability.

    Shape:
        tokens (B, T, token_dim), cloud (B, cloud_dim), points None or positions (B, N, 3) of the points and (B, T, 3)
        of the tokens -> (B, N, num_outputs); without points, N = T.
    """

    def __init__(self, token_dim: int, cloud_dim: int, num_outputs: int, dropout: float) -> None:
        super().__init__()
        self.dims = [token_dim, cloud_dim]
        self.first = LBR(token_dim + cloud_dim, 512, bias=True)
        self.dropout = nn.Dropout(dropout)
        self.second = LBR(512, 256, bias=True)
        self.last = nn.Linear(256, num_outputs)

    def forward(self, tokens: Tensor, cloud: Tensor, points: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """Outputs of every point."""
        first = self.first
        token_weight, cloud_weight = torch.split(first.linear.weight, self.dims, dim=1)
        x: Tensor = F.linear(tokens, token_weight)
        if points is not None:
            x = interpolate(*points, x)
        x = x + F.linear(cloud, cloud_weight, first.linear.bias)[:, None]
        x = self.dropout(first.act(normalize(first.norm, x)))
        x = self.last(self.second(x))
        return x


class PCTNormals(nn.Module):
    """Point Cloud Transformer for normal estimation (PCT section 4.3): a segmenter without category and with 3 outputs.

    The training loss is the mean of `pcattn.metrics.cosine_distance`, the metric is `pcattn.metrics.angle_error`.

    Args:
        variant, attention, attention_kwargs, dropout, **backbone: see `PCTSegmenter`.

    Shape:
        pos (B, N, 3), features (B, N, F) or None -> normals (B, N, 3) of unit length, in the order of the points.

    Raises:
        InputError: as `PCTSegmenter`.

    Source: https://arxiv.org/abs/2012.09688.
    """

    def __init__(
        self,
        variant: str = "pct",
        attention: AttentionName | None = None,
        attention_kwargs: dict[str, Any] | None = None,
        dropout: float = 0.5,
        **backbone: Any,
    ) -> None:
        super().__init__()
        self.network = PCTSegmenter(3, None, variant, attention, attention_kwargs, dropout, **backbone)

    def forward(self, pos: Tensor, features: Tensor | None = None) -> Tensor:
        """The normal of every point."""
        return F.normalize(self.network(pos, features=features), dim=2)
