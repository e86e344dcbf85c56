"""The Point Cloud Transformer (Guo et al. 2021) and its naive and simple variants."""

from numbers import Integral
from typing import Any

import torch
from torch import Tensor, nn

from pcattn.attention import Geometry, layer_kwargs
from pcattn.layers import LBR, AttentionLayer, LocalAggregation, network_input
from pcattn.ops import farthest_point_sample, gather, knn
from pcattn.utils.errors import InputError
from pcattn.utils.registry import construct


class PointEmbedding(nn.Module):
    """Two LBRs on every point, which stays a token (PCT section 3.1).

    Shape:
        pos (B, N, 3), x (B, N, in_dim) -> pos (B, N, 3), tokens (B, N, dim).
    """

    def __init__(self, in_dim: int, dim: int) -> None:
        super().__init__()
        self.lbr = nn.Sequential(LBR(in_dim, dim), LBR(dim, dim))

    def forward(self, pos: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """Embed every point."""
        return pos, self.lbr(x)


class NeighborEmbedding(nn.Module):
    """Two rounds of gathering the features of neighborhoods (PCT section 3.3).

    For classification each round first samples: farthest point sampling to N/2, then to N/4 points, and each chosen
    point gathers its k nearest neighbors among the points of the round before. For segmentation every point stays a
    token and gathers its k nearest neighbors in both rounds.

    Args:
        in_dim: channels of the input.
        dim: channels of the tokens, divisible by 4.
        k: neighbors of a point, itself among them.
        fps_rule: see `pcattn.ops.farthest_point_sample`.
        downsample: sample N/4 points; otherwise every point stays a token.

    Shape:
        pos (B, N, 3), x (B, N, in_dim) -> pos (B, T, 3), tokens (B, T, dim), T = N/4 or N.
    """

    def __init__(self, in_dim: int, dim: int, k: int = 32, fps_rule: str = "centroid", downsample: bool = True) -> None:
        super().__init__()
        self.k = k
        self.fps_rule = fps_rule
        self.downsample = downsample
        self.lbr = nn.Sequential(LBR(in_dim, dim // 4), LBR(dim // 4, dim // 4))
        self.groups = nn.ModuleList([LocalAggregation(dim // 4, dim // 2), LocalAggregation(dim // 2, dim)])
        self.mix = nn.Sequential(LBR(dim, dim), LBR(dim, dim))

    def forward(self, pos: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """Embed the points and gather them in neighborhoods."""
        num_points = pos.shape[1]
        if self.downsample and num_points < max(4, 2 * self.k):
            raise InputError(
                f"expected at least {max(4, 2 * self.k)} points a cloud "
                f"(the second round has half of them and gathers k={self.k} neighbors), but got {num_points}"
            )
        x = self.lbr(x)
        if self.downsample:
            for group, num_samples in zip(self.groups, (num_points // 2, num_points // 4), strict=True):
                centers = farthest_point_sample(pos, num_samples, self.fps_rule)
                sampled = gather(pos, centers)
                x = group(x, centers, knn(sampled, pos, self.k, query_indices=centers).indices)
                pos = sampled
        else:
            neighbors = knn(pos, pos, self.k).indices
            for group in self.groups:
                x = group(x, None, neighbors)
        return pos, self.mix(x)


class PCTBackbone(nn.Module):
    r"""Embedding, a stack of attention layers, and their outputs fused to one feature vector a token.

    Tokens F0 from the embedding pass L attention layers; the outputs F1 ... FL (with neighbor embedding F0 as well)
    are concatenated and mapped to `out_dim` by a linear map without bias, BN and LeakyReLU(0.2).

    Args:
        variant: `"npct"` and `"spct"`: point embedding, every point a token, dim 128. `"pct"`: neighbor embedding,
            dim 256.
        attention: name of the mechanism; None is the variant's own, self for NPCT and offset for SPCT and PCT.
        attention_kwargs: arguments of the mechanism; a list of length `depth` gives each layer its own value.
        num_features: channels of a point beside its position (normals: 3).
        dim: channels of the tokens; None is the variant's own.
        depth: L, number of attention layers. 0 with point embedding is a PointNet: the baseline without attention.
        out_dim: channels of the result.
        k: neighbors gathered by the neighbor embedding.
        fps_rule: rule of farthest point sampling in the neighbor embedding.
        downsample: the neighbor embedding leaves N/4 tokens; otherwise every point stays one.
        position_embedding: add one learned linear map of the positions to the input of every attention layer, as the
            released code does.

    Shape:
        pos (B, N, 3), features (B, N, num_features) -> pos (B, T, 3), tokens (B, T, out_dim).
    """

    #: variant -> (its attention, its dim)
    VARIANTS = {"npct": ("self", 128), "spct": ("offset", 128), "pct": ("offset", 256)}  # noqa: RUF012

    def __init__(
        self,
        variant: str = "pct",
        attention: str | None = None,
        attention_kwargs: dict[str, Any] | None = None,
        num_features: int = 0,
        dim: int | None = None,
        depth: int = 4,
        out_dim: int = 1024,
        k: int = 32,
        fps_rule: str = "centroid",
        downsample: bool = True,
        position_embedding: bool = False,
    ) -> None:
        super().__init__()
        if variant not in self.VARIANTS:
            raise InputError(f"expected variant to be one of {', '.join(self.VARIANTS)}, but got {variant!r}")
        own_attention, own_dim = self.VARIANTS[variant]
        attention = attention or own_attention
        dim = own_dim if dim is None else dim
        if dim < 4 or dim % 4:
            raise InputError(f"expected dim to be a multiple of 4, but got {dim}")
        counts = (("depth", depth, 0), ("k", k, 1), ("out_dim", out_dim, 1), ("num_features", num_features, 0))
        for name, value, least in counts:
            if not isinstance(value, Integral) or value < least:
                raise InputError(f"expected {name} to be an integer >= {least}, but got {value}")
        self.num_features = num_features
        in_dim = 3 + num_features
        self.embedding: nn.Module = (
            NeighborEmbedding(in_dim, dim, k, fps_rule, downsample) if variant == "pct" else PointEmbedding(in_dim, dim)
        )
        self.position = nn.Linear(3, dim) if position_embedding else None
        self.layers = nn.ModuleList(
            AttentionLayer(dim, attention, kwargs) for kwargs in layer_kwargs(attention_kwargs, depth)
        )
        self.fuse_embedding = variant == "pct" or depth == 0
        self.fuse = LBR((depth + self.fuse_embedding) * dim, out_dim, negative_slope=0.2)
        self.out_dim = out_dim

    def forward(self, pos: Tensor, features: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Tokens and where they are."""
        pos, outputs = self.outputs(pos, features)
        return pos, self.fuse(outputs)

    def outputs(self, pos: Tensor, features: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Positions of the tokens (B, T, 3), and the outputs of all layers side by side, before they are fused."""
        pos, x = self.embedding(pos, network_input(pos, features, self.num_features, self.fuse.linear.weight))
        geometry = Geometry(pos)
        position = self.position(pos) if self.position is not None else None
        outputs = [x] if self.fuse_embedding else []
        for layer in self.layers:
            x = layer(x if position is None else x + position, geometry)
            outputs.append(x)
        return pos, torch.cat(outputs, dim=2)


class PCTClassifier(nn.Module):
    """Point Cloud Transformer for classification (PCT section 3, figure 2).

    The tokens of a `PCTBackbone`, their maximum over the cloud, then 1024 -> 512 -> 256 -> num_classes with BN,
    LeakyReLU(0.2) and dropout. Parameters with 40 classes: SPCT 1,360,552; PCT 2,876,136.

    Args:
        num_classes: number of logits.
        variant: `"npct"`, `"spct"` or `"pct"`, see `PCTBackbone`.
        attention: name of the mechanism; None is the variant's own.
        attention_kwargs: arguments of the mechanism.
        dropout: probability in the head.
        **backbone: further arguments of `PCTBackbone`.

    Shape:
        pos (B, N, 3), features (B, N, F) or None -> logits (B, num_classes).

    Raises:
        InputError: an argument is out of range, or the input has another shape than the network was built for.

    Source: https://arxiv.org/abs/2012.09688.
    """

    def __init__(
        self,
        num_classes: int = 40,
        variant: str = "pct",
        attention: str | None = None,
        attention_kwargs: dict[str, Any] | None = None,
        dropout: float = 0.5,
        **backbone: Any,
    ) -> None:
        super().__init__()
        self.backbone = construct("network", variant, PCTBackbone, variant, attention, attention_kwargs, **backbone)
        self.head = ClassificationHead(self.backbone.out_dim, num_classes, dropout)

    def forward(self, pos: Tensor, features: Tensor | None = None) -> Tensor:
        """Logits of each cloud."""
        _, outputs = self.backbone.outputs(pos, features)
        return self.head(self.backbone.fuse.max(outputs))


class ClassificationHead(nn.Sequential):
    """in_dim -> 512 (no bias) -> 256 -> num_classes; BN, LeakyReLU(0.2) and dropout after the first two.

    Shape:
        (B, in_dim) -> (B, num_classes).
    """

    def __init__(self, in_dim: int, num_classes: int, dropout: float) -> None:
        if not isinstance(num_classes, Integral) or num_classes < 1:
            raise InputError(f"expected num_classes to be an integer >= 1, but got {num_classes}")
        super().__init__(
            LBR(in_dim, 512, negative_slope=0.2),
            nn.Dropout(dropout),
            LBR(512, 256, bias=True, negative_slope=0.2),
            nn.Dropout(dropout),
            nn.Linear(256, num_classes),
        )
