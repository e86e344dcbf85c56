"""Interpolation in torch, once the neighbors are known."""

import torch
from torch import Tensor

from pcattn.ops.grouping.reference import gather


def interpolate(distances: Tensor, indices: Tensor, features: Tensor) -> Tensor:
    """Mean of features (B, N, C) of neighbors (B, M, k), weighted by inverse squared distance: (B, M, C).

    Distances are squared, float64 and ascending; missing neighbors have distance inf.
    """
    missing, zero = ~distances.isfinite(), distances == 0
    # Relative to the weight of the nearest point, weights do not overflow; the common factor cancels.
    weights = distances[..., :1].detach() / distances.masked_fill(missing | zero, 1.0)
    weights = weights.masked_fill(zero, 1.0).masked_fill(missing, 0.0)
    weights = weights / weights.sum(-1, keepdim=True).clamp(min=1.0)
    with torch.autocast(features.device.type, enabled=False):
        return torch.einsum("bmk,bmkc->bmc", weights.to(features.dtype), gather(features, indices))
