r"""The rest of a local aggregation after its first linear map, in blocks that stay in the cache: training on the CPU.

.. math::
    y_i = \max_{j \in \mathcal{N}(i)} \mathrm{ReLU}(\mathrm{BN}_2(W\, \mathrm{ReLU}(\mathrm{BN}_1(p_j + c_i))))

Written out, every operation passes over all B M k groups in memory, forward and backward. Here

- normalization and ReLU are monotone in every channel, so that the maximum is taken before them, of W h or, where the
  scale of BN_2 is negative, of -W h;
- p_j + c_i and h, the output of the first ReLU, are computed again, block by block, and of W h nothing is kept but the
  maxima: BN_2 makes its gradient a W h + b, with a and b of each channel, and something more at the maximum. So the
  gradient of h is (W^T a W) h + W^T b, that of W is a W (sum of h h^T) + b (sum of h)^T, and what the maxima add is
  one row in k;
- sums, and what is computed between two values that are kept, are in float64 (`pcattn.ops.local_aggregation.numba`).
"""

from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pcattn.ops.batch_norm.op import Normalization, is_plain_training, update_statistics
from pcattn.ops.reference import flat_indices
from pcattn.ops.threads import run_parts
from pcattn.utils.checks import check_indices
from pcattn.utils.errors import InputError

# Elements of a block, for each thread: small enough for the caches, large enough for a matrix product at full speed.
_BLOCK_ELEMENTS = 1 << 19

# The fewest groups that are worth a thread.
_GRAIN = 8

_run = partial(run_parts, grain=_GRAIN)


def can_aggregate(points: Tensor, *norms: nn.Module) -> bool:
    """Whether `aggregate` is the way: a training step on the CPU, with batch normalization as it comes."""
    return points.requires_grad and is_plain_training(points, *norms)


def aggregate(
    points: Tensor,
    centers: Tensor,
    neighbors: Tensor,
    first: nn.BatchNorm1d,
    linear: nn.Linear,
    second: nn.BatchNorm1d,
) -> Tensor:
    """Maximum over neighbors of ReLU(BN(linear(ReLU(BN(points + center))))), in training.

    Updates the running statistics of both normalizations.

    Args:
        points: p, (B, N, C).
        centers: c, (B, M, C).
        neighbors: (B, M, k), indices of the neighbors of each center.
        first: BN_1.
        linear: W, without bias.
        second: BN_2.

    Shape:
        (B, M, D), D = `linear.out_features`.

    Raises:
        InputError: shapes do not fit, or a neighbor is none of the N points: the kernels would read other memory.
    """
    if neighbors.dim() != 3 or neighbors.shape[:2] != centers.shape[:2] or len(points) != len(centers):
        raise InputError(
            "expected points (B, N, C), centers (B, M, C) and neighbors (B, M, k), "
            f"but got {tuple(points.shape)}, {tuple(centers.shape)} and {tuple(neighbors.shape)}"
        )
    check_indices("neighbors", neighbors, points.shape[1])
    flat = flat_indices(neighbors, points.shape[1]).view(-1, neighbors.shape[2])
    out, *statistics = _Aggregate.apply(
        points.flatten(0, 1), centers.flatten(0, 1), flat, first.weight, first.bias, linear.weight, second.weight,
        second.bias, first.eps, second.eps,
    )  # fmt: skip
    for norm, mean, variance in ((first, *statistics[:2]), (second, *statistics[2:])):
        update_statistics(norm, mean, variance, flat.numel())
    return out.view(*neighbors.shape[:2], -1)


class _Aggregate(torch.autograd.Function):
    """`aggregate` of points (P, C), centers (G, C) and neighbors (G, k); returns the statistics of both BN as well."""

    @staticmethod
    def forward(
        ctx: Any, points: Tensor, centers: Tensor, neighbors: Tensor, weight1: Tensor, bias1: Tensor, linear: Tensor,
        weight2: Tensor, bias2: Tensor, eps1: float, eps2: float,
    ) -> tuple[Tensor, ...]:  # fmt: skip
        from pcattn.ops.local_aggregation import numba as kernels

        (out_dim, dim), num_rows = linear.shape, neighbors.numel()
        best = points.new_empty(len(neighbors), out_dim)
        where = torch.empty(len(neighbors), out_dim, dtype=torch.int32)

        origin = points[neighbors[0, 0]].double() + centers[0]
        sums = np.zeros((2, dim))
        _run(kernels.moments, (neighbors, centers), (points, origin), (), sums)
        first = Normalization.of_sums(sums, origin, num_rows, weight1, bias1, eps1)
        sign = _sign(weight2)
        signed = linear * sign[:, None]

        sums = np.zeros((2, out_dim))
        blocks, k = _blocks(neighbors, max(dim, out_dim)), neighbors.shape[1]
        hidden_of, mapped_of = (points.new_empty(blocks[0].stop, k, width) for width in (dim, out_dim))
        for block in blocks:
            hidden, mapped = hidden_of[: block.stop - block.start], mapped_of[: block.stop - block.start]
            groups = (neighbors[block], centers[block])
            _run(kernels.activate, groups, (points, first.scale, first.shift), (hidden,))
            torch.mm(hidden.view(-1, dim), signed.t(), out=mapped.view(-1, out_dim))
            if block.start == 0:
                origin = mapped[0, 0].to(torch.float64, copy=True)  # the room is used again
            _run(kernels.reduce, (mapped,), (origin,), (best[block], where[block]), sums)
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
        from pcattn.ops.local_aggregation import numba as kernels

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
            _run(kernels.activate, groups, (points, first.scale, first.shift), (hidden,))
            rows = hidden.view(-1, dim)
            products += rows.t() @ rows
            torch.mm(rows, square, out=errors[block].view(-1, dim))
            of_groups = (*groups, hidden, where[block], chosen[block])
            _run(kernels.propagate, of_groups, (points, signed, offset, first.mean), (errors[block],), sums)
        of_hidden, at_maxima = torch.from_numpy(sums[2]), torch.from_numpy(sums[3:])
        grad_linear = (factor[:, None] * exact) @ products + constant[:, None] * of_hidden + at_maxima

        grad_weight1, grad_bias1, *terms = first.backward(sums[:2])
        grad_centers = torch.empty_like(centers)
        _run(kernels.finish, (neighbors, centers, errors), (points, first.scale, *terms), (grad_centers,))
        # The sum over equal indices, as index_add, which is slower.
        grad_points = torch.ops.aten.embedding_dense_backward(
            errors.view(-1, dim), neighbors.flatten(), len(points), -1, False
        )
        of_parameters = (
            gradient.to(grad.dtype)
            for gradient in (grad_weight1, grad_bias1, grad_linear * sign[:, None], grad_weight2 * sign, grad_bias2)
        )
        return grad_points, grad_centers, None, *of_parameters, None, None


