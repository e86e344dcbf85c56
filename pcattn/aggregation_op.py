r"""The rest of a local aggregation after its first linear map, in blocks that stay in the cache: training on the CPU.

.. math::
    y_i = \max_{j \in \mathcal{N}(i)} \mathrm{ReLU}(\mathrm{BN}_2(W\, \mathrm{ReLU}(\mathrm{BN}_1(p_j + c_i))))

Written out, every operation passes over all B M k groups in memory, forward and backward. Here

- normalisation and ReLU are monotone in every channel, so that the maximum is taken before them, of W h or, where the
  scale of BN_2 is negative, of -W h;
- only p_j + c_i and W h are kept; what lies between is computed again, block by block;
- every value is touched once a pass (`pcattn.numba_aggregation`), and sums are taken in float64.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pcattn.normalization import is_plain_training, update_statistics
from pcattn.ops._threads import run_split
from pcattn.ops.checks import check_indices
from pcattn.ops.reference import flat_indices

# Elements of a block, for each thread: a few of them fit into a core's cache.
_BLOCK_ELEMENTS = 1 << 17

# The fewest groups that are worth a thread.
_GRAIN = 8


def can_aggregate(points: Tensor, *norms: nn.Module) -> bool:
    """Whether `aggregate` is the way: a training step on the CPU, with batch normalisation as it comes."""
    return points.requires_grad and is_plain_training(points, *norms)


def aggregate(
    points: Tensor,
    centres: Tensor,
    neighbours: Tensor,
    first: nn.BatchNorm1d,
    linear: nn.Linear,
    second: nn.BatchNorm1d,
) -> Tensor:
    """Maximum over neighbours of ReLU(BN(linear(ReLU(BN(points + centre))))), in training.

    Updates the running statistics of both normalisations.

    Args:
        points: p, (B, N, C).
        centres: c, (B, M, C).
        neighbours: (B, M, k), indices of the neighbours of each centre.
        first: BN_1.
        linear: W, without bias.
        second: BN_2.

    Shape:
        (B, M, D), D = `linear.out_features`.

    Raises:
        ValueError: shapes do not fit, or a neighbour is none of the N points: the kernels would read other memory.
    """
    if neighbours.dim() != 3 or neighbours.shape[:2] != centres.shape[:2] or len(points) != len(centres):
        raise ValueError(
            "expected points (B, N, C), centres (B, M, C) and neighbours (B, M, k), "
            f"but got {tuple(points.shape)}, {tuple(centres.shape)} and {tuple(neighbours.shape)}"
        )
    check_indices("neighbours", neighbours, points.shape[1])
    flat = flat_indices(neighbours, points.shape[1]).view(-1, neighbours.shape[2])
    out, *statistics = _Aggregate.apply(
        points.flatten(0, 1), centres.flatten(0, 1), flat, first.weight, first.bias, linear.weight, second.weight,
        second.bias, first.eps, second.eps,
    )  # fmt: skip
    for norm, mean, variance in ((first, *statistics[:2]), (second, *statistics[2:])):
        update_statistics(norm, mean, variance, flat.numel())
    return out.view(*neighbours.shape[:2], -1)


class _Aggregate(torch.autograd.Function):
    """`aggregate` of points (P, C), centres (G, C) and neighbours (G, k); returns the statistics of both BN as well."""

    @staticmethod
    def forward(
        ctx: Any, points: Tensor, centres: Tensor, neighbours: Tensor, weight1: Tensor, bias1: Tensor, linear: Tensor,
        weight2: Tensor, bias2: Tensor, eps1: float, eps2: float,
    ) -> tuple[Tensor, ...]:  # fmt: skip
        from pcattn import numba_aggregation as kernels

        (num_groups, k), dim, out_dim = neighbours.shape, points.shape[1], len(linear)
        grouped = points.new_empty(num_groups, k, dim)
        mapped = points.new_empty(num_groups, k, out_dim)
        best = points.new_empty(num_groups, out_dim)
        where = torch.empty(num_groups, out_dim, dtype=torch.int32)

        origin = points[neighbours[0, 0]] + centres[0]
        sums = np.zeros((2, dim))
        _split(kernels.gather, (centres, neighbours), (points, origin), (grouped,), sums)
        mean1, var1 = _statistics(sums, origin, num_groups * k)
        inverse1 = (var1 + eps1).rsqrt()
        scale1 = weight1 * inverse1
        shift1 = bias1 - mean1 * scale1
        sign = _sign(weight2)
        signed = linear * sign[:, None]

        sums = np.zeros((2, out_dim))
        blocks, hidden_of, _ = _blocks(grouped, mapped)
        for block in blocks:
            hidden = hidden_of[: block.stop - block.start]
            _split(kernels.activate, (grouped[block],), (scale1, shift1), (hidden,))
            torch.mm(hidden.view(-1, dim), signed.t(), out=mapped[block].view(-1, out_dim))
            if block.start == 0:
                origin = mapped[0, 0].clone()
            _split(kernels.reduce, (mapped[block],), (origin,), (best[block], where[block]), sums)
        mean2, var2 = _statistics(sums, origin, num_groups * k)
        inverse2 = (var2 + eps2).rsqrt()
        scale2 = weight2.abs() * inverse2
        out = torch.addcmul(bias2 - mean2 * scale2, best, scale2).relu_()
        ctx.save_for_backward(
            neighbours, grouped, mapped, best, where, out, mean1, inverse1, scale1, shift1, mean2, inverse2, scale2,
            sign, signed,
        )  # fmt: skip
        ctx.num_points = len(points)
        statistics = (mean1, var1, mean2 * sign, var2)
        ctx.mark_non_differentiable(*statistics)
        return out, *statistics

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        from pcattn import numba_aggregation as kernels

        (
            neighbours, grouped, mapped, best, where, out, mean1, inverse1, scale1, shift1, mean2, inverse2, scale2,
            sign, signed,
        ) = ctx.saved_tensors  # fmt: skip
        (num_groups, k, dim), out_dim = grouped.shape, len(signed)
        num_rows = num_groups * k

        grad_weight2, grad_bias2, *terms = _before_maximum(grad * (out > 0), best, mean2, inverse2, scale2, num_rows)
        constant2, factor2, chosen = terms

        errors = torch.empty_like(grouped)  # gradient of the output of BN_1
        grad_linear, sums = torch.zeros_like(signed), np.zeros((2, dim))
        blocks, hidden_of, of_mapped_of = _blocks(grouped, mapped)
        for block in blocks:
            hidden, of_mapped = hidden_of[: block.stop - block.start], of_mapped_of[: block.stop - block.start]
            _split(kernels.activate, (grouped[block],), (scale1, shift1), (hidden,))
            _split(
                kernels.differentiate, (mapped[block], where[block], chosen[block]), (constant2, factor2), (of_mapped,)
            )
            rows = of_mapped.view(-1, out_dim)
            grad_linear.addmm_(rows.t(), hidden.view(-1, dim))
            torch.mm(rows, signed, out=errors[block].view(-1, dim))
            _split(kernels.mask, (errors[block], hidden, grouped[block]), (mean1,), (), sums)
        totals = torch.from_numpy(sums).to(grad.dtype)
        grad_bias1, grad_weight1 = totals[0], totals[1] * inverse1
        factor1 = -scale1 * inverse1 * grad_weight1 / num_rows
        constant1 = -scale1 * grad_bias1 / num_rows - factor1 * mean1
        grad_centres = grad.new_empty(num_groups, dim)
        _split(kernels.finish, (errors, grouped), (scale1, constant1, factor1), (grad_centres,))
        # The sum over equal indices, as index_add, which is slower.
        grad_points = torch.ops.aten.embedding_dense_backward(
            errors.view(-1, dim), neighbours.flatten(), ctx.num_points, -1, False
        )
        return (
            grad_points, grad_centres, None, grad_weight1, grad_bias1, grad_linear * sign[:, None],
            grad_weight2 * sign, grad_bias2, None, None,
        )  # fmt: skip


def pool(x: Tensor, linear: nn.Linear, norm: nn.BatchNorm1d) -> Tensor:
    """Maximum over the points of BN(linear(x)), in training: every channel is normalised after its maximum is taken.

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
        from pcattn import numba_aggregation as kernels

        batch, num_points, dim = mapped.shape
        best = mapped.new_empty(batch, dim)
        where = torch.empty(batch, dim, dtype=torch.int32)
        origin, sums = mapped[0, 0].clone(), np.zeros((2, dim))
        _split(kernels.reduce, (mapped,), (origin,), (best, where), sums, grain=1)
        mean, variance = _statistics(sums, origin, batch * num_points)
        inverse = (variance + eps).rsqrt()
        scale = weight * inverse
        ctx.save_for_backward(mapped, best, where, mean, inverse, scale)
        ctx.mark_non_differentiable(mean, variance)
        return torch.addcmul(bias - mean * scale, best, scale), mean, variance

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        from pcattn import numba_aggregation as kernels

        mapped, best, where, mean, inverse, scale = ctx.saved_tensors
        num_rows = mapped.shape[0] * mapped.shape[1]
        grad_weight, grad_bias, *terms = _before_maximum(grad, best, mean, inverse, scale, num_rows)
        constant, factor, chosen = terms
        errors = torch.empty_like(mapped)
        _split(kernels.differentiate, (mapped, where, chosen), (constant, factor), (errors,), grain=1)
        return errors, grad_weight, grad_bias, None


