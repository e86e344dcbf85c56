"""Offset-attention in blocks of keys: `pcattn::offset_attention`.

The softmax runs over the queries, so a block of keys with all queries is normalized on its own. One pass over the
blocks gives sum_j s_ij v_j and sum_j s_ij, and the division comes last. The backward pass computes the blocks again.
"""

from typing import Any

import torch
from torch import Tensor

from pcattn.ops.offset_attention import reference
from pcattn.ops.offset_attention.reference import normalize_queries, widen
from pcattn.utils.errors import InputError

# Up to this many points the weights are held. Above it, blocks are also faster, because a block stays in the cache.
_MAX_WRITTEN_OUT = 256

# Elements of the weights of one block, keys times queries.
_BLOCK_ELEMENTS = {"cpu": 1 << 20, "cuda": 1 << 26}


def offset_attention(q: Tensor, v: Tensor) -> Tensor:
    r"""Attention with energies :math:`e_{ij} = q_i \cdot q_j`, normalized over the queries and then over the keys,

    .. math::
        s_{ij} = \frac{\exp e_{ij}}{\sum_{i'} \exp e_{i'j}}, \qquad
        \mathrm{out}_i = \frac{\sum_j s_{ij} v_j}{10^{-9} + \sum_j s_{ij}} .

    Memory grows with N, because large clouds are computed in blocks of keys.

    Args:
        q: (B, N, D), used as queries and as keys.
        v: values (B, N, C).

    Shape:
        (B, N, C), in the dtype of v.

    Raises:
        InputError: the shapes do not fit.
    """
    if not q.dim() == v.dim() == 3 or q.shape[:2] != v.shape[:2]:
        raise InputError(
            f"expected q (B, N, D) and v (B, N, C) with the same B and N, but got {tuple(q.shape)} and {tuple(v.shape)}"
        )
    # Energies leave the range of float16; the blocks compute in float32.
    if q.shape[1] > _MAX_WRITTEN_OUT or v.dtype == torch.float16:
        out: Tensor = _attend(q, v)[0]
        return out
    return reference.offset_attention(q, v)


@torch.library.custom_op("pcattn::offset_attention", mutates_args=())
def _attend(q: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """The output, and the sums (B, N, 1) over the keys."""
    dtype, q, v = v.dtype, widen(q), widen(v)
    sums_dtype = torch.promote_types(q.dtype, torch.float32)
    out, totals = torch.zeros_like(v, dtype=sums_dtype), q.new_zeros(*q.shape[:2], 1, dtype=sums_dtype)
    with torch.autocast(q.device.type, enabled=False):
        for clouds, keys in _blocks(q):
            weights = normalize_queries(q[clouds, keys], q[clouds])  # (b, M, N)
            totals[clouds] += weights.sum(dim=1)[..., None]
            out[clouds] += weights.to(v.dtype).transpose(1, 2) @ v[clouds, keys]
    return (out / (1e-9 + totals)).to(dtype), totals


@torch.library.custom_op("pcattn::offset_attention_backward", mutates_args=())
def _attend_backward(grad: Tensor, q: Tensor, v: Tensor, out: Tensor, totals: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of q and v."""
    dtypes, q, v = (q.dtype, v.dtype), widen(q), widen(v)
    grad = grad.to(totals.dtype) / (1e-9 + totals)  # of sum_j s_ij v_j
    grad_totals = -(grad * out).sum(dim=-1)[:, None]  # of sum_j s_ij, (B, 1, N)
    grad = grad.to(v.dtype)
    grad_q, grad_v = torch.zeros_like(q, dtype=totals.dtype), torch.empty_like(v)
    with torch.autocast(q.device.type, enabled=False):
        for clouds, keys in _blocks(q):
            weights = normalize_queries(q[clouds, keys], q[clouds])  # (b, M, N)
            grad_v[clouds, keys] = weights.to(v.dtype) @ grad[clouds]
            grad_weights = (v[clouds, keys] @ grad[clouds].transpose(1, 2)).to(weights.dtype) + grad_totals[clouds]
            mean = (weights * grad_weights).sum(dim=2, keepdim=True)
            grad_energy = grad_weights.sub_(mean).mul_(weights).to(q.dtype)
            grad_q[clouds] += grad_energy.transpose(1, 2) @ q[clouds, keys]
            grad_q[clouds, keys] += grad_energy @ q[clouds]
    return grad_q.to(dtypes[0]), grad_v.to(dtypes[1])


def _blocks(q: Tensor) -> list[tuple[slice, slice]]:
    """Slices of clouds and of keys: several small clouds at once, or some of the keys of a large cloud."""
    batch, num_points, _ = q.shape
    elements = _BLOCK_ELEMENTS.get(q.device.type, _BLOCK_ELEMENTS["cpu"])
    clouds = max(1, elements // num_points**2)
    keys = max(1, elements // num_points)
    return [
        (slice(i, i + clouds), slice(j, j + keys)) for i in range(0, batch, clouds) for j in range(0, num_points, keys)
    ]


@_attend.register_fake
def _(q: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    totals = q.new_empty(*q.shape[:2], 1, dtype=torch.promote_types(q.dtype, torch.float32))
    return torch.empty_like(v), totals


@_attend_backward.register_fake
def _(grad: Tensor, q: Tensor, v: Tensor, out: Tensor, totals: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty_like(q), torch.empty_like(v)


def _save(ctx: Any, inputs: tuple[Tensor, Tensor], output: tuple[Tensor, Tensor]) -> None:
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(*inputs, *output)


def _differentiate(ctx: Any, grad: Tensor, _: Tensor | None) -> tuple[Tensor, Tensor]:
    grad_q, grad_v = _attend_backward(grad, *ctx.saved_tensors)
    return grad_q, grad_v


_attend.register_autograd(_differentiate, setup_context=_save)
