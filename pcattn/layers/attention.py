"""Layers around an attention core: PCT's update and the transformer block."""

from typing import Any

import torch
from torch import Tensor, nn

from pcattn.attention.geometry import Geometry
from pcattn.attention.registry import AttentionName, build_attention
from pcattn.layers.lbr import LBR


class AttentionLayer(nn.Module):
    r"""An attention core with PCT's update around it.

    .. math::
        y = x + \mathrm{LBR}(\mathrm{core}(x)) \quad\text{or}\quad y = x + \mathrm{LBR}(x - \mathrm{core}(x))

    The first is the residual update, the second the offset update. The class attribute `update` of a core selects one
    (`"residual"` if the core has none).

    Args:
        dim: channels C.
        attention: name in `ATTENTION`, import path or class of an attention.
        attention_kwargs: further arguments of the attention.

    Shape:
        x (B, N, C) -> (B, N, C).
    """

    def __init__(self, dim: int, attention: AttentionName, attention_kwargs: dict[str, Any] | None = None) -> None:
        super().__init__()
        self.core = build_attention(attention, dim, **(attention_kwargs or {}))
        self.lbr = LBR(dim, dim, bias=True)
        self.offset = getattr(self.core, "update", "residual") == "offset"

    def forward(self, x: Tensor, geometry: Geometry) -> Tensor:
        """Update the features of every point."""
        core = self.core(x, geometry)
        update: Tensor = self.lbr(x - core if self.offset else core)
        return x + update


class AttentionBlock(nn.Module):
    r"""A pre-norm transformer block around an attention core.

    .. math::
        x' = x + \lambda_1 \odot \mathrm{core}(\mathrm{LN}(x)), \qquad
        y = x' + \lambda_2 \odot \mathrm{MLP}(\mathrm{LN}(x'))

    with layer scale :math:`\lambda` (CaiT, section 2) and stochastic depth: in training, each branch is dropped for a
    cloud with probability `drop_path`. With the offset update (see `AttentionLayer`), the first branch is
    LN(x) - core(LN(x)).

    Args:
        dim: channels C.
        attention: name in `ATTENTION`, import path or class of an attention.
        attention_kwargs: further arguments of the attention.
        mlp_ratio: width of the MLP's hidden layer, in units of C.
        layer_scale: initial value of both lambdas.
        drop_path: probability in [0, 1).

    Shape:
        x (B, N, C) -> (B, N, C).

    Source: the block of NAT, Hassani et al. 2022, https://arxiv.org/abs/2204.07143; layer scale: Touvron et al. 2021,
    https://arxiv.org/abs/2103.17239; stochastic depth: Huang et al. 2016, https://arxiv.org/abs/1603.09382.
    """

    def __init__(
        self,
        dim: int,
        attention: AttentionName,
        attention_kwargs: dict[str, Any] | None = None,
        mlp_ratio: float = 2.0,
        layer_scale: float = 0.1,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.core = build_attention(attention, dim, **(attention_kwargs or {}))
        self.offset = getattr(self.core, "update", "residual") == "offset"
        self.scale1 = nn.Parameter(torch.full((dim,), layer_scale))
        self.norm2 = nn.LayerNorm(dim)
        hidden = round(mlp_ratio * dim)
        self.mlp = nn.Sequential(nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, dim))
        self.scale2 = nn.Parameter(torch.full((dim,), layer_scale))
        self.drop_path = drop_path

    def forward(self, x: Tensor, geometry: Geometry) -> Tensor:
        """Update the features of every point."""
        normed = self.norm1(x)
        core = self.core(normed, geometry)
        x = x + self._drop(self.scale1 * (normed - core if self.offset else core))
        return x + self._drop(self.scale2 * self.mlp(self.norm2(x)))

    def _drop(self, branch: Tensor) -> Tensor:
        """Drop a branch (B, N, C) for some clouds and scale it for the others, which keeps its expectation."""
        if not self.training or self.drop_path == 0.0:
            return branch
        keep = 1.0 - self.drop_path
        return branch * branch.new_empty(branch.shape[0], 1, 1).bernoulli_(keep) / keep
