"""Farthest point sampling on the GPU: one kernel launch for a batch, one program per cloud."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from pcattn.ops.backends import on_device
from pcattn.ops.neighbors.triton import precedes
from pcattn.ops.sampling.reference import POINTNET2_MIN_SQUARED_NORM, centroid

# Points that a program handles at once; a step over a larger cloud takes several tiles.
_MAX_BLOCK = 4096


def farthest_point_sample(
    pos: Tensor, num_samples: int, rule: str = "centroid", lengths: Tensor | None = None
) -> Tensor:
    """See `pcattn.ops.sampling.reference.farthest_point_sample`."""
    batch, num_points, dim = pos.shape
    by_index = rule == "pointnet2"
    points = pos.transpose(1, 2).contiguous()  # (B, D, N)
    start = points.new_zeros(batch, dim, dtype=torch.float64) if by_index else centroid(pos, lengths)
    if lengths is None:
        lengths = torch.full((batch,), num_points, device=pos.device)
    chosen = torch.zeros(batch, num_samples, dtype=torch.long, device=pos.device)
    nearest = points.new_empty(batch, num_points, dtype=torch.float64)
    block = min(_MAX_BLOCK, max(16, triton.next_power_of_2(num_points)))
    with on_device(pos):
        fps_fwd_kernel[(batch,)](
            points,
            start.contiguous(),
            lengths.clamp(1, num_points).int(),
            nearest,
            chosen,
            torch.full((1,), POINTNET2_MIN_SQUARED_NORM, dtype=torch.float64, device=pos.device),
            num_points,
            num_samples,
            dim,
            BY_INDEX=by_index,
            BLOCK=block,
            num_warps=max(4, min(16, block // 128)),
            enable_fp_fusion=False,  # a fused product and sum would round differently from the other backends
        )
    return chosen


@triton.jit
def fps_fwd_kernel(  # type: ignore[no-untyped-def]
    points,  # (B, D, N)
    start,  # (B, D), the centroid
    lengths,  # (B,)
    nearest,  # (B, N), work space: distance to the nearest sample, -1 for points that cannot be chosen (again)
    chosen,  # (B, S)
    min_norm_ptr,  # (1,): a float argument would arrive in single precision
    num_points,
    num_samples,
    dim,
    BY_INDEX: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """All samples of one cloud; grid (clouds,)."""
    infinity = float("inf")
    b = tl.program_id(0).to(tl.int64)
    points += b * num_points * dim
    start += b * dim
    nearest += b * num_points
    chosen += b * num_samples
    count = tl.load(lengths + b)
    min_norm = tl.load(min_norm_ptr)
    lanes = tl.arange(0, BLOCK)
    current = tl.zeros((), tl.int64)
    head = tl.zeros((), tl.int64)
    # Turn 0 finds the first sample: the point farthest from the centroid, or point 0.
    for turn in range(num_samples):
        top = tl.full((), -1.0, tl.float64)
        top_index = tl.zeros((), tl.int64)
        for begin in range(0, count, BLOCK):
            index = begin + lanes
            present = index < count
            d = tl.zeros((BLOCK,), tl.float64)
            for axis in range(dim):
                x = tl.load(points + axis * num_points + index, mask=present, other=0.0).to(tl.float64)
                if turn > 0:
                    center = tl.load(points + axis * num_points + current).to(tl.float64)
                else:
                    center = tl.load(start + axis)
                difference = x - center
                d += difference * difference
            if turn == 0:
                value = d
                initial = tl.full((BLOCK,), infinity, tl.float64)
                if BY_INDEX:
                    # `start` is the origin: d is the squared norm.
                    initial = tl.where(d <= min_norm, -1.0, initial)
                tl.store(nearest + index, initial, mask=present)
            else:
                value = tl.minimum(tl.load(nearest + index, mask=present, other=-1.0), d)
                if not BY_INDEX:
                    value = tl.where(index == current, -1.0, value)
                tl.store(nearest + index, value, mask=present)
            value = tl.where(present, value, -2.0)
            largest = tl.max(value, axis=0)
            tied = value == largest
            if not BY_INDEX:
                if tl.sum(tied.to(tl.int32), axis=0) > 1:
                    for axis in range(dim):
                        x = tl.load(points + axis * num_points + index, mask=present, other=0.0).to(tl.float64)
                        smallest = tl.min(tl.where(tied, x, infinity), axis=0)
                        tied = tied & (x == smallest)
            found = tl.min(tl.where(tied, index, num_points - 1), axis=0).to(tl.int64)
            better = largest > top
            if not BY_INDEX:
                if (largest == top) & (largest >= 0.0):
                    better = precedes(points, found, top_index, num_points, dim)
            top = tl.where(better, largest, top)
            top_index = tl.where(better, found, top_index)
        if turn == 0:
            if not BY_INDEX:
                head = top_index
            current = head
        else:
            current = tl.where(top < 0.0, head, top_index)  # none is left: repeat the first
        tl.store(chosen + turn, current)
        # The next turn reads what other threads wrote to `nearest`.
        tl.debug_barrier()
