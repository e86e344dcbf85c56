r"""Local aggregation on the CPU, in blocks that stay in the cache.

.. math::
    y_i = \max_{j \in \mathcal{N}(i)} \mathrm{ReLU}(\mathrm{BN}_2(W\, \mathrm{ReLU}(\mathrm{BN}_1(p_j + c_i))))

In the reference, every operation passes over all B M k rows x_ij = p_j + c_i in memory, forward and backward. Here

- normalization and ReLU are monotone in every channel, so the maximum is taken before them: of W h or, where the scale
  of BN_2 is negative, of -W h.
- x and h, the output of the first ReLU, are computed block by block, and again in the backward pass. Of W h only the
  maxima are kept. The gradient of W h is a W h + b, with a and b per channel from BN_2, and an extra term at the
  maximum. So the gradient of h is (W^T a W) h + W^T b, that of W is a W (sum of h h^T) + b (sum of h)^T, and the extra
  terms concern one row in k.
- The gradient of x is linear in e, the gradient of BN_1's output, and in x. So the gradients of p and c need only the
  sums of e and of x over the rows of a point and of a center: no array of all rows is written.
- Rows of one group are summed in the type of the points, groups in float64. p and c are taken relative to one of them,
  so that clouds far from the origin lose no digits.

Under bfloat16 autocast the blocks are bfloat16 and products run on the matrix units; all sums stay as they are.
"""

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pcattn.ops.batch_norm.numba import FUSED, Array, Coefficients, Normalization, products, update_statistics
from pcattn.ops.bfloat16 import narrow, warn_if_slow, widen
from pcattn.ops.grouping.reference import flat_indices
from pcattn.ops.threads import jit, part_sums, run_parts

Indices = NDArray[np.int64]
Places = NDArray[np.int32]

# Elements of a block per thread: small enough for the caches, large enough for a matrix product at full speed.
_BLOCK_ELEMENTS = 1 << 19

# The fewest groups that are worth a thread.
_GRAIN = 8

# Rows that are summed before they are added to a sum in float64.
_CHUNK = 32

_run = partial(run_parts, grain=_GRAIN)


def aggregate(
    points: Tensor, centers: Tensor, neighbors: Tensor, first: nn.BatchNorm1d, linear: nn.Linear, second: nn.BatchNorm1d
) -> Tensor:
    """See `pcattn.ops.local_aggregation.op.aggregate`; in training updates the running statistics."""
    flat = flat_indices(neighbors, points.shape[1]).view(-1, neighbors.shape[2])
    block_dtype = _block_dtype(points)
    dtype = torch.promote_types(points.dtype, torch.float32)
    points, centers = (rows.flatten(0, 1).to(dtype) for rows in (points, centers))
    with torch.autocast("cpu", enabled=False):
        if first.training:
            out, *statistics = _Aggregate.apply(  # type: ignore[no-untyped-call]
                points, centers, flat, first.weight, first.bias, linear.weight, second.weight, second.bias, first.eps,
                second.eps, block_dtype,
            )  # fmt: skip
            for norm, mean, variance in ((first, *statistics[:2]), (second, *statistics[2:])):
                update_statistics(norm, mean, variance, flat.numel())
        else:
            out = _evaluate(points, centers, flat, first, linear.weight, second, block_dtype)
    return out.to(block_dtype).view(*neighbors.shape[:2], -1)


def pool(x: Tensor, linear: nn.Linear, norm: nn.BatchNorm1d) -> Tensor:
    """See `pcattn.ops.local_aggregation.op.pool`; updates the running statistics."""
    sign = _sign(norm.weight)
    mapped = nn.functional.linear(x, linear.weight * sign[:, None], None if linear.bias is None else linear.bias * sign)
    out, mean, variance = _Pool.apply(  # type: ignore[no-untyped-call]
        mapped, norm.weight * sign, norm.bias, norm.eps
    )
    update_statistics(norm, mean * sign, variance, x.shape[0] * x.shape[1])
    return out


