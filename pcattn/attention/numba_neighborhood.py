"""Neighbourhood attention on the CPU: a loop over the queries of one head of one cloud; see `neighborhood_op`.

Arrays are of one floating type, contiguous: queries, keys and values (R, H, D), R = B N, bias (R, K, H) or empty. One
head of one cloud writes its own channels alone: these are spread over threads without a lock, and with one result
whatever the number of threads.
"""

from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pcattn.ops._threads import inlined, jit, run_split

# Sums in any order: only then do their loops become vector instructions.
_fast = partial(jit, fastmath={"reassoc", "contract"})


def forward(q: Tensor, k: Tensor, v: Tensor, neighbours: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    """The output (B, N, H, D) in the dtype of q, and the log-sum-exp (B, N, H) of the logits."""
    dtype = torch.promote_types(q.dtype, torch.float32)
    out, lse = (torch.empty(shape, dtype=dtype) for shape in (q.shape, q.shape[:3]))
    arrays = [_rows(x, dtype) for x in (q, k, v)]
    run_split(
        partial(_attend, *arrays, _rows(neighbours), _bias(bias, dtype), *map(_rows, (out, lse)), q.shape[1]),
        q.shape[0] * q.shape[2],
    )
    return out.to(q.dtype), lse


def backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    neighbours: Tensor,
    bias: Tensor | None,
    out: Tensor,
    lse: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of q, k, v and of the bias (empty without one)."""
    dtype = lse.dtype
    grads = [torch.zeros(q.shape, dtype=dtype) for _ in range(3)]
    grad_bias = torch.empty(0 if bias is None else bias.shape, dtype=dtype)
    arrays = [_rows(x, dtype) for x in (grad, q, k, v, out)]
    of_bias = _bias(None if bias is None else grad_bias, dtype)
    run_split(
        partial(
            _attend_backward, *arrays, _rows(lse), _rows(neighbours), _bias(bias, dtype), *map(_rows, grads), of_bias,
            q.shape[1],
        ),
        q.shape[0] * q.shape[2],
    )  # fmt: skip
    grad_q, grad_k, grad_v = (x.to(q.dtype) for x in grads)
    return grad_q, grad_k, grad_v, grad_bias if bias is None else grad_bias.to(bias.dtype)


def _rows(x: Tensor, dtype: torch.dtype | None = None) -> Any:
    return x.detach().to(dtype or x.dtype).contiguous().flatten(0, 1).numpy()


def _bias(bias: Tensor | None, dtype: torch.dtype) -> Any:
    return _rows(torch.empty(0, 0, 0, 0) if bias is None else bias, dtype)


@inlined
def _find_logits(q, k, neighbours, bias, first, row, head, logits):  # type: ignore[no-untyped-def]
    scale = q.dtype.type(1 / q.shape[2] ** 0.5)
    for j in range(neighbours.shape[1]):
        key = first + neighbours[row, j]
        total = q.dtype.type(0)
        for c in range(q.shape[2]):
            total += q[row, head, c] * k[key, head, c]
        logits[j] = total * scale
        if bias.size:
            logits[j] += bias[row, j, head]


@_fast
def _attend(q, k, v, neighbours, bias, out, lse, num_points, start, stop):  # type: ignore[no-untyped-def]
    num_neighbours, num_heads, width = neighbours.shape[1], q.shape[1], q.shape[2]
    logits = np.empty(num_neighbours, q.dtype)
    for task in range(start, stop):
        first, head = task // num_heads * num_points, task % num_heads
        for row in range(first, first + num_points):
            _find_logits(q, k, neighbours, bias, first, row, head, logits)
            largest, total = logits.max(), q.dtype.type(0)
            for j in range(num_neighbours):
                logits[j] = np.exp(logits[j] - largest)
                total += logits[j]
            out[row, head] = 0
            for j in range(num_neighbours):
                key, weight = first + neighbours[row, j], logits[j] / total
                for c in range(width):
                    out[row, head, c] += weight * v[key, head, c]
            lse[row, head] = largest + np.log(total)


@_fast
def _attend_backward(  # type: ignore[no-untyped-def]
    grad, q, k, v, out, lse, neighbours, bias, of_q, of_k, of_v, of_bias, num_points, start, stop
):
    num_neighbours, num_heads, width = neighbours.shape[1], q.shape[1], q.shape[2]
    scale = q.dtype.type(1 / width**0.5)
    logits = np.empty(num_neighbours, q.dtype)
    for task in range(start, stop):
        first, head = task // num_heads * num_points, task % num_heads
        for row in range(first, first + num_points):
            _find_logits(q, k, neighbours, bias, first, row, head, logits)
            mean = q.dtype.type(0)
            for c in range(width):
                mean += grad[row, head, c] * out[row, head, c]
            for j in range(num_neighbours):
                key, weight = first + neighbours[row, j], np.exp(logits[j] - lse[row, head])
                of_weight = q.dtype.type(0)
                for c in range(width):
                    of_weight += grad[row, head, c] * v[key, head, c]
                    of_v[key, head, c] += weight * grad[row, head, c]
                of_logit = weight * (of_weight - mean)
                if of_bias.size:
                    of_bias[row, j, head] = of_logit
                of_logit *= scale
                for c in range(width):
                    of_q[row, head, c] += of_logit * k[key, head, c]
                    of_k[key, head, c] += of_logit * q[row, head, c]
