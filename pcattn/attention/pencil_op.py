r"""Attention inside pencils of different lengths, with relative terms, without a mask of N x N pairs.

For two points i, j of one pencil and a group g of channels there are three maps,

.. math::
    m^0_{ij} = q_i \cdot k_j, \qquad m^1_{ij} = Q_i[\delta_{ij}], \qquad m^2_{ij} = K_j[\delta_{ji}] ,

where Q and K hold the products of a query or a key with every entry of a table of relative positions, and
:math:`\delta_{ij}` is the entry of i relative to j. Logits are a weighted sum of the maps.

The operations are registered with `torch.library`: the lengths of the pencils depend on the data, the shapes of the
results do not, so `torch.compile` and `torch.export` pass through. Pencils of about the same length are padded to one
length and computed together, forward and backward.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

# Elements of one map of a block of pencils.
_BLOCK_ELEMENTS = {"cpu": 1 << 18, "cuda": 1 << 25}
# The longest pencil of a block is at most this much longer than the shortest: bounds the work on padding.
_MAX_PADDING = 1.25


def pencil_variances(
    q: Tensor, k: Tensor, q_table: Tensor, k_table: Tensor, order: Tensor, label: Tensor, coordinate: Tensor
) -> tuple[Tensor, Tensor]:
    """Variances (3, G) of the maps over all pairs of points that share a pencil, and the number of pairs.

    Args:
        q: queries (B, N, G, D).
        k: keys (B, N, G, D).
        q_table: Q, (B, N, G, T).
        k_table: K, (B, N, G, T).
        order: points in the order of their pencils, see `pcattn.attention.geometry.Pencils`.
        label: pencil of each of them.
        coordinate: (B, N), position along the pencil in entries of the table.
    """
    variances, _, num_pairs = _variances(q, k, q_table, k_table, order, label, coordinate)
    return variances, num_pairs


def pencil_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    q_table: Tensor,
    k_table: Tensor,
    scales: Tensor,
    order: Tensor,
    label: Tensor,
    coordinate: Tensor,
) -> tuple[Tensor, Tensor]:
    """Attention of every point to the points of its pencil, with logits sum_r scales[r, g] m^r.

    Args:
        q: queries (B, N, G, D).
        k: keys (B, N, G, D).
        v: values (B, N, G, E).
        q_table: Q, (B, N, G, T).
        k_table: K, (B, N, G, T).
        scales: (3, G).
        order: points in the order of their pencils.
        label: pencil of each of them.
        coordinate: (B, N), position along the pencil in entries of the table.

    Shape:
        the sums of the values (B, N, G, E), and the weight that every entry of the table received (B, N, G, T).
    """
    return _attend(q, k, v, q_table, k_table, scales, order, label, coordinate)


class _Block(NamedTuple):
    """Pencils padded to one length m."""

    points: Tensor  #: (P, m), rows of the B * N points; the padding repeats the first
    valid: Tensor  #: (P, m)
    forth: Tensor  #: (P, 1, m, m), entry of i relative to j
    back: Tensor  #: (P, 1, m, m), entry of j relative to i, for query i and key j
    pairs: Tensor  #: (P, 1, m, m), whether both are points of the pencil

    def take(self, x: Tensor) -> Tensor:
        """Rows of x (B * N, G, D) as (P, G, m, D)."""
        return x.index_select(0, self.points.flatten()).view(*self.points.shape, *x.shape[1:]).transpose(1, 2)

    def put(self, out: Tensor, x: Tensor) -> None:
        """Write x (P, G, m, D) to the rows of out (B * N, G, D)."""
        out[self.points[self.valid]] = x.transpose(1, 2)[self.valid].to(out.dtype)

    def maps(self, q: Tensor, k: Tensor, q_table: Tensor, k_table: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The three maps (P, G, m, m) of queries and keys (P, G, m, D) and their tables (P, G, m, T)."""
        # Key j is a column: gathered from row j and transposed.
        by_key = self.back.transpose(2, 3).expand(-1, q.shape[1], -1, -1)
        return (
            q @ k.transpose(2, 3),
            q_table.gather(3, self.forth.expand(-1, q.shape[1], -1, -1)),
            k_table.gather(3, by_key).transpose(2, 3),
        )

    def scatter(self, weights: Tensor, size: int) -> Tensor:
        """Sum weights (P, G, m, m) of every query by table entry, (P, G, m, T)."""
        return _scatter(weights, self.forth, size)

    def maps_backward(
        self, grads: tuple[Tensor, Tensor, Tensor], q: Tensor, k: Tensor, size: int
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Gradients of q, k and their tables from those of the maps."""
        return (
            grads[0] @ k,
            grads[0].transpose(2, 3) @ q,
            _scatter(grads[1], self.forth, size),
            _scatter(grads[2].transpose(2, 3), self.back.transpose(2, 3), size),
        )


def _scatter(weights: Tensor, entries: Tensor, size: int) -> Tensor:
    sums = weights.new_zeros(*weights.shape[:3], size)
    return sums.scatter_add_(3, entries.expand_as(weights), weights)


def _blocks(num_groups: int, size: int, order: Tensor, label: Tensor, coordinate: Tensor) -> Iterator[_Block]:
    counts = torch.unique_consecutive(label, return_counts=True)[1]
    starts = counts.cumsum(0) - counts
    lengths, by_length = counts.sort(stable=True)
    starts = starts[by_length]
    limit = _BLOCK_ELEMENTS.get(label.device.type, _BLOCK_ELEMENTS["cpu"])
    coordinate = coordinate.flatten()
    centre = size // 2
    for first, last, length in _group(lengths.tolist(), limit // num_groups):
        member = torch.arange(length, device=label.device)
        valid = member < lengths[first:last, None]
        points = order[starts[first:last, None] + member.where(valid, 0)]  # (P, m)
        place = coordinate[points]
        distance = (place[:, :, None] - place[:, None, :]).round().clamp(-centre, centre).long()[:, None]
        yield _Block(points, valid, centre + distance, centre - distance, (valid[:, :, None] & valid[:, None])[:, None])


def _group(lengths: list[int], limit: int) -> Iterator[tuple[int, int, int]]:
    """Ranges of the ascending lengths to compute together, and the longest of each."""
    first = 0
    for i, length in enumerate(lengths):
        if length > max(4, _MAX_PADDING * lengths[first]) or (i + 1 - first) * length**2 > limit:
            if i > first:
                yield first, i, lengths[i - 1]
            first = i
    yield first, len(lengths), lengths[-1]


def _rows(*tensors: Tensor) -> list[Tensor]:
    """(B, N, G, D) -> (B * N, G, D), in at least float32."""
    return [x.flatten(0, 1).to(torch.promote_types(x.dtype, torch.float32)) for x in tensors]


def _zeros(*tensors: Tensor) -> list[Tensor]:
    return [torch.zeros_like(x, memory_format=torch.contiguous_format) for x in tensors]


@torch.library.custom_op("pcattn::pencil_variances", mutates_args=())
def _variances(
    q: Tensor, k: Tensor, q_table: Tensor, k_table: Tensor, order: Tensor, label: Tensor, coordinate: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Variances and means (3, G) of the maps, and the number of pairs as a float."""
    q, k, q_table, k_table = _rows(q, k, q_table, k_table)
    num_groups, size = q_table.shape[1:]
    means, squares = q.new_zeros(3, num_groups, 1, 1), q.new_zeros(3, num_groups, 1, 1)
    num_pairs = q.new_zeros(())
    with torch.autocast(q.device.type, enabled=False):
        for block in _blocks(num_groups, size, order, label, coordinate):
            inputs = [block.take(x) for x in (q, k, q_table, k_table)]
            count = block.pairs.sum()
            # Merged block by block (Chan et al. 1983): float32 loses the variance in E[m^2] - E[m]^2.
            share = count / (num_pairs + count)
            for r, values in enumerate(block.maps(*inputs)):
                mean = values.where(block.pairs, 0).sum(dim=(0, 2, 3), keepdim=True)[0] / count
                within = (values - mean).square_().where(block.pairs, 0).sum(dim=(0, 2, 3), keepdim=True)[0]
                difference = mean - means[r]
                squares[r] += within + difference.square() * num_pairs * share
                means[r] += difference * share
            num_pairs += count
    return (squares / num_pairs)[..., 0, 0], means[..., 0, 0], num_pairs


@torch.library.custom_op("pcattn::pencil_variances_backward", mutates_args=())
def _variances_backward(
    grad: Tensor,
    means: Tensor,
    num_pairs: Tensor,
    q: Tensor,
    k: Tensor,
    q_table: Tensor,
    k_table: Tensor,
    order: Tensor,
    label: Tensor,
    coordinate: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of q, k and their tables."""
    grad_q, grad_k, grad_q_table, grad_k_table = _zeros(q, k, q_table, k_table)
    outs = [x.flatten(0, 1) for x in (grad_q, grad_k, grad_q_table, grad_k_table)]
    rows = _rows(q, k, q_table, k_table)
    num_groups, size = q_table.shape[2:]
    factor = 2 * grad / num_pairs
    with torch.autocast(q.device.type, enabled=False):
        for block in _blocks(num_groups, size, order, label, coordinate):
            inputs = [block.take(x) for x in rows]
            grads = [
                ((values - means[r, :, None, None]) * factor[r, :, None, None]).where(block.pairs, 0)
                for r, values in enumerate(block.maps(*inputs))
            ]
            results = block.maps_backward((grads[0], grads[1], grads[2]), inputs[0], inputs[1], size)
            for out, result in zip(outs, results, strict=True):
                block.put(out, result)
    return grad_q, grad_k, grad_q_table, grad_k_table


@torch.library.custom_op("pcattn::pencil_attention", mutates_args=())
def _attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    q_table: Tensor,
    k_table: Tensor,
    scales: Tensor,
    order: Tensor,
    label: Tensor,
    coordinate: Tensor,
) -> tuple[Tensor, Tensor]:
    out, mass = _zeros(v, q_table)
    rows = _rows(q, k, q_table, k_table, v)
    num_groups, size = q_table.shape[2:]
    with torch.autocast(q.device.type, enabled=False):
        for block in _blocks(num_groups, size, order, label, coordinate):
            *inputs, values = [block.take(x) for x in rows]
            weights = _weights(block, block.maps(*inputs), scales)
            block.put(out.flatten(0, 1), weights @ values)
            block.put(mass.flatten(0, 1), block.scatter(weights, size))
    return out, mass


def _weights(block: _Block, maps: tuple[Tensor, Tensor, Tensor], scales: Tensor) -> Tensor:
    """Softmax over the keys of the pencil, (P, G, m, m); zero beside the pairs."""
    scales = scales.to(maps[0].dtype)[:, :, None, None]
    logits = scales[0] * maps[0] + scales[1] * maps[1] + scales[2] * maps[2]
    # The padding follows the points of a pencil, so every row has a valid first key once rows of padding are let in.
    weights = logits.masked_fill(~block.valid[:, None, None], -torch.inf).softmax(dim=3)
    return weights.where(block.pairs, 0)


@torch.library.custom_op("pcattn::pencil_attention_backward", mutates_args=())
def _attend_backward(
    grad_out: Tensor,
    grad_mass: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    q_table: Tensor,
    k_table: Tensor,
    scales: Tensor,
    order: Tensor,
    label: Tensor,
    coordinate: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of q, k, v, the two tables, and the scales."""
    grad_q, grad_k, grad_v, grad_q_table, grad_k_table = _zeros(q, k, v, q_table, k_table)
    outs = [x.flatten(0, 1) for x in (grad_q, grad_k, grad_q_table, grad_k_table)]
    rows = _rows(q, k, q_table, k_table, v, grad_out, grad_mass)
    grad_scales = torch.zeros_like(scales, dtype=rows[0].dtype)
    num_groups, size = q_table.shape[2:]
    with torch.autocast(q.device.type, enabled=False):
        for block in _blocks(num_groups, size, order, label, coordinate):
            *inputs, values, grad, grad_by_entry = [block.take(x) for x in rows]
            maps = block.maps(*inputs)
            weights = _weights(block, maps, scales)
            block.put(grad_v.flatten(0, 1), weights.transpose(2, 3) @ grad)
            grad_weights = grad @ values.transpose(2, 3)
            grad_weights += grad_by_entry.gather(3, block.forth.expand_as(weights))
            grad_logits = weights * (grad_weights - (weights * grad_weights).sum(dim=3, keepdim=True))
            for r, values in enumerate(maps):
                grad_scales[r] += (grad_logits * values).sum(dim=(0, 2, 3))
            grads = grad_logits * scales[:, None, :, None, None].to(grad_logits.dtype)  # (3, P, G, m, m)
            results = block.maps_backward((grads[0], grads[1], grads[2]), inputs[0], inputs[1], size)
            for out, result in zip(outs, results, strict=True):
                block.put(out, result)
    return grad_q, grad_k, grad_v, grad_q_table, grad_k_table, grad_scales.to(scales.dtype)


def _like(*tensors: Tensor) -> list[Tensor]:
    return [torch.empty_like(x, memory_format=torch.contiguous_format) for x in tensors]


@_variances.register_fake
def _(q: Tensor, k: Tensor, q_table: Tensor, k_table: Tensor, *_: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    dtype = torch.promote_types(q.dtype, torch.float32)
    variances = q.new_empty(3, q.shape[2], dtype=dtype)
    return variances, torch.empty_like(variances), q.new_empty((), dtype=dtype)


@_variances_backward.register_fake
def _(grad: Tensor, means: Tensor, num_pairs: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
    return tuple(_like(*inputs[:4]))


@_attend.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, q_table: Tensor, *_: Tensor) -> tuple[Tensor, Tensor]:
    out, mass = _like(v, q_table)
    return out, mass


@_attend_backward.register_fake
def _(grad_out: Tensor, grad_mass: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
    return tuple(_like(*inputs[:6]))


def _save_variances(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    ctx.mark_non_differentiable(*output[1:])
    ctx.save_for_backward(*output[1:], *inputs)


def _differentiate_variances(ctx: Any, grad: Tensor, *_: Tensor | None) -> tuple[Tensor | None, ...]:
    return *_variances_backward(grad, *ctx.saved_tensors), None, None, None


def _save_attend(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs)


def _differentiate_attend(ctx: Any, grad_out: Tensor, grad_mass: Tensor) -> tuple[Tensor | None, ...]:
    return *_attend_backward(grad_out, grad_mass, *ctx.saved_tensors), None, None, None


_variances.register_autograd(_differentiate_variances, setup_context=_save_variances)
_attend.register_autograd(_differentiate_attend, setup_context=_save_attend)
