"""Choosing the code that computes an operation.

The folder of an operation holds `reference.py` (pure torch, the definition, runs everywhere) and, where they exist,
`numba.py` for the CPU and `triton.py` for CUDA, which have the same functions. Each of the two has a function that
returns the reasons why it cannot run. The first backend without such a reason computes the operation. numba and Triton
are imported on first use.
"""

import os
import shutil
from collections.abc import Callable
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from pcattn.utils.errors import InputError

#: Values of the argument `backend`.
BACKENDS = ("auto", "triton", "numba", "reference")


class Kernels:
    """The modules that can compute one operation.

    Args:
        reference: the module `reference` of the operation's folder.
        **why_not: for each faster module of this folder, in the order of preference, a function that returns the
            reasons why the module cannot run on the arguments of `choose`; an empty list means that it can.
    """

    def __init__(self, reference: ModuleType, **why_not: Callable[..., list[str]]) -> None:
        self._reference = reference
        self._why_not = why_not

    def choose(self, backend: str, *args: Any) -> Any:
        """The module that computes the operation.

        Args:
            backend: one of `BACKENDS`; `"auto"` takes the first module that can run.
            *args: passed to the functions that return reasons.

        Raises:
            InputError: no such backend, or it cannot run; the message lists every reason.
        """
        check_backend(backend)
        for name, why_not in self._why_not.items():
            if backend not in ("auto", name):
                continue
            reasons = why_not(*args)
            if not reasons:
                return import_module(f"{self._reference.__package__}.{name}")
            if backend == name:
                raise InputError(f"expected a backend that can run, but got backend={name!r}: {'; '.join(reasons)}")
        if backend not in ("auto", "reference"):
            raise InputError(f"expected a backend that this operation has, but got backend={backend!r}")
        return self._reference


def check_backend(backend: str) -> None:
    """Refuse an unknown backend."""
    if backend not in BACKENDS:
        raise InputError(f"expected backend to be one of {', '.join(BACKENDS)}, but got {backend!r}")


def why_not_numba(tensor: Tensor, *_: Any) -> list[str]:
    """Reasons why no numba kernel can run on this tensor."""
    reasons = []
    if not is_installed("numba"):
        reasons.append("numba is not installed")
    if tensor.device.type != "cpu":
        reasons.append(f"the tensors are on {tensor.device}, not on the CPU")
    return reasons


def why_not_triton(tensor: Tensor, *_: Any) -> list[str]:
    """Reasons why no Triton kernel can run on this tensor, neither compiled nor in Triton's interpreter."""
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    reasons = []
    if not is_installed("triton"):
        reasons.append("triton is not installed")
    if tensor.device.type != "cuda" and not interpreted:
        reasons.append(f"the tensors are on {tensor.device}, not on a CUDA device, and TRITON_INTERPRET is not 1")
    if not (interpreted or os.environ.get("CC") or any(map(shutil.which, ("gcc", "clang", "cc")))):
        reasons.append("Triton finds no C compiler (gcc, clang or $CC)")
    return reasons


@cache
def is_installed(module: str) -> bool:
    """Whether a module can be imported."""
    return find_spec(module) is not None


def on_device(tensor: Tensor) -> torch.cuda.device:
    """A context in which Triton launches kernels on the device of a tensor, which need not be the current device."""
    return torch.cuda.device(tensor.device if tensor.is_cuda else -1)
