r"""Attention inside pencils of different lengths, with relative terms, without a mask of N x N pairs.

For two points i, j of one pencil and a group g of channels there are three maps,

.. math::
    m^0_{ij} = q_i \cdot k_j, \qquad m^1_{ij} = Q_i[\delta_{ij}], \qquad m^2_{ij} = K_j[\delta_{ji}] ,

where Q and K hold the products of a query or a key with every entry of a table of relative positions, and
:math:`\delta_{ij}` is the entry of i relative to j. Logits are a weighted sum of the maps.

The operations are registered with `torch.library`: the lengths of the pencils depend on the data, the shapes of the
results do not, so `torch.compile` and `torch.export` pass through. Pencils of about the same length are padded to one
length and computed together, forward and backward; on the CPU `numba_pencil` takes them one by one, without padding,
which is several times faster where pencils are short.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from pcattn.ops.backends import can_run_numba
from pcattn.utils.errors import InputError

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

    Raises:
        InputError: as `pencil_attention`.
    """
    _check_sizes(coordinate, q=q, k=k, q_table=q_table, k_table=k_table)
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

    Raises:
        InputError: the pencils are not those of the B N points.
    """
    _check_sizes(coordinate, q=q, k=k, v=v, q_table=q_table, k_table=k_table)
    return _attend(q, k, v, q_table, k_table, scales, order, label, coordinate)


def _check_sizes(coordinate: Tensor, **rows: Tensor) -> None:
    """Kernels read rows by the pencils' points: of fewer rows they would read foreign memory."""
    for name, tensor in rows.items():
        if tensor.shape[:2] != coordinate.shape:
            raise InputError(
                f"expected {name} (B, N, ...) of {tuple(coordinate.shape)} points, as the pencils have, "
                f"but got shape {tuple(tensor.shape)}"
            )


