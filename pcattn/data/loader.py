"""The batches of an epoch: which clouds they hold, and the loader that reads them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from pcattn.data.batch import PointBatch
from pcattn.data.seeds import combine_seeds


class EpochSampler:
    """The batches of one epoch, as a function of (seed, epoch) alone, so that a resumed run sees the same batches.

    Args:
        indices: (M,) the clouds to draw from.
        batch_size: clouds per batch.
        seed: seed of the order, and of the seeds of the batches.
        shuffle: use a new order every epoch and drop the last incomplete batch, because batch statistics of few clouds
            are poor. Otherwise all `indices` come in their order.
        rank: index of this process.
        world_size: number of processes. Each takes every `world_size`-th batch. Without `shuffle` every cloud comes
            exactly once, and batches are smaller if some process would otherwise have none.

    Attributes:
        epoch: the current epoch.
        position: number of its batches that have been taken.
    """

    def __init__(
        self, indices: Tensor, batch_size: int, seed: int, shuffle: bool, rank: int = 0, world_size: int = 1
    ) -> None:
        self.indices, self.batch_size, self.seed, self.shuffle = indices, batch_size, seed, shuffle
        self.rank, self.world_size = rank, world_size
        if not shuffle:
            self.batch_size = max(1, min(batch_size, len(indices) // world_size))
        self.epoch, self.position = 0, 0
        self._resumed = (0, 0)
        self._advances, self._begun = False, False

    def set_epoch(self, epoch: int) -> None:
        """Called by the trainer before every epoch."""
        self.epoch, self._begun = epoch, False

    def advance(self, before: EpochSampler | None) -> None:
        """Count epochs by iterations, for loops without a trainer: every iteration after the first is the next epoch.

        Args:
            before: the sampler whose epochs this one continues.
        """
        self._advances = True
        if before is not None:
            self.epoch, self._begun = before.epoch, before._begun

    def resume(self, epoch: int, position: int) -> None:
        """Start this epoch, and only this one, after its first `position` batches."""
        self.epoch, self.position, self._begun = epoch, position, False
        self._resumed = (epoch, position)

    @property
    def num_batches(self) -> int:
        """Number of batches per epoch over all processes. A data set smaller than one batch still makes one."""
        full = len(self.indices) // self.batch_size
        return max(full, 1) if self.shuffle else -(-len(self.indices) // self.batch_size)

    def __len__(self) -> int:
        batches = self.num_batches
        return batches // self.world_size if self.shuffle else -(-(batches - self.rank) // self.world_size)

    def __iter__(self) -> Iterator[tuple[int, Tensor]]:
        if self._advances and self._begun:
            self.epoch += 1
        self._begun = True
        generator = torch.Generator().manual_seed(combine_seeds(self.seed, self.epoch))
        order = torch.randperm(len(self.indices), generator=generator) if self.shuffle else slice(None)
        batches = self.indices[order].split(self.batch_size)
        first = self._resumed[1] if self.epoch == self._resumed[0] else 0
        for step in range(first, len(self)):
            number = step * self.world_size + self.rank
            self.position = step + 1
            yield combine_seeds(self.seed, self.epoch, number), batches[number]


class EpochLoader(DataLoader[PointBatch]):
    """Reads the batches of an `EpochSampler`. Lightning stores its state in checkpoints to resume within an epoch.

    Args:
        clouds: what to read from, indexed by `(seed, indices)`.
        sampler: the batches of an epoch.
        finish: what to apply to each batch; None where a trainer does it.
    """

    sampler: EpochSampler

    def __init__(
        self, clouds: Dataset[PointBatch], sampler: EpochSampler, finish: Callable[[Any], PointBatch] | None = None
    ) -> None:
        # batch_size None: the sampler yields whole batches. Indexing memory needs no worker processes.
        super().__init__(clouds, sampler=sampler, batch_size=None, collate_fn=finish)

    def state_dict(self) -> dict[str, int]:
        """The batch that comes next."""
        return {"epoch": self.sampler.epoch, "position": self.sampler.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue with the batch of `state_dict`."""
        self.sampler.resume(**state)
