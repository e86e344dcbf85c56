"""Multi-head external attention, a few heads at a time: `pcattn::multihead_external`.

The weights of all heads would be many times larger than the features. They are therefore computed in blocks of heads,
and computed again in the backward pass.
"""

from typing import Any

import torch
from torch import Tensor

from pcattn.utils.errors import InputError

# Elements of the weights (N x S) of the heads computed together.
_BLOCK_ELEMENTS = {"cpu": 1 << 20, "cuda": 1 << 26}


def multihead_external_attention(heads: Tensor, key: Tensor, value: Tensor) -> Tensor:
    r"""Attention of every head to one memory that all heads and clouds share,

    .. math::
        \mathrm{out}_h = \mathrm{Norm}(z_h M_k^T)\, M_v^T ,

    where Norm is `pcattn.ops.external_attention.reference.double_normalize`.

    Args:
        heads: z, (B, H, N, D).
        key: M_k, (S, D).
        value: M_v, (D, S).

    Shape:
        (B, H, N, D).

    Raises:
        InputError: the shapes do not fit.
    """
    dim, num_slots = heads.shape[-1], key.shape[0]
    if heads.dim() != 4 or key.shape != (num_slots, dim) or value.shape != (dim, num_slots):
        raise InputError(
            "expected heads (B, H, N, D), key (S, D) and value (D, S), "
            f"but got {tuple(heads.shape)}, {tuple(key.shape)} and {tuple(value.shape)}"
        )
    out: Tensor = _attend(heads.contiguous(), key, value)
    return out


@torch.library.custom_op("pcattn::multihead_external", mutates_args=())
def _attend(heads: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """A few heads at a time."""
    out = torch.empty_like(heads)
    with torch.autocast(heads.device.type, enabled=False):
        for block, to in zip(_blocks(heads, key), _blocks(out, key), strict=True):
            slots, totals = _weights(block, key)
            to.copy_((slots / totals).to(heads.dtype) @ value.t().to(heads.dtype))
    return out


@torch.library.custom_op("pcattn::multihead_external_backward", mutates_args=())
def _attend_backward(grad: Tensor, heads: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of heads, key and value."""
    grad, grad_heads = grad.contiguous(), torch.empty_like(heads)
    dtype = heads.dtype
    sums = torch.promote_types(dtype, torch.float32)
    grad_key, grad_value = torch.zeros_like(key, dtype=sums), torch.zeros_like(value, dtype=sums)
    with torch.autocast(heads.device.type, enabled=False):
        for block, to, out in zip(*(_blocks(x, key) for x in (heads, grad_heads, grad)), strict=True):
            slots, totals = _weights(block, key)
            weights = slots / totals
            grad_value += out.flatten(0, 1).t() @ weights.to(dtype).flatten(0, 1)
            grad_slots = (out @ value.to(dtype)).to(sums)
            grad_slots = (grad_slots - (grad_slots * weights).sum(dim=2, keepdim=True)) / totals
            grad_slots -= (grad_slots * slots).sum(dim=1, keepdim=True)
            grad_logits = grad_slots.mul_(slots).to(dtype)
            to.copy_(grad_logits @ key.to(dtype))
            grad_key += grad_logits.flatten(0, 1).t() @ block.flatten(0, 1)
    return grad_heads, grad_key.to(key.dtype), grad_value.to(value.dtype)


def _weights(heads: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
    """Softmax over the points (P, N, S), in at least float32, and 1e-9 + its sums over the slots (P, N, 1)."""
    logits = heads @ key.t().to(heads.dtype)
    slots = logits.softmax(dim=1, dtype=torch.promote_types(logits.dtype, torch.float32))
    return slots, 1e-9 + slots.sum(dim=2, keepdim=True)


def _blocks(heads: Tensor, key: Tensor) -> tuple[Tensor, ...]:
    """Views (P, N, D) of a few heads each."""
    elements = _BLOCK_ELEMENTS.get(heads.device.type, _BLOCK_ELEMENTS["cpu"])
    return torch.split(heads.view(-1, *heads.shape[2:]), max(1, elements // (heads.shape[2] * key.shape[0])))


@_attend.register_fake
def _(heads: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return torch.empty_like(heads)


@_attend_backward.register_fake
def _(grad: Tensor, heads: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(heads), torch.empty_like(key), torch.empty_like(value)


def _save(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _differentiate(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    grad_heads, grad_key, grad_value = _attend_backward(grad, *ctx.saved_tensors)
    return grad_heads, grad_key, grad_value


_attend.register_autograd(_differentiate, setup_context=_save)