class _Block(NamedTuple):
    """Pencils padded to one length m, with all their points as queries (n = m), or a part of one long pencil."""

    queries: Tensor  #: (P, n), rows of the B * N points; the padding repeats the first
    keys: Tensor  #: (P, m)
    valid_queries: Tensor  #: (P, n)
    valid_keys: Tensor  #: (P, m)
    forth: Tensor  #: (P, 1, n, m), entry of query i relative to key j
    back: Tensor  #: (P, 1, n, m), entry of key j relative to query i

    @property
    def pairs(self) -> Tensor:
        """(P, 1, n, m), whether both are points of the pencil."""
        return (self.valid_queries[:, :, None] & self.valid_keys[:, None])[:, None]

    def take(self, q: Tensor, k: Tensor, q_table: Tensor, k_table: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Queries, keys and their tables (B * N, G, D) as (P, G, n or m, D)."""
        return _take(q, self.queries), _take(k, self.keys), _take(q_table, self.queries), _take(k_table, self.keys)

    def maps(self, q: Tensor, k: Tensor, q_table: Tensor, k_table: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The three maps (P, G, n, m) of queries and keys (P, G, n or m, D) and their tables (P, G, n or m, T)."""
        # The table of key j is in row j: gathered there and transposed.
        by_key = self.back.transpose(2, 3).expand(-1, q.shape[1], -1, -1)
        return (
            q @ k.transpose(2, 3),
            q_table.gather(3, self.forth.expand(-1, q.shape[1], -1, -1)),
            k_table.gather(3, by_key).transpose(2, 3),
        )

    def mass(self, weights: Tensor, size: int) -> Tensor:
        """Sum weights (P, G, n, m) of every query by table entry, (P, G, n, T)."""
        return _scatter(weights, self.forth, size)

    def add_to_queries(self, out: Tensor, x: Tensor) -> None:
        """Add x (P, G, n, D) to the rows of out (B, N, G, D)."""
        out.flatten(0, 1)[self.queries[self.valid_queries]] += x.transpose(1, 2)[self.valid_queries]

    def add_to_keys(self, out: Tensor, x: Tensor) -> None:
        """Add x (P, G, m, D) to the rows of out (B, N, G, D)."""
        out.flatten(0, 1)[self.keys[self.valid_keys]] += x.transpose(1, 2)[self.valid_keys]

    def add_gradients(self, outs: list[Tensor], grads: list[Tensor], q: Tensor, k: Tensor) -> None:
        """Add to the gradients of queries, keys and their tables what those of the three maps bring."""
        size = outs[2].shape[3]
        self.add_to_queries(outs[0], grads[0] @ k)
        self.add_to_keys(outs[1], grads[0].transpose(2, 3) @ q)
        self.add_to_queries(outs[2], _scatter(grads[1], self.forth, size))
        self.add_to_keys(outs[3], _scatter(grads[2].transpose(2, 3), self.back.transpose(2, 3), size))


def _take(x: Tensor, points: Tensor) -> Tensor:
    """Rows of x (B * N, G, D) at points (P, m), as (P, G, m, D)."""
    return x.index_select(0, points.flatten()).view(*points.shape, *x.shape[1:]).transpose(1, 2)


def _scatter(weights: Tensor, entries: Tensor, size: int) -> Tensor:
    sums = weights.new_zeros(*weights.shape[:3], size)
    return sums.scatter_add_(3, entries.expand_as(weights), weights)


def _blocks(num_groups: int, size: int, order: Tensor, label: Tensor, coordinate: Tensor) -> Iterator[_Block]:
    counts = torch.unique_consecutive(label, return_counts=True)[1]
    starts = counts.cumsum(0) - counts
    lengths, by_length = counts.sort(stable=True)
    starts = starts[by_length]
    limit = max(1, _BLOCK_ELEMENTS.get(label.device.type, _BLOCK_ELEMENTS["cpu"]) // num_groups)
    coordinate = coordinate.flatten()
    center = size // 2
    for first, last, length in _group(lengths.tolist(), limit):
        member = torch.arange(length, device=label.device)
        valid = member < lengths[first:last, None]
        points = order[starts[first:last, None] + member.where(valid, 0)]  # (P, m)
        place = coordinate[points]
        # A pencil may hold nearly all points, as copies of one: its queries then come in parts.
        part = max(1, limit // length) if last - first == 1 else length
        for i in range(0, length, part):
            rows = slice(i, i + part)
            distance = (place[:, rows, None] - place[:, None]).round().clamp(-center, center).long()[:, None]
            yield _Block(points[:, rows], points, valid[:, rows], valid, center + distance, center - distance)


def _group(lengths: list[int], limit: int) -> Iterator[tuple[int, int, int]]:
    """Ranges of the ascending lengths to compute together, and the longest of each."""
    first = 0
    for i, length in enumerate(lengths):
        if i > first and (length > max(4, _MAX_PADDING * lengths[first]) or (i + 1 - first) * length**2 > limit):
            yield first, i, lengths[i - 1]
            first = i
    yield first, len(lengths), lengths[-1]


def _rows(*tensors: Tensor) -> list[Tensor]:
    """(B, N, G, D) -> (B * N, G, D), in at least float32."""
    return [x.flatten(0, 1).to(torch.promote_types(x.dtype, torch.float32)) for x in tensors]


def _zeros(*tensors: Tensor) -> list[Tensor]:
    """What blocks are added to, in at least float32."""
    return [torch.zeros(x.shape, dtype=torch.promote_types(x.dtype, torch.float32), device=x.device) for x in tensors]


def _cast(results: list[Tensor], like: Sequence[Tensor]) -> tuple[Tensor, ...]:
    return tuple(result.view_as(x).to(x.dtype) for result, x in zip(results, like, strict=True))


@torch.library.custom_op("pcattn::pencil_variances", mutates_args=())
def _variances(
    q: Tensor, k: Tensor, q_table: Tensor, k_table: Tensor, order: Tensor, label: Tensor, coordinate: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Variances and means (3, G) of the maps, and the number of pairs as a float."""
    q, k, q_table, k_table = _rows(q, k, q_table, k_table)
    if not can_run_numba(q):
        from pcattn.ops.axial_attention import numba as numba_pencil

        return numba_pencil.variances([q, k, q_table, k_table], order, label, coordinate)
    num_groups, size = q_table.shape[1:]
    means, squares = q.new_zeros(3, num_groups, 1, 1), q.new_zeros(3, num_groups, 1, 1)
    num_pairs = q.new_zeros(())
    with torch.autocast(q.device.type, enabled=False):
        for block in _blocks(num_groups, size, order, label, coordinate):
            inputs = block.take(q, k, q_table, k_table)
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
    inputs = (q, k, q_table, k_table)
    rows, factor = _rows(*inputs), 2 * grad / num_pairs
    if not can_run_numba(q):
        from pcattn.ops.axial_attention import numba as numba_pencil

        grads = numba_pencil.variances_backward(rows, means, factor, order, label, coordinate)
        return cast(tuple[Tensor, Tensor, Tensor, Tensor], _cast(grads, inputs))
    outs = _zeros(*inputs)
    num_groups, size = q_table.shape[2:]
    with torch.autocast(q.device.type, enabled=False):
        for block in _blocks(num_groups, size, order, label, coordinate):
            q, k, q_table, k_table = block.take(*rows)
            grads = [
                ((values - means[r, :, None, None]) * factor[r, :, None, None]).where(block.pairs, 0)
                for r, values in enumerate(block.maps(q, k, q_table, k_table))
            ]
            block.add_gradients(outs, grads, q, k)
    return cast(tuple[Tensor, Tensor, Tensor, Tensor], _cast(outs, inputs))


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
    *rows, values = _rows(q, k, q_table, k_table, v)
    if not can_run_numba(q):
        from pcattn.ops.axial_attention import numba as numba_pencil

        out, mass = numba_pencil.attend(rows, values, scales, order, label, coordinate)
        return out.view_as(v).to(v.dtype), mass.view_as(q_table).to(q_table.dtype)
    out, mass = _zeros(v, q_table)
    num_groups, size = q_table.shape[2:]
    with torch.autocast(q.device.type, enabled=False):
        for block in _blocks(num_groups, size, order, label, coordinate):
            weights = _weights(block, block.maps(*block.take(*rows)), scales)
            block.add_to_queries(out, weights @ _take(values, block.keys))
            block.add_to_queries(mass, block.mass(weights, size))
    return out.to(v.dtype), mass.to(q_table.dtype)


def _weights(block: _Block, maps: tuple[Tensor, Tensor, Tensor], scales: Tensor) -> Tensor:
    """Softmax over the keys of the pencil, (P, G, n, m); zero beside the pairs."""
    scales = scales.to(maps[0].dtype)[:, :, None, None]
    logits = scales[0] * maps[0] + scales[1] * maps[1] + scales[2] * maps[2]
    # The padding follows the points of a pencil, so every row has a valid first key once rows of padding are let in.
    weights = logits.masked_fill(~block.valid_keys[:, None, None], -torch.inf).softmax(dim=3)
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
    inputs = (q, k, q_table, k_table)
    rows, (v_rows, out_rows, mass_rows) = _rows(*inputs), _rows(v, grad_out, grad_mass)
    if not can_run_numba(q):
        from pcattn.ops.axial_attention import numba as numba_pencil

        *outs, grad_v, grad_scales = numba_pencil.attend_backward(
            out_rows, mass_rows, rows, v_rows, scales, order, label, coordinate
        )
    else:
        outs, (grad_v, grad_scales) = _zeros(*inputs), _zeros(v, scales)
        num_groups, size = q_table.shape[2:]
        with torch.autocast(q.device.type, enabled=False):
            for block in _blocks(num_groups, size, order, label, coordinate):
                taken = block.take(*rows)
                maps = block.maps(*taken)
                weights = _weights(block, maps, scales)
                grad = _take(out_rows, block.queries)
                block.add_to_keys(grad_v, weights.transpose(2, 3) @ grad)
                grad_weights = grad @ _take(v_rows, block.keys).transpose(2, 3)
                grad_weights += _take(mass_rows, block.queries).gather(3, block.forth.expand_as(weights))
                grad_logits = weights * (grad_weights - (weights * grad_weights).sum(dim=3, keepdim=True))
                for r, values in enumerate(maps):
                    grad_scales[r] += (grad_logits * values).sum(dim=(0, 2, 3))
                grads = grad_logits * scales[:, None, :, None, None].to(grad_logits.dtype)  # (3, P, G, n, m)
                block.add_gradients(outs, list(grads), taken[0], taken[1])
    grad_q, grad_k, grad_q_table, grad_k_table = _cast(outs, inputs)
    grad_v, grad_scales = _cast([grad_v, grad_scales], (v, scales))
    return grad_q, grad_k, grad_v, grad_q_table, grad_k_table, grad_scales


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
