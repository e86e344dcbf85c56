"""Which clouds of a split to look at."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from pcattn.utils.errors import InputError

if TYPE_CHECKING:
    from pcattn.data import DenseClouds, PointBatch
    from pcattn.training.datamodule import PointCloudDataModule

#: Splits that can be shown.
SPLITS = ("val", "test")

# Clouds that go through the network at once.
_BATCH = 32


def read_split(data: PointCloudDataModule, split: str) -> tuple[DenseClouds, Tensor]:
    """The clouds of a split as evaluation sees them, and the indices (M,) of those that belong to it.

    Raises:
        InputError: no such split.
        DatasetError: the data cannot be read.
    """
    if split not in SPLITS:
        raise InputError(f"expected split to be one of {', '.join(SPLITS)}, but got {split!r}")
    data.setup("validate" if split == "val" else "test")
    loader = data.val_dataloader() if split == "val" else data.test_dataloader()
    clouds: Any = loader.dataset
    return clouds, data.val_indices if split == "val" else torch.arange(len(clouds))


def choose_clouds(clouds: DenseClouds, indices: Tensor, number: int, classes: Sequence[int] | None = None) -> Tensor:
    """At most `number` clouds, spread evenly over the classes and sorted by class.

    Args:
        clouds: see `read_split`.
        indices: (M,) clouds to choose from.
        number: how many to choose.
        classes: classes to choose from; None is all.
    """
    labels = _classes(clouds)[indices]
    if classes is not None:
        wanted = torch.isin(labels, torch.tensor(list(classes)))
        indices, labels = indices[wanted], labels[wanted]
    rank = torch.zeros_like(labels)  # of a cloud within its class
    for label in labels.unique():
        members = labels == label
        rank[members] = torch.arange(int(members.sum()))
    order = np.lexsort((labels.numpy(), rank.numpy()))[:number]
    return indices[order][labels[order].argsort(stable=True)]


def read_batches(clouds: DenseClouds, indices: Tensor) -> Iterable[PointBatch]:
    """These clouds in batches."""
    for some in indices.split(_BATCH):
        yield clouds[0, some]


def _classes(clouds: DenseClouds) -> Tensor:
    """Class or category (M,) of every cloud; zeros if there is none."""
    if clouds.per_point:
        return clouds.category if clouds.category is not None else torch.zeros(len(clouds), dtype=torch.long)
    return clouds.label