def pool(x: Tensor, linear: nn.Linear, norm: nn.BatchNorm1d) -> Tensor:
    """Maximum over the points of BN(linear(x)), in training: every channel is normalized after its maximum is taken.

    Updates the running statistics.

    Args:
        x: (B, N, C).
        linear: with or without bias.
        norm: BN.

    Shape:
        (B, D), D = `linear.out_features`.
    """
    sign = _sign(norm.weight)
    mapped = nn.functional.linear(x, linear.weight * sign[:, None], None if linear.bias is None else linear.bias * sign)
    out, mean, variance = _Pool.apply(mapped, norm.weight * sign, norm.bias, norm.eps)
    update_statistics(norm, mean * sign, variance, x.shape[0] * x.shape[1])
    return out


class _Pool(torch.autograd.Function):
    """Maximum over N of BN(mapped) (B, N, D), where no weight is negative; returns the statistics as well."""

    @staticmethod
    def forward(ctx: Any, mapped: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
        from pcattn.ops.local_aggregation import numba as kernels

        batch, num_points, dim = mapped.shape
        best = mapped.new_empty(batch, dim)
        where = torch.empty(batch, dim, dtype=torch.int32)
        origin, sums = mapped[0, 0].double(), np.zeros((2, dim))
        run_parts(kernels.reduce, (mapped,), (origin,), (best, where), sums)
        norm = Normalization.of_sums(sums, origin, batch * num_points, weight, bias, eps)
        ctx.save_for_backward(mapped, best, where)
        ctx.norm = norm
        statistics = norm.mean.to(mapped.dtype), norm.variance.to(mapped.dtype)
        ctx.mark_non_differentiable(*statistics)
        return _affine(best, norm), *statistics

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        from pcattn.ops.local_aggregation import numba as kernels

        (mapped, best, where), norm = ctx.saved_tensors, ctx.norm
        grad_weight, grad_bias, *terms, chosen = _before_maximum(grad.contiguous(), best, norm)
        errors = torch.empty_like(mapped)
        run_parts(kernels.differentiate, (mapped, where, chosen), (*terms,), (errors,))
        return errors, grad_weight.to(grad.dtype), grad_bias.to(grad.dtype), None


def _sign(weight: Tensor) -> Tensor:
    """-1 where a channel's normalization turns the order of its values around, else 1."""
    return torch.where(weight.detach() < 0, -1.0, 1.0).to(weight.dtype)


def _affine(best: Tensor, norm: Normalization) -> Tensor:
    """Rows (G, D), normalized."""
    return torch.addcmul(norm.shift, best.double(), norm.scale).to(best.dtype)


def _before_maximum(grad: Tensor, best: Tensor, norm: Normalization) -> tuple[Tensor, ...]:
    """Backward of a batch normalization of rows whose maxima `best` (G, D) alone are used.

    Returns:
        What `Normalization.backward` does, and `chosen` (G, D), what is added to that where the maximum is.
    """
    from pcattn.ops.batch_norm import numba as kernels

    sums = np.zeros((2, best.shape[1]))
    run_parts(kernels.products, (grad, best), (norm.mean,), (), sums)
    return *norm.backward(sums), (norm.scale * grad).to(grad.dtype)


def _blocks(neighbors: Tensor, width: int) -> list[slice]:
    """Slices of groups (g, k), of which each value is `width` wide; the first is the largest."""
    num_groups, k = neighbors.shape
    size = min(num_groups, max(1, _BLOCK_ELEMENTS * torch.get_num_threads() // (k * width)))
    return [slice(start, min(start + size, num_groups)) for start in range(0, num_groups, size)]
