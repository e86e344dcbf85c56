"""Batches selected on the device, where all clouds are stored."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Literal

import torch
from pytorch_lightning.utilities import move_data_to_device
from torch import Tensor
from torch.utils.data import Dataset

from pcattn.data.batch import PointBatch
from pcattn.data.dense import DenseClouds
from pcattn.data.loader import EpochLoader, EpochSampler
from pcattn.utils.errors import InputError

#: The share of a GPU's free memory that clouds may take with `resident: auto`.
MEMORY_SHARE = 0.25


class ResidentLoader(EpochLoader):
    """The batches of `EpochLoader(dataset, sampler)`, selected on a device that stores all clouds.

    The clouds of the sampler are read once, for the first batch, and moved to the device. The order of each epoch
    follows in one transfer. From then on, a batch is one `index_select` per field, and nothing passes from host to
    device. The values equal those of the `EpochLoader` exactly.

    Args:
        dataset: clouds whose points are the same in every read, see `DenseClouds.draws_anew`.
        sampler: the batches of an epoch.
        device: where the clouds are stored.
        finish: see `EpochLoader`.

    Raises:
        InputError: points are drawn anew for each batch.
    """

    def __init__(
        self,
        dataset: DenseClouds,
        sampler: EpochSampler,
        device: torch.device,
        finish: Callable[[Any], PointBatch] | None = None,
    ) -> None:
        if dataset.draws_anew:
            raise InputError("expected clouds whose points are the same in every read, but they are drawn anew")
        super().__init__(dataset, sampler, finish)
        self.device = device
        self._indices = sampler.indices
        self._rows = torch.empty(len(dataset), dtype=torch.long)
        self._rows[self._indices] = torch.arange(len(self._indices))
        self._clouds: tuple[Any, ...] | None = None

    def __iter__(self) -> Iterator[PointBatch]:  # type: ignore[override]  # no workers, hence no iterator class
        batches = list(self.sampler)
        if not batches:
            return
        if self._clouds is None:
            self._clouds = move_data_to_device(self.dataset[0, self._indices], self.device)
        rows = self._rows[torch.cat([indices for _, indices in batches])].to(self.device)
        sizes = [len(indices) for _, indices in batches]
        first = self.sampler.position - len(batches)  # 0, or where the epoch goes on
        for step, ((seed, _), chosen) in enumerate(zip(batches, rows.split(sizes), strict=True), first):
            self.sampler.position = step + 1  # taken up to here, although the sampler was asked for all of them at once
            fields: list[Any] = [x.index_select(0, chosen) if isinstance(x, Tensor) else x for x in self._clouds]
            batch: Any = PointBatch(*fields)._replace(seed=seed)
            yield self.collate_fn(batch)


def fits(dataset: DenseClouds, sampler: EpochSampler, device: torch.device) -> bool:
    """Whether the clouds of the sampler take at most `MEMORY_SHARE` of the free memory of a CUDA device."""
    example = dataset[0, sampler.indices[:1]]
    size = sum(field.nbytes for field in example if isinstance(field, Tensor)) * len(sampler.indices)
    return size <= MEMORY_SHARE * torch.cuda.mem_get_info(device)[0]


def why_not_resident(
    dataset: Dataset[PointBatch], sampler: EpochSampler, device: torch.device, resident: bool | Literal["auto"]
) -> str | None:
    """The reason why clouds are read on the host for every batch; None if they are to be stored on the device.

    Args:
        dataset: the clouds of a loader.
        sampler: the batches of an epoch.
        device: where the network is.
        resident: store them if that is possible; `"auto"` only if they also fit (`fits`).
    """
    if not isinstance(dataset, DenseClouds):
        return "they come corrupted"
    if dataset.draws_anew:
        return "their points are drawn for each batch"
    if resident == "auto" and not fits(dataset, sampler, device):
        return f"they take more than {MEMORY_SHARE:.0%} of the free memory of {device}"
    return None
