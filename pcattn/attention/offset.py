"""Offset-attention, the attention of the Point Cloud Transformer."""

from typing import ClassVar

import torch
from torch import Tensor, nn

from pcattn.attention.geometry import Geometry
from pcattn.attention.maps import AttentionMaps, head_maps
from pcattn.ops.offset_attention import offset_attention
from pcattn.ops.offset_attention.reference import attention_weights, widen
from pcattn.utils.errors import InputError


class OffsetAttention(nn.Module):
    r"""Offset-attention of PCT (section 3.2, equations 7 to 9), as in its released code.

    Queries and keys share one weight, and energies :math:`e_{ij} = q_i \cdot q_j` have no scale. They are normalized
    twice: by a softmax over the queries i, then by dividing every row by its sum over the keys j,

    .. math::
        s_{ij} = \frac{\exp e_{ij}}{\sum_{i'} \exp e_{i'j}}, \qquad
        \mathrm{out}_i = \frac{\sum_j s_{ij} v_j}{10^{-9} + \sum_j s_{ij}} .

    The layer around it feeds the *offset* x - out to its LBR (`update = "offset"`), which the paper likens to a graph
    Laplacian. With the LBR, a layer has 2.25 C^2 + 4 C parameters. Time is quadratic in N, memory is linear.

    Differs from the released code only in layout: the code normalizes and applies the transposed matrix, which is the
    same because e is symmetric.

    Args:
        dim: channels C, divisible by 4.

    Shape:
        x (B, N, C) -> (B, N, C).

    Source: Point Cloud Transformer, Guo et al. 2021, https://arxiv.org/abs/2012.09688.
    """

    update: ClassVar[str] = "offset"

    def __init__(self, dim: int) -> None:
        super().__init__()
        if dim % 4:
            raise InputError(f"expected dim to be divisible by 4, but got dim={dim}")
        self.qk = nn.Linear(dim, dim // 4, bias=False)
        self.v = nn.Linear(dim, dim)

    def forward(self, x: Tensor, geometry: Geometry) -> Tensor:
        """Attend from every point to every point."""
        return offset_attention(self.qk(x), self.v(x))

    def attention_map(self, x: Tensor, geometry: Geometry, point: int) -> AttentionMaps:
        """One map: the weights s_ij / (1e-9 + sum_j s_ij) of a point i, which sum to 1."""
        q = widen(self.qk(x))
        with torch.autocast(q.device.type, enabled=False):
            weights = attention_weights(q)  # (B, keys, queries)
        return head_maps(weights[:, None, :, point])
