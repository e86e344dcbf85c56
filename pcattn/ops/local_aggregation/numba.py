r"""Local aggregation in training on the CPU, in blocks that stay in the cache.

.. math::
    y_i = \max_{j \in \mathcal{N}(i)} \mathrm{ReLU}(\mathrm{BN}_2(W\, \mathrm{ReLU}(\mathrm{BN}_1(p_j + c_i))))

In the reference, every operation passes over all B M k rows in memory, forward and backward. Here

- normalization and ReLU are monotone in every channel, so the maximum is taken before them: of W h or, where the scale
  of BN_2 is negative, of -W h.
- p_j + c_i and h, the output of the first ReLU, are computed again in the backward pass, block by block. Of W h only
  the maxima are kept. The gradient of W h is a W h + b, with a and b per channel from BN_2, and an extra term at the
  maximum. So the gradient of h is (W^T a W) h + W^T b, that of W is a W (sum of h h^T) + b (sum of h)^T, and the extra
  terms concern one row in k.
- Sums, and everything between two arrays that are kept, are in float64, as in `pcattn.ops.batch_norm.numba`. Rows of
  neighbors are gathered where they are needed: the points stay in the cache, k times as many rows would not.
"""

from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pcattn.ops.batch_norm.numba import FUSED, Array, Coefficients, Normalization, products, update_statistics
from pcattn.ops.grouping.reference import flat_indices
from pcattn.ops.threads import jit, run_parts

Indices = NDArray[np.int64]

# Elements of a block per thread: small enough for the caches, large enough for a matrix product at full speed.
_BLOCK_ELEMENTS = 1 << 19

# The fewest groups that are worth a thread.
_GRAIN = 8

_run = partial(run_parts, grain=_GRAIN)


def aggregate(
    points: Tensor, centers: Tensor, neighbors: Tensor, first: nn.BatchNorm1d, linear: nn.Linear, second: nn.BatchNorm1d
) -> Tensor:
    """See `pcattn.ops.local_aggregation.op.aggregate`; updates the running statistics."""
    flat = flat_indices(neighbors, points.shape[1]).view(-1, neighbors.shape[2])
    out, *statistics = _Aggregate.apply(
        points.flatten(0, 1), centers.flatten(0, 1), flat, first.weight, first.bias, linear.weight, second.weight,
        second.bias, first.eps, second.eps,
    )  # fmt: skip
    for norm, mean, variance in ((first, *statistics[:2]), (second, *statistics[2:])):
        update_statistics(norm, mean, variance, flat.numel())
    return out.view(*neighbors.shape[:2], -1)


def pool(x: Tensor, linear: nn.Linear, norm: nn.BatchNorm1d) -> Tensor:
    """See `pcattn.ops.local_aggregation.op.pool`; updates the running statistics."""
    sign = _sign(norm.weight)
    mapped = nn.functional.linear(x, linear.weight * sign[:, None], None if linear.bias is None else linear.bias * sign)
    out, mean, variance = _Pool.apply(mapped, norm.weight * sign, norm.bias, norm.eps)
    update_statistics(norm, mean * sign, variance, x.shape[0] * x.shape[1])
    return out


