"""PCT's local aggregation."""

from torch import Tensor, nn

from pcattn.layers.lbr import LBR
from pcattn.ops import gather
from pcattn.ops.local_aggregation import aggregate


class LocalAggregation(nn.Module):
    r"""PCT's sample-and-group layer (section 3.3): aggregates the features of a neighborhood at its center.

    .. math::
        y_i = \max_{j \in \mathcal{N}(i)} \mathrm{LBR}(\mathrm{LBR}([f_j - f_i,\; f_i]))

    The first linear map is applied to the points *before* they are gathered. This is the same function with 1/k of the
    products: for :math:`W = [W_a, W_b]`, :math:`W [f_j - f_i, f_i] = W_a f_j + (W_b - W_a) f_i`. The rest is
    `pcattn.ops.local_aggregation.aggregate`.

    Args:
        in_dim: channels C of the input features.
        out_dim: channels of both LBRs.
        num_relative: number of leading channels that enter only as differences f_j - f_i, such as positions in a cloud
            whose origin is arbitrary.

    Shape:
        features (B, N, C), indices centers (B, M) and neighbors (B, M, k) -> (B, M, out_dim). If centers is None,
        every point is a center and M = N.

    Source: Point Cloud Transformer, Guo et al. 2021, https://arxiv.org/abs/2012.09688.
    """

    def __init__(self, in_dim: int, out_dim: int, num_relative: int = 0) -> None:
        super().__init__()
        self.in_dim, self.num_relative = in_dim, num_relative
        self.linear = nn.Linear(2 * in_dim - num_relative, out_dim, bias=False)
        self.norm = nn.BatchNorm1d(out_dim)
        self.second = LBR(out_dim, out_dim)

    def forward(self, features: Tensor, centers: Tensor | None, neighbors: Tensor) -> Tensor:
        """Aggregate the features of `neighbors` at `centers`."""
        w_a, w_b = self.linear.weight.split((self.in_dim, self.in_dim - self.num_relative), dim=1)
        w_b = nn.functional.pad(w_b, (self.num_relative, 0))
        points = nn.functional.linear(features, w_a)  # (B, N, out_dim)
        at_centers = features if centers is None else gather(features, centers)
        shifts = nn.functional.linear(at_centers, w_b - w_a)  # (B, M, out_dim)
        return aggregate(points, shifts, neighbors, self.norm, self.second.linear, self.second.norm)
