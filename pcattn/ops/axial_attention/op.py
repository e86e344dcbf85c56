r"""Attention inside pencils, with checked arguments: `pcattn::pencil_attention` and `pcattn::pencil_variances`.

A pencil is a line of cells along one axis, with all the points in these cells. For two points i, j of one pencil and a
group g of channels there are three maps,

.. math::
    m^0_{ij} = q_i \cdot k_j, \qquad m^1_{ij} = Q_i[\delta_{ij}], \qquad m^2_{ij} = K_j[\delta_{ji}] ,

where Q and K hold the products of a query or a key with every entry of a table of relative positions, and
:math:`\delta_{ij}` is the entry of i relative to j. Logits are a weighted sum of the maps. No mask of N x N pairs is
held.

The lengths of the pencils depend on the data, but the shapes of the results do not. The operations can therefore be
registered with `torch.library`, and `torch.compile` and `torch.export` pass through.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pcattn.ops.axial_attention import reference
from pcattn.ops.backends import Kernels, why_not_numba
from pcattn.utils.errors import InputError

_KERNELS = Kernels(reference, numba=why_not_numba)


def pencil_variances(
    q: Tensor, k: Tensor, q_table: Tensor, k_table: Tensor, order: Tensor, label: Tensor, coordinate: Tensor
) -> tuple[Tensor, Tensor]:
    """Variances (3, G) of the maps over all pairs of points that share a pencil, and the number of pairs.

    Args:
        q: queries (B, N, G, D).
        k: keys (B, N, G, D).
        q_table: Q, (B, N, G, T).
        k_table: K, (B, N, G, T).
        order: (B N,), points in the order of their pencils, see `pcattn.attention.geometry.Pencils`.
        label: (B N,), the pencil of each of them.
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
        order: (B N,), points in the order of their pencils, see `pcattn.attention.geometry.Pencils`.
        label: (B N,), the pencil of each of them.
        coordinate: (B, N), position along the pencil in entries of the table.

    Shape:
        Sums of the values (B, N, G, E), and the weight that every entry of the table receives (B, N, G, T).

    Raises:
        InputError: the number of points of a tensor is not that of the pencils.
    """
    _check_sizes(coordinate, q=q, k=k, v=v, q_table=q_table, k_table=k_table)
    out, mass = _attend(q, k, v, q_table, k_table, scales, order, label, coordinate)
    return out, mass


def _check_sizes(coordinate: Tensor, **rows: Tensor) -> None:
    """Refuse tensors of another number of points: the kernels would read foreign memory."""
    for name, tensor in rows.items():
        if tensor.shape[:2] != coordinate.shape:
            raise InputError(
                f"expected {name} (B, N, ...) of {tuple(coordinate.shape)} points, as the pencils have, "
                f"but got shape {tuple(tensor.shape)}"
            )


@torch.library.custom_op("pcattn::pencil_variances", mutates_args=())
def _variances(
    q: Tensor, k: Tensor, q_table: Tensor, k_table: Tensor, order: Tensor, label: Tensor, coordinate: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Variances and means (3, G) of the maps, and the number of pairs as a float."""
    inputs = _rows(q, k, q_table, k_table)
    variances, means, num_pairs = _KERNELS.choose("auto", q).variances(inputs, order, label, coordinate)
    return variances, means, num_pairs


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
    inputs, factor = (q, k, q_table, k_table), 2 * grad / num_pairs
    grads = _KERNELS.choose("auto", q).variances_backward(_rows(*inputs), means, factor, order, label, coordinate)
    grad_q, grad_k, grad_q_table, grad_k_table = _restore(grads, inputs)
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
    *inputs, values = _rows(q, k, q_table, k_table, v)
    results = _KERNELS.choose("auto", q).attend(inputs, values, scales, order, label, coordinate)
    out, mass = _restore(results, (v, q_table))
    return out, mass


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
    values, grad_out, grad_mass = _rows(v, grad_out, grad_mass)
    kernels = _KERNELS.choose("auto", q)
    grads = kernels.attend_backward(grad_out, grad_mass, _rows(*inputs), values, scales, order, label, coordinate)
    grad_q, grad_k, grad_q_table, grad_k_table, grad_v, grad_scales = _restore(grads, (*inputs, v, scales))
    return grad_q, grad_k, grad_v, grad_q_table, grad_k_table, grad_scales


def _rows(*tensors: Tensor) -> list[Tensor]:
    """(B, N, G, D) -> (B * N, G, D), in at least float32."""
    return [x.flatten(0, 1).to(torch.promote_types(x.dtype, torch.float32)) for x in tensors]


def _restore(results: Sequence[Tensor], like: Sequence[Tensor]) -> list[Tensor]:
    """Results in the shapes and dtypes of other tensors."""
    return [result.view_as(x).to(x.dtype) for result, x in zip(results, like, strict=True)]


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
