"""Softmax attention over lists of neighbors, without holding the gathered keys and values of a whole cloud.

The operation is registered with `torch.library`, so `torch.compile` and `torch.export` pass through it. On CUDA it runs
as a Triton kernel, on the CPU as a numba kernel where those can run; elsewhere it works through the points in chunks,
forward and backward.
"""

from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from pcattn.ops.backends import can_run_numba, triton_reasons
from pcattn.utils.checks import check_indices
from pcattn.utils.errors import InputError

BACKENDS = ("auto", "triton", "numba", "reference")

_TRITON_DTYPES = (torch.float16, torch.bfloat16, torch.float32)
_TRITON_MAX_HEAD_DIM = 256

# Elements of the gathered keys of one chunk: small enough for the cache of a CPU, large enough to keep a GPU busy.
_CHUNK_ELEMENTS = {"cpu": 1 << 18, "cuda": 1 << 23}


def neighborhood_attention(
    q: Tensor, k: Tensor, v: Tensor, neighbors: Tensor, bias: Tensor | None = None, backend: str = "auto"
) -> Tensor:
    r"""Attention of every point over its own list of neighbors.

    .. math::
        \mathrm{out}_i = \sum_{j \in \mathcal{N}(i)}
            \mathrm{softmax}_j\!\left(\frac{q_i \cdot k_j}{\sqrt{D}} + b_{ij}\right) v_j

    Args:
        q: queries (B, N, H, D).
        k: keys (B, N, H, D).
        v: values (B, N, H, D).
        neighbors: (B, N, K), int64: row i lists the keys of query i.
        bias: (B, N, K, H), added to the logits.
        backend: `"auto"` takes the first that can run; `"triton"`, `"numba"` or `"reference"` that one only.

    Shape:
        (B, N, H, D), in the dtype of q. Computed in at least float32.

    Raises:
        InputError: shapes do not fit, on the CPU a neighbor is none of the N points, or the backend cannot run; the
            message lists the reasons.
    """
    if q.dim() != 4 or q.shape != k.shape or q.shape != v.shape:
        raise InputError(
            f"expected q, k and v of one shape (B, N, H, D), but got {tuple(q.shape)}, {tuple(k.shape)} "
            f"and {tuple(v.shape)}"
        )
    if neighbors.dim() != 3 or neighbors.shape[:2] != q.shape[:2]:
        raise InputError(f"expected neighbors (B, N, K) = {tuple(q.shape[:2])} + (K,), but got {neighbors.shape}")
    if bias is not None and bias.shape != (*neighbors.shape, q.shape[2]):
        raise InputError(
            f"expected bias (B, N, K, H) = {(*neighbors.shape, q.shape[2])}, but got shape {tuple(bias.shape)}"
        )
    if backend not in BACKENDS:
        raise InputError(f"expected backend to be one of {', '.join(BACKENDS)}, but got {backend!r}")
    obstacles = {"triton": can_run_triton, "numba": can_run_numba}
    if backend in obstacles and (reasons := obstacles[backend](q)):
        raise InputError(f"expected a case that backend={backend!r} can run, but got: {'; '.join(reasons)}")
    dtypes = {tensor.dtype for tensor in (q, k, v)}
    if len(dtypes) > 1:
        raise InputError(f"expected q, k and v of one dtype, but got {', '.join(sorted(map(str, dtypes)))}")
    return _attend(q, k, v, neighbors, bias, backend)[0]


def can_run_triton(q: Tensor) -> list[str]:
    """Reasons why the Triton kernel cannot take these queries (B, N, H, D); none means that it can."""
    reasons = triton_reasons(q)
    if q.dtype not in _TRITON_DTYPES:
        reasons.append(f"{q.dtype} is none of {', '.join(map(str, _TRITON_DTYPES))}")
    if q.shape[-1] > _TRITON_MAX_HEAD_DIM:
        reasons.append(f"heads are {q.shape[-1]} wide, more than {_TRITON_MAX_HEAD_DIM}")
    if torch.are_deterministic_algorithms_enabled():
        reasons.append("it adds gradients up in varying order, and deterministic algorithms are asked for")
    return reasons


