"""Offset-attention, the attention of the Point Cloud Transformer."""

from typing import ClassVar

from torch import Tensor, nn

from pcattn.attention.geometry import Geometry


class OffsetAttention(nn.Module):
    r"""Offset-attention of PCT (section 3.2, equations 7 to 9), as its authors released it.

    Energies :math:`e_{ij} = q_i \cdot q_j`, without a scale, from one weight shared by queries and keys. They are
    normalised twice: softmax over the queries i, then every row divided by its sum over the keys j,

    .. math::
        s_{ij} = \frac{\exp e_{ij}}{\sum_{i'} \exp e_{i'j}}, \qquad
        \mathrm{out}_i = \frac{\sum_j s_{ij} v_j}{10^{-9} + \sum_j s_{ij}} .

    The layer around it feeds the *offset* x - out to its LBR (`update = "offset"`), which the paper likens to a
    graph Laplacian. With the LBR a layer has 2.25 C^2 + 4 C parameters.

    Differs from the released code in layout only: there the transposed matrix is normalised and applied transposed,
    which is the same because e is symmetric.

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
            raise ValueError(f"expected dim to be divisible by 4, but got dim={dim}")
        self.qk = nn.Linear(dim, dim // 4, bias=False)
        self.v = nn.Linear(dim, dim)

    def forward(self, x: Tensor, geometry: Geometry) -> Tensor:
        """Attend from every point to every point."""
        q = self.qk(x)
        # In float16 the constant 1e-9 is zero, so both normalisations run in at least float32.
        energy = q @ q.transpose(1, 2)  # (B, N, N)
        if energy.dtype.itemsize < 4:
            energy = energy.float()
        weights = energy.softmax(dim=1)
        weights = weights / (1e-9 + weights.sum(dim=2, keepdim=True))
        v = self.v(x)
        return weights.to(v.dtype) @ v