def _evaluate(
    points: Tensor, centers: Tensor, neighbors: Tensor, first: nn.BatchNorm1d, linear: Tensor, second: nn.BatchNorm1d,
    block_dtype: torch.dtype,
) -> Tensor:  # fmt: skip
    """`aggregate` of points (P, C), centers (G, C) and neighbors (G, k) with the running statistics."""
    (scale, shift), (scale2, shift2) = (
        Normalization.running(norm).coefficients(points.dtype) for norm in (first, second)
    )
    weight = (linear * scale2[:, None]).to(block_dtype)
    best = points.new_empty(len(neighbors), len(weight))
    for block, hidden, mapped in _blocks(neighbors, block_dtype, *reversed(weight.shape)):
        _run(activate, (neighbors[block], centers[block]), (points, scale, shift), (hidden,))
        torch.mm(hidden.flatten(0, 1), weight.t(), out=mapped.flatten(0, 1))
        _run(maximum, (mapped,), (), (best[block],))
    return best.add_(shift2).relu_()


class _Aggregate(torch.autograd.Function):
    """`aggregate` of points (P, C), centers (G, C) and neighbors (G, k), and the statistics of both normalizations."""

    @staticmethod
    def forward(
        ctx: Any, points: Tensor, centers: Tensor, neighbors: Tensor, weight1: Tensor, bias1: Tensor, linear: Tensor,
        weight2: Tensor, bias2: Tensor, eps1: float, eps2: float, block_dtype: torch.dtype,
    ) -> tuple[Tensor, ...]:  # fmt: skip
        (out_dim, dim), num_rows = linear.shape, neighbors.numel()
        best = points.new_empty(len(neighbors), out_dim)
        where = torch.empty(len(neighbors), out_dim, dtype=torch.int32)

        origins = points[neighbors[0, 0]], centers[0]
        points, centers = points - origins[0], centers - origins[1]
        of_groups, of_points = torch.empty_like(centers), part_sums(*points.shape, dtype=points.dtype)
        squares = part_sums(dim)
        _run(moments, (neighbors, centers), (points,), (of_groups,), (squares, of_points))
        sums = torch.stack((of_groups.sum(0, dtype=torch.float64), squares.sum(0)))
        first = Normalization.of_sums(sums, torch.zeros(dim), num_rows, weight1, bias1, eps1)
        scale, shift = first.coefficients(points.dtype)
        sign = _sign(weight2)
        signed = linear * sign[:, None]
        weight = signed.to(block_dtype)

        sums, origin = part_sums(2, out_dim), points.new_empty(out_dim)
        for block, hidden, mapped in _blocks(neighbors, block_dtype, dim, out_dim):
            _run(activate, (neighbors[block], centers[block]), (points, scale, shift), (hidden,))
            torch.mm(hidden.flatten(0, 1), weight.t(), out=mapped.flatten(0, 1))
            if block.start == 0:
                origin.copy_(mapped[0, 0])
            _run(reduce, (mapped,), (origin,), (best[block], where[block]), (sums,))
        second = Normalization.of_sums(sums.sum(0), origin, num_rows, weight2.abs(), bias2, eps2)
        out = _affine(best, second).relu_()

        ctx.save_for_backward(points, centers, neighbors, best, where, out, sign, signed, of_groups, of_points.sum(0))
        ctx.norms, ctx.block_dtype = (first, second), block_dtype
        means = first.mean + origins[0] + origins[1], second.mean * sign
        statistics = [values.to(points.dtype) for values in (means[0], first.variance, means[1], second.variance)]
        ctx.mark_non_differentiable(*statistics)
        return out, *statistics

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        points, centers, neighbors, best, where, out, sign, signed, of_groups, of_points = ctx.saved_tensors
        (first, second), (out_dim, dim) = ctx.norms, signed.shape
        grad_weight2, grad_bias2, factor, constant, chosen = _before_maximum(grad * (out > 0), best, second)

        # The gradient of a row W h of the second map is factor W h + constant, and `chosen` where the maximum is.
        exact, (scale, shift) = signed.double(), first.coefficients(points.dtype)
        square = (exact.t() @ (factor[:, None] * exact)).to(ctx.block_dtype)
        offset = (constant @ exact).to(points.dtype)
        gram = points.new_zeros(dim, dim, dtype=torch.float64)
        of_hidden, at_maxima = part_sums(dim), part_sums(out_dim, dim)
        error_groups, error_points = torch.empty_like(centers), part_sums(*points.shape, dtype=points.dtype)
        for block, hidden, errors in _blocks(neighbors, ctx.block_dtype, dim, dim):
            _run(activate, (neighbors[block], centers[block]), (points, scale, shift), (hidden,))
            rows = hidden.flatten(0, 1)
            gram += rows.t() @ rows
            torch.mm(rows, square, out=errors.flatten(0, 1))
            maxima = (hidden, where[block], chosen[block])
            _run(propagate, (*maxima, errors, neighbors[block]), (signed, offset), (error_groups[block],),
                 (of_hidden, error_points))  # fmt: skip
            _run(outer, maxima, (), (), (at_maxima,))
        grad_linear = (factor[:, None] * exact) @ gram + constant[:, None] * of_hidden.sum(0) + at_maxima.sum(0)

        error_points = error_points.sum(0)
        total = error_groups.sum(0, dtype=torch.float64)
        product = _dot(points, error_points) + _dot(centers, error_groups) - first.mean * total
        grad_weight1, grad_bias1, *terms = first.backward(torch.stack((total, product)))
        factor, constant = (term.to(points.dtype) for term in terms)
        counts = torch.bincount(neighbors.flatten(), minlength=len(points)).to(points.dtype)
        grad_points = error_points.mul_(scale).addcmul_(of_points, factor).addcmul_(counts[:, None], constant)
        grad_centers = error_groups.mul_(scale).addcmul_(of_groups, factor).add_(neighbors.shape[1] * constant)
        of_parameters = (
            gradient.to(grad.dtype)
            for gradient in (grad_weight1, grad_bias1, grad_linear * sign[:, None], grad_weight2 * sign, grad_bias2)
        )
        return grad_points, grad_centers, None, *of_parameters, None, None, None


