"""Neighborhood attention on the CPU: a loop over queries that reads keys and values by index.

Arrays are contiguous and of one floating type: queries, keys and values (B, N, H, D), biases (B, N, K, H).
"""

from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pcattn.ops.threads import jit, run_split

# Allows sums in any order, without which their loops do not become vector instructions.
_fast = partial(jit, fastmath={"reassoc", "contract"})

# Queries and heads that are worth a thread.
_GRAIN = 256


def forward(q: Tensor, k: Tensor, v: Tensor, neighbors: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    """The output (B, N, H, D) in the dtype of q, and the log-sum-exp (B, N, H) of the logits.

    Neighbors are not checked: an index out of range would read foreign memory.
    """
    dtype = torch.promote_types(q.dtype, torch.float32)
    out, lse = torch.empty(q.shape, dtype=dtype), torch.empty(q.shape[:3], dtype=dtype)
    inputs = (*_arrays(dtype, q, k, v), neighbors.contiguous().numpy(), *_bias(bias, dtype))
    of_out, of_lse = out.numpy(), lse.numpy()
    run_split(lambda start, stop: _forward(*inputs, of_out, of_lse, start, stop), q.shape[0] * q.shape[1], _GRAIN)
    return out.to(q.dtype), lse


def backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, neighbors: Tensor, bias: Tensor | None, out: Tensor, lse: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of q, k, v and the bias (empty without one)."""
    dtype = lse.dtype
    grads = [torch.zeros(q.shape, dtype=dtype) for _ in range(3)]
    grad_bias = torch.empty(0, 0, 0, 0, dtype=dtype) if bias is None else torch.empty(bias.shape, dtype=dtype)
    inputs = (*_arrays(dtype, grad, q, k, v), neighbors.contiguous().numpy(), *_bias(bias, dtype))
    inputs += tuple(_arrays(dtype, out, lse))
    outputs = tuple(x.numpy() for x in (*grads, grad_bias))
    # Queries that add to one key share its cloud and head, so that threads need no lock.
    run_split(lambda start, stop: _backward(*inputs, *outputs, start, stop), q.shape[0] * q.shape[2])
    grad_q, grad_k, grad_v = (x.to(q.dtype) for x in grads)
    return grad_q, grad_k, grad_v, q.new_empty(0) if bias is None else grad_bias.to(bias.dtype)


def _arrays(dtype: torch.dtype, *tensors: Tensor) -> list[Any]:
    return [x.detach().to(dtype).contiguous().numpy() for x in tensors]


def _bias(bias: Tensor | None, dtype: torch.dtype) -> tuple[Any, bool]:
    """The biases as an array, and whether there are any."""
    given = torch.empty(0, 0, 0, 0) if bias is None else bias
    return _arrays(dtype, given)[0], bias is not None


@_fast
def _forward(q, k, v, neighbors, bias, has_bias, out, lse, start, stop):  # type: ignore[no-untyped-def]
    num_points, num_heads, width = q.shape[1], q.shape[2], q.shape[3]
    num_neighbors = neighbors.shape[2]
    scale = q.dtype.type(1 / np.sqrt(width))
    weights = np.empty(num_neighbors, dtype=q.dtype)
    for row in range(start, stop):
        b, i = np.uintp(row // num_points), np.uintp(row % num_points)
        for h in range(num_heads):
            largest, total = q.dtype.type(-np.inf), q.dtype.type(0)
            for s in range(num_neighbors):
                j = np.uintp(neighbors[b, i, s])
                logit = q.dtype.type(0)
                for d in range(width):
                    logit += q[b, i, h, d] * k[b, j, h, d]
                logit *= scale
                if has_bias:
                    logit += bias[b, i, s, h]
                weights[s] = logit
                largest = max(largest, logit)
            for s in range(num_neighbors):
                weights[s] = np.exp(weights[s] - largest)
                total += weights[s]
            for d in range(width):
                out[b, i, h, d] = 0
            for s in range(num_neighbors):
                j, weight = np.uintp(neighbors[b, i, s]), weights[s] / total
                for d in range(width):
                    out[b, i, h, d] += weight * v[b, j, h, d]
            lse[b, i, h] = largest + np.log(total)


@_fast
def _backward(  # type: ignore[no-untyped-def]
    grad, q, k, v, neighbors, bias, has_bias, out, lse, grad_q, grad_k, grad_v, grad_bias, start, stop
):
    num_points, num_heads, width = q.shape[1], q.shape[2], q.shape[3]
    scale = q.dtype.type(1 / np.sqrt(width))
    for item in range(start, stop):
        b, h = np.uintp(item // num_heads), np.uintp(item % num_heads)
        for i in range(num_points):
            mean = q.dtype.type(0)
            for d in range(width):
                mean += grad[b, i, h, d] * out[b, i, h, d]
            for s in range(neighbors.shape[2]):
                j = np.uintp(neighbors[b, i, s])
                logit, of_weight = q.dtype.type(0), q.dtype.type(0)
                for d in range(width):
                    logit += q[b, i, h, d] * k[b, j, h, d]
                    of_weight += grad[b, i, h, d] * v[b, j, h, d]
                logit *= scale
                if has_bias:
                    logit += bias[b, i, s, h]
                weight = np.exp(logit - lse[b, i, h])
                of_logit = weight * (of_weight - mean)
                if has_bias:
                    grad_bias[b, i, s, h] = of_logit
                of_logit *= scale
                for d in range(width):
                    grad_v[b, j, h, d] += weight * grad[b, i, h, d]
                for d in range(width):
                    grad_k[b, j, h, d] += of_logit * q[b, i, h, d]
                for d in range(width):
                    grad_q[b, i, h, d] += of_logit * k[b, j, h, d]
