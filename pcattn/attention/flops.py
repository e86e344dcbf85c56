"""Floating-point operations of this package's operations, registered with torch's counter.

After `import pcattn.attention`, `torch.utils.flop_counter.FlopCounterMode` counts them in any network. Other counters
need a handle for each operation; for fvcore, which traces a network, that is

    FlopCountAnalysis(network, pos).set_op_handle("pcattn::offset_attention", handle)

with `handle(inputs, outputs)` returning the multiply-adds from the shapes, q.shape[0] * q.shape[1]**2 *
(q.shape[2] + v.shape[2]) for offset-attention. Counters that only look at module types (thop, ptflops) cannot see it.
"""

from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import flop_registry, register_flop_formula


def _width(x: Tensor) -> int:
    """Channels of queries or keys (..., N, D), without those that are zero padding."""
    return (
        int(x.detach().flatten(0, -2).any(dim=0).sum()) if type(x) is Tensor and x.device.type == "cpu" else x.shape[-1]
    )


def _fused(q: Tensor, k: Tensor, v: Tensor, *_: Any, **__: Any) -> int:
    return 2 * q[..., 0].numel() * k.shape[-2] * (_width(q) + v.shape[-1])


def _neighborhood(q: Tensor, k: Tensor, v: Tensor, neighbors: Tensor, *_: Any, **__: Any) -> int:
    return 4 * q.numel() * neighbors.shape[2]


def _offset(q: Tensor, v: Tensor, *_: Any, **__: Any) -> int:
    return 2 * q.shape[0] * q.shape[1] ** 2 * (q.shape[2] + v.shape[2])


def _multihead_external(heads: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> int:
    return 4 * heads.numel() * key.shape[0]


def _num_pairs(label: Tensor) -> int:
    return int(torch.unique_consecutive(label, return_counts=True)[1].square().sum())


def _pencils(q: Tensor, k: Tensor, v: Tensor, *others: Tensor, **_: Any) -> int:
    return 2 * _num_pairs(others[-2]) * (q[0, 0].numel() + v[0, 0].numel())


def _variances(q: Tensor, *others: Tensor, **_: Any) -> int:
    return 2 * _num_pairs(others[-2]) * q[0, 0].numel()


def _embedding_bag(weight: Tensor, indices: Tensor, *_: Any, **__: Any) -> int:
    return 2 * indices.numel() * weight.shape[1]


def register_formulas() -> None:
    """Register the formulas, once the modules that define the operations are imported."""
    ours, aten = torch.ops.pcattn, torch.ops.aten
    formulas: dict[Any, Any] = {
        ours.neighborhood_attention: _neighborhood,
        ours.offset_attention: _offset,
        ours.multihead_external: _multihead_external,
        ours.pencil_attention: _pencils,
        ours.pencil_variances: _variances,
        # Of torch's own operations, those that its counter leaves out. The first runs self-attention on the CPU.
        aten._scaled_dot_product_flash_attention_for_cpu: _fused,
        aten._embedding_bag: _embedding_bag,
        aten._embedding_bag_forward_only: _embedding_bag,
    }
    for operation, formula in formulas.items():
        if operation not in flop_registry:
            register_flop_formula(operation, get_raw=True)(formula)  # the tensors, not only their shapes
