"""LBR: linear map, batch normalization and activation."""

from torch import Tensor, nn

from pcattn.ops.batch_norm import normalize
from pcattn.ops.local_aggregation import pool


class LBR(nn.Sequential):
    r"""Linear, batch normalization and activation on every point: PCT's :math:`\mathrm{ReLU}(\mathrm{BN}(xW^T + b))`.

    Args:
        in_dim: channels of the input.
        out_dim: channels of the output.
        bias: whether the linear map has a bias. Batch normalization cancels it in training; PCT keeps it in the
            attention layers and in the head.
        negative_slope: 0 selects ReLU, any other value LeakyReLU with this slope.

    Shape:
        (..., in_dim) -> (..., out_dim).
    """

    def __init__(self, in_dim: int, out_dim: int, *, bias: bool = False, negative_slope: float = 0.0) -> None:
        super().__init__()
        self.linear = nn.Linear(in_dim, out_dim, bias=bias)
        self.norm = nn.BatchNorm1d(out_dim)
        self.act = nn.LeakyReLU(negative_slope) if negative_slope else nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Map every point."""
        out: Tensor = self.act(normalize(self.norm, self.linear(x)))
        return out

    def max(self, x: Tensor) -> Tensor:
        """Maximum of the output over the points: (B, N, in_dim) -> (B, out_dim).

        The activation is monotone, so it is applied to the maxima only.
        """
        out: Tensor = self.act(pool(x, self.linear, self.norm))
        return out
