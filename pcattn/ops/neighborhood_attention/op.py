"""Neighborhood attention, with checked arguments: `pcattn::neighborhood_attention`."""

from typing import Any

import torch
from torch import Tensor

from pcattn.ops.backends import Kernels, check_backend, why_not_numba, why_not_triton
from pcattn.ops.neighborhood_attention import reference
from pcattn.utils.checks import check_indices
from pcattn.utils.errors import InputError

_TRITON_DTYPES = (torch.float16, torch.bfloat16, torch.float32)
_TRITON_MAX_HEAD_DIM = 256


def neighborhood_attention(
    q: Tensor, k: Tensor, v: Tensor, neighbors: Tensor, bias: Tensor | None = None, backend: str = "auto"
) -> Tensor:
    r"""Softmax attention of every point to its own list of neighbors.

    .. math::
        \mathrm{out}_i = \sum_{j \in \mathcal{N}(i)}
            \mathrm{softmax}_j\!\left(\frac{q_i \cdot k_j}{\sqrt{D}} + b_{ij}\right) v_j

    Args:
        q: queries (B, N, H, D).
        k: keys (B, N, H, D).
        v: values (B, N, H, D).
        neighbors: (B, N, K), int64: row i lists the keys of query i.
        bias: (B, N, K, H), added to the logits.
        backend: `"auto"`, `"triton"`, `"numba"` or `"reference"`.

    Shape:
        (B, N, H, D), in the dtype of q, computed in at least float32.

    Raises:
        InputError: the shapes or dtypes do not fit, on the CPU an index of a neighbor is out of range, or `backend`
            cannot run (the message lists every reason).
    """
    if q.dim() != 4 or q.shape != k.shape or q.shape != v.shape:
        raise InputError(
            f"expected q, k and v of one shape (B, N, H, D), but got {tuple(q.shape)}, {tuple(k.shape)} "
            f"and {tuple(v.shape)}"
        )
    if neighbors.dim() != 3 or neighbors.shape[:2] != q.shape[:2]:
        raise InputError(
            f"expected neighbors (B, N, K) = {tuple(q.shape[:2])} + (K,), but got {tuple(neighbors.shape)}"
        )
    if bias is not None and bias.shape != (*neighbors.shape, q.shape[2]):
        raise InputError(
            f"expected bias (B, N, K, H) = {(*neighbors.shape, q.shape[2])}, but got shape {tuple(bias.shape)}"
        )
    check_backend(backend)
    dtypes = {tensor.dtype for tensor in (q, k, v)}
    if len(dtypes) > 1:
        raise InputError(f"expected q, k and v of one dtype, but got {', '.join(sorted(map(str, dtypes)))}")
    out: Tensor = _attend(q, k, v, neighbors, bias, backend)[0]
    return out


def _why_not_triton(q: Tensor) -> list[str]:
    """Reasons why the Triton kernels cannot run on queries (B, N, H, D)."""
    reasons = why_not_triton(q)
    if q.dtype not in _TRITON_DTYPES:
        reasons.append(f"{q.dtype} is not one of {', '.join(map(str, _TRITON_DTYPES))}")
    if q.shape[-1] > _TRITON_MAX_HEAD_DIM:
        reasons.append(f"heads are {q.shape[-1]} wide, more than {_TRITON_MAX_HEAD_DIM}")
    if torch.are_deterministic_algorithms_enabled():
        reasons.append("it sums gradients in varying order, but deterministic algorithms are requested")
    return reasons


_KERNELS = Kernels(reference, numba=why_not_numba, triton=_why_not_triton)


@torch.library.custom_op("pcattn::neighborhood_attention", mutates_args=())
def _attend(
    q: Tensor, k: Tensor, v: Tensor, neighbors: Tensor, bias: Tensor | None, backend: str
) -> tuple[Tensor, Tensor]:
    """The output, and the log-sum-exp (B, N, H) of the logits, from which the backward pass rebuilds the weights."""
    # Checked here, because a compiled graph has no values to look at before it runs.
    check_indices("neighbors", neighbors, k.shape[1])
    out, lse = _KERNELS.choose(backend, q).forward(q, k, v, neighbors, bias)
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
    """Gradients of q, k, v and the bias (empty without one)."""
    kernels = _KERNELS.choose(backend, q)
    grad_q, grad_k, grad_v, grad_bias = kernels.backward(grad, q, k, v, neighbors, bias, out, lse)
    return grad_q, grad_k, grad_v, grad_bias


@_attend.register_fake
def _(q: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    lse = q.new_empty(q.shape[:3], dtype=torch.promote_types(q.dtype, torch.float32))
    return torch.empty_like(q, memory_format=torch.contiguous_format), lse


@_attend_backward.register_fake
def _(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, neighbors: Tensor, bias: Tensor | None, *_: Any
) -> tuple[Tensor, ...]:
    inputs = (q, k, v, q.new_empty(0) if bias is None else bias)
    return tuple(torch.empty_like(x, memory_format=torch.contiguous_format) for x in inputs)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, neighbors, bias, ctx.backend = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(q, k, v, neighbors, bias, *output)


def _differentiate(ctx: Any, grad: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
    q, k, v, neighbors, bias, out, lse = ctx.saved_tensors
    *grads, grad_bias = _attend_backward(grad, q, k, v, neighbors, bias, out, lse, ctx.backend)
    return *grads, None, None if bias is None else grad_bias, None


_attend.register_autograd(_differentiate, setup_context=_save)
