"""Optimizers, learning rate schedule, averaged weights and compilation, chosen by plain arguments."""

import math
import os
import shlex
import shutil
import sys
import warnings
from collections.abc import Callable, Iterable
from typing import Any

import torch
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import WeightAveraging
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from pcattn.layers import LocalAggregation
from pcattn.utils.errors import InputError

OPTIMIZERS = ("sgd", "adamw")

#: Modes of `torch.compile` that a task's `compile` may name. `"reduce-overhead"` replays CUDA graphs.
COMPILE_MODES = ("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")


def build_optimizer(
    name: str, parameters: Iterable[nn.Parameter], lr: float, momentum: float, weight_decay: float
) -> Optimizer:
    """SGD with momentum, or AdamW.

    Raises:
        InputError: another name.
    """
    if name == "sgd":
        return SGD(parameters, lr=lr, momentum=momentum, weight_decay=weight_decay)
    if name == "adamw":
        return AdamW(parameters, lr=lr, weight_decay=weight_decay)
    raise InputError(f"expected optimizer to be one of {', '.join(OPTIMIZERS)}, but got {name!r}")


def warmup_cosine(warmup: int, total: int, floor: float) -> Callable[[int], float]:
    r"""Factor of the learning rate at each step: a linear warm-up, then a half cosine.

    .. math::
        \frac{t + 1}{w} \;\; (t < w), \qquad
        f + \frac{1 - f}{2} \left(1 + \cos \pi \frac{t - w}{T - w}\right) \;\; (t \ge w)

    Args:
        warmup: w, steps of the warm-up.
        total: T, steps of the whole run.
        floor: f, the last factor.
    """

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        progress = min(1.0, (step - warmup) / max(1, total - warmup))
        return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress))

    return factor


def build_schedule(optimizer: Optimizer, lr: float, min_lr: float, warmup: int, total: int) -> LambdaLR:
    """`warmup_cosine` from `lr` down to `min_lr`, to be stepped after every batch."""
    return LambdaLR(optimizer, warmup_cosine(warmup, total, min_lr / lr))


class AveragedWeights(WeightAveraging):
    r"""Exponential moving average of the weights, used in validation, checkpoints and test.

    The average begins as a copy of the weights after step 0. From step t = 1 on, with the running statistics of batch
    normalization averaged like the weights they belong to, and counters copied:

    .. math::
        \bar\theta_t = d_t \bar\theta_{t-1} + (1 - d_t)\, \theta_t, \qquad
        d_t = \min\left(d, \frac{1 + t}{10 + t}\right)

    d_t grows to d, so that the initial weights soon lose their influence. The `state_dict` of a checkpoint is the
    average; the weights that training continues with are stored beside it.

    Args:
        decay: d, 0 <= d < 1. The average spans about the last 1 / (1 - d) steps.
    """

    def __init__(self, decay: float) -> None:
        super().__init__(multi_avg_fn=self._average)
        self.decay = decay

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Restore both states for training. Evaluation needs only the average, which is loaded already."""
        if trainer.state.fn == "fit":
            super().on_load_checkpoint(trainer, pl_module, checkpoint)

    @torch.no_grad()
    def _average(self, averages: list[Tensor], values: list[Tensor], step: Tensor) -> None:
        """Update the averages, all of one dtype, in place; `step` is t."""
        if not averages[0].is_floating_point():
            torch._foreach_copy_(averages, values)
            return
        decay = min(self.decay, (1 + int(step)) / (10 + int(step)))
        torch._foreach_lerp_(averages, values, 1 - decay)


def check_mode(mode: bool | str) -> None:
    """Raise `InputError` if `mode` is neither true nor one of `COMPILE_MODES`."""
    if mode is not True and mode not in COMPILE_MODES:
        raise InputError(f"expected compile to be true, false or one of {', '.join(COMPILE_MODES)}, but got {mode!r}")


def compile_network(network: nn.Module, mode: bool | str, device: str) -> None:
    """Compile a network in place with `torch.compile` if that makes it faster on its device.

    Otherwise the network stays as it is, with a warning; its results are the same. Each batch size is compiled
    separately. Training has only one, because it leaves out incomplete batches.

    Args:
        network: the network to compile.
        mode: true, or one of `COMPILE_MODES`.
        device: type of the device that the network runs on, `"cpu"`, `"cuda"`, ...

    Raises:
        InputError: another mode.
    """
    check_mode(mode)
    if (reason := _why_not_compiled(network, device)) is None:
        network.compile(mode="default" if mode is True else mode, dynamic=False)
    else:
        warnings.warn(f"compile: {str(mode).lower()} {reason}: running uncompiled", stacklevel=3)


def _why_not_compiled(network: nn.Module, device: str) -> str | None:
    """Why a network should not be compiled; None if it should.

    On the CPU, compilation needs a C++ compiler (`CXX`, else that of the platform). A network with local aggregation is
    faster uncompiled there, with the kernels of `pcattn.ops.local_aggregation.op`.
    """
    if device != "cpu":
        return None
    if any(isinstance(module, LocalAggregation) for module in network.modules()):
        return "is for GPUs if a network has local aggregation, which is faster in its own kernels on the CPU"
    default = {"darwin": "clang++", "win32": "cl"}.get(sys.platform, "g++")
    compiler = (shlex.split(os.environ.get("CXX", "")) or [default])[0]
    return None if shutil.which(compiler) else f"needs a C++ compiler, but {compiler} is not found"