def _kernels(q: Tensor, backend: str) -> Any:
    """The module whose `forward` and `backward` compute the operation; None: this one, in chunks."""
    if backend == "triton" or (backend == "auto" and q.is_cuda and not can_run_triton(q)):
        return import_module("pcattn.ops.neighborhood_attention.triton")
    if backend == "numba" or (backend == "auto" and not can_run_numba(q)):
        return import_module("pcattn.ops.neighborhood_attention.numba")
    return None


@torch.library.custom_op("pcattn::neighborhood_attention", mutates_args=())
def _attend(
    q: Tensor, k: Tensor, v: Tensor, neighbors: Tensor, bias: Tensor | None, backend: str
) -> tuple[Tensor, Tensor]:
    """The output, and the log-sum-exp (B, N, H) of the logits, from which the backward pass rebuilds the weights."""
    # Here and not in the function above: a compiled graph has no values to look at until it runs.
    check_indices("neighbors", neighbors, k.shape[1])
    if (kernels := _kernels(q, backend)) is not None:
        return kernels.forward(q, k, v, neighbors, bias)
    out, lse = _empty_outputs(q)
    with torch.autocast(q.device.type, enabled=False):
        k_rows, v_rows = k.flatten(0, 1), v.flatten(0, 1)
        for rows, points in _chunks(q, neighbors):
            logits = _logits(q, k_rows, bias, rows, points)
            lse.view(-1, q.shape[2])[rows] = torch.logsumexp(logits, dim=1)
            weights = logits.softmax(dim=1)
            gathered = _take(v_rows, points, weights.dtype)
            out.view(-1, *q.shape[2:])[rows] = (weights[..., None] * gathered).sum(dim=1).to(out.dtype)
    return out, lse


@torch.library.custom_op("pcattn::neighborhood_attention_backward", mutates_args=())
def _attend_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    neighbors: Tensor,
    bias: Tensor | None,
    out: Tensor,
    lse: Tensor,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of q, k, v and of the bias (empty without one)."""
    if (kernels := _kernels(q, backend)) is not None:
        return kernels.backward(grad, q, k, v, neighbors, bias, out, lse)
    dtype = lse.dtype
    scale = q.shape[-1] ** -0.5
    grad_q = torch.empty_like(q, memory_format=torch.contiguous_format)
    # Many queries add to one key: summed in at least float32, whatever the dtype of the keys.
    grad_k, grad_v = (torch.zeros(x.shape, dtype=dtype, device=x.device) for x in (k, v))
    grad_bias = _empty_bias(q, bias)
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
    query = q.flatten(0, 1)[rows].to(dtype) * q.shape[-1] ** -0.5
    logits = (query[:, None] * _take(k_rows, points, dtype)).sum(dim=-1)
    return logits if bias is None else logits + bias.flatten(0, 1)[rows].to(dtype)


def _compute_dtype(q: Tensor) -> torch.dtype:
    return torch.promote_types(q.dtype, torch.float32)


def _empty_outputs(q: Tensor) -> tuple[Tensor, Tensor]:
    out = torch.empty_like(q, memory_format=torch.contiguous_format)
    return out, q.new_empty(q.shape[:3], dtype=_compute_dtype(q))


def _empty_bias(q: Tensor, bias: Tensor | None) -> Tensor:
    return q.new_empty(0) if bias is None else torch.empty_like(bias, memory_format=torch.contiguous_format)


@_attend.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, neighbors: Tensor, bias: Tensor | None, backend: str) -> tuple[Tensor, Tensor]:
    return _empty_outputs(q)


@_attend_backward.register_fake
def _(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    neighbors: Tensor,
    bias: Tensor | None,
    out: Tensor,
    lse: Tensor,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    contiguous = torch.contiguous_format
    return (*(torch.empty_like(x, memory_format=contiguous) for x in (q, k, v)), _empty_bias(q, bias))  # type: ignore[return-value]


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, neighbors, bias, ctx.backend = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(q, k, v, neighbors, bias, *output)


def _differentiate(ctx: Any, grad: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
    q, k, v, neighbors, bias, out, lse = ctx.saved_tensors
    *grads, grad_bias = _attend_backward(grad, q, k, v, neighbors, bias, out, lse, ctx.backend)
    return *grads, None, None if bias is None else grad_bias, None


_attend.register_autograd(_differentiate, setup_context=_save)
