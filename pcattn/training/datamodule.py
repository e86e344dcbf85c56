"""The data module: from a data set's name in a configuration to dense, augmented batches."""

from __future__ import annotations

import inspect
from typing import Any, Literal, cast

import torch
from pytorch_lightning import LightningDataModule
from pytorch_lightning.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from pcattn.data.dense import SAMPLINGS, DenseClouds, EpochLoader, EpochSampler, PointBatch, stratified_split
from pcattn.data.preprocessing import check, count_channels
from pcattn.data.resident import MEMORY_SHARE, ResidentLoader, fits
from pcattn.datasets import DATASETS
from pcattn.transforms import build_transforms, subsample
from pcattn.transforms.corruptions import CORRUPTIONS, CorruptedClouds, parse_corruption
from pcattn.utils.checks import check_labels
from pcattn.utils.errors import DatasetError, InputError
from pcattn.utils.registry import construct, resolve


class PointCloudDataModule(LightningDataModule):
    """Dense batches of a torch-geometric data set: the only border between the two representations.

    The clouds stay in memory as one tensor, a batch is one indexed read, and subsampling and augmentation run on whole
    batches on the device they were moved to. A run is repeatable: order and augmentation of a batch are a function of
    `seed`, the epoch and the number of the batch.

    Where a data set has a validation split of its own, that is used; otherwise the validation clouds are carved out of
    the training split, stratified by class. The test split is read by `test` alone.

    Without a trainer, in a loop of one's own, the training loader subsamples and augments by itself, on the CPU, and
    goes on to the next epoch with every iteration:

    .. code-block:: python

        data.setup("fit")
        for epoch in range(10):
            for batch in data.train_dataloader():
                loss = cross_entropy(network(batch.pos, batch.channels), batch.label)

    What a data set class may tell in attributes, none of which it needs: `class_names`; `parts`, the part ids of each
    category; `feature_names`, the channels of `x`; `splits`, if one that takes `split` lacks some of train, val and
    test; `normalized`, how its clouds are normalized already (see `normalize`); `up_axis`; `shuffled`, that the points
    of each cloud lie in random order.

    Args:
        root: folder of the data set.
        dataset: name of the data set, a key of `DATASETS`, or the import path of a torch-geometric `InMemoryDataset`
            that is called with `(root, train)`.
        dataset_kwargs: further arguments of the data set.
        per_point: labels are the parts of the points; otherwise the classes of the clouds.
        target: `"normals"`: batches hold the normals of the data set as what a task has to estimate. They are no
            feature then. None: what is learned are the labels.
        num_points: points of a cloud given to the network: a new random choice for each training batch, always the
            same ones in evaluation (`sampling`); at most as many as the largest cloud of the training split has. Clouds
            with fewer are filled up with copies of their points. None takes all, where the clouds are of equal size.
        features: what to give to the network beside positions: `normals`, `color`, `height` (above the lowest point),
            or the name of any other channel of the data set; `estimated_normals` for one that has no normals.
        normalize: `"sphere"`, `"box"` or `"none"`, see `preprocess`. None is what the data set says: clouds that come
            normalized are left as they are, all others are put into the unit sphere.
        up_axis: `"x"`, `"y"` or `"z"`, along which height is measured; None is what the data set says, else z.
        sampling: which points evaluation takes: `"random"` (once for all), `"first"`, or `"fps"`, farthest points. None
            is first, as published figures have it, where clouds are of equal size and their points `shuffled`, and
            random otherwise: the first points of a scan are a corner of it.
        batch_size: clouds a batch.
        eval_batch_size: clouds a batch in validation and test; None is `batch_size`.
        val_fraction: share of the training split that validates.
        split_seed: seed of that split; apart from `seed`, so that runs with several seeds share their validation set.
        augmentation: list of `{name: arguments}`, see `pcattn.transforms`.
        seed: seed of order and augmentation; the command line links it to `seed_everything`.
        corruption: `name:severity`, one of those of `pcattn.transforms.corruptions` for the clouds of evaluation, like
            `gaussian:3`; training clouds stay clean.
        corruption_seed: seed of its randomness; apart from `seed`, so that all networks meet the same clouds.
        resident: keep the clouds on the device that trains, and select batches there (`ResidentLoader`). The same
            batches, sooner. `"auto"` does so on a CUDA device where they take at most a quarter of its free memory.
            Left out, aloud, where points are drawn on the host: in training on clouds that differ in size, and in
            evaluation under a corruption.
    """

    def __init__(
        self,
        root: str = "data/shapes",
        dataset: str = "shapes",
        dataset_kwargs: dict[str, Any] | None = None,
        per_point: bool = False,
        num_points: int | None = 1024,
        features: list[str] | None = None,
        normalize: str | None = None,
        up_axis: str | None = None,
        sampling: str | None = None,
        batch_size: int = 32,
        eval_batch_size: int | None = None,
        val_fraction: float = 0.1,
        split_seed: int = 0,
        augmentation: list[dict[str, Any]] | None = None,
        seed: int = 0,
        corruption: str | None = None,
        corruption_seed: int = 0,
        resident: bool | Literal["auto"] = "auto",
        target: Literal["normals"] | None = None,
    ) -> None:
        super().__init__()
        if target not in (None, "normals"):
            raise InputError(f"expected target to be normals or null, but got {target!r}")
        if target and (given := {"normals", "estimated_normals"} & set(features or [])):
            raise InputError(
                f"expected features without {' and '.join(given)}, which are the target, but got {features}"
            )
        if resident not in (True, False, "auto"):
            raise InputError(f"expected resident to be true, false or auto, but got {resident!r}")
        if corruption is not None:
            parse_corruption(corruption)
        if not 0 < val_fraction < 1:
            raise InputError(f"expected 0 < val_fraction < 1, but got {val_fraction}")
        sizes = {"batch_size": batch_size, "eval_batch_size": eval_batch_size, "num_points": num_points}
        for name, value in sizes.items():
            least = 2 if name == "batch_size" else 1  # batch normalization of one cloud's head has no variance
            if value is not None and value < least:
                raise InputError(f"expected {name} >= {least}, but got {value}")
        if sampling is not None and sampling not in SAMPLINGS:
            raise InputError(f"expected sampling to be one of {', '.join(SAMPLINGS)}, but got {sampling!r}")
        if reserved := {"root", "train", "split"} & set(dataset_kwargs or {}):
            raise InputError(
                f"expected dataset_kwargs without {' and '.join(sorted(reserved))}, but got {dataset_kwargs}"
            )
        self.save_hyperparameters()
        self.root = root
        self.dataset_name = dataset
        self.dataset_kwargs = dataset_kwargs or {}
        self.dataset_class = resolve("dataset", dataset, DATASETS)
        self.per_point = per_point
        self.target = target
        self.num_points = num_points
        self.sampling = sampling
        self.features = features or []
        # Clouds that come normalized are not touched; whoever uses the network has to do to a raw one what was done.
        done = getattr(self.dataset_class, "normalized", None)
        self.normalize = normalize or ("none" if done else "sphere")
        self.up_axis = str(up_axis or getattr(self.dataset_class, "up_axis", "z"))
        #: Arguments of `preprocess` that make of a raw cloud what the network is trained on; kept in checkpoints.
        self.preprocessing: dict[str, Any] = {
            "features": self.features,
            "normalize": normalize or done or "sphere",
            "up_axis": self.up_axis,
        }
        check(**self.preprocessing)
        self.save_hyperparameters({"preprocessing": self.preprocessing})
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size or batch_size
        self.val_fraction = val_fraction
        self.split_seed = split_seed
        self.transforms = build_transforms(augmentation)
        self.seed = seed
        self.corruption = corruption
        self.corruption_seed = corruption_seed
        self.resident = resident
        self._splits: dict[str, DenseClouds] = {}
        self._train_loader: EpochLoader | None = None
        self._resumed: dict[str, int] | None = None

    @property
    def class_names(self) -> list[str]:
        """Names of the classes, in the order of the labels."""
        # Where the names are known without the clouds, they are not read for them.
        if hasattr(self.dataset_class, "read_class_names"):
            return self.dataset_class.read_class_names(self.root)
        if (names := self._attribute("class_names")) is not None:
            return list(names)
        if self.parts is not None:
            return [str(category) for category in range(len(self.parts))]
        return [str(label) for label in range(self._read("train").dataset.num_classes)]

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    @property
    def parts(self) -> list[list[int]] | None:
        """Part ids of each category where labels are those of points, else None.

        A data set names them in its attribute `parts`; otherwise they are those that occur in the training split. Where
        clouds have no category, all are of one, whose parts are 0 to the largest label.
        """
        if not self.per_point:
            return None
        if (parts := self._attribute("parts")) is not None:
            return [list(ids) for ids in parts]
        clouds = self._read("train")
        if clouds.category is None:
            return [list(range(int(clouds.label.max()) + 1))]
        category = clouds.category.repeat_interleave(clouds.sizes)  # of every point
        return [clouds.label.flatten()[category == c].unique().tolist() for c in range(int(category.max()) + 1)]

    @property
    def part_names(self) -> list[str] | None:
        """Names of the parts by their ids, where labels are those of points and the data set names them."""
        names = self._attribute("part_names") if self.per_point else None
        return None if names is None else list(names)

    @property
    def num_features(self) -> int:
        """Channels of a point beside its position."""
        return count_channels(self.features)

    def setup(self, stage: str) -> None:
        """Read the split that the stage needs."""
        if stage in ("fit", "validate"):
            train = self._read("train")
            if self._takes_split and "val" in getattr(train.dataset, "splits", ("train", "val", "test")):
                self.train_indices = torch.arange(len(train))
                self.val_indices = torch.arange(len(self._read("val")))
            else:
                self._splits["val"] = train
                self._carve(train)
        if stage in ("test", "predict"):
            self._read("test")
        try:  # what the clouds do not allow shows now, and not in the middle of an epoch
            for clouds in set(self._splits.values()):
                self._check_labels(clouds)
            if stage == "fit":
                self._augment(self.example(), torch.Generator().manual_seed(0))
            if self.corruption is not None:
                self._corrupted("test" if stage in ("test", "predict") else "val")[0, torch.zeros(1, dtype=torch.long)]
        except ValueError as error:
            raise DatasetError(str(error)) from error

    def _check_labels(self, clouds: DenseClouds) -> None:
        """Refuse labels that the task has no output for. On a GPU they would not be looked at in training."""
        parts = self.parts
        if parts is not None and clouds.category is not None:
            check_labels(f"category in {self.dataset_name}", clouds.category, len(parts), torch.arange(len(clouds)))
        if parts is None:
            check_labels(f"label in {self.dataset_name}", clouds.label, self.num_classes, torch.arange(len(clouds)))
            return
        categories = [0] * len(clouds) if clouds.category is None else clouds.category.tolist()
        allowed = [torch.tensor(ids) for ids in parts]
        for cloud, labels in enumerate(clouds.label.view(-1).split(clouds.sizes.tolist())):
            category = categories[cloud]
            wrong = torch.isin(labels, allowed[category], invert=True)
            if bool(wrong.any()):
                point = int(wrong.nonzero()[0])
                raise DatasetError(
                    f"expected labels of points in {self.dataset_name} to be parts of category {category} "
                    f"({parts[category]}), but got {int(labels[point])} for point {point} of cloud {cloud}"
                )

    def _carve(self, clouds: DenseClouds) -> None:
        """Choose the validation clouds among those of the training split."""
        strata = clouds.label if clouds.category is None else clouds.category
        if clouds.per_point and clouds.category is None:  # one stratum
            strata = torch.zeros(len(clouds))
        self.train_indices, self.val_indices = stratified_split(strata, self.val_fraction, self.split_seed)
        if not len(self.val_indices):
            raise DatasetError(f"expected a class with at least two clouds in {self.dataset_name}, one to validate")

    def example(self) -> PointBatch:
        """Two clouds of the training split, as evaluation sees them."""
        return self._evaluated("train")[0, self.train_indices[:2]]

    def complete_cloud(self, split: str, index: int) -> PointBatch:
        """All points of a cloud of `train`, `val` or `test`, as a batch of one; see `PointBatch.indices`.

        Raises:
            DatasetError: evaluation is under a corruption, which the complete clouds know nothing of.
        """
        if self.corruption is not None:
            raise DatasetError(
                "expected no corruption with votes or all_points, which look at complete clouds, but got "
                f"{self.corruption}"
            )
        return self._splits[split].cloud(index)

    def train_dataloader(self) -> DataLoader:
        """Shuffled batches of the training part."""
        before, self._train_loader = self._train_loader, self._loader("train", self.train_indices, shuffle=True)
        if self._resumed is not None:
            self._train_loader.load_state_dict(self._resumed)
        if self.trainer is None:
            self._train_loader.sampler.advance(None if before is None else before.sampler)
        return self._train_loader

    def state_dict(self) -> dict[str, int]:
        """For checkpoints: which training batch comes next."""
        return {} if self._train_loader is None else self._train_loader.state_dict()

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Go on with that batch.

        Lightning would tell the loader, but has made it by then (for `estimated_stepping_batches`) and does not.
        """
        self._resumed = state_dict

    def val_dataloader(self) -> DataLoader:
        """Batches of the validation part, in order."""
        return self._loader("val", self.val_indices)

    def test_dataloader(self) -> DataLoader:
        """Batches of the test split, in order."""
        return self._loader("test", torch.arange(len(self._splits["test"])))

    def predict_dataloader(self) -> DataLoader:
        """Batches of the test split, in order.

        By the ordinary loader: Lightning makes another one of its class, whose sampler counts what is predicted.
        """
        loader = self.test_dataloader()
        return DataLoader(loader.dataset, sampler=loader.sampler, batch_size=None)

    def on_after_batch_transfer(self, batch: PointBatch, dataloader_idx: int) -> PointBatch:
        """Subsample and augment in training, on the device of the batch."""
        return self._prepare(batch) if self.trainer is not None and self.trainer.training else batch

    def _prepare(self, batch: PointBatch) -> PointBatch:
        """A training batch, subsampled and augmented."""
        generator = torch.Generator(batch.pos.device).manual_seed(batch.seed)
        return self._augment(subsample(batch, self.num_points or batch.pos.shape[1], generator), generator)

    def _augment(self, batch: PointBatch, generator: torch.Generator) -> PointBatch:
        for transform in self.transforms:
            batch = transform(batch, generator)
        return batch

    @property
    def _takes_split(self) -> bool:
        return "split" in inspect.signature(self.dataset_class).parameters

    def _attribute(self, name: str) -> Any:
        """What the data set says of itself: its class, if that knows, or else the training split."""
        value = getattr(self.dataset_class, name, None)
        if value is None or isinstance(value, property):
            value = getattr(self._read("train").dataset, name, None)
        return value

    def _read(self, split: str) -> DenseClouds:
        """A split, read when it is first asked for."""
        if split not in self._splits:
            which: dict[str, Any] = {"split": split} if self._takes_split else {"train": split == "train"}
            try:
                dataset = construct(
                    "dataset", self.dataset_name, self.dataset_class, self.root, **which, **self.dataset_kwargs
                )
            except DatasetError:
                raise
            except ValueError as error:
                raise DatasetError(str(error)) from error
            features = [*self.features, self.target] if self.target else self.features
            clouds = DenseClouds(dataset, self.per_point, features, self.normalize, self.up_axis, self.dataset_name)
            self._check_num_points(split, clouds)
            self._splits[split] = clouds
        return self._splits[split]

    def _check_num_points(self, split: str, clouds: DenseClouds) -> None:
        available = int(clouds.sizes.max())
        if self.num_points is None and not clouds.equal:
            raise DatasetError(
                f"expected num_points, because the clouds of {self.dataset_name} differ in size "
                f"({int(clouds.sizes.min())} to {available} points), but got None"
            )
        if self.num_points is not None and self.num_points > available and split == "train":
            raise DatasetError(
                f"expected num_points to be at most {available}, the points of the largest cloud of "
                f"{self.dataset_name}, but got {self.num_points}"
            )

    def _evaluated(self, split: str, spare: int = 1) -> DenseClouds:
        """A split as evaluation sees it: of each cloud always the same points, up to `spare` times as many as asked."""
        clouds = self._splits[split]
        shuffled = getattr(self.dataset_class, "shuffled", False)
        sampling = self.sampling or ("first" if shuffled and clouds.equal else "random")
        number = ("train", "val", "test").index(split)
        num_points = self.num_points or int(clouds.sizes[0])
        num_points = max(num_points, min(spare * num_points, int(clouds.sizes.min())))
        return clouds.sampled(num_points, sampling, seed=number)

    def _corrupted(self, split: str) -> CorruptedClouds:
        """A split as evaluation under `corruption` sees it."""
        spare = CORRUPTIONS[parse_corruption(str(self.corruption))[0]].spare
        num_points = self.num_points or int(self._splits[split].sizes[0])
        return CorruptedClouds(
            self._evaluated(split, spare), str(self.corruption), num_points, self.corruption_seed, self.up_axis
        )

    def _loader(self, split: str, indices: Tensor, shuffle: bool = False) -> EpochLoader:
        rank, world_size = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        batch_size = self.batch_size if shuffle else self.eval_batch_size
        sampler = EpochSampler(indices, batch_size, self.seed, shuffle, rank, world_size)
        if sampler.num_batches < world_size:  # those with one would wait for the others
            raise DatasetError(
                f"expected a {split} batch for each of {world_size} processes, but {len(indices)} clouds of "
                f"{self.dataset_name} make {sampler.num_batches} of {sampler.batch_size}"
            )
        clouds: DenseClouds | CorruptedClouds = self._splits[split]
        if not shuffle:
            clouds = self._evaluated(split) if self.corruption is None else self._corrupted(split)
        elif self.num_points and not self._splits[split].equal:  # those of equal size are subsampled on the device
            clouds = self._splits[split].sampled(self.num_points)
        device = self.trainer.strategy.root_device if self.trainer else torch.device("cpu")
        finish = self._prepare if shuffle and self.trainer is None else None  # else `on_after_batch_transfer` does
        if self.resident is True or (self.resident and device.type == "cuda"):
            reason = self._why_not_resident(clouds, sampler, device)
            if reason is None:
                return ResidentLoader(cast("DenseClouds", clouds), sampler, device, finish)
            say = rank_zero_warn if self.resident is True else rank_zero_info
            say(f"{split} clouds are read on the host for every batch: {reason}")
        return EpochLoader(clouds, sampler, finish)

    def _why_not_resident(self, clouds: Dataset, sampler: EpochSampler, device: torch.device) -> str | None:
        """Why clouds cannot lie on a device, or with `"auto"` should not, in words; None if they can."""
        if not isinstance(clouds, DenseClouds):
            return "they come corrupted"
        if clouds.draws_anew:
            return "they differ in size, and points are drawn for each batch"
        if self.resident == "auto" and not fits(clouds, sampler, device):
            return f"they take more than {MEMORY_SHARE:.0%} of the free memory of {device}"
        return None
