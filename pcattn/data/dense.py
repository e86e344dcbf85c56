"""The border between torch-geometric data sets and dense batches."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torch_geometric.data import InMemoryDataset

from pcattn.data.normals import estimate_normals
from pcattn.data.preprocessing import (
    ESTIMATED_NORMALS,
    Placement,
    apply_placement,
    find_channels,
    height_of,
    placement,
    select,
)
from pcattn.io.channels import GROUPS
from pcattn.utils.errors import DatasetError, InputError

SAMPLINGS = ("random", "first", "fps")


class PointBatch(NamedTuple):
    """Clouds of equal size, as the networks take them."""

    pos: Tensor  #: (B, N, 3) positions
    normals: Tensor | None  #: (B, N, 3) unit normals, which turn with the cloud
    label: Tensor  #: (B,) class of each cloud, or (B, N) part of each point
    category: Tensor | None  #: (B,) category of each cloud when `label` is per point
    indices: Tensor  #: (B,) position of each cloud in its data set
    seed: int  #: everything random that happens to this batch derives from it
    features: Tensor | None = None  #: (B, N, F) what else the network is told: color, intensity, height, ...
    point_indices: Tensor | None = None  #: (B, N) which points of the complete clouds these are
    mixed_label: Tensor | None = None  #: (B, L) the classes that a mixed cloud is of; None: of `label` alone
    mixed_weight: Tensor | None = None  #: (B, L) their shares, which add up to 1

    @property
    def channels(self) -> Tensor | None:
        """(B, N, C) all that a network is told beside positions: normals first, then the other features."""
        if self.normals is None or self.features is None:
            return self.normals if self.features is None else self.features
        return torch.cat((self.normals, self.features), dim=2)


class DenseClouds(Dataset):
    """A torch-geometric data set seen as dense batches: each is one indexed read, also of clouds that differ in size.

    The tensors are those of the data set's own storage, mapped files included; nothing is copied, unless it is a
    selection of another. Clouds are normalized as they are read. Clouds that differ in size can be read one by one
    (`cloud`), or with as many points drawn from each (`sampled`).

    Args:
        dataset: in memory, with `pos`, and `y` (one class or one part a point), `category` and features `x` (N, F) if
            any. The channels of `x` are named by its attribute `feature_names`; without it, three are normals.
        per_point: labels are the parts `y` of the points; otherwise the class of the cloud, which is `category` where
            the data set has it and `y` elsewhere.
        features: what to read beside positions, see `preprocess`.
        normalize: likewise.
        up_axis: likewise.
        name: what to call the data set in messages.

    Attributes:
        pos: positions (M, N, 3), or (P, 3) of all P points where clouds differ in size.
        label: (M,), or labels of points (M, N) or (P,).
        category: (M,) or None.
        sizes: (M,), number of points of each cloud.

    Raises:
        DatasetError: the clouds lack what was asked for.
    """

    def __init__(
        self,
        dataset: InMemoryDataset,
        per_point: bool = False,
        features: Sequence[str] = (),
        normalize: str = "none",
        up_axis: str = "z",
        name: str = "data set",
    ) -> None:
        if not isinstance(dataset, InMemoryDataset):
            raise DatasetError(
                f"expected {name} to be an InMemoryDataset of torch-geometric, but got {type(dataset).__name__} "
                "(PyGPointClouds takes one that is not in memory)"
            )
        if len(dataset) == 0:
            raise DatasetError(f"expected clouds in {name}, but it is empty")
        if dataset.transform is not None:
            raise DatasetError(f"expected {name} without a transform: batches are augmented instead (augmentation)")
        if dataset._indices is not None:  # a part of a data set, or another order: gathered once
            dataset = dataset.copy()
        self.dataset, self.name, self.per_point = dataset, name, per_point
        self.normalize, self.up_axis = normalize, up_axis
        data, num_clouds = dataset._data, len(dataset)
        label = "y" if per_point or "category" not in data else "category"
        if lacking := [field for field in ("pos", label) if field not in data]:
            raise DatasetError(f"expected pos and {label} in {name}, but it has no {' and no '.join(lacking)}")
        self.starts = torch.as_tensor(dataset.slices["pos"][:-1])
        self.sizes = torch.as_tensor(dataset.slices["pos"]).diff()
        if data.pos.shape[1:] != (3,):
            raise DatasetError(f"expected pos (P, 3) in {name}, but got {tuple(data.pos.shape)}")
        if int(self.starts[0]) != 0 or int(dataset.slices["pos"][-1]) != len(data.pos):
            first, last = int(self.starts[0]), int(dataset.slices["pos"][-1])
            raise DatasetError(f"expected clouds of all {len(data.pos)} points of {name}, but got {first} to {last}")
        if not bool((self.sizes > 0).all()):
            raise DatasetError(
                f"expected points in every cloud of {name}, but cloud {int(self.sizes.argmin())} has none"
            )
        #: Whether all clouds have the same number of points.
        self.equal = bool((self.sizes == self.sizes[0]).all())
        shape = (num_clouds, int(self.sizes[0])) if self.equal else (-1,)
        self.pos = data.pos.view(*shape, 3)
        if not self.pos.is_floating_point():
            raise DatasetError(f"expected pos of {name} to be floating point, but got {self.pos.dtype}")
        self._read_features(data, features)
        self.category = data.category.view(num_clouds) if "category" in data else None
        if per_point:
            if data.y.numel() != len(data.pos):
                hint = getattr(dataset, "label_hint", "")
                raise DatasetError(
                    f"expected a part label for every point in {name}, but it has labels of clouds{hint}"
                )
            self.label = data.y.view(shape)
        elif self.category is None and data.y.numel() != num_clouds:
            hint = ": labels of points are for per_point" if data.y.numel() == len(data.pos) else ""
            raise DatasetError(
                f"expected a class y for each of {num_clouds} clouds in {name}, but got {data.y.numel()} numbers{hint}"
            )
        else:
            self.label = data.y.view(num_clouds) if self.category is None else self.category
            self.category = None
        self._placements: dict[int, Placement] = {}
        self._estimated: dict[int, Tensor] = {}
        self._num_points: int | None = None
        self._sampling = "random"
        self._seed: int | None = None
        self._chosen: dict[int, np.ndarray] = {}

    def _read_features(self, data, features: Sequence[str]) -> None:
        """Find the columns of the chosen features."""
        x = data.x if "x" in data else None
        names = getattr(self.dataset, "feature_names", None)
        if names is None:
            names = GROUPS["normals"] if x is not None and x.shape == data.pos.shape else ()
        if x is not None and names and x.shape != (len(data.pos), len(names)):
            raise DatasetError(f"expected x ({len(data.pos)}, {len(names)}) in {self.name}, but got {tuple(x.shape)}")
        columns = {name: find_channels(name, names if x is not None else (), self.name) for name in features}
        self._x = x
        self._normals = columns.pop("normals", None)
        self._estimates_normals = ESTIMATED_NORMALS in columns
        columns.pop(ESTIMATED_NORMALS, None)
        self._features = list(columns.values())

    def __len__(self) -> int:
        return len(self.sizes)

    @property
    def draws_anew(self) -> bool:
        """Whether the points of a cloud depend on the seed of the batch that it is read with."""
        return self._num_points is not None and self._seed is None

    def __getitem__(self, key: tuple[int, Tensor]) -> PointBatch:
        """The batch of a `(seed, indices)` pair, as `EpochSampler` yields them."""
        seed, indices = key
        if self._num_points is not None:
            drawn = [self._choose(index, seed, self._num_points) for index in indices.tolist()]
            chosen = torch.from_numpy(np.stack(drawn))
        elif self.equal:
            chosen = torch.arange(int(self.sizes[0])).expand(len(indices), -1)
        else:
            low, high = int(self.sizes.min()), int(self.sizes.max())
            raise DatasetError(f"expected clouds of equal size in {self.name}, but got {low} to {high}: set num_points")
        return self._batch(indices, chosen, seed)

    def cloud(self, index: int) -> PointBatch:
        """A complete cloud, all its points in their order, as a batch of one."""
        return self._batch(torch.tensor([index]), torch.arange(int(self.sizes[index]))[None], 0)

    def sampled(self, num_points: int, sampling: str = "random", seed: int | None = None) -> DenseClouds:
        """The same clouds with `num_points` points drawn from each.

        A cloud with fewer points has each of them once, and random ones of them again.

        Args:
            num_points: points to draw.
            sampling: `"random"`, without replacement; `"first"`; or `"fps"`, farthest points, which are chosen once and
                kept.
            seed: of the draws, which are then a function of the cloud's index alone; None takes the seed of each batch.
        """
        if sampling not in SAMPLINGS:
            raise InputError(f"expected sampling to be one of {', '.join(SAMPLINGS)}, but got {sampling!r}")
        view = copy.copy(self)
        view._num_points, view._sampling, view._seed, view._chosen = num_points, sampling, seed, {}
        return view

    def _choose(self, index: int, seed: int, wanted: int) -> np.ndarray:
        """Which `wanted` points of a cloud are drawn."""
        if index in self._chosen:
            return self._chosen[index]
        size = int(self.sizes[index])
        generator = np.random.default_rng([seed if self._seed is None else self._seed, index])
        if self._sampling == "fps":
            from pcattn.ops import farthest_point_sample

            chosen = farthest_point_sample(self._points(index)[None], min(wanted, size))[0].numpy()
        elif self._sampling == "random" and wanted < size:
            chosen = generator.choice(size, wanted, replace=False)
        else:
            chosen = np.arange(min(wanted, size))
        if wanted > size:
            chosen = np.concatenate((chosen, generator.integers(size, size=wanted - size)))
        if self._sampling == "fps":
            self._chosen[index] = chosen
        return chosen

    def _batch(self, indices: Tensor, chosen: Tensor, seed: int) -> PointBatch:
        """Read the chosen points (B, N) of some clouds (B,)."""
        rows = self.starts[indices][:, None] + chosen
        pos = self.pos.view(-1, 3)[rows]
        channels = None if self._x is None or not (self._normals or self._features) else self._x[rows]
        normals = None if channels is None or self._normals is None else channels[..., self._normals]
        if self._estimates_normals:
            normals = torch.stack(
                [self._estimate(index)[of] for index, of in zip(indices.tolist(), chosen, strict=True)]
            )
        features = None
        if self.normalize != "none" or self._features:
            place = self._place(indices)
            features = select(channels, self._features, height_of(pos, place, self.up_axis))
            pos = pos if self.normalize == "none" else apply_placement(pos, place)
        return PointBatch(
            pos=pos,
            normals=normals,
            label=self.label.view(-1)[rows] if self.per_point else self.label[indices],
            category=None if self.category is None else self.category[indices],
            indices=indices,
            seed=seed,
            features=features,
            point_indices=chosen,
        )

    def _points(self, index: int) -> Tensor:
        """The stored positions (n, 3) of a cloud."""
        start = int(self.starts[index])
        return self.pos.view(-1, 3)[start : start + int(self.sizes[index])]

    def _estimate(self, index: int) -> Tensor:
        """Normals (n, 3) of a complete cloud, estimated when first asked for."""
        if index not in self._estimated:
            self._estimated[index] = estimate_normals(self._points(index)[None])[0]
        return self._estimated[index]

    def _place(self, indices: Tensor) -> Placement:
        """Placements of some clouds as tensors (B, ...), each computed from the complete cloud when first asked for."""
        for index in indices.tolist():
            if index not in self._placements:
                self._placements[index] = placement([self._points(index)], self.normalize, self.up_axis)
        return Placement(*map(torch.stack, zip(*(self._placements[index] for index in indices.tolist()), strict=True)))


class EpochSampler:
    """Batches of one epoch, as a function of (seed, epoch) alone: a resumed run sees what the first one would have.

    Args:
        indices: (M,) the clouds to draw from.
        batch_size: clouds a batch.
        seed: seed of the order and of the batches' own seeds.
        shuffle: a new order every epoch, and the last incomplete batch is left out (batch statistics of few clouds
            are poor); otherwise the order of `indices`, complete.
        rank: this process.
        world_size: number of processes; each takes every `world_size`-th batch. Without `shuffle` every cloud comes
            once, and the batches are smaller where some process would have none.

    Attributes:
        epoch: the present one.
        position: how many of its batches have been taken.
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
        """From now on every iteration after the first is the next epoch; where no trainer says which it is.

        Args:
            before: a sampler whose epochs this one continues.
        """
        self._advances = True
        if before is not None:
            self.epoch, self._begun = before.epoch, before._begun

    def resume(self, epoch: int, position: int) -> None:
        """Begin this epoch, and no other, after its first `position` batches."""
        self.epoch, self.position, self._begun = epoch, position, False
        self._resumed = (epoch, position)

    @property
    def num_batches(self) -> int:
        """Batches of an epoch, of all processes; a data set smaller than one batch is still trained on."""
        full = len(self.indices) // self.batch_size
        return max(full, 1) if self.shuffle else -(-len(self.indices) // self.batch_size)

    def __len__(self) -> int:
        batches = self.num_batches
        return batches // self.world_size if self.shuffle else -(-(batches - self.rank) // self.world_size)

    def __iter__(self) -> Iterator[tuple[int, Tensor]]:
        if self._advances and self._begun:
            self.epoch += 1
        self._begun = True
        generator = torch.Generator().manual_seed(_mix(self.seed, self.epoch))
        order = torch.randperm(len(self.indices), generator=generator) if self.shuffle else slice(None)
        batches = self.indices[order].split(self.batch_size)
        first = self._resumed[1] if self.epoch == self._resumed[0] else 0
        for step in range(first, len(self)):
            number = step * self.world_size + self.rank
            self.position = step + 1
            yield _mix(self.seed, self.epoch, number), batches[number]


class EpochLoader(DataLoader):
    """Batches of an `EpochSampler`. Lightning keeps its state in checkpoints, so that training goes on in an epoch.

    Args:
        clouds: what to read from.
        sampler: the batches of an epoch.
        finish: what to do to each batch, where no trainer does it.
    """

    sampler: EpochSampler

    def __init__(
        self, clouds: Dataset, sampler: EpochSampler, finish: Callable[[Any], PointBatch] | None = None
    ) -> None:
        # batch_size None: the sampler yields whole batches. Indexing memory needs no worker processes.
        super().__init__(clouds, sampler=sampler, batch_size=None, collate_fn=finish)

    def state_dict(self) -> dict[str, int]:
        """Which batch comes next."""
        return {"epoch": self.sampler.epoch, "position": self.sampler.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on with that batch."""
        self.sampler.resume(**state)


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
    """One seed from several numbers, so that neighboring numbers give unrelated streams."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0]) >> 1
