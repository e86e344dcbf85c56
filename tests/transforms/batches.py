"""Random batches for the tests of transforms."""

import torch
from torch import Tensor

from pcattn.data import PointBatch


def make_batch(batch: int = 6, num_points: int = 200, per_point: bool = False) -> PointBatch:
    pos = torch.randn(batch, num_points, 3, dtype=torch.float64)
    normals = torch.nn.functional.normalize(torch.randn_like(pos), dim=2)
    label = torch.arange(batch * num_points).view(batch, num_points) if per_point else torch.arange(batch)
    return PointBatch(pos, normals, label, None, torch.arange(batch), seed=1, features=torch.rand_like(pos))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def assert_constant(values: Tensor, dim: int) -> None:
    torch.testing.assert_close(values, values.narrow(dim, 0, 1).expand_as(values))
