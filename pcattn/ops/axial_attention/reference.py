"""Attention inside pencils in torch: pencils of about the same length are padded to one length and computed together.

Queries and keys are (R, G, D), values (R, G, E) and tables (R, G, T), with R = B N, in at least float32.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

# Elements of one map of a block of pencils.
_BLOCK_ELEMENTS = {"cpu": 1 << 18, "cuda": 1 << 25}
# The longest pencil of a block is at most this much longer than the shortest, which bounds the work on padding.
_MAX_PADDING = 1.25


def variances(inputs: list[Tensor], order: Tensor, label: Tensor, coordinate: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Variances and means (3, G) of the maps of `inputs` (q, k and their tables), and the number of pairs."""
    table = inputs[2]
    num_groups, size = table.shape[1:]
    means, squares = table.new_zeros(3, num_groups, 1, 1), table.new_zeros(3, num_groups, 1, 1)
    num_pairs = table.new_zeros(())
    with torch.autocast(table.device.type, enabled=False):
        for block in _blocks(num_groups, size, order, label, coordinate):
            count = block.pairs.sum()
            # Merged block by block (Chan et al. 1983): in float32, E[m^2] - E[m]^2 loses the variance.
            share = count / (num_pairs + count)
            for r, values in enumerate(block.maps(*block.take(*inputs))):
                mean = values.where(block.pairs, 0).sum(dim=(0, 2, 3), keepdim=True)[0] / count
                within = (values - mean).square_().where(block.pairs, 0).sum(dim=(0, 2, 3), keepdim=True)[0]
                difference = mean - means[r]
                squares[r] += within + difference.square() * num_pairs * share
                means[r] += difference * share
            num_pairs += count
    return (squares / num_pairs)[..., 0, 0], means[..., 0, 0], num_pairs


def variances_backward(
    inputs: list[Tensor], means: Tensor, factor: Tensor, order: Tensor, label: Tensor, coordinate: Tensor
) -> list[Tensor]:
    """Gradients of `inputs`, where factor[r, g] (m^r - means[r, g]) is the gradient of the value m^r of a pair."""
    outs = [torch.zeros_like(x) for x in inputs]
    num_groups, size = inputs[2].shape[1:]
    with torch.autocast(means.device.type, enabled=False):
        for block in _blocks(num_groups, size, order, label, coordinate):
            q, k, q_table, k_table = block.take(*inputs)
            grads = [
                ((values - means[r, :, None, None]) * factor[r, :, None, None]).where(block.pairs, 0)
                for r, values in enumerate(block.maps(q, k, q_table, k_table))
            ]
            block.add_gradients(outs, grads, q, k)
    return outs


def attend(
    inputs: list[Tensor], v: Tensor, scales: Tensor, order: Tensor, label: Tensor, coordinate: Tensor
) -> tuple[Tensor, Tensor]:
    """Sums of the values (R, G, E), and the weight that every entry of the table receives (R, G, T)."""
    out, mass = torch.zeros_like(v), torch.zeros_like(inputs[2])
    num_groups, size = mass.shape[1:]
    with torch.autocast(v.device.type, enabled=False):
        for block in _blocks(num_groups, size, order, label, coordinate):
            weights = block.weights(block.maps(*block.take(*inputs)), scales)
            block.add_to_queries(out, weights @ _take(v, block.keys))
            block.add_to_queries(mass, _scatter(weights, block.forth, size))
    return out, mass


