"""Augmentation of whole batches, on the device of the batch.

Every transform maps a `PointBatch` to a new one and does not change the stored clouds. Randomness comes only from the
generator it is given. In a configuration, transforms are written by name and run in this order:

.. code-block:: yaml

    augmentation:
      - scale: {low: 0.667, high: 1.5}
      - translate: {max_offset: 0.2}
      - point_cutmix: {kind: r, probability: 0.5}

In a loop of your own, on positions (B, N, 3) and labels (B,):

.. code-block:: python

    batch = PointBatch(pos, None, label, None, torch.arange(len(pos)), seed=0)  # of pcattn.data
    batch = Scale()(batch, torch.Generator().manual_seed(0))
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pcattn.transforms.batch import Transform, subsample
from pcattn.transforms.mix import PointCutMix, PointMixup, RSMix
from pcattn.transforms.points import Dropout, FeatureDropout, Jitter
from pcattn.transforms.rigid import Flip, Rotate, RotateSO3, Scale, Translate
from pcattn.utils.errors import InputError
from pcattn.utils.registry import Registry, construct

__all__ = [
    "TRANSFORMS",
    "Dropout",
    "FeatureDropout",
    "Flip",
    "Jitter",
    "PointCutMix",
    "PointMixup",
    "RSMix",
    "Rotate",
    "RotateSO3",
    "Scale",
    "Transform",
    "Translate",
    "build_transforms",
    "subsample",
]

#: Every transform by the name it has in a configuration. `@TRANSFORMS.register("shear")` adds one.
TRANSFORMS: Registry[Callable[..., Transform]] = Registry(
    "augmentation step",
    {
        "scale": Scale,
        "translate": Translate,
        "rotate": Rotate,
        "rotate_so3": RotateSO3,
        "flip": Flip,
        "jitter": Jitter,
        "dropout": Dropout,
        "feature_dropout": FeatureDropout,
        "point_mixup": PointMixup,
        "point_cutmix": PointCutMix,
        "rsmix": RSMix,
    },
)


def build_transforms(steps: list[dict[str, dict[str, Any] | None]] | None) -> list[Transform]:
    """The transforms of a configuration: a list of `{name: arguments}`.

    Raises:
        InputError: no such transform, or it does not take these arguments.
    """
    transforms = []
    for step in steps or []:
        if len(step) != 1:
            raise InputError(f"expected each augmentation step to be one {{name: arguments}}, but got {step}")
        ((name, arguments),) = step.items()
        if not isinstance(arguments, dict | None):
            raise InputError(f"expected arguments {{name: value}} of augmentation step {name!r}, but got {arguments}")
        transforms.append(construct(TRANSFORMS.kind, name, TRANSFORMS.find(name), **(arguments or {})))
    return transforms
