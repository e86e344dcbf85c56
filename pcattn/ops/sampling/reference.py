"""Farthest point sampling in torch: the definition that every faster backend must equal, index for index."""

import torch
from torch import Tensor

from pcattn.ops.neighbors.reference import distances, lexicographic_order

#: Points closer to the origin than this (squared) are never chosen by the rule of pointnet2_ops.
POINTNET2_MIN_SQUARED_NORM = 1e-3

# Bits of the fixed-point numbers whose sum gives the centroid. With 2^21 points and more, fewer bits fit into an int64.
_CENTROID_BITS = 42


def centroid(points: Tensor, lengths: Tensor | None = None) -> Tensor:
    """Mean (B, D), float64, of the points (B, N, D): the same bits for every order of the points and every backend.

    A sum of floats depends on their order in the last digits, which would decide between the corners of a cube. A sum
    of integers does not.
    """
    points = points.double().nan_to_num()
    count = torch.full_like(points[:, :1, 0], points.shape[1])
    if lengths is not None:
        absent = torch.arange(points.shape[1], device=points.device) >= lengths[:, None]
        points = points.masked_fill(absent[..., None], 0.0)
        count = lengths[:, None].clamp(min=1).double()
    bits = min(_CENTROID_BITS, 63 - points.shape[1].bit_length())
    # Scaling by a power of two does not round; the clamp keeps the power finite.
    exponent = torch.frexp(points.abs().amax((1, 2), keepdim=True)).exponent.clamp(min=-900) - bits
    total = (points * torch.ldexp(torch.ones_like(exponent, dtype=points.dtype), -exponent)).round().long().sum(1)
    return torch.ldexp(total.double() / count, exponent[:, 0])


def farthest_point_sample(
    pos: Tensor, num_samples: int, rule: str = "centroid", lengths: Tensor | None = None
) -> Tensor:
    """Indices (B, num_samples); see `pcattn.ops.farthest_point_sample` for the rules."""
    pos = pos.double()
    present = None
    if lengths is not None:
        present = torch.arange(pos.shape[1], device=pos.device) < lengths[:, None]
    if rule == "pointnet2":
        return _farthest_point_sample_pointnet2(pos, num_samples, present)
    order = lexicographic_order(pos)
    present = present.gather(1, order) if present is not None else torch.ones_like(order, dtype=torch.bool)
    start = centroid(pos, lengths)
    pos = pos.gather(1, order[..., None].expand_as(pos))
    chosen = order.new_empty(pos.shape[0], num_samples)
    current = distances(start[:, None], pos)[:, 0].masked_fill(~present, -1.0).argmax(dim=1, keepdim=True)
    nearest = torch.full_like(pos[..., 0], torch.inf).masked_fill(~present, -1.0)
    for i in range(num_samples):
        # Once all points are chosen, repeat the first one.
        current = torch.where(nearest.amax(1, keepdim=True) < 0, chosen[:, :1], current)
        chosen[:, i : i + 1] = current
        center = pos.gather(1, current[..., None].expand(-1, -1, pos.shape[2]))
        nearest = torch.minimum(nearest, distances(center, pos)[:, 0]).scatter(1, current, -1.0)
        current = nearest.argmax(dim=1, keepdim=True)
    return order.gather(1, chosen)


def _farthest_point_sample_pointnet2(pos: Tensor, num_samples: int, present: Tensor | None) -> Tensor:
    """The rule of pointnet2_ops, which PCT's released code uses: start at point 0, skip points near the origin.

    It depends on the order of the points and on the origin. It exists for comparison with released weights.
    """
    chosen = torch.zeros(pos.shape[0], num_samples, dtype=torch.long, device=pos.device)
    allowed = distances(torch.zeros_like(pos[:, :1]), pos)[:, 0] > POINTNET2_MIN_SQUARED_NORM
    if present is not None:
        allowed &= present
    nearest = torch.full_like(pos[..., 0], torch.inf).masked_fill(~allowed, -1.0)
    for i in range(1, num_samples):
        center = pos.gather(1, chosen[:, i - 1 : i, None].expand(-1, -1, pos.shape[2]))
        nearest = torch.minimum(nearest, distances(center, pos)[:, 0])
        chosen[:, i] = nearest.argmax(dim=1)
    return chosen