def _sign(weight: Tensor) -> Tensor:
    """-1 where a channel's normalisation turns the order of its values around, else 1."""
    return torch.where(weight.detach() < 0, -1.0, 1.0).to(weight.dtype)


def _before_maximum(
    grad: Tensor, best: Tensor, mean: Tensor, inverse: Tensor, scale: Tensor, num_rows: int
) -> tuple[Tensor, ...]:
    """Backward of a batch normalisation of `num_rows` rows v whose maxima `best` (G, D) alone are used.

    The gradient of a row is a constant, a multiple of v, and `chosen` where the maximum is.

    Returns:
        Gradients (D,) of weight and bias; constant (D,), factor (D,), chosen (G, D).
    """
    grad_bias = grad.sum(dim=0)
    grad_weight = (grad * (best - mean)).sum(dim=0) * inverse
    factor = -scale * inverse * grad_weight / num_rows
    constant = -scale * grad_bias / num_rows - factor * mean
    return grad_weight, grad_bias, constant, factor, scale * grad


def _blocks(grouped: Tensor, mapped: Tensor) -> tuple[list[slice], Tensor, Tensor]:
    """Slices of groups, and room for one of each of them (g, k, C) and (g, k, D)."""
    num_groups = len(grouped)
    elements = max(grouped[0].numel(), mapped[0].numel())
    size = min(num_groups, max(1, _BLOCK_ELEMENTS * torch.get_num_threads() // elements))
    blocks = [slice(start, min(start + size, num_groups)) for start in range(0, num_groups, size)]
    return blocks, torch.empty_like(grouped[:size]), torch.empty_like(mapped[:size])


def _split(
    kernel: Callable[..., None],
    of_groups: tuple[Tensor, ...],
    shared: tuple[Tensor, ...],
    out: tuple[Tensor, ...],
    sums: NDArray[np.float64] | None = None,
    grain: int = _GRAIN,
) -> None:
    """Call a kernel on parts of the groups, one a thread, and add up what the parts sum up, in their order."""
    reads, common, writes = ([tensor.detach().numpy() for tensor in tensors] for tensors in (of_groups, shared, out))
    partial: dict[int, NDArray[np.float64]] = {}

    def run(start: int, stop: int) -> None:
        arguments = [array[start:stop] for array in reads] + common + [array[start:stop] for array in writes]
        if sums is not None:
            arguments.append(partial.setdefault(start, np.zeros_like(sums)))
        kernel(*arguments)

    run_split(run, len(reads[0]), grain)
    if sums is not None:
        for start in sorted(partial):
            sums += partial[start]


def _statistics(sums: NDArray[np.float64], origin: Tensor, num_rows: int) -> tuple[Tensor, Tensor]:
    """Mean and biased variance from sums (2, C) of differences from `origin` and of their squares."""
    mean, square = torch.from_numpy(sums) / num_rows
    return (origin + mean).to(origin.dtype), (square - mean**2).clamp_min(0).to(origin.dtype)
