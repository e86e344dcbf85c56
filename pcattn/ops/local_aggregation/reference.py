"""Local aggregation in torch, operation by operation."""

from torch import Tensor, nn

from pcattn.ops.batch_norm.op import normalize
from pcattn.ops.grouping.reference import gather


def aggregate(
    points: Tensor, centers: Tensor, neighbors: Tensor, first: nn.Module, linear: nn.Module, second: nn.Module
) -> Tensor:
    """See `pcattn.ops.local_aggregation.op.aggregate`."""
    grouped = gather(points, neighbors) + centers[:, :, None]  # (B, M, k, C)
    hidden = normalize(first, grouped).relu()
    # max().values, not amax: its gradient is one scatter instead of four passes over the groups.
    return normalize(second, linear(hidden)).relu().max(dim=2).values


def pool(x: Tensor, linear: nn.Module, norm: nn.Module) -> Tensor:
    """See `pcattn.ops.local_aggregation.op.pool`."""
    return normalize(norm, linear(x)).max(dim=1).values
