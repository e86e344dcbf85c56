"""`DenseClouds`: a torch-geometric data set read as dense batches."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from torch_geometric.data import InMemoryDataset

from pcattn.data.batch import PointBatch
from pcattn.data.dataset import PointCloudDataset
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
from pcattn.data.seeds import combine_seeds, global_seed
from pcattn.utils.errors import DatasetError, InputError

SAMPLINGS = ("random", "first", "fps")


class DenseClouds(Dataset[PointBatch]):
    """A torch-geometric data set read as dense batches, each by one indexed read, even if clouds differ in size.

    The tensors are those of the data set's own storage, including memory-mapped files. Nothing is copied, unless the
    data set is a selection of another. Clouds are normalized as they are read. Clouds that differ in size can be read
    one by one (`cloud`), or with the same number of points drawn from each (`sampled`).

    If the data set has a `transform`, it is applied to every cloud that is read, before points are drawn and the cloud
    is normalized. Its random numbers follow from the seed of the batch and the index of the cloud; they are fixed in
    `sampled(..., seed=...)` and `cloud`. `sizes`, `label` and `category` are those of the stored clouds.

    Args:
        dataset: the clouds, a `PointCloudDataset` or any other `InMemoryDataset` (see `PointCloudDataset.wrap`).
        per_point: labels are the parts `y` of the points; otherwise the class of the cloud, which is `category` where
            the data set has it and `y` elsewhere.
        features: input channels besides positions, see `preprocess`.
        normalize: see `preprocess`.
        up_axis: see `preprocess`.
        name: name of the data set for messages.

    Attributes:
        pos: positions (M, N, 3), or (P, 3) of all P points where clouds differ in size.
        label: (M,), or labels of points (M, N) or (P,).
        category: (M,) or None.
        sizes: (M,) number of points of each cloud.
        equal: whether all clouds have the same number of points.

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
        dataset = PointCloudDataset.wrap(dataset)
        if dataset._indices is not None:  # a selection or another order: gathered once
            dataset = dataset.copy()
        self.dataset, self.name, self.per_point = dataset, name, per_point
        self.features, self.normalize, self.up_axis = features, normalize, up_axis
        self._read_positions()
        self._read_labels()
        self._find_features()
        #: Index of each cloud in the data set, which its random numbers depend on.
        self._ids = torch.arange(len(self))
        self._placements: dict[int, Placement] = {}
        self._estimated: dict[int, Tensor] = {}
        self._num_points: int | None = None
        self._sampling = "random"
        self._seed: int | None = None
        self._chosen: dict[int, np.ndarray] = {}

    def _read_positions(self) -> None:
        data = self.dataset._data
        if "pos" not in data:
            raise DatasetError(f"expected pos in {self.name}, but its clouds have {', '.join(sorted(data.keys()))}")
        bounds = self.dataset.bounds
        if data.pos.shape[1:] != (3,):
            raise DatasetError(f"expected pos (P, 3) in {self.name}, but got {tuple(data.pos.shape)}")
        first, last = int(bounds[0]), int(bounds[-1])
        if first != 0 or last != len(data.pos):
            raise DatasetError(
                f"expected clouds of all {len(data.pos)} points of {self.name}, but got {first} to {last}"
            )
        self.starts, self.sizes = bounds[:-1], bounds.diff()
        if not bool((self.sizes > 0).all()):
            empty = int(self.sizes.argmin())
            raise DatasetError(f"expected points in every cloud of {self.name}, but cloud {empty} has none")
        self.equal = bool((self.sizes == self.sizes[0]).all())
        pos = data.pos if data.pos.dtype in (torch.float32, torch.float64) else data.pos.double()
        self.pos = pos.view(*self._shape, 3)

    def _read_labels(self) -> None:
        data, num_clouds = self.dataset._data, len(self)
        field = "y" if self.per_point or "category" not in data else "category"
        if field not in data:
            raise DatasetError(f"expected {field} in {self.name}, but its clouds have {', '.join(sorted(data.keys()))}")
        label, num_points = torch.as_tensor(data[field]), len(data.pos)
        self.category: Tensor | None = None
        if self.per_point:
            if label.numel() != num_points:
                raise DatasetError(
                    f"expected a part label for every point in {self.name}, but it has labels of clouds"
                    f"{self.dataset.label_hint}"
                )
            self.label = label.view(self._shape)
            self.category = data.category.view(num_clouds) if "category" in data else None
            return
        if label.numel() != num_clouds:
            hint = ": labels of points are for per_point" if label.numel() == num_points else ""
            raise DatasetError(
                f"expected a class {field} for each of {num_clouds} clouds in {self.name}, but got {label.numel()} "
                f"numbers{hint}"
            )
        self.label = label.view(num_clouds)

    def _find_features(self) -> None:
        """Find the columns of `x` that the features consist of."""
        x, names = self.dataset._data.get("x"), self.dataset.feature_names
        num_points = len(self.dataset._data.pos)
        if x is not None and names and x.shape != (num_points, len(names)):
            raise DatasetError(f"expected x ({num_points}, {len(names)}) in {self.name}, but got {tuple(x.shape)}")
        columns = {name: find_channels(name, names if x is not None else (), self.name) for name in self.features}
        self._x = x
        self._normals = columns.pop("normals", None)
        self._estimates_normals = ESTIMATED_NORMALS in columns
        columns.pop(ESTIMATED_NORMALS, None)
        self._features = list(columns.values())

    @property
    def _shape(self) -> tuple[int, ...]:
        """Shape of what belongs to points: (M, N), or (P,) where clouds differ in size."""
        return (len(self), int(self.sizes[0])) if self.equal else (-1,)

    def __len__(self) -> int:
        return len(self.sizes)

    @property
    def transformed(self) -> bool:
        """Whether a transform of the data set is applied to the clouds as they are read."""
        return self.dataset.transform is not None

    @property
    def draws_anew(self) -> bool:
        """Whether the points of a cloud depend on the seed of the batch it is read with."""
        return self._seed is None and (self._num_points is not None or self.transformed)

    def __getitem__(self, key: tuple[int, Tensor]) -> PointBatch:
        """The batch of a `(seed, indices)` pair, as `EpochSampler` yields them."""
        seed, indices = key
        if self.transformed:
            clouds = self._transform(indices, seed if self._seed is None else 0)
            return clouds[seed, torch.arange(len(indices))]
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
        if self.transformed:
            return self._transform(torch.tensor([index]), 0).cloud(0)
        return self._batch(torch.tensor([index]), torch.arange(int(self.sizes[index]))[None], 0)

    def sampled(self, num_points: int, sampling: str = "random", seed: int | None = None) -> DenseClouds:
        """The same clouds with `num_points` points drawn from each.

        A cloud with fewer points has each of them once, and random ones a second time.

        Args:
            num_points: points to draw.
            sampling: `"random"`, without replacement; `"first"`; or `"fps"`, farthest points, which are chosen once and
                kept.
            seed: of the draws, which then depend on the index of the cloud alone; None uses the seed of each batch.
        """
        if sampling not in SAMPLINGS:
            raise InputError(f"expected sampling to be one of {', '.join(SAMPLINGS)}, but got {sampling!r}")
        view = copy.copy(self)
        view._num_points, view._sampling, view._seed, view._chosen = num_points, sampling, seed, {}
        return view

    def _transform(self, indices: Tensor, seed: int) -> DenseClouds:
        """The clouds `indices` as the transform of the data set returns them."""
        items = []
        for index in indices.tolist():
            with global_seed(combine_seeds(seed, index)):
                items.append(self.dataset[index])
        dataset = copy.copy(self.dataset)
        dataset.transform, dataset._data_list = None, None
        dataset._data, dataset.slices = dataset.collate(items)
        clouds = DenseClouds(dataset, self.per_point, self.features, self.normalize, self.up_axis, self.name)
        clouds._ids = self._ids[indices]
        return clouds if self._num_points is None else clouds.sampled(self._num_points, self._sampling, self._seed)

    def _choose(self, index: int, seed: int, wanted: int) -> np.ndarray:
        """Which `wanted` points of a cloud are drawn."""
        if index in self._chosen:
            return self._chosen[index]
        size = int(self.sizes[index])
        generator = np.random.default_rng([seed if self._seed is None else self._seed, int(self._ids[index])])
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
        channels = None if self._x is None or not (self._normals or self._features) else self._x[rows].float()
        normals = None if channels is None or self._normals is None else channels[..., self._normals]
        if self._estimates_normals:
            estimated = [self._estimate(index)[of] for index, of in zip(indices.tolist(), chosen, strict=True)]
            normals = torch.stack(estimated).float()
        features = None
        # Float64 is placed in any case: `preprocess` moves clouds that float32 would blur.
        moves = self.normalize != "none" or pos.dtype == torch.float64
        if moves or self._features:
            place = self._place(indices)
            features = select(channels, self._features, height_of(pos, place, self.up_axis).float())
            pos = apply_placement(pos, place) if moves else pos
        return PointBatch(
            pos=pos.float(),
            normals=normals,
            label=self.label.view(-1)[rows] if self.per_point else self.label[indices],
            category=None if self.category is None else self.category[indices],
            indices=self._ids[indices],
            seed=seed,
            features=features,
            point_indices=chosen,
        )

    def _points(self, index: int) -> Tensor:
        """The stored positions (n, 3) of a cloud."""
        start = int(self.starts[index])
        return self.pos.view(-1, 3)[start : start + int(self.sizes[index])]

    def _estimate(self, index: int) -> Tensor:
        """Normals (n, 3) of a complete cloud, estimated on first use."""
        if index not in self._estimated:
            self._estimated[index] = estimate_normals(self._points(index)[None])[0]
        return self._estimated[index]

    def _place(self, indices: Tensor) -> Placement:
        """Placements of some clouds as tensors (B, ...), each computed from the complete cloud on first use."""
        for index in indices.tolist():
            if index not in self._placements:
                self._placements[index] = placement([self._points(index)], self.normalize, self.up_axis)
        return Placement(*map(torch.stack, zip(*(self._placements[index] for index in indices.tolist()), strict=True)))
