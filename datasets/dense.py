"""The border between torch-geometric data sets and dense batches."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from torch_geometric.data import InMemoryDataset

from .errors import DatasetError


class PointBatch(NamedTuple):
    """Clouds of equal size, as the networks take them."""

    pos: Tensor  #: (B, N, 3) positions
    normals: Tensor | None  #: (B, N, 3) unit normals
    label: Tensor  #: (B,) class of each cloud, or (B, N) part of each point
    category: Tensor | None  #: (B,) category of each cloud when `label` is per point
    indices: Tensor  #: (B,) position of each cloud in its data set
    seed: int  #: everything random that happens to this batch derives from it
    mixed_label: Tensor | None = None  #: (B, L) the classes that a mixed cloud is of; None: of `label` alone
    mixed_weight: Tensor | None = None  #: (B, L) their shares, which add up to 1


class DenseClouds(Dataset):
    """A torch-geometric data set of equal-size clouds, seen as (M, N, 3) tensors: a batch is one indexed read.

    The tensors are views of the data set's own storage; nothing is copied, unless it is a selection of another.

    Args:
        dataset: in memory, with `pos`, and `y` (one class or one part a point), `category` and normals `x` if any.
        per_point: labels are the parts `y` of the points; otherwise the class of the cloud, which is `category` where
            the data set has it and `y` elsewhere.
        normals: read normals from `x`.
        name: what to call the data set in messages.

    Raises:
        DatasetError: the clouds differ in size, or lack what was asked for.
    """

    def __init__(
        self, dataset: InMemoryDataset, per_point: bool = False, normals: bool = False, name: str = "data set"
    ) -> None:
        if len(dataset) == 0:
            raise DatasetError(f"expected clouds in {name}, but it is empty")
        if dataset.transform is not None:
            raise DatasetError(f"expected {name} without a transform: batches are augmented instead (augmentation)")
        if dataset._indices is not None:  # a part of a data set, or another order: gathered once
            dataset = dataset.copy()
        data, num_clouds = dataset._data, len(dataset)
        sizes = dataset.slices["pos"].diff()
        num_points = int(sizes[0])
        if not bool((sizes == num_points).all()):
            raise DatasetError(
                f"expected clouds of equal size in {name}, but got {int(sizes.min())} to {int(sizes.max())}"
            )
        self.pos = data.pos.view(num_clouds, num_points, 3)
        if normals and (data.x is None or data.x.shape != data.pos.shape):
            raise DatasetError(f"expected normals in {name} (normals: true), but it has none")
        self.normals = data.x.view(num_clouds, num_points, 3) if normals else None
        self.category = data.category.view(num_clouds) if "category" in data else None
        if per_point:
            if data.y.numel() != num_clouds * num_points:
                raise DatasetError(f"expected a part label for every point in {name}, but it has labels of clouds")
            self.label = data.y.view(num_clouds, num_points)
        else:
            self.label = data.y.view(num_clouds) if self.category is None else self.category
            self.category = None

    def __len__(self) -> int:
        return len(self.pos)

    def __getitem__(self, key: tuple[int, Tensor]) -> PointBatch:
        """The batch of a `(seed, indices)` pair, as `EpochSampler` yields them."""
        seed, indices = key
        return PointBatch(
            pos=self.pos[indices],
            normals=None if self.normals is None else self.normals[indices],
            label=self.label[indices],
            category=None if self.category is None else self.category[indices],
            indices=indices,
            seed=seed,
        )


class EpochSampler:
    """Batches of one epoch, as a function of (seed, epoch) alone: a resumed run sees what the first one would have.

    Args:
        indices: (M,) the clouds to draw from.
        batch_size: clouds a batch.
        seed: seed of the order and of the batches' own seeds.
        shuffle: a new order every epoch, and the last incomplete batch is left out (batch statistics of few clouds
            are poor); otherwise the order of `indices`, complete.
        rank: this process.
        world_size: number of processes; each takes every `world_size`-th batch.
    """

    def __init__(
        self, indices: Tensor, batch_size: int, seed: int, shuffle: bool, rank: int = 0, world_size: int = 1
    ) -> None:
        self.indices, self.batch_size, self.seed, self.shuffle = indices, batch_size, seed, shuffle
        self.rank, self.world_size = rank, world_size
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Called by the trainer before every epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        full = len(self.indices) // self.batch_size
        # A data set smaller than one batch is still trained on.
        batches = max(full, 1) if self.shuffle else -(-len(self.indices) // self.batch_size)
        return batches // self.world_size if self.shuffle else -(-(batches - self.rank) // self.world_size)

    def __iter__(self) -> Iterator[tuple[int, Tensor]]:
        generator = torch.Generator().manual_seed(_mix(self.seed, self.epoch))
        order = torch.randperm(len(self.indices), generator=generator) if self.shuffle else slice(None)
        batches = self.indices[order].split(self.batch_size)
        for step in range(len(self)):
            number = step * self.world_size + self.rank
            yield _mix(self.seed, self.epoch, number), batches[number]


def stratified_split(labels: Tensor, fraction: float, seed: int) -> tuple[Tensor, Tensor]:
    """Indices of a training and a validation part with the same share of every class.

    Args:
        labels: (M,) class of every cloud.
        fraction: share of the validation part, 0 < fraction < 1; a class of two or more gives it at least one.
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


def _mix(*numbers: int) -> int:
    """One seed from several numbers, so that neighbouring numbers give unrelated streams."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)
