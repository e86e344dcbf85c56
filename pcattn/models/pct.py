"""The Point Cloud Transformer (Guo et al. 2021) and its naive and simple variants: NPCT, SPCT and PCT."""

from collections.abc import Iterable
from numbers import Integral
from typing import Any

import torch
from torch import Tensor, nn

from pcattn.attention import AttentionName, Geometry, layer_kwargs
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
    """Two LBRs on every point, then two rounds of sample-and-group (PCT section 3.3).

    With downsampling, each round selects centers by farthest point sampling, N/2 points and then N/4, and each center
    aggregates its k nearest neighbors among the points of the previous round. Without it, every point is a center in
    both rounds.

    Args:
        in_dim: channels of the input.
        dim: channels of the tokens, divisible by 4.
        k: number of neighbors of a point, including itself.
        fps_rule: see `pcattn.ops.farthest_point_sample`.
        downsample: reduce the cloud to N/4 tokens; otherwise every point remains a token.

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

    def forward(self, pos: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """Embed the points and aggregate their neighborhoods."""
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
        return pos, x


class PCTBackbone(nn.Module):
    r"""Embedding, attention layers, and the fusion of their outputs (PCT section 3, figure 2).

    .. math::
        F_0 = \mathrm{embed}(x), \quad F_l = \mathrm{attention}_l(F_{l-1}), \quad
        y = \mathrm{LeakyReLU}_{0.2}(\mathrm{BN}([F_1, \dots, F_L] W^T))

    With neighbor embedding, two LBRs (`mix`) come between F0 and the first attention layer, and F0 itself, before these
    LBRs, is concatenated to the outputs, as in the released code.

    Args:
        variant: `"npct"` and `"spct"`: point embedding, every point is a token, dim 128. `"pct"`: neighbor embedding,
            dim 256.
        attention: name, import path or class of the attention; None selects the variant's default: self-attention for
            NPCT, offset-attention for SPCT and PCT.
        attention_kwargs: arguments of the attention; a list of length `depth` gives each layer its own value.
        num_features: channels of a point in addition to its position (3 for normals).
        dim: channels of the tokens; None selects the variant's default.
        depth: L, number of attention layers. With 0, the outputs are the embedding alone; with point embedding that is
            a PointNet, the baseline without attention.
        out_dim: channels of the result.
        k: number of neighbors in the neighbor embedding.
        fps_rule: rule of farthest point sampling in the neighbor embedding.
        downsample: the neighbor embedding reduces the cloud to N/4 tokens; otherwise every point remains a token.
        position_embedding: add a learned linear map of the positions to the input of every attention layer, and use one
            LBR in `mix` instead of two, as `model_new.py` of the PyTorch port does.
        fuse_after_mix: concatenate F0 after the LBRs of `mix`. Versions before 0.2 did this by mistake; the argument
            exists so that their weights still work and will be removed with them.

    Shape:
        pos (B, N, 3), features (B, N, num_features) -> pos (B, T, 3), tokens (B, T, out_dim).
    """

    #: variant -> (default attention, default dim)
    VARIANTS = {"npct": ("self", 128), "spct": ("offset", 128), "pct": ("offset", 256)}  # noqa: RUF012

    def __init__(
        self,
        variant: str = "pct",
        attention: AttentionName | None = None,
        attention_kwargs: dict[str, Any] | None = None,
        num_features: int = 0,
        dim: int | None = None,
        depth: int = 4,
        out_dim: int = 1024,
        k: int = 32,
        fps_rule: str = "centroid",
        downsample: bool = True,
        position_embedding: bool = False,
        fuse_after_mix: bool = False,
    ) -> None:
        super().__init__()
        if variant not in self.VARIANTS:
            raise InputError(f"expected variant to be one of {', '.join(self.VARIANTS)}, but got {variant!r}")
        default_attention, default_dim = self.VARIANTS[variant]
        attention = default_attention if attention is None else attention
        dim = default_dim if dim is None else dim
        if dim < 4 or dim % 4:
            raise InputError(f"expected dim to be a multiple of 4, but got {dim}")
        counts = (("depth", depth, 0), ("k", k, 1), ("out_dim", out_dim, 1), ("num_features", num_features, 0))
        for name, value, least in counts:
            if not isinstance(value, Integral) or value < least:
                raise InputError(f"expected {name} to be an integer >= {least}, but got {value}")
        self.num_features = num_features
        in_dim = 3 + num_features
        grouped = variant == "pct"
        self.embedding: nn.Module = (
            NeighborEmbedding(in_dim, dim, k, fps_rule, downsample) if grouped else PointEmbedding(in_dim, dim)
        )
        num_mix = (1 if position_embedding else 2) if grouped else 0
        self.mix = nn.Sequential(*(LBR(dim, dim) for _ in range(num_mix)))
        self.position = nn.Linear(3, dim) if position_embedding else None
        self.layers = nn.ModuleList(
            AttentionLayer(dim, attention, kwargs) for kwargs in layer_kwargs(attention_kwargs, depth)
        )
        self.fuse_embedding = grouped or depth == 0
        # Without attention layers, nothing else would use the LBRs of `mix`.
        self.fuse_after_mix = fuse_after_mix or depth == 0
        self.fuse = LBR((depth + self.fuse_embedding) * dim, out_dim, negative_slope=0.2)
        self.out_dim = out_dim
        self.register_load_state_dict_pre_hook(_rename_mix)  # type: ignore[no-untyped-call]

    def forward(self, pos: Tensor, features: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Positions and features of the tokens."""
        pos, outputs = self.outputs(pos, features)
        return pos, self.fuse(outputs)

    def outputs(self, pos: Tensor, features: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Positions of the tokens (B, T, 3) and the concatenated outputs of all layers, before they are fused."""
        pos, embedded = self.embedding(pos, network_input(pos, features, self.num_features, self.fuse.linear.weight))
        x = self.mix(embedded)
        geometry = Geometry(pos)
        position = self.position(pos) if self.position is not None else None
        outputs = [x if self.fuse_after_mix else embedded] if self.fuse_embedding else []
        for layer in self.layers:
            x = layer(x if position is None else x + position, geometry)
            outputs.append(x)
        return pos, torch.cat(outputs, dim=2)


def is_fused_after_mix(names: Iterable[str]) -> bool:
    """Whether weights of these names precede version 0.2 and need `fuse_after_mix=True`; see `PCTBackbone`."""
    return any("embedding.mix." in name for name in names)


def _rename_mix(backbone: nn.Module, state: dict[str, Tensor], prefix: str, *_: Any) -> None:
    """Load weights from before 0.2, where `mix` was part of the embedding."""
    old = f"{prefix}embedding.mix."
    for name in [name for name in state if name.startswith(old)]:
        state[f"{prefix}mix.{name.removeprefix(old)}"] = state.pop(name)


class PCTClassifier(nn.Module):
    """Point Cloud Transformer for classification (PCT section 3, figure 2).

    The tokens of a `PCTBackbone`, their maximum over the cloud, then `ClassificationHead`. Parameters with 40 classes:
    SPCT 1,360,552; PCT 2,876,136, with `position_embedding` 2,811,112. With `fps_rule="pointnet2"` PCT equals
    `model.py` of the PyTorch port, and with `position_embedding=True` its `model_new.py`; with
    `head_activation="relu"` SPCT equals the Jittor original. The authors released no network for NPCT or for external
    attention (EAT).

    Args:
        num_classes: number of logits.
        variant: `"npct"`, `"spct"` or `"pct"`, see `PCTBackbone`.
        attention: name, import path or class of the attention; None selects the variant's default.
        attention_kwargs: arguments of the attention.
        dropout: probability in the head.
        head_activation: `"leaky_relu"` (slope 0.2, the PyTorch port) or `"relu"` (the Jittor original).
        **backbone: further arguments of `PCTBackbone`.

    Shape:
        pos (B, N, 3), features (B, N, F) or None -> logits (B, num_classes).

    Raises:
        InputError: an argument is out of range, or the shape of an input does not fit the network.

    Source: https://arxiv.org/abs/2012.09688; PyTorch port: https://github.com/Strawberry-Eat-Mango/PCT_Pytorch;
    Jittor original: https://github.com/MenghaoGuo/PCT.
    """

    def __init__(
        self,
        num_classes: int = 40,
        variant: str = "pct",
        attention: AttentionName | None = None,
        attention_kwargs: dict[str, Any] | None = None,
        dropout: float = 0.5,
        head_activation: str = "leaky_relu",
        **backbone: Any,
    ) -> None:
        super().__init__()
        self.backbone = construct("network", variant, PCTBackbone, variant, attention, attention_kwargs, **backbone)
        self.head = ClassificationHead(self.backbone.out_dim, num_classes, dropout, head_activation)

    def forward(self, pos: Tensor, features: Tensor | None = None) -> Tensor:
        """Logits of each cloud."""
        _, outputs = self.backbone.outputs(pos, features)
        logits: Tensor = self.head(self.backbone.fuse.max(outputs))
        return logits


class ClassificationHead(nn.Sequential):
    """in_dim -> 512 (no bias) -> 256 -> num_classes, with BN, activation and dropout after the first two.

    Args:
        in_dim: channels of the input.
        num_classes: number of logits.
        dropout: probability of both dropouts.
        activation: `"leaky_relu"` (slope 0.2) or `"relu"`.

    Shape:
        (B, in_dim) -> (B, num_classes).
    """

    ACTIVATIONS = {"leaky_relu": 0.2, "relu": 0.0}  # noqa: RUF012

    def __init__(self, in_dim: int, num_classes: int, dropout: float, activation: str = "leaky_relu") -> None:
        if not isinstance(num_classes, Integral) or num_classes < 1:
            raise InputError(f"expected num_classes to be an integer >= 1, but got {num_classes}")
        if activation not in self.ACTIVATIONS:
            names = ", ".join(self.ACTIVATIONS)
            raise InputError(f"expected head_activation to be one of {names}, but got {activation!r}")
        slope = self.ACTIVATIONS[activation]
        super().__init__(
            LBR(in_dim, 512, negative_slope=slope),
            nn.Dropout(dropout),
            LBR(512, 256, bias=True, negative_slope=slope),
            nn.Dropout(dropout),
            nn.Linear(256, num_classes),
        )
