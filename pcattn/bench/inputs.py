"""Point clouds to measure with."""

import torch
from torch import Tensor


def noisy_spheres(batch: int, num_points: int, seed: int = 0) -> Tensor:
    """Points on spheres with a little noise, (B, N, 3)."""
    generator = torch.Generator().manual_seed(seed)
    points = torch.nn.functional.normalize(torch.randn(batch, num_points, 3, generator=generator), dim=-1)
    return points * (1 + 0.02 * torch.randn(batch, num_points, 1, generator=generator))
