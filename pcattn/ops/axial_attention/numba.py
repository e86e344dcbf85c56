"""Attention inside pencils on the CPU: a loop over pencils, without padding.

Arrays are contiguous and of one floating type: queries and keys (R, G, D), values (R, G, E) and tables (R, G, T), with
R = B N. A pencil writes only its own rows, so that threads share the pencils without a lock.
"""

from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pcattn.ops.threads import inlined, jit, run_split

# Allows sums in any order, without which their loops do not become vector instructions.
_fast = partial(jit, fastmath={"reassoc", "contract"})


def variances(inputs: list[Tensor], order: Tensor, label: Tensor, coordinate: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Variances and means (3, G) of the maps of `inputs` (q, k and their tables), and the number of pairs."""
    q, k, q_table, k_table = map(_array, inputs)
    points, bounds, place = _layout(order, label, coordinate, q.dtype)
    # Relative to the maps of one pair, E[m^2] - E[m]^2 loses no digits to the mean.
    first, center = points[0], q_table.shape[2] // 2
    origin = np.stack(((q[first] * k[first]).sum(1), q_table[first, :, center], k_table[first, :, center]))
    sums = np.zeros((len(bounds) - 1, 2, 3, q.shape[1]))
    run_split(
        lambda start, stop: _variances(q, k, q_table, k_table, points, bounds, place, origin, sums, start, stop),
        len(sums),
    )
    num_pairs = float((np.diff(bounds).astype(np.float64) ** 2).sum())
    mean, square = sums.sum(axis=0) / num_pairs
    results = np.maximum(square - mean**2, 0), mean + origin, np.array(num_pairs)
    variance, mean, pairs = (torch.from_numpy(result.astype(q.dtype)) for result in results)
    return variance, mean, pairs


def variances_backward(
    inputs: list[Tensor], means: Tensor, factor: Tensor, order: Tensor, label: Tensor, coordinate: Tensor
) -> list[Tensor]:
    """Gradients of `inputs`, where factor[r, g] (m^r - means[r, g]) is the gradient of the value m^r of a pair."""
    q, k, q_table, k_table = map(_array, inputs)
    points, bounds, place = _layout(order, label, coordinate, q.dtype)
    outs, results = _zeros(*inputs)
    mean, scale = _array(means.to(inputs[0].dtype)), _array(factor.to(inputs[0].dtype))
    run_split(
        lambda start, stop: _variances_backward(
            q, k, q_table, k_table, points, bounds, place, mean, scale, *outs, start, stop
        ),
        len(bounds) - 1,
    )
    return results


def attend(
    inputs: list[Tensor], v: Tensor, scales: Tensor, order: Tensor, label: Tensor, coordinate: Tensor
) -> tuple[Tensor, Tensor]:
    """Sums of the values (R, G, E), and the weight that every entry of the table receives (R, G, T)."""
    q, k, q_table, k_table, values = map(_array, (*inputs, v))
    points, bounds, place = _layout(order, label, coordinate, q.dtype)
    scale = _array(scales.to(v.dtype))
    (out, mass), results = _zeros(v, inputs[2])
    run_split(
        lambda start, stop: _attend(
            q, k, values, q_table, k_table, scale, points, bounds, place, out, mass, start, stop
        ),
        len(bounds) - 1,
    )
    return results[0], results[1]


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
    q, k, q_table, k_table, values = map(_array, (*inputs, v))
    points, bounds, place = _layout(order, label, coordinate, q.dtype)
    scale, of_out, of_mass = map(_array, (scales.to(v.dtype), grad_out, grad_mass))
    outs, results = _zeros(*inputs, v)
    of_scales = np.zeros((len(bounds) - 1, *scale.shape))  # per pencil, so that the sum does not depend on threads
    run_split(
        lambda start, stop: _attend_backward(
            of_out, of_mass, q, k, values, q_table, k_table, scale, points, bounds, place, *outs, of_scales, start, stop
        ),
        len(bounds) - 1,
    )
    return [*results, torch.from_numpy(of_scales.sum(axis=0).astype(q.dtype))]


def _array(x: Tensor) -> Any:
    return x.detach().contiguous().numpy()


def _zeros(*like: Tensor) -> tuple[list[Any], list[Tensor]]:
    """Arrays of zeros and the tensors that own their memory, which torch's profiler counts."""
    tensors = [torch.zeros(x.shape, dtype=x.dtype) for x in like]
    return [tensor.numpy() for tensor in tensors], tensors


def _layout(order: Tensor, label: Tensor, coordinate: Tensor, dtype: Any) -> tuple[Any, Any, Any]:
    """Points in the order of their pencils, the bounds of the pencils, and the coordinate of every point."""
    ends = torch.unique_consecutive(label, return_counts=True)[1].cumsum(0)
    bounds = np.concatenate(([0], _array(ends)))
    return _array(order), bounds, _array(coordinate.flatten()).astype(dtype)


@_fast
def _attend(q, k, v, q_table, k_table, scales, points, bounds, place, out, mass, start, stop):  # type: ignore[no-untyped-def]
    num_groups, size, width = q.shape[1], q_table.shape[2], v.shape[2]
    for pencil in range(start, stop):
        first, length = bounds[pencil], bounds[pencil + 1] - bounds[pencil]
        keys = _transposed(k, points, first, length)
        entries = np.empty(length, dtype=np.uintp)
        maps = np.empty((3, length), dtype=q.dtype)
        weights = np.empty(length, dtype=q.dtype)
        for a in range(first, first + length):
            i = points[a]
            _find_entries(place, points, first, length, i, size, entries)
            for g in range(num_groups):
                _compute_maps(q, q_table, k_table, keys, points, first, entries, i, g, maps)
                _softmax(maps, scales, g, weights)
                for b in range(length):
                    weight, j = weights[b], points[first + b]
                    mass[i, g, entries[b]] += weight
                    for e in range(width):
                        out[i, g, e] += weight * v[j, g, e]


@_fast
def _attend_backward(  # type: ignore[no-untyped-def]
    of_out,
    of_mass,
    q,
    k,
    v,
    q_table,
    k_table,
    scales,
    points,
    bounds,
    place,
    of_q,
    of_k,
    of_q_table,
    of_k_table,
    of_v,
    of_scales,
    start,
    stop,
):
    num_groups, size, width = q.shape[1], q_table.shape[2], v.shape[2]
    for pencil in range(start, stop):
        first, length = bounds[pencil], bounds[pencil + 1] - bounds[pencil]
        keys, values = _transposed(k, points, first, length), _transposed(v, points, first, length)
        of_keys, of_values = np.zeros_like(keys), np.zeros_like(values)
        entries = np.empty(length, dtype=np.uintp)
        maps = np.empty((3, length), dtype=q.dtype)
        weights = np.empty(length, dtype=q.dtype)
        grad = np.empty(length, dtype=q.dtype)
        for a in range(first, first + length):
            i = points[a]
            _find_entries(place, points, first, length, i, size, entries)
            for g in range(num_groups):
                _compute_maps(q, q_table, k_table, keys, points, first, entries, i, g, maps)
                _softmax(maps, scales, g, weights)
                for b in range(length):
                    grad[b] = of_mass[i, g, entries[b]]
                for e in range(width):
                    upstream = of_out[i, g, e]
                    for b in range(length):
                        grad[b] += upstream * values[g, e, b]
                        of_values[g, e, b] += upstream * weights[b]
                mean = q.dtype.type(0)
                for b in range(length):
                    mean += weights[b] * grad[b]
                for b in range(length):
                    grad[b] = weights[b] * (grad[b] - mean)
                for r in range(3):
                    total = q.dtype.type(0)
                    for b in range(length):
                        total += grad[b] * maps[r, b]
                        maps[r, b] = grad[b] * scales[r, g]
                    of_scales[pencil, r, g] += total
                _add_gradients(q, keys, points, first, entries, i, g, maps, of_q, of_keys, of_q_table, of_k_table)
        _add_transposed(of_keys, points, first, of_k)
        _add_transposed(of_values, points, first, of_v)


@_fast
def _variances(q, k, q_table, k_table, points, bounds, place, origin, sums, start, stop):  # type: ignore[no-untyped-def]
    num_groups, size = q.shape[1], q_table.shape[2]
    for pencil in range(start, stop):
        first, length = bounds[pencil], bounds[pencil + 1] - bounds[pencil]
        keys = _transposed(k, points, first, length)
        entries = np.empty(length, dtype=np.uintp)
        maps = np.empty((3, length), dtype=q.dtype)
        for a in range(first, first + length):
            i = points[a]
            _find_entries(place, points, first, length, i, size, entries)
            for g in range(num_groups):
                _compute_maps(q, q_table, k_table, keys, points, first, entries, i, g, maps)
                for r in range(3):
                    total = square = 0.0
                    for b in range(length):
                        value = np.float64(maps[r, b]) - np.float64(origin[r, g])
                        total += value
                        square += value * value
                    sums[pencil, 0, r, g] += total
                    sums[pencil, 1, r, g] += square


@_fast
def _variances_backward(  # type: ignore[no-untyped-def]
    q, k, q_table, k_table, points, bounds, place, means, factor, of_q, of_k, of_q_table, of_k_table, start, stop
):
    num_groups, size = q.shape[1], q_table.shape[2]
    for pencil in range(start, stop):
        first, length = bounds[pencil], bounds[pencil + 1] - bounds[pencil]
        keys = _transposed(k, points, first, length)
        of_keys = np.zeros_like(keys)
        entries = np.empty(length, dtype=np.uintp)
        maps = np.empty((3, length), dtype=q.dtype)
        for a in range(first, first + length):
            i = points[a]
            _find_entries(place, points, first, length, i, size, entries)
            for g in range(num_groups):
                _compute_maps(q, q_table, k_table, keys, points, first, entries, i, g, maps)
                for r in range(3):
                    for b in range(length):
                        maps[r, b] = (maps[r, b] - means[r, g]) * factor[r, g]
                _add_gradients(q, keys, points, first, entries, i, g, maps, of_q, of_keys, of_q_table, of_k_table)
        _add_transposed(of_keys, points, first, of_k)


@_fast
def _transposed(x, points, first, length):  # type: ignore[no-untyped-def]
    """Rows of one pencil as (G, D, length), so that loops over its points read memory in order."""
    out = np.empty((x.shape[1], x.shape[2], length), dtype=x.dtype)
    for b in range(length):
        for g in range(x.shape[1]):
            for d in range(x.shape[2]):
                out[g, d, b] = x[points[first + b], g, d]
    return out


@_fast
def _add_transposed(x, points, first, out):  # type: ignore[no-untyped-def]
    """Add x (G, D, length) to the rows of one pencil."""
    for b in range(x.shape[2]):
        for g in range(x.shape[0]):
            for d in range(x.shape[1]):
                out[points[first + b], g, d] += x[g, d, b]


@inlined
def _find_entries(place, points, first, length, i, size, entries):  # type: ignore[no-untyped-def]
    """Table entry of point i relative to each point of its pencil; the reverse entry is size - 1 - entry."""
    center = size // 2
    for b in range(length):
        distance = np.rint(place[i] - place[points[first + b]])
        entries[b] = np.uintp(center + np.int64(max(-center, min(center, distance))))


@inlined
def _compute_maps(q, q_table, k_table, keys, points, first, entries, i, g, maps):  # type: ignore[no-untyped-def]
    """The three maps (3, length) of query i and all keys of its pencil, for group g."""
    length, last = len(entries), np.uintp(q_table.shape[2] - 1)
    for b in range(length):
        maps[0, b] = 0
        maps[1, b] = q_table[i, g, entries[b]]
        maps[2, b] = k_table[points[first + b], g, last - entries[b]]
    for d in range(q.shape[2]):
        x = q[i, g, d]
        for b in range(length):
            maps[0, b] += x * keys[g, d, b]


@inlined
def _softmax(maps, scales, g, weights):  # type: ignore[no-untyped-def]
    """Weights (length,) from the maps."""
    length = len(weights)
    largest, total = weights.dtype.type(-np.inf), weights.dtype.type(0)
    for b in range(length):
        weights[b] = scales[0, g] * maps[0, b] + scales[1, g] * maps[1, b] + scales[2, g] * maps[2, b]
        largest = max(largest, weights[b])
    for b in range(length):
        weights[b] = np.exp(weights[b] - largest)
        total += weights[b]
    share = weights.dtype.type(1) / total
    for b in range(length):
        weights[b] *= share


@inlined
def _add_gradients(q, keys, points, first, entries, i, g, grads, of_q, of_keys, of_q_table, of_k_table):  # type: ignore[no-untyped-def]
    """Propagate the gradients (3, length) of the maps of query i; `of_keys` is (G, D, length)."""
    length, last = len(entries), np.uintp(of_q_table.shape[2] - 1)
    for d in range(q.shape[2]):
        x, total = q[i, g, d], q.dtype.type(0)
        for b in range(length):
            total += grads[0, b] * keys[g, d, b]
            of_keys[g, d, b] += grads[0, b] * x
        of_q[i, g, d] += total
    for b in range(length):
        of_q_table[i, g, entries[b]] += grads[1, b]
        of_k_table[points[first + b], g, last - entries[b]] += grads[2, b]
