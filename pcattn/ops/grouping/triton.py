"""Relative features of neighborhoods on the GPU: both halves of the result in one pass, without a gathered copy."""

import triton
import triton.language as tl
from torch import Tensor

from pcattn.ops.backends import on_device

_BLOCK_ROWS = 16


def group(features: Tensor, neighbors: Tensor, centers: Tensor) -> Tensor:
    """See `pcattn.ops.reference.group`."""
    batch, num_points, channels = features.shape
    _, num_centers, k = neighbors.shape
    out = features.new_empty(batch, num_centers, k, 2 * channels)
    rows = num_centers * k
    block = min(128, triton.next_power_of_2(channels))
    with on_device(features):
        group_fwd_kernel[(triton.cdiv(rows, _BLOCK_ROWS), triton.cdiv(channels, block), batch)](
            features.contiguous(),
            neighbors.contiguous(),
            centers.contiguous(),
            out,
            num_points,
            num_centers,
            k,
            channels,
            BLOCK_ROWS=_BLOCK_ROWS,
            BLOCK_CHANNELS=block,
        )
    return out


@triton.jit
def group_fwd_kernel(  # type: ignore[no-untyped-def]
    features,  # (B, N, C)
    neighbors,  # (B, M, k)
    centers,  # (B, M)
    out,  # (B, M, k, 2C)
    num_points,
    num_centers,
    k,
    channels,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
):
    """A block of rows (m, j) and channels; grid (blocks of rows, blocks of channels, clouds)."""
    b = tl.program_id(2).to(tl.int64)
    row = tl.program_id(0).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    channel = tl.program_id(1) * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS)
    inside = row < num_centers * k
    mask = inside[:, None] & (channel < channels)[None, :]
    neighbor = tl.load(neighbors + b * num_centers * k + row, mask=inside, other=0)
    center = tl.load(centers + b * num_centers + row // k, mask=inside, other=0)
    features += b * num_points * channels
    own = tl.load(features + center[:, None] * channels + channel[None, :], mask=mask)
    other = tl.load(features + neighbor[:, None] * channels + channel[None, :], mask=mask)
    place = (b * num_centers * k + row)[:, None] * (2 * channels) + channel[None, :]
    tl.store(out + place, other - own, mask=mask)
    tl.store(out + place + channels, own, mask=mask)
