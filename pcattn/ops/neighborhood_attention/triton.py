"""Neighborhood attention on the GPU: keys and values are read by index and never gathered in memory.

Without a GPU, the kernels run in Triton's interpreter if `TRITON_INTERPRET=1` is set before the import.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from pcattn.ops.backends import on_device

# Elements of the block of queries (points x width) that one program keeps in registers.
_BLOCK_ELEMENTS = 1024


@triton.jit
def neighborhood_attention_fwd_kernel(  # type: ignore[no-untyped-def]
    q_ptr,
    k_ptr,
    v_ptr,
    neighbors_ptr,
    bias_ptr,
    out_ptr,
    lse_ptr,
    num_points,
    num_heads,
    scale,
    q_stride_b,
    q_stride_n,
    q_stride_h,
    k_stride_b,
    k_stride_n,
    k_stride_h,
    v_stride_b,
    v_stride_n,
    v_stride_h,
    K: tl.constexpr,
    D: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """One program: BLOCK_M queries of one head of one cloud, one neighbor of each at a time, running softmax."""
    cloud, head = tl.program_id(2).to(tl.int64), tl.program_id(1).to(tl.int64)
    point = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    channel = tl.arange(0, BLOCK_D)
    valid = point < num_points
    mask = valid[:, None] & (channel < D)[None, :]
    row = cloud * num_points + point  # of the contiguous tensors

    q = tl.load(
        q_ptr + cloud * q_stride_b + head * q_stride_h + point[:, None] * q_stride_n + channel[None, :], mask, other=0.0
    )
    q = q.to(tl.float32) * scale
    k_base = k_ptr + cloud * k_stride_b + head * k_stride_h + channel[None, :]
    v_base = v_ptr + cloud * v_stride_b + head * v_stride_h + channel[None, :]
    # Finite, so that a first logit of -inf (from the bias) meets no inf - inf.
    largest = tl.full((BLOCK_M,), -3.0e38, tl.float32)
    total = tl.zeros((BLOCK_M,), tl.float32)
    out = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    for j in range(K):
        neighbor = tl.load(neighbors_ptr + row * K + j, valid, other=0)
        k = tl.load(k_base + neighbor[:, None] * k_stride_n, mask, other=0.0).to(tl.float32)
        logit = tl.sum(q * k, axis=1)
        if HAS_BIAS:
            logit += tl.load(bias_ptr + (row * K + j) * num_heads + head, valid, other=0.0).to(tl.float32)
        v = tl.load(v_base + neighbor[:, None] * v_stride_n, mask, other=0.0).to(tl.float32)
        new_largest = tl.maximum(largest, logit)
        rescale = tl.exp(largest - new_largest)
        weight = tl.exp(logit - new_largest)
        total = total * rescale + weight
        out = out * rescale[:, None] + weight[:, None] * v
        largest = new_largest
    out = out / total[:, None]
    out_row = (row * num_heads + head)[:, None] * D + channel[None, :]
    tl.store(out_ptr + out_row, out.to(out_ptr.dtype.element_ty), mask)
    tl.store(lse_ptr + row * num_heads + head, largest + tl.log(total), valid)


@triton.jit
def neighborhood_attention_bwd_kernel(  # type: ignore[no-untyped-def]
    grad_ptr,
    q_ptr,
    k_ptr,
    v_ptr,
    neighbors_ptr,
    bias_ptr,
    out_ptr,
    lse_ptr,
    grad_q_ptr,
    grad_k_ptr,
    grad_v_ptr,
    grad_bias_ptr,
    num_points,
    num_heads,
    scale,
    q_stride_b,
    q_stride_n,
    q_stride_h,
    k_stride_b,
    k_stride_n,
    k_stride_h,
    v_stride_b,
    v_stride_n,
    v_stride_h,
    K: tl.constexpr,
    D: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """One program as in the forward kernel. Queries share keys: gradients of keys and values are added atomically."""
    cloud, head = tl.program_id(2).to(tl.int64), tl.program_id(1).to(tl.int64)
    point = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    channel = tl.arange(0, BLOCK_D)
    valid = point < num_points
    mask = valid[:, None] & (channel < D)[None, :]
    row = cloud * num_points + point
    out_row = (row * num_heads + head)[:, None] * D + channel[None, :]

    q = tl.load(
        q_ptr + cloud * q_stride_b + head * q_stride_h + point[:, None] * q_stride_n + channel[None, :], mask, other=0.0
    )
    q = q.to(tl.float32) * scale
    grad = tl.load(grad_ptr + out_row, mask, other=0.0).to(tl.float32)
    out = tl.load(out_ptr + out_row, mask, other=0.0).to(tl.float32)
    mean = tl.sum(grad * out, axis=1)
    lse = tl.load(lse_ptr + row * num_heads + head, valid, other=0.0)
    k_base = k_ptr + cloud * k_stride_b + head * k_stride_h + channel[None, :]
    v_base = v_ptr + cloud * v_stride_b + head * v_stride_h + channel[None, :]
    grad_q = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    for j in range(K):
        neighbor = tl.load(neighbors_ptr + row * K + j, valid, other=0)
        k = tl.load(k_base + neighbor[:, None] * k_stride_n, mask, other=0.0).to(tl.float32)
        logit = tl.sum(q * k, axis=1)
        if HAS_BIAS:
            logit += tl.load(bias_ptr + (row * K + j) * num_heads + head, valid, other=0.0).to(tl.float32)
        weight = tl.exp(logit - lse)
        v = tl.load(v_base + neighbor[:, None] * v_stride_n, mask, other=0.0).to(tl.float32)
        grad_logit = weight * (tl.sum(grad * v, axis=1) - mean)
        if HAS_BIAS:
            grad_bias = grad_logit.to(grad_bias_ptr.dtype.element_ty)
            tl.store(grad_bias_ptr + (row * K + j) * num_heads + head, grad_bias, valid)
        grad_q += grad_logit[:, None] * k
        key_row = ((cloud * num_points + neighbor) * num_heads + head)[:, None] * D + channel[None, :]
        tl.atomic_add(grad_k_ptr + key_row, grad_logit[:, None] * q, mask, sem="relaxed")
        tl.atomic_add(grad_v_ptr + key_row, weight[:, None] * grad, mask, sem="relaxed")
    tl.store(grad_q_ptr + out_row, (grad_q * scale).to(grad_q_ptr.dtype.element_ty), mask)


def forward(q: Tensor, k: Tensor, v: Tensor, neighbors: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    """Output (B, N, H, D) in the dtype of q, and log-sum-exp (B, N, H) of the logits in float32."""
    q, k, v = map(_unit_stride, (q, k, v))
    out = q.new_empty(q.shape)
    lse = q.new_empty(q.shape[:3], dtype=torch.float32)
    bias = None if bias is None else bias.contiguous()
    grid, sizes, strides, constants = _launch(q, k, v, neighbors, bias)
    with on_device(q):
        neighborhood_attention_fwd_kernel[grid](
            q, k, v, neighbors.contiguous(), out if bias is None else bias, out, lse, *sizes, *strides, **constants
        )
    return out, lse


def backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    neighbors: Tensor,
    bias: Tensor | None,
    out: Tensor,
    lse: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of q, k, v and the bias (empty without one)."""
    q, k, v = map(_unit_stride, (q, k, v))
    grad_q = q.new_empty(q.shape)
    grad_k, grad_v = (torch.zeros(q.shape, dtype=torch.float32, device=q.device) for _ in range(2))
    bias = None if bias is None else bias.contiguous()
    grad_bias = q.new_empty(0) if bias is None else torch.empty_like(bias)
    grid, sizes, strides, constants = _launch(q, k, v, neighbors, bias)
    inputs = (grad.contiguous(), q, k, v, neighbors.contiguous(), out if bias is None else bias, out, lse)
    with on_device(q):
        neighborhood_attention_bwd_kernel[grid](
            *inputs, grad_q, grad_k, grad_v, grad_bias, *sizes, *strides, **constants
        )
    return grad_q, grad_k.to(k.dtype), grad_v.to(v.dtype), grad_bias


def _launch(
    q: Tensor, k: Tensor, v: Tensor, neighbors: Tensor, bias: Tensor | None
) -> tuple[tuple[int, int, int], tuple[int, int, float], list[int], dict[str, int | bool]]:
    """Grid, sizes, strides and compile-time constants, the same for both kernels."""
    batch, num_points, num_heads, dim = q.shape
    block_d = triton.next_power_of_2(dim)
    block_m = max(1, min(64, _BLOCK_ELEMENTS // block_d))
    strides = [x.stride(axis) for x in (q, k, v) for axis in range(3)]
    constants: dict[str, int | bool] = {
        "K": neighbors.shape[2],
        "D": dim,
        "HAS_BIAS": bias is not None,
        "BLOCK_M": block_m,
        "BLOCK_D": block_d,
    }
    return (triton.cdiv(num_points, block_m), num_heads, batch), (num_points, num_heads, dim**-0.5), strides, constants


def _unit_stride(x: Tensor) -> Tensor:
    """Slices of one tensor, as queries, keys and values usually are, need no copy if their channels are adjacent."""
    return x if x.stride(-1) == 1 else x.contiguous()
