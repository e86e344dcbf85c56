"""How clouds are divided into splits where their data set does not say."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256

import torch
from torch import Tensor

#: The splits a data set may have.
SPLITS = ("train", "val", "test")


def hash_split(names: Sequence[str], fraction: float, seed: int) -> list[bool]:
    """Choose the test clouds of one class by a hash of their names.

    A cloud keeps its split when the folder is moved, and most clouds keep it when others are added.

    Args:
        names: unique names of the clouds of one class.
        fraction: share of the test clouds, 0 <= fraction < 1. If it is positive, a class of two or more clouds has at
            least one test cloud and one training cloud.
        seed: another seed gives another choice.

    Returns:
        For each name, whether it is a test cloud.
    """
    count = min(max(round(fraction * len(names)), 1), len(names) - 1) if fraction > 0 and names else 0
    keys = [sha256(f"{seed}/{name}".encode(errors="surrogateescape")).digest() for name in names]
    chosen = set(sorted(range(len(names)), key=keys.__getitem__)[:count])
    return [index in chosen for index in range(len(names))]


def stratified_split(labels: Tensor, fraction: float, seed: int) -> tuple[Tensor, Tensor]:
    """Divide clouds into a training and a validation part with the same share of every class.

    Args:
        labels: (M,) class of each cloud.
        fraction: share of the validation part, 0 < fraction < 1. A class of two or more clouds has at least one
            validation cloud.
        seed: seed of the choice.

    Returns:
        Sorted indices (M_train,) and (M_val,).
    """
    generator = torch.Generator().manual_seed(seed)
    validation = torch.zeros(len(labels), dtype=torch.bool)
    for label in labels.unique():
        members = (labels == label).nonzero().flatten()
        wanted = round(fraction * len(members))
        count = min(max(wanted, 1), len(members) - 1)
        validation[members[torch.randperm(len(members), generator=generator)[:count]]] = True
    return (~validation).nonzero().flatten(), validation.nonzero().flatten()
