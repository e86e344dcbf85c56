"""Gathering and grouping in torch. Arguments are not checked."""

import torch
from torch import Tensor


def flat_indices(indices: Tensor, num_points: int) -> Tensor:
    """Indices (B, ...) into clouds of N points as one vector of indices into all B * N points."""
    offsets = torch.arange(indices.shape[0], device=indices.device) * num_points
    return (indices + offsets.view(-1, *[1] * (indices.dim() - 1))).flatten()


def gather(features: Tensor, indices: Tensor) -> Tensor:
    """Rows of features (B, N, C) by indices (B, ...): (B, ..., C)."""
    # One flat index_select is faster than torch.gather, forward and backward.
    rows = features.flatten(0, 1).index_select(0, flat_indices(indices, features.shape[1]))
    return rows.view(*indices.shape, features.shape[2])


def group(features: Tensor, neighbors: Tensor, centers: Tensor) -> Tensor:
    """[f_j - f_i, f_i], (B, M, k, 2C), for features (B, N, C), neighbors j (B, M, k) and centers i (B, M)."""
    own = gather(features, centers)[:, :, None]  # (B, M, 1, C)
    relative = gather(features, neighbors) - own  # (B, M, k, C)
    return torch.cat((relative, own.expand_as(relative)), dim=-1)
