"""Multi-head external attention: external attention whose heads share one small memory."""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from pcattn.attention.geometry import Geometry
from pcattn.attention.maps import AttentionMaps
from pcattn.utils.errors import InputError

# The released code widens the features by this factor, and has as many times more heads and fewer slots.
_EXPANSION = 4

# Elements of the weights (N x S) of the heads computed together. The weights of all heads would be many times larger
# than the features, and are therefore computed once more in the backward pass.
_BLOCK_ELEMENTS = {"cpu": 1 << 20, "cuda": 1 << 26}


class MultiheadExternalAttention(nn.Module):
    r"""Multi-head external attention (section 3.3), the core of EAMLP: linear in the number of points.

    .. math::
        z = x W_t^T + b_t \in \mathbb{R}^{4C}, \qquad
        \mathrm{head}_h = \mathrm{Norm}(z_h M_k^T) M_v^T + b_v, \qquad
        \mathrm{out} = [\mathrm{head}_1, \dots, \mathrm{head}_{4H}] W_o^T + b_o

    4 H heads of width C / H share one pair of memories, :math:`M_k \in \mathbb{R}^{S \times C/H}` and
    :math:`M_v \in \mathbb{R}^{C/H \times S}`; `Norm` is `external.double_normalize` in each head.

    Differs from the released code: the keys have no bias, because softmax over the points cancels it.

    Args:
        dim: channels C, divisible by `num_heads`.
        num_heads: H; there are 4 H heads.
        num_slots: S, slots of the memories.

    Shape:
        x (B, N, C) -> (B, N, C).

    Source: Beyond Self-attention: External Attention using Two Linear Layers for Visual Tasks, Guo et al. 2021,
    https://arxiv.org/abs/2105.02358.
    """

    update: ClassVar[str] = "residual"

    def __init__(self, dim: int, num_heads: int = 4, num_slots: int = 64) -> None:
        super().__init__()
        if num_heads < 1 or dim % num_heads:
            raise InputError(f"expected dim to be divisible by num_heads, but got dim={dim}, num_heads={num_heads}")
        if num_slots < 1:
            raise InputError(f"expected num_slots >= 1, but got {num_slots}")
        self.num_heads = _EXPANSION * num_heads
        self.expand = nn.Linear(dim, _EXPANSION * dim)
        self.memory_key = nn.Parameter(torch.empty(num_slots, dim // num_heads))
        self.memory_value = nn.Linear(num_slots, dim // num_heads)
        self.proj = nn.Linear(_EXPANSION * dim, dim)
        for weight in (self.expand.weight, self.memory_key, self.memory_value.weight, self.proj.weight):
            nn.init.trunc_normal_(weight, std=0.02)
        for linear in (self.expand, self.memory_value, self.proj):
            nn.init.zeros_(linear.bias)

    def forward(self, x: Tensor, geometry: Geometry) -> Tensor:
        """Attend from every point to the slots of the memory."""
        heads = self.expand(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # (B, 4H, N, C / H)
        out = _attend(heads.contiguous(), self.memory_key, self.memory_value.weight)
        return self.proj((out + self.memory_value.bias).transpose(1, 2).flatten(2))

    def attention_map(self, x: Tensor, geometry: Geometry, point: int) -> AttentionMaps:
        """A map for each slot of each head: which points attend to it. At a point the maps of a head sum to 1."""
        queries = self.expand(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # (B, 4H, N, C / H)
        weights, totals = _weights(queries.flatten(0, 1), self.memory_key)
        maps = (weights / totals).transpose(1, 2).unflatten(0, (len(x), -1)).flatten(1, 2)  # (B, 4H * S, N)
        num_slots = len(self.memory_key)
        names = [f"head {head}, slot {slot}" for head in range(self.num_heads) for slot in range(num_slots)]
        return AttentionMaps(maps, names, slots=True)


@torch.library.custom_op("pcattn::multihead_external", mutates_args=())
def _attend(heads: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Norm(heads key^T) value^T for heads (B, H, N, D), key (S, D) and value (D, S), a few heads at a time."""
    out = torch.empty_like(heads)
    with torch.autocast(heads.device.type, enabled=False):
        for block, to in zip(_blocks(heads, key), _blocks(out, key), strict=True):
            slots, totals = _weights(block, key)
            to.copy_((slots / totals).to(heads.dtype) @ value.t().to(heads.dtype))
    return out


@torch.library.custom_op("pcattn::multihead_external_backward", mutates_args=())
def _attend_backward(grad: Tensor, heads: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of the heads, the key and the value."""
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
    """Softmax over the points (P, N, S) in at least float32, and 1e-9 + its sums (P, N, 1) over the slots."""
    logits = heads @ key.t().to(heads.dtype)
    slots = logits.softmax(dim=1, dtype=torch.promote_types(logits.dtype, torch.float32))
    return slots, 1e-9 + slots.sum(dim=2, keepdim=True)


def _blocks(heads: Tensor, key: Tensor) -> tuple[Tensor, ...]:
    """Views (P, N, D) of a few heads each."""
    elements = _BLOCK_ELEMENTS.get(heads.device.type, _BLOCK_ELEMENTS["cpu"])
    return heads.view(-1, *heads.shape[2:]).split(max(1, elements // (heads.shape[2] * key.shape[0])))


@_attend.register_fake
def _(heads: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return torch.empty_like(heads)


@_attend_backward.register_fake
def _(grad: Tensor, heads: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(heads), torch.empty_like(key), torch.empty_like(value)


def _save(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _differentiate(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return _attend_backward(grad, *ctx.saved_tensors)


_attend.register_autograd(_differentiate, setup_context=_save)
