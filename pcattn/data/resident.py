"""Batches of clouds that lie on the device as a whole."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from pytorch_lightning.utilities import move_data_to_device
from torch import Tensor

from pcattn.data.dense import DenseClouds, EpochLoader, EpochSampler, PointBatch
from pcattn.utils.errors import InputError

#: The share of a GPU's free memory that clouds may take without being asked to.
MEMORY_SHARE = 0.25


class ResidentLoader(EpochLoader):
    """The batches of `EpochLoader(dataset, sampler)`, each selected where the clouds lie.

    The clouds of the sampler are read once, when the first batch is asked for, and moved to the device. The order of an
    epoch follows in one piece; from there on a batch is one `index_select` a field, and nothing passes from host to
    device. The values are those of the `EpochLoader`, to the last bit.

    Args:
        dataset: clouds of which every read gives the same points, see `DenseClouds.draws_anew`.
        sampler: the batches of an epoch.
        device: where the clouds lie.
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
            raise InputError("expected clouds of which every read gives the same points, but they are drawn anew")
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
