"""Which back-end computes an operation: each one says why it cannot, and the first that can is called.

The order is numba (CPU), Triton (CUDA), reference (everywhere). numba and Triton are imported when they are first used.
"""

import os
import shutil
from collections.abc import Callable
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from pcattn.utils.errors import InputError

#: names that the argument `backend` takes
BACKENDS = ("auto", "triton", "numba", "reference")


def can_run_triton_knn(query: Tensor, k: int) -> list[str]:
    """Reasons why the Triton kernel of `knn` and `ball_query` cannot run; none means that it can."""
    reasons = triton_reasons(query)
    if k > 256:
        reasons.append(f"k={k} is more than the 256 neighbors it keeps on chip")
    return reasons


def can_run_triton_fps(pos: Tensor) -> list[str]:
    """Reasons why the Triton kernel of `farthest_point_sample` cannot run; none means that it can."""
    return triton_reasons(pos)


def can_run_triton_group(features: Tensor) -> list[str]:
    """Reasons why the Triton kernel of `group` cannot run; none means that it can."""
    reasons = triton_reasons(features)
    if features.dtype == torch.bfloat16 and os.environ.get("TRITON_INTERPRET") == "1":
        reasons.append("Triton's interpreter takes bfloat16 for integers")  # a GPU does not
    return reasons


def can_run_numba(points: Tensor) -> list[str]:
    """Reasons why the numba kernels cannot run; none means that they can."""
    reasons = []
    if not _installed("numba"):
        reasons.append("numba is not installed")
    if points.device.type != "cpu":
        reasons.append(f"the points are on {points.device}, not on the CPU")
    return reasons


def knn_backend(backend: str, query: Tensor, k: int) -> Callable[..., tuple[Tensor, Tensor]]:
    """The function that computes `knn`: see `pcattn.ops.reference.knn` for its arguments."""
    return _choose(
        backend,
        {
            "numba": ("neighbors.numba.knn", lambda: can_run_numba(query)),
            "triton": ("neighbors.triton.knn", lambda: can_run_triton_knn(query, k)),
            "reference": ("reference.knn", list),
        },
    )


def fps_backend(backend: str, pos: Tensor) -> Callable[..., Tensor]:
    """The function that samples: see `pcattn.ops.reference.farthest_point_sample` for its arguments."""
    return _choose(
        backend,
        {
            "numba": ("sampling.numba.farthest_point_sample", lambda: can_run_numba(pos)),
            "triton": ("sampling.triton.farthest_point_sample", lambda: can_run_triton_fps(pos)),
            "reference": ("reference.farthest_point_sample", list),
        },
    )


def group_backend(backend: str, features: Tensor) -> Callable[..., Tensor]:
    """The function that groups: see `pcattn.ops.reference.group` for its arguments."""
    return _choose(
        backend,
        {
            "triton": ("grouping.triton.group", lambda: can_run_triton_group(features)),
            "numba": ("", lambda: ["torch's own gather is as fast: this operation has no numba kernel"]),
            "reference": ("reference.group", list),
        },
    )


def _choose(backend: str, candidates: dict[str, tuple[str, Callable[[], list[str]]]]) -> Callable[..., Any]:
    for name, (target, reasons_against) in candidates.items():
        if backend not in ("auto", name):
            continue
        reasons = reasons_against()
        if not reasons:
            module, function = target.rsplit(".", 1)
            return getattr(import_module(f"pcattn.ops.{module}"), function)
        if backend == name:
            raise InputError(f"expected a back-end that can run, but got backend={name!r}: {'; '.join(reasons)}")
    raise InputError(f"expected backend to be one of {', '.join(BACKENDS)}, but got {backend!r}")


def triton_reasons(tensor: Tensor) -> list[str]:
    """Reasons why no Triton kernel can run on this tensor: in Triton's interpreter, or compiled, on CUDA."""
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    reasons = []
    if not _installed("triton"):
        reasons.append("triton is not installed")
    if tensor.device.type != "cuda" and not interpreted:
        reasons.append(f"the tensors are on {tensor.device}, not on a CUDA device, and TRITON_INTERPRET is not 1")
    if not (interpreted or os.environ.get("CC") or any(map(shutil.which, ("gcc", "clang", "cc")))):
        reasons.append("Triton finds no C compiler (gcc, clang or $CC)")
    return reasons


def on_device(tensor: Tensor) -> torch.cuda.device:
    """Where kernels are launched: Triton takes the current device, which need not be that of the tensors."""
    return torch.cuda.device(tensor.device if tensor.is_cuda else -1)


@cache
def _installed(module: str) -> bool:
    return find_spec(module) is not None
