"""Neighborhood attention in torch, in chunks of queries: the gathered keys of a whole cloud are never in memory."""

import torch
from torch import Tensor

# Elements of the gathered keys of one chunk: small enough for the cache of a CPU, large enough to keep a GPU busy.
_CHUNK_ELEMENTS = {"cpu": 1 << 18, "cuda": 1 << 23}


def forward(q: Tensor, k: Tensor, v: Tensor, neighbors: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    """The output (B, N, H, D) in the dtype of q, and the log-sum-exp (B, N, H) of the logits in at least float32."""
    out = torch.empty_like(q, memory_format=torch.contiguous_format)
    lse = q.new_empty(q.shape[:3], dtype=_compute_dtype(q))
    with torch.autocast(q.device.type, enabled=False):
        k_rows, v_rows = k.flatten(0, 1), v.flatten(0, 1)
        for rows, points in _chunks(q, neighbors):
            logits = _logits(q, k_rows, bias, rows, points)  # (m, K, H)
            lse.view(-1, q.shape[2])[rows] = torch.logsumexp(logits, dim=1)
            weights = logits.softmax(dim=1)
            gathered = _take(v_rows, points, weights.dtype)  # (m, K, H, D)
            out.view(-1, *q.shape[2:])[rows] = (weights[..., None] * gathered).sum(dim=1).to(out.dtype)
    return out, lse


def backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, neighbors: Tensor, bias: Tensor | None, out: Tensor, lse: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of q, k, v and the bias (empty without one)."""
    dtype = lse.dtype
    scale = q.shape[-1] ** -0.5
    grad_q = torch.empty_like(q, memory_format=torch.contiguous_format)
    # Many queries add to one key, so these sums are in at least float32 whatever the dtype of the keys.
    grad_k, grad_v = (torch.zeros(x.shape, dtype=dtype, device=x.device) for x in (k, v))
    grad_bias = q.new_empty(0) if bias is None else torch.empty_like(bias, memory_format=torch.contiguous_format)
    with torch.autocast(q.device.type, enabled=False):
        k_rows, v_rows = k.flatten(0, 1), v.flatten(0, 1)
        grad_rows, out_rows, lse_rows = (x.flatten(0, 1) for x in (grad, out, lse))
        for rows, points in _chunks(q, neighbors):
            weights = (_logits(q, k_rows, bias, rows, points) - lse_rows[rows, None]).exp()  # (m, K, H)
            grad_out = grad_rows[rows].to(dtype)
            grad_v.flatten(0, 1).index_add_(0, points.flatten(), (weights[..., None] * grad_out[:, None]).flatten(0, 1))
            grad_weights = (_take(v_rows, points, dtype) * grad_out[:, None]).sum(dim=-1)
            mean = (grad_out * out_rows[rows].to(dtype)).sum(dim=-1)
            grad_logits = weights * (grad_weights - mean[:, None])
            if bias is not None:
                grad_bias.flatten(0, 1)[rows] = grad_logits.to(grad_bias.dtype)
            grad_logits = grad_logits[..., None] * scale
            grad_q.flatten(0, 1)[rows] = (grad_logits * _take(k_rows, points, dtype)).sum(dim=1).to(q.dtype)
            query = q.flatten(0, 1)[rows].to(dtype)
            grad_k.flatten(0, 1).index_add_(0, points.flatten(), (grad_logits * query[:, None]).flatten(0, 1))
    return grad_q, grad_k.to(k.dtype), grad_v.to(v.dtype), grad_bias


def _chunks(q: Tensor, neighbors: Tensor) -> list[tuple[slice, Tensor]]:
    """Slices of the B * N queries, and the keys (m, K) of each, as rows of the B * N keys."""
    batch, num_points, num_neighbors = neighbors.shape
    size = max(1, _CHUNK_ELEMENTS.get(q.device.type, _CHUNK_ELEMENTS["cpu"]) // (num_neighbors * q[0, 0].numel()))
    starts = torch.arange(batch, device=q.device)[:, None, None] * num_points
    rows = (neighbors + starts).flatten(0, 1)
    return [(slice(i, i + size), rows[i : i + size]) for i in range(0, batch * num_points, size)]


def _take(rows: Tensor, points: Tensor, dtype: torch.dtype) -> Tensor:
    return rows.index_select(0, points.flatten()).to(dtype).view(*points.shape, *rows.shape[1:])


def _logits(q: Tensor, k_rows: Tensor, bias: Tensor | None, rows: slice, points: Tensor) -> Tensor:
    """Logits (m, K, H) of a chunk, in at least float32."""
    dtype = _compute_dtype(q)
    scale: float = q.shape[-1] ** -0.5
    query = q.flatten(0, 1)[rows].to(dtype) * scale
    logits = (query[:, None] * _take(k_rows, points, dtype)).sum(dim=-1)
    return logits if bias is None else logits + bias.flatten(0, 1)[rows].to(dtype)


def _compute_dtype(q: Tensor) -> torch.dtype:
    return torch.promote_types(q.dtype, torch.float32)
