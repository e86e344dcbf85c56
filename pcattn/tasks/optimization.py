"""Optimisers and learning rate schedule, chosen by plain arguments."""

import math
from collections.abc import Callable, Iterable

from torch import nn
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

OPTIMIZERS = ("sgd", "adamw")


def build_optimizer(
    name: str, parameters: Iterable[nn.Parameter], lr: float, momentum: float, weight_decay: float
) -> Optimizer:
    """SGD with momentum, or AdamW.

    Raises:
        ValueError: another name.
    """
    if name == "sgd":
        return SGD(parameters, lr=lr, momentum=momentum, weight_decay=weight_decay)
    if name == "adamw":
        return AdamW(parameters, lr=lr, weight_decay=weight_decay)
    raise ValueError(f"expected optimizer to be one of {', '.join(OPTIMIZERS)}, but got {name!r}")


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