class _Aggregate(torch.autograd.Function):
    """`aggregate` of points (P, C), centers (G, C) and neighbors (G, k), and the statistics of both normalizations."""

    @staticmethod
    def forward(
        ctx: Any, points: Tensor, centers: Tensor, neighbors: Tensor, weight1: Tensor, bias1: Tensor, linear: Tensor,
        weight2: Tensor, bias2: Tensor, eps1: float, eps2: float,
    ) -> tuple[Tensor, ...]:  # fmt: skip
        (out_dim, dim), num_rows = linear.shape, neighbors.numel()
        best = points.new_empty(len(neighbors), out_dim)
        where = torch.empty(len(neighbors), out_dim, dtype=torch.int32)

        origin = points[neighbors[0, 0]].double() + centers[0]
        sums = np.zeros((2, dim))
        _run(moments, (neighbors, centers), (points, origin), (), sums)
        first = Normalization.of_sums(sums, origin, num_rows, weight1, bias1, eps1)
        sign = _sign(weight2)
        signed = linear * sign[:, None]

        sums = np.zeros((2, out_dim))
        blocks, k = _blocks(neighbors, max(dim, out_dim)), neighbors.shape[1]
        hidden_of, mapped_of = (points.new_empty(blocks[0].stop, k, width) for width in (dim, out_dim))
        for block in blocks:
            hidden, mapped = hidden_of[: block.stop - block.start], mapped_of[: block.stop - block.start]
            groups = (neighbors[block], centers[block])
            _run(activate, groups, (points, first.scale, first.shift), (hidden,))
            torch.mm(hidden.view(-1, dim), signed.t(), out=mapped.view(-1, out_dim))
            if block.start == 0:
                origin = mapped[0, 0].to(torch.float64, copy=True)  # this memory is used again
            _run(reduce, (mapped,), (origin,), (best[block], where[block]), sums)
        second = Normalization.of_sums(sums, origin, num_rows, weight2.abs(), bias2, eps2)
        out = _affine(best, second).relu_()
        ctx.save_for_backward(points, centers, neighbors, best, where, out, sign, signed)
        ctx.norms = first, second
        statistics = tuple(
            values.to(points.dtype) for values in (first.mean, first.variance, second.mean * sign, second.variance)
        )
        ctx.mark_non_differentiable(*statistics)
        return out, *statistics

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        points, centers, neighbors, best, where, out, sign, signed = ctx.saved_tensors
        (first, second), (out_dim, dim) = ctx.norms, signed.shape

        grad_weight2, grad_bias2, factor, constant, chosen = _before_maximum(grad * (out > 0), best, second)

        # The gradient of a row W h of the second map is factor W h + constant, and `chosen` where the maximum is.
        exact = signed.double()
        square, offset = (exact.t() @ (factor[:, None] * exact)).to(points.dtype), constant @ exact
        errors = points.new_empty(*neighbors.shape, dim)  # gradient of the output of BN_1
        products, sums = points.new_zeros(dim, dim, dtype=torch.float64), np.zeros((3 + out_dim, dim))
        blocks = _blocks(neighbors, max(dim, out_dim))
        hidden_of = points.new_empty(blocks[0].stop, neighbors.shape[1], dim)
        for block in blocks:
            hidden, groups = hidden_of[: block.stop - block.start], (neighbors[block], centers[block])
            _run(activate, groups, (points, first.scale, first.shift), (hidden,))
            rows = hidden.view(-1, dim)
            products += rows.t() @ rows
            torch.mm(rows, square, out=errors[block].view(-1, dim))
            of_groups = (*groups, hidden, where[block], chosen[block])
            _run(propagate, of_groups, (points, signed, offset, first.mean), (errors[block],), sums)
        of_hidden, at_maxima = torch.from_numpy(sums[2]), torch.from_numpy(sums[3:])
        grad_linear = (factor[:, None] * exact) @ products + constant[:, None] * of_hidden + at_maxima

        grad_weight1, grad_bias1, *terms = first.backward(sums[:2])
        grad_centers = torch.empty_like(centers)
        _run(finish, (neighbors, centers, errors), (points, first.scale, *terms), (grad_centers,))
        # Sums over equal indices, as the slower index_add does.
        grad_points = torch.ops.aten.embedding_dense_backward(
            errors.view(-1, dim), neighbors.flatten(), len(points), -1, False
        )
        of_parameters = (
            gradient.to(grad.dtype)
            for gradient in (grad_weight1, grad_bias1, grad_linear * sign[:, None], grad_weight2 * sign, grad_bias2)
        )
        return grad_points, grad_centers, None, *of_parameters, None, None