class _Pool(torch.autograd.Function):
    """Maximum over N of BN(mapped) (B, N, D) for weights that are not negative, and the statistics of BN."""

    @staticmethod
    def forward(ctx: Any, mapped: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
        batch, num_points, dim = mapped.shape
        best = mapped.new_empty(batch, dim, dtype=weight.dtype)
        where = torch.empty(batch, dim, dtype=torch.int32)
        origin, sums = mapped[0, 0].to(weight.dtype), part_sums(2, dim)
        run_parts(reduce, (mapped,), (origin,), (best, where), (sums,))
        norm = Normalization.of_sums(sums.sum(0), origin, batch * num_points, weight, bias, eps)
        ctx.save_for_backward(mapped, best, where)
        ctx.norm = norm
        statistics = norm.mean.to(weight.dtype), norm.variance.to(weight.dtype)
        ctx.mark_non_differentiable(*statistics)
        return _affine(best, norm).to(mapped.dtype), *statistics

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        (mapped, best, where), norm = ctx.saved_tensors, ctx.norm
        grad = grad.to(best.dtype)
        grad_weight, grad_bias, *terms, chosen = _before_maximum(grad.contiguous(), best, norm)
        errors = torch.empty_like(mapped)
        run_parts(differentiate, (mapped, where, chosen), (*terms,), (errors,))
        return errors, grad_weight.to(grad.dtype), grad_bias.to(grad.dtype), None


def _block_dtype(points: Tensor) -> torch.dtype:
    if not torch.is_autocast_enabled("cpu") or torch.get_autocast_dtype("cpu") != torch.bfloat16:
        return points.dtype
    warn_if_slow()
    return torch.bfloat16


def _dot(rows: Tensor, others: Tensor) -> Tensor:
    """Sum over the rows of the products of two arrays (R, C), summed in float64."""
    return (rows * others).sum(0, dtype=torch.float64)


def _sign(weight: Tensor) -> Tensor:
    """-1 where the normalization of a channel reverses the order of its values, else 1."""
    return torch.where(weight.detach() < 0, -1.0, 1.0).to(weight.dtype)


def _affine(best: Tensor, norm: Normalization) -> Tensor:
    """Normalized rows (G, D)."""
    return torch.addcmul(norm.shift, best.double(), norm.scale).to(best.dtype)


def _before_maximum(grad: Tensor, best: Tensor, norm: Normalization) -> tuple[Tensor, ...]:
    """Backward pass of a batch normalization of which only the maxima `best` (G, D) are used.

    Returns:
        The results of `Normalization.backward`, and `chosen` (G, D), which is added to the gradient at the maximum.
    """
    sums = part_sums(2, best.shape[1])
    run_parts(products, (grad, best), (norm.mean,), (), (sums,))
    return *norm.backward(sums.sum(0)), (norm.scale * grad).to(grad.dtype)


def _blocks(neighbors: Tensor, dtype: torch.dtype, *widths: int) -> Iterator[tuple[Any, ...]]:
    """Slices of the groups of neighbors (G, k), and arrays (g, k, width) that all slices share."""
    num_groups, k = neighbors.shape
    size = min(num_groups, max(1, _BLOCK_ELEMENTS * torch.get_num_threads() // (k * max(widths))))
    arrays = [torch.empty(size, k, width, dtype=dtype) for width in widths]
    for start in range(0, num_groups, size):
        block = slice(start, min(start + size, num_groups))
        yield block, *(array[: block.stop - start] for array in arrays)


def _moments(
    neighbors: Indices, centers: Array, points: Array, of_groups: Array, squares: Coefficients, of_points: Array
) -> None:
    """Sum the rows x of each group and of each point, and the squares of all."""
    num_groups, k = neighbors.shape
    dim = points.shape[1]
    x, square = np.empty(dim, points.dtype), np.empty(dim, points.dtype)
    for i in range(num_groups):
        of_groups[i] = 0
        square[:] = 0
        for j in range(k):
            row = np.uintp(neighbors[i, j])
            for c in range(dim):
                x[c] = points[row, c] + centers[i, c]
            for c in range(dim):  # with more arrays a loop is not vectorized
                of_groups[i, c] += x[c]
                square[c] += x[c] * x[c]
            for c in range(dim):
                of_points[row, c] += x[c]
        for c in range(dim):
            squares[c] += square[c]


def _activate(neighbors: Indices, centers: Array, points: Array, scale: Array, shift: Array, hidden: Array) -> None:
    """hidden = ReLU(scale * x + shift), NaN included."""
    num_groups, k, dim = hidden.shape
    zero = points.dtype.type(0)
    for i in range(num_groups):
        for j in range(k):
            row = np.uintp(neighbors[i, j])
            for c in range(dim):
                value = scale[c] * (points[row, c] + centers[i, c]) + shift[c]
                hidden[i, j, c] = narrow(zero if value < zero else value, hidden)


def _maximum(mapped: Array, best: Array) -> None:
    """Find the maximum of each group, NaN included."""
    num_groups, k, dim = mapped.shape
    for i in range(num_groups):
        for c in range(dim):
            best[i, c] = widen(mapped[i, 0, c])
        for j in range(1, k):
            for c in range(dim):
                value = widen(mapped[i, j, c])
                best[i, c] = value if (value > best[i, c]) | (value != value) else best[i, c]


def _reduce(mapped: Array, origin: Array, best: Array, where: Places, sums: Coefficients) -> None:
    """Find the maximum of each group and its first place; sum all rows minus origin, and their squares."""
    num_groups, k, dim = mapped.shape
    total = np.empty((2, dim), best.dtype)
    for i in range(num_groups):
        for c in range(dim):
            best[i, c] = widen(mapped[i, 0, c])
            where[i, c] = 0
        for start in range(0, k, _CHUNK):
            total[:] = 0
            for j in range(start, min(start + _CHUNK, k)):
                place = np.int32(j)
                for c in range(dim):
                    difference = widen(mapped[i, j, c]) - origin[c]
                    total[0, c] += difference
                    total[1, c] += difference * difference
                for c in range(dim):
                    value = widen(mapped[i, j, c])
                    where[i, c] = place if value > best[i, c] else where[i, c]
                    best[i, c] = value if value > best[i, c] else best[i, c]
            sums += total


def _differentiate(
    mapped: Array, where: Places, chosen: Array, factor: Coefficients, constant: Coefficients, out: Array
) -> None:
    """out = factor * mapped + constant, plus `chosen` where the maximum is."""
    num_groups, k, dim = mapped.shape
    zero = chosen.dtype.type(0)
    for i in range(num_groups):
        for j in range(k):
            place = np.int32(j)
            for c in range(dim):
                extra = chosen[i, c] if where[i, c] == place else zero
                out[i, j, c] = narrow(factor[c] * widen(mapped[i, j, c]) + constant[c] + extra, out)


def _propagate(
    hidden: Array,
    where: Places,
    chosen: Array,
    errors: Array,
    neighbors: Indices,
    linear: Array,
    constant: Array,
    of_groups: Array,
    of_hidden: Coefficients,
    of_points: Array,
) -> None:
    """Sum the rows e of each group and of each point, and those of `hidden`.

    e is errors + constant, plus chosen * linear at the maximum, and 0 where `hidden` is 0.
    """
    num_groups, k, dim = errors.shape
    error, total = np.empty((k, dim), linear.dtype), np.empty(dim, linear.dtype)
    zero = linear.dtype.type(0)
    for i in range(num_groups):
        of_groups[i] = 0
        total[:] = 0
        for j in range(k):
            for c in range(dim):
                error[j, c] = widen(errors[i, j, c]) + constant[c]
        for d in range(len(linear)):
            extra = chosen[i, d]
            if extra != zero:
                best = np.uintp(where[i, d])
                for c in range(dim):
                    error[best, c] += extra * linear[d, c]
        for j in range(k):
            row = np.uintp(neighbors[i, j])
            for c in range(dim):
                value = widen(hidden[i, j, c])
                total[c] += value
                error[j, c] = zero if value <= zero else error[j, c]
            for c in range(dim):
                of_groups[i, c] += error[j, c]
            for c in range(dim):
                of_points[row, c] += error[j, c]
        for c in range(dim):
            of_hidden[c] += total[c]


def _outer(hidden: Array, where: Places, chosen: Array, sums: Coefficients) -> None:
    """Sum chosen * hidden at the maximum, for each channel of the output."""
    num_groups, out_dim = chosen.shape
    dim = hidden.shape[2]
    total = np.empty(dim, chosen.dtype)
    zero = chosen.dtype.type(0)
    for d in range(out_dim):
        total[:] = 0
        for i in range(num_groups):
            extra = chosen[i, d]
            if extra != zero:
                best = np.uintp(where[i, d])
                for c in range(dim):
                    total[c] += extra * widen(hidden[i, best, c])
        for c in range(dim):
            sums[d, c] += total[c]


moments, activate, maximum = jit(_moments, **FUSED), jit(_activate, **FUSED), jit(_maximum, **FUSED)
reduce, differentiate = jit(_reduce, **FUSED), jit(_differentiate, **FUSED)
propagate, outer = jit(_propagate, **FUSED), jit(_outer, **FUSED)
