"""Clouds that are hard for a neighbor search, and a brute-force search."""

import torch
from torch import Tensor

CLOUDS = ("random", "surface", "grid", "rough grid", "duplicates", "one point", "far away", "tiny", "plane")


def make_cloud(name: str, num_points: int = 343, batch: int = 2, dtype: torch.dtype = torch.float32) -> Tensor:
    """A cloud of `CLOUDS` (batch, num_points, 3), in random order."""
    side = round(num_points ** (1 / 3))
    axes = [torch.arange(side, dtype=torch.float64)] * 3
    grid = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).view(1, -1, 3).repeat(batch, 1, 1)
    grid = grid[:, torch.randperm(side**3)]
    points = torch.rand(batch, num_points, 3, dtype=torch.float64) - 0.5
    if name == "surface":
        points = torch.nn.functional.normalize(points, dim=-1)
    elif name == "grid":
        points = grid
    elif name == "rough grid":
        points = grid * 0.1
    elif name == "duplicates":
        copies = torch.randperm(num_points)[: num_points * 7 // 8]
        points[:, copies] = points[:, :1].clone()
    elif name == "one point":
        points = points[:, :1].repeat(1, num_points, 1)
    elif name == "far away":
        points = points + 1000.0
    elif name == "tiny":
        points = points * 1e-4
    elif name == "plane":
        points[..., 1] = 0.25
    return points.to(dtype)


def brute_force(query: Tensor, support: Tensor, metric: str = "l2") -> Tensor:
    """All distances (B, M, N), in float64."""
    difference = query.double()[:, :, None] - support.double()[:, None]
    return difference.square().sum(-1) if metric == "l2" else difference.abs().amax(-1)