class _Pool(torch.autograd.Function):
    """Maximum over N of BN(mapped) (B, N, D) for weights that are not negative, and the statistics of BN."""

    @staticmethod
    def forward(ctx: Any, mapped: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
        batch, num_points, dim = mapped.shape
        best = mapped.new_empty(batch, dim)
        where = torch.empty(batch, dim, dtype=torch.int32)
        origin, sums = mapped[0, 0].double(), np.zeros((2, dim))
        run_parts(reduce, (mapped,), (origin,), (best, where), sums)
        norm = Normalization.of_sums(sums, origin, batch * num_points, weight, bias, eps)
        ctx.save_for_backward(mapped, best, where)
        ctx.norm = norm
        statistics = norm.mean.to(mapped.dtype), norm.variance.to(mapped.dtype)
        ctx.mark_non_differentiable(*statistics)
        return _affine(best, norm), *statistics

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        (mapped, best, where), norm = ctx.saved_tensors, ctx.norm
        grad_weight, grad_bias, *terms, chosen = _before_maximum(grad.contiguous(), best, norm)
        errors = torch.empty_like(mapped)
        run_parts(differentiate, (mapped, where, chosen), (*terms,), (errors,))
        return errors, grad_weight.to(grad.dtype), grad_bias.to(grad.dtype), None


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
    sums = np.zeros((2, best.shape[1]))
    run_parts(products, (grad, best), (norm.mean,), (), sums)
    return *norm.backward(sums), (norm.scale * grad).to(grad.dtype)


def _blocks(neighbors: Tensor, width: int) -> list[slice]:
    """Slices of the groups of neighbors (G, k), for rows of `width` channels; the first slice is the largest."""
    num_groups, k = neighbors.shape
    size = min(num_groups, max(1, _BLOCK_ELEMENTS * torch.get_num_threads() // (k * width)))
    return [slice(start, min(start + size, num_groups)) for start in range(0, num_groups, size)]


def _moments(neighbors: Indices, centers: Array, points: Array, origin: Coefficients, sums: Coefficients) -> None:
    """Sum points[neighbors[i, j]] + centers[i] - origin, and its squares."""
    num_groups, k = neighbors.shape
    dim = points.shape[1]
    total = np.zeros((2, dim))
    for i in range(num_groups):
        for j in range(k):
            row = neighbors[i, j]
            for c in range(dim):
                difference = (points[row, c] + centers[i, c]) - origin[c]
                total[0, c] += difference
                total[1, c] += difference * difference
    sums += total


def _activate(
    neighbors: Indices, centers: Array, points: Array, scale: Coefficients, shift: Coefficients, hidden: Array
) -> None:
    """hidden[i, j] = ReLU(scale * (points[neighbors[i, j]] + centers[i]) + shift), NaN included."""
    num_groups, k, dim = hidden.shape
    for i in range(num_groups):
        for j in range(k):
            row = neighbors[i, j]
            for c in range(dim):
                value = scale[c] * (points[row, c] + centers[i, c]) + shift[c]
                hidden[i, j, c] = 0.0 if value < 0.0 else value


def _reduce(mapped: Array, origin: Coefficients, best: Array, where: NDArray[np.int32], sums: Coefficients) -> None:
    """Find the maximum of each group and its first place; sum all rows minus origin, and their squares."""
    num_groups, k, dim = mapped.shape
    total = np.zeros((2, dim))
    for i in range(num_groups):
        for c in range(dim):
            best[i, c] = mapped[i, 0, c]
            where[i, c] = 0
        for j in range(k):
            place = np.int32(j)
            for c in range(dim):
                value = mapped[i, j, c]
                difference = value - origin[c]
                total[0, c] += difference
                total[1, c] += difference * difference
                where[i, c] = place if value > best[i, c] else where[i, c]
                best[i, c] = value if value > best[i, c] else best[i, c]
    sums += total


def _differentiate(
    mapped: Array,
    where: NDArray[np.int32],
    chosen: Array,
    factor: Coefficients,
    constant: Coefficients,
    out: Array,
) -> None:
    """out = factor * mapped + constant, plus `chosen` where the maximum is."""
    num_groups, k, dim = mapped.shape
    zero = chosen.dtype.type(0)
    for i in range(num_groups):
        for j in range(k):
            place = np.int32(j)
            for c in range(dim):
                extra = chosen[i, c] if where[i, c] == place else zero
                out[i, j, c] = factor[c] * mapped[i, j, c] + constant[c] + extra


def _propagate(
    neighbors: Indices,
    centers: Array,
    hidden: Array,
    where: NDArray[np.int32],
    chosen: Array,
    points: Array,
    linear: Array,
    constant: Coefficients,
    mean: Coefficients,
    error: Array,
    sums: Coefficients,
) -> None:
    """Add `constant` to `error`, and chosen * linear at the maximum; set it to 0 where `hidden` is 0.

    `sums` holds the sums of the rows of `error`, of their products with x - mean (x is the input of BN_1), and of the
    rows of `hidden`; then, for each channel of the output, the sum of chosen * hidden at the maximum.
    """
    num_groups, k, dim = error.shape
    out_dim = len(linear)
    total = np.zeros((3 + out_dim, dim))
    zero = error.dtype.type(0)
    for i in range(num_groups):
        for d in range(out_dim):
            extra = chosen[i, d]
            if extra != zero:
                j = where[i, d]
                for c in range(dim):
                    error[i, j, c] += extra * linear[d, c]
                for c in range(dim):
                    total[3 + d, c] += extra * hidden[i, j, c]
        for j in range(k):
            row = neighbors[i, j]
            for c in range(dim):  # with more arrays the loop is not vectorized
                error[i, j, c] = zero if hidden[i, j, c] <= zero else error[i, j, c] + constant[c]
            for c in range(dim):
                value = error[i, j, c]
                total[0, c] += value
                total[1, c] += value * ((points[row, c] + centers[i, c]) - mean[c])
            for c in range(dim):
                total[2, c] += hidden[i, j, c]
    sums += total


def _finish(
    neighbors: Indices,
    centers: Array,
    error: Array,
    points: Array,
    scale: Coefficients,
    factor: Coefficients,
    constant: Coefficients,
    total: Array,
) -> None:
    """error = scale * error + factor * (points[neighbors] + centers) + constant; total: its sums over the neighbors."""
    num_groups, k, dim = error.shape
    exact = np.empty(dim)
    for i in range(num_groups):
        exact[:] = 0.0
        for j in range(k):
            row = neighbors[i, j]
            for c in range(dim):
                value = scale[c] * error[i, j, c] + (factor[c] * (points[row, c] + centers[i, c]) + constant[c])
                error[i, j, c] = value
                exact[c] += value
        for c in range(dim):
            total[i, c] = exact[c]


moments, activate, reduce = jit(_moments, **FUSED), jit(_activate, **FUSED), jit(_reduce, **FUSED)
differentiate, propagate, finish = jit(_differentiate, **FUSED), jit(_propagate, **FUSED), jit(_finish, **FUSED)
