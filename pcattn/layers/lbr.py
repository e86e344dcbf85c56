"""Building blocks on points-first tensors (..., C): batch normalization, LBR, and PCT's local aggregation."""

import torch
from torch import Tensor, nn

from pcattn.ops import gather
from pcattn.ops.batch_norm.op import normalize
from pcattn.ops.local_aggregation.op import aggregate, can_aggregate, pool
from pcattn.utils.checks import check_device, check_dtype, reads_values
from pcattn.utils.errors import InputError

#: The largest coordinate and feature that a network takes: products of products of larger ones leave float32.
LARGEST_INPUT = 1e12


class LBR(nn.Sequential):
    r"""Linear, batch normalization and activation on every point: PCT's :math:`\mathrm{ReLU}(\mathrm{BN}(xW^T + b))`.

    Args:
        in_dim: channels of the input.
        out_dim: channels of the output.
        bias: whether the linear map has a bias (batch normalization cancels it in training; PCT keeps it in the
            attention layers and in the head).
        negative_slope: 0 gives ReLU, anything else LeakyReLU with this slope.

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
        return self.act(normalize(self.norm, self.linear(x)))

    def max(self, x: Tensor) -> Tensor:
        """Maximum over the points of what every point is mapped to: (B, N, in_dim) -> (B, out_dim).

        Normalization and activation are monotone in every channel: in training on the CPU the maximum is taken first.
        """
        if can_aggregate(x, self.norm) and x.shape[0] * x.shape[1] > 1:
            return self.act(pool(x, self.linear, self.norm))
        return self(x).max(dim=1).values


class LocalAggregation(nn.Module):
    r"""PCT's sample-and-group layer (section 3.3): features of a neighborhood, gathered at its center.

    .. math::
        y_i = \max_{j \in \mathcal{N}(i)} \mathrm{LBR}(\mathrm{LBR}([f_j - f_i,\; f_i]))

    The first linear map is applied to the points *before* they are gathered, which is the same function for a k-th of
    the products: with :math:`W = [W_a, W_b]`, :math:`W [f_j - f_i, f_i] = W_a f_j + (W_b - W_a) f_i`. What follows is
    written out, or in training on the CPU done in blocks (`pcattn.ops.local_aggregation`): the same, in less time and
    memory.

    Args:
        in_dim: channels C of the input features.
        out_dim: channels of both LBRs.
        num_relative: of the first channels only the difference f_j - f_i enters: positions whose origin and unit say
            nothing.

    Shape:
        features (B, N, C), centers (B, M) and neighbors (B, M, k) indices -> (B, M, out_dim). centers None: every
        point is one, M = N.

    Source: Point Cloud Transformer, Guo et al. 2021, https://arxiv.org/abs/2012.09688.
    """

    def __init__(self, in_dim: int, out_dim: int, num_relative: int = 0) -> None:
        super().__init__()
        self.in_dim, self.num_relative = in_dim, num_relative
        self.linear = nn.Linear(2 * in_dim - num_relative, out_dim, bias=False)
        self.norm = nn.BatchNorm1d(out_dim)
        self.act = nn.ReLU()
        self.second = LBR(out_dim, out_dim)

    def forward(self, features: Tensor, centers: Tensor | None, neighbors: Tensor) -> Tensor:
        """Aggregate the features of `neighbors` at `centers`."""
        of_neighbor, of_center = self.linear.weight.split((self.in_dim, self.in_dim - self.num_relative), dim=1)
        of_center = nn.functional.pad(of_center, (self.num_relative, 0))
        from_points = nn.functional.linear(features, of_neighbor)
        at_center = features if centers is None else gather(features, centers)
        from_center = nn.functional.linear(at_center, of_center - of_neighbor)
        if can_aggregate(from_points, self.norm, self.second.norm):
            return aggregate(from_points, from_center, neighbors, self.norm, self.second.linear, self.second.norm)
        grouped = gather(from_points, neighbors) + from_center[:, :, None]  # (B, M, k, out_dim)
        # max().values, not amax: its gradient is one scatter in place of four passes over the groups.
        return self.second(self.act(normalize(self.norm, grouped))).max(dim=2).values


def network_input(pos: Tensor, features: Tensor | None, num_features: int, like: Tensor) -> Tensor:
    """The input of a network, checked: positions (B, N, 3) and features (B, N, F), concatenated to (B, N, 3 + F).

    Args:
        pos: (B, N, 3).
        features: (B, N, F).
        num_features: F.
        like: a weight of the network, of whose type the input has to be.

    Raises:
        InputError: a shape or a type differs from what the network was built for, or a value is NaN, infinite or beyond
            `LARGEST_INPUT`. On a GPU the values stay unread, because looking at them would wait for the device: NaN
            gives NaN there.
    """
    if pos.dim() != 3 or pos.shape[2] != 3 or 0 in pos.shape:
        raise InputError(f"expected pos to be (B, N, 3) with B >= 1 and N >= 1, but got shape {tuple(pos.shape)}")
    check_device(pos=pos, features=features)
    for name, values in (("pos", pos), ("features", features)):
        if values is None:
            continue
        check_dtype(name, values, like, "the weights")
        if reads_values(values):
            _check_values(name, values)
    if not num_features:
        if features is not None:
            raise InputError(
                f"expected no features (the network has num_features=0), but got shape {tuple(features.shape)}"
            )
        return pos
    expected = (*pos.shape[:2], num_features)
    if features is None or features.shape != expected:
        got = "none" if features is None else f"shape {tuple(features.shape)}"
        raise InputError(f"expected features to be {expected}, but got {got}")
    return torch.cat((pos, features), dim=2)


def _check_values(name: str, values: Tensor) -> None:
    fits = values.detach().abs() <= LARGEST_INPUT  # false for NaN
    if not bool(fits.all()):
        cloud = int((~fits).flatten(1).any(dim=1).nonzero()[0])
        if not bool(values.isfinite().all()):
            raise InputError(f"expected {name} to be finite, but cloud {cloud} of the batch has NaN or infinity")
        raise InputError(
            f"expected {name} of at most {LARGEST_INPUT:g}, but cloud {cloud} of the batch has "
            f"{float(values[cloud].abs().max()):g}: normalize clouds"
        )