def attend_backward(
    grad_out: Tensor,
    grad_mass: Tensor,
    inputs: list[Tensor],
    v: Tensor,
    scales: Tensor,
    order: Tensor,
    label: Tensor,
    coordinate: Tensor,
) -> list[Tensor]:
    """Gradients of q, k and their tables, of v, and of the scales (3, G)."""
    outs, grad_v = [torch.zeros_like(x) for x in inputs], torch.zeros_like(v)
    grad_scales = torch.zeros_like(scales, dtype=v.dtype)
    num_groups, size = inputs[2].shape[1:]
    with torch.autocast(v.device.type, enabled=False):
        for block in _blocks(num_groups, size, order, label, coordinate):
            taken = block.take(*inputs)
            maps = block.maps(*taken)
            weights = block.weights(maps, scales)
            grad = _take(grad_out, block.queries)
            block.add_to_keys(grad_v, weights.transpose(2, 3) @ grad)
            grad_weights = grad @ _take(v, block.keys).transpose(2, 3)
            grad_weights += _take(grad_mass, block.queries).gather(3, block.forth.expand_as(weights))
            grad_logits = weights * (grad_weights - (weights * grad_weights).sum(dim=3, keepdim=True))
            for r, values in enumerate(maps):
                grad_scales[r] += (grad_logits * values).sum(dim=(0, 2, 3))
            grads = grad_logits * scales[:, None, :, None, None].to(grad_logits.dtype)  # (3, P, G, n, m)
            block.add_gradients(outs, list(grads), taken[0], taken[1])
    return [*outs, grad_v, grad_scales]


class _Block(NamedTuple):
    """P pencils padded to m points, all of which are queries (n = m), or some queries of one long pencil."""

    queries: Tensor  #: (P, n), rows of R; padding repeats the first point
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
        """Queries, keys and their tables (R, G, D) as (P, G, n or m, D)."""
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

    def weights(self, maps: tuple[Tensor, Tensor, Tensor], scales: Tensor) -> Tensor:
        """Softmax over the keys of the pencil, (P, G, n, m); zero for padding."""
        scales = scales.to(maps[0].dtype)[:, :, None, None]
        logits = scales[0] * maps[0] + scales[1] * maps[1] + scales[2] * maps[2]
        # Only keys are masked here: padding follows the points of a pencil, so every row has a valid first key.
        weights = logits.masked_fill(~self.valid_keys[:, None, None], -torch.inf).softmax(dim=3)
        return weights.where(self.pairs, 0)

    def add_to_queries(self, out: Tensor, x: Tensor) -> None:
        """Add x (P, G, n, D) to the rows of out (R, G, D)."""
        out[self.queries[self.valid_queries]] += x.transpose(1, 2)[self.valid_queries]

    def add_to_keys(self, out: Tensor, x: Tensor) -> None:
        """Add x (P, G, m, D) to the rows of out (R, G, D)."""
        out[self.keys[self.valid_keys]] += x.transpose(1, 2)[self.valid_keys]

    def add_gradients(self, outs: list[Tensor], grads: list[Tensor], q: Tensor, k: Tensor) -> None:
        """Propagate gradients of the three maps to queries, keys and their tables."""
        size = outs[2].shape[2]
        self.add_to_queries(outs[0], grads[0] @ k)
        self.add_to_keys(outs[1], grads[0].transpose(2, 3) @ q)
        self.add_to_queries(outs[2], _scatter(grads[1], self.forth, size))
        self.add_to_keys(outs[3], _scatter(grads[2].transpose(2, 3), self.back.transpose(2, 3), size))


def _take(x: Tensor, points: Tensor) -> Tensor:
    """Rows of x (R, G, D) at points (P, m), as (P, G, m, D)."""
    return x.index_select(0, points.flatten()).view(*points.shape, *x.shape[1:]).transpose(1, 2)


def _scatter(weights: Tensor, entries: Tensor, size: int) -> Tensor:
    """Weights (P, G, n, m) of every query summed by table entry, (P, G, n, T)."""
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
        # A pencil may hold nearly all points, such as copies of one point. Its queries then come in parts.
        part = max(1, limit // length) if last - first == 1 else length
        for i in range(0, length, part):
            rows = slice(i, i + part)
            distance = (place[:, rows, None] - place[:, None]).round().clamp(-center, center).long()[:, None]
            yield _Block(points[:, rows], points, valid[:, rows], valid, center + distance, center - distance)


def _group(lengths: list[int], limit: int) -> Iterator[tuple[int, int, int]]:
    """Ranges of the ascending lengths to compute together, and the longest length of each."""
    first = 0
    for i, length in enumerate(lengths):
        if i > first and (length > max(4, _MAX_PADDING * lengths[first]) or (i + 1 - first) * length**2 > limit):
            yield first, i, lengths[i - 1]
            first = i
    yield first, len(lengths), lengths[-1]
