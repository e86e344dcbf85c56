"""Offset-attention, the attention of the Point Cloud Transformer."""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from pcattn.attention.geometry import Geometry
from pcattn.attention.maps import AttentionMaps, heads
from pcattn.utils.errors import InputError

# Above this many points the N x N weights are computed block by block (and once more in the backward pass), which is
# also faster: a block stays in the cache.
_MAX_WRITTEN_OUT = 256

# Elements of the weights of one block, keys times queries.
_BLOCK_ELEMENTS = {"cpu": 1 << 20, "cuda": 1 << 26}


class OffsetAttention(nn.Module):
    r"""Offset-attention of PCT (section 3.2, equations 7 to 9), as its authors released it.

    Energies :math:`e_{ij} = q_i \cdot q_j`, without a scale, from one weight shared by queries and keys. They are
    normalized twice: softmax over the queries i, then every row divided by its sum over the keys j,

    .. math::
        s_{ij} = \frac{\exp e_{ij}}{\sum_{i'} \exp e_{i'j}}, \qquad
        \mathrm{out}_i = \frac{\sum_j s_{ij} v_j}{10^{-9} + \sum_j s_{ij}} .

    The layer around it feeds the *offset* x - out to its LBR (`update = "offset"`), which the paper likens to a
    graph Laplacian. With the LBR a layer has 2.25 C^2 + 4 C parameters. In large clouds the N x N weights are never
    held: time stays quadratic in N, memory is linear.

    Differs from the released code in layout only: there the transposed matrix is normalized and applied transposed,
    which is the same because e is symmetric.

    Args:
        dim: channels C, divisible by 4.

    Shape:
        x (B, N, C) -> (B, N, C).

    Source: Point Cloud Transformer, Guo et al. 2021, https://arxiv.org/abs/2012.09688.
    """

    update: ClassVar[str] = "offset"

    def __init__(self, dim: int) -> None:
        super().__init__()
        if dim % 4:
            raise InputError(f"expected dim to be divisible by 4, but got dim={dim}")
        self.qk = nn.Linear(dim, dim // 4, bias=False)
        self.v = nn.Linear(dim, dim)

    def forward(self, x: Tensor, geometry: Geometry) -> Tensor:
        """Attend from every point to every point."""
        q, v = self.qk(x), self.v(x)
        if x.shape[1] > _MAX_WRITTEN_OUT or v.dtype == torch.float16:  # whose range energies leave: blocks widen them
            return _offset_attention(q, v)[0]
        return offset_attention(q, v)

    def attention_map(self, x: Tensor, geometry: Geometry, point: int) -> AttentionMaps:
        """What a point attends to: s_ij / (1e-9 + sum_j s_ij), one map; sums to 1."""
        q = self.qk(x)
        q, _ = _upcast(q, q)
        with torch.autocast(q.device.type, enabled=False):
            weights = _normalize_queries(q, q)[:, :, point]  # (B, keys)
        return heads((weights / (1e-9 + weights.sum(dim=1, keepdim=True)))[:, None])


def offset_attention(q: Tensor, v: Tensor) -> Tensor:
    """The attention written out, with its N x N weights.

    Shape:
        q (B, N, D), v (B, N, C) -> (B, N, C).
    """
    weights = _normalize_queries(q, q)  # (B, keys, queries)
    weights = weights / (1e-9 + weights.sum(dim=1, keepdim=True))
    return weights.to(v.dtype).transpose(1, 2) @ v


def _normalize_queries(keys: Tensor, q: Tensor) -> Tensor:
    """Softmax of keys (..., M, D) times q (..., N, D) over the queries, (..., M, N)."""
    energy = keys @ q.transpose(-1, -2)
    # In float16 the constant 1e-9 is zero, so both normalizations run in at least float32.
    return energy.softmax(dim=-1, dtype=torch.promote_types(energy.dtype, torch.float32))


# The softmax runs over the queries, so a block of keys with all queries is normalized on its own: one pass over the
# blocks gives sum_j s_ij v_j and sum_j s_ij, and the division comes last. The backward pass needs no more than these.
@torch.library.custom_op("pcattn::offset_attention", mutates_args=())
def _offset_attention(q: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """The output, and the sums (B, N, 1) of the rows; one block of the weights in memory."""
    dtype, (q, v) = v.dtype, _upcast(q, v)
    sums_dtype = torch.promote_types(q.dtype, torch.float32)
    out, totals = torch.zeros_like(v, dtype=sums_dtype), q.new_zeros(*q.shape[:2], 1, dtype=sums_dtype)
    with torch.autocast(q.device.type, enabled=False):
        for clouds, keys in _blocks(q):
            weights = _normalize_queries(q[clouds, keys], q[clouds])  # (b, M, N)
            totals[clouds] += weights.sum(dim=1)[..., None]
            out[clouds] += weights.to(v.dtype).transpose(1, 2) @ v[clouds, keys]
    return (out / (1e-9 + totals)).to(dtype), totals


@torch.library.custom_op("pcattn::offset_attention_backward", mutates_args=())
def _offset_attention_backward(
    grad: Tensor, q: Tensor, v: Tensor, out: Tensor, totals: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradients of q and v."""
    dtypes, (q, v) = (q.dtype, v.dtype), _upcast(q, v)
    grad = grad.to(totals.dtype) / (1e-9 + totals)  # of sum_j s_ij v_j
    grad_totals = -(grad * out).sum(dim=-1)[:, None]  # of sum_j s_ij, (B, 1, N)
    grad = grad.to(v.dtype)
    grad_q, grad_v = torch.zeros_like(q, dtype=totals.dtype), torch.empty_like(v)
    with torch.autocast(q.device.type, enabled=False):
        for clouds, keys in _blocks(q):
            weights = _normalize_queries(q[clouds, keys], q[clouds])  # (b, M, N)
            grad_v[clouds, keys] = weights.to(v.dtype) @ grad[clouds]
            grad_weights = (v[clouds, keys] @ grad[clouds].transpose(1, 2)).to(weights.dtype) + grad_totals[clouds]
            mean = (weights * grad_weights).sum(dim=2, keepdim=True)
            grad_energy = grad_weights.sub_(mean).mul_(weights).to(q.dtype)
            grad_q[clouds] += grad_energy.transpose(1, 2) @ q[clouds, keys]
            grad_q[clouds, keys] += grad_energy @ q[clouds]
    return grad_q.to(dtypes[0]), grad_v.to(dtypes[1])


def _upcast(q: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Energies, and weights of size 1 / N, leave the range of float16; bfloat16 holds them."""
    return (q.float(), v.float()) if torch.float16 in (q.dtype, v.dtype) else (q, v)


def _blocks(q: Tensor) -> list[tuple[slice, slice]]:
    """Slices of clouds and of keys: several clouds at once when they are small, a part of the keys when large."""
    batch, num_points, _ = q.shape
    elements = _BLOCK_ELEMENTS.get(q.device.type, _BLOCK_ELEMENTS["cpu"])
    clouds = max(1, elements // num_points**2)
    keys = max(1, elements // num_points)
    return [
        (slice(i, i + clouds), slice(j, j + keys)) for i in range(0, batch, clouds) for j in range(0, num_points, keys)
    ]


@_offset_attention.register_fake
def _(q: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    totals = q.new_empty(*q.shape[:2], 1, dtype=torch.promote_types(q.dtype, torch.float32))
    return torch.empty_like(v), totals


@_offset_attention_backward.register_fake
def _(grad: Tensor, q: Tensor, v: Tensor, out: Tensor, totals: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty_like(q), torch.empty_like(v)


def _save(ctx: Any, inputs: tuple[Tensor, Tensor], output: tuple[Tensor, Tensor]) -> None:
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(*inputs, *output)


def _differentiate(ctx: Any, grad: Tensor, _: Tensor | None) -> tuple[Tensor, Tensor]:
    return _offset_attention_backward(grad, *ctx.saved_tensors)


_offset_attention.register_autograd(_differentiate, setup_context=_save)
