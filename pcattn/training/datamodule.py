"""The data module: from a data set's name in a configuration to dense, augmented batches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, cast

import torch
from pytorch_lightning import LightningDataModule
from pytorch_lightning.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor
from torch.utils.data import DataLoader

from pcattn.data.batch import PointBatch
from pcattn.data.dense import SAMPLINGS, DenseClouds
from pcattn.data.labels import check_clouds
from pcattn.data.loader import EpochLoader, EpochSampler
from pcattn.data.preprocessing import check, count_channels
from pcattn.data.resident import ResidentLoader, why_not_resident
from pcattn.data.splits import SPLITS, stratified_split
from pcattn.datasets import find_dataset, open_dataset
from pcattn.transforms import build_transforms, subsample
from pcattn.transforms.corruptions import CORRUPTIONS, CorruptedClouds, parse_corruption
from pcattn.utils.errors import DatasetError, InputError


class PointCloudDataModule(LightningDataModule):
    """Dense batches of a torch-geometric data set: the only border between the two representations.

    The clouds stay in memory as one tensor, a batch is one indexed read, and subsampling and augmentation run on whole
    batches on the device of the network. A run is repeatable: order and augmentation of a batch are a function of
    `seed`, the epoch and the number of the batch.

    If a data set has a validation split, it is used. Otherwise the validation clouds are held out from the training
    split, stratified by class. Only `test` and `predict` read the test split.

    Without a trainer, in a loop of your own, the training loader subsamples and augments on the CPU, and each iteration
    over it is the next epoch:

    .. code-block:: python

        data.setup("fit")
        for epoch in range(10):
            for batch in data.train_dataloader():
                loss = cross_entropy(network(batch.pos, batch.channels), batch.label)

    Args:
        root: folder of the data set.
        dataset: name of the data set, a key of `DATASETS`, or the import path of a `PointCloudDataset` or any other
            `InMemoryDataset` of torch-geometric, see `find_dataset`.
        dataset_kwargs: further arguments of the data set. `transform` and `pre_transform` may name transforms of
            torch-geometric, see `build_pyg_transforms`; a checkpoint keeps only those given by name.
        per_point: labels are the parts of the points; otherwise the classes of the clouds.
        target: `"normals"`: batches hold the normals of the data set as the target of a task. They are no feature then.
            None: the targets are the labels.
        num_points: points of each cloud for the network: random ones for each training batch, always the same ones in
            evaluation (`sampling`). At most as many as the largest cloud of the training split has. Smaller clouds are
            filled up with copies of their points. None uses all points, if clouds are of equal size.
        features: input channels besides positions: `normals`, `color`, `height` (above the lowest point), or the name
            of any other channel of the data set; `estimated_normals` for data without normals.
        normalize: `"sphere"`, `"box"` or `"none"`, see `preprocess`. None follows the data set: clouds that come
            normalized stay as they are, all others are put into the unit sphere.
        up_axis: `"x"`, `"y"` or `"z"`, along which height is measured. None is that of the data set.
        sampling: which points evaluation uses: `"random"` (the same in every epoch), `"first"`, or `"fps"`, farthest
            points. None is `"first"`, as in published results, if clouds are of equal size and their points `shuffled`,
            and `"random"` otherwise, because the first points of a scan cover only a corner of it.
        batch_size: clouds per batch.
        eval_batch_size: clouds per batch in validation and test; None is `batch_size`.
        val_fraction: share of the training split that is held out for validation.
        split_seed: seed of that choice. It is separate from `seed` so that runs with several seeds share their
            validation clouds.
        augmentation: list of `{name: arguments}`, see `pcattn.transforms`.
        seed: seed of order and augmentation; the command line links it to `seed_everything`.
        corruption: `name:severity` of `pcattn.transforms.corruptions` for the clouds of evaluation, such as
            `gaussian:3`. Training clouds stay clean.
        corruption_seed: seed of the corruption. It is separate from `seed` so that all networks see the same clouds.
        resident: store the clouds on the device of the network, and select batches there (`ResidentLoader`). The
            batches are the same. `"auto"` does so on a CUDA device if they take at most a quarter of its free memory.
            Where points are drawn on the host, clouds are read there, with a message: in training on clouds that differ
            in size or have a transform, and in evaluation under a corruption.
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
        _check_choices(
            resident=(resident, (True, False, "auto")),
            sampling=(sampling, (None, *SAMPLINGS)),
            target=(target, (None, "normals")),
        )
        if target and (given := {"normals", "estimated_normals"} & set(features or [])):
            raise InputError(
                f"expected features without {' and '.join(given)}, which are the target, but got {features}"
            )
        # Batch normalization of a single cloud has no variance.
        _check_sizes(batch_size=(batch_size, 2), eval_batch_size=(eval_batch_size, 1), num_points=(num_points, 1))
        if not 0 < val_fraction < 1:
            raise InputError(f"expected 0 < val_fraction < 1, but got {val_fraction}")
        if corruption is not None:
            parse_corruption(corruption)
        if reserved := {"root", "train", "split"} & set(dataset_kwargs or {}):
            raise InputError(
                f"expected dataset_kwargs without {' and '.join(sorted(reserved))}, but got {dataset_kwargs}"
            )
        self.save_hyperparameters()
        self.root, self.dataset_name, self.dataset_kwargs = root, dataset, dataset_kwargs or {}
        # Checkpoints hold plain data alone. A name that cannot be resolved is better than another data set.
        self.hparams["dataset_kwargs"] = dataset_kwargs and {
            key: repr(value) if callable(value) else value for key, value in dataset_kwargs.items()
        }
        self.dataset_class = find_dataset(dataset)
        self.per_point, self.target, self.num_points, self.sampling = per_point, target, num_points, sampling
        self.features = features or []
        # Clouds that come normalized stay as they are. A raw cloud that the network is used on needs the same.
        done = self.dataset_class.normalized
        self.normalize = normalize or ("none" if done else "sphere")
        self.up_axis = up_axis or self.dataset_class.up_axis
        #: Arguments of `preprocess` that make of a raw cloud what the network is trained on; kept in checkpoints.
        self.preprocessing: dict[str, Any] = {
            "features": self.features,
            "normalize": normalize or done or "sphere",
            "up_axis": self.up_axis,
        }
        check(**self.preprocessing)
        self.save_hyperparameters({"preprocessing": self.preprocessing})
        self.batch_size, self.eval_batch_size = batch_size, eval_batch_size or batch_size
        self.val_fraction, self.split_seed = val_fraction, split_seed
        self.transforms = build_transforms(augmentation)
        self.seed = seed
        self.corruption, self.corruption_seed = corruption, corruption_seed
        self.resident = resident
        self._splits: dict[str, DenseClouds] = {}
        self._train_loader: EpochLoader | None = None
        self._resumed: dict[str, int] | None = None

    @property
    def class_names(self) -> list[str]:
        """Names of the classes by their labels."""
        names = self.dataset_class.read_class_names(self.root) or self._read("train").dataset.class_names
        if names:
            return list(names)
        known = self.parts or range(self._read("train").dataset.num_classes)
        return [str(label) for label in range(len(known))]

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    @property
    def parts(self) -> list[list[int]] | None:
        """Part ids of each category if points are labeled, else None.

        If the data set does not declare them, they are the labels in the training split. Without categories, there is
        one category with parts from 0 to the largest label.
        """
        if not self.per_point:
            return None
        if parts := self.dataset_class.parts or self._read("train").dataset.parts:
            return [list(ids) for ids in parts]
        clouds = self._read("train")
        if clouds.category is None:
            return [list(range(int(clouds.label.max()) + 1))]
        category = clouds.category.repeat_interleave(clouds.sizes)  # of every point
        return [clouds.label.flatten()[category == c].unique().tolist() for c in range(int(category.max()) + 1)]

    @property
    def part_names(self) -> list[str] | None:
        """Names of the parts by their ids, if points are labeled and the data set names their parts."""
        if not self.per_point:
            return None
        names = self.dataset_class.part_names or self._read("train").dataset.part_names
        return list(names) if names else None

    @property
    def num_features(self) -> int:
        """Number of input channels besides positions."""
        return count_channels(self.features)

    def setup(self, stage: str) -> None:
        """Read the splits that the stage needs."""
        if stage in ("fit", "validate"):
            train = self._read("train")
            if "val" in train.dataset.splits:
                self.train_indices = torch.arange(len(train))
                self.val_indices = torch.arange(len(self._read("val")))
            else:
                self._splits["val"] = train
                self._hold_out(train)
        if stage in ("test", "predict"):
            self._read("test")
        try:  # find what the clouds do not allow now, rather than in the middle of an epoch
            for clouds in set(self._splits.values()):
                check_clouds(clouds, self.num_classes, self.parts)
            if stage == "fit":
                self._augment(self.example(), torch.Generator().manual_seed(0))
            if self.corruption is not None:
                self._corrupted("test" if stage in ("test", "predict") else "val")[0, torch.zeros(1, dtype=torch.long)]
        except ValueError as error:
            raise DatasetError(str(error)) from error

    def _hold_out(self, clouds: DenseClouds) -> None:
        """Choose validation clouds from the training split."""
        strata = clouds.label if clouds.category is None else clouds.category
        if clouds.per_point and clouds.category is None:  # one stratum
            strata = torch.zeros(len(clouds))
        self.train_indices, self.val_indices = stratified_split(strata, self.val_fraction, self.split_seed)
        if not len(self.val_indices):
            raise DatasetError(f"expected a class with at least two clouds in {self.dataset_name}, one to validate")

    def example(self) -> PointBatch:
        """Two clouds of the training split, as in evaluation."""
        return self._evaluated("train")[0, self.train_indices[:2]]

    def cloud_names(self, split: str) -> list[str] | None:
        """Names of the clouds of `train`, `val` or `test` by their indices, such as paths; None if they have none."""
        names = self._splits[split].dataset.names
        return None if names is None else list(names)

    def complete_cloud(self, split: str, index: int) -> PointBatch:
        """All points of a cloud of `train`, `val` or `test`, as a batch of one; see `PointBatch.indices`.

        Raises:
            DatasetError: evaluation is under a corruption, which does not apply to complete clouds.
        """
        if self.corruption is not None:
            raise DatasetError(
                f"expected no corruption with votes or all_points, which use complete clouds, but got {self.corruption}"
            )
        return self._splits[split].cloud(index)

    def train_dataloader(self) -> DataLoader[PointBatch]:
        """Shuffled batches of the training part."""
        before, self._train_loader = self._train_loader, self._loader("train", self.train_indices, shuffle=True)
        if self._resumed is not None:
            self._train_loader.load_state_dict(self._resumed)
        if self.trainer is None:
            self._train_loader.sampler.advance(None if before is None else before.sampler)
        return self._train_loader

    def state_dict(self) -> dict[str, int]:
        """The training batch that comes next, for checkpoints."""
        return {} if self._train_loader is None else self._train_loader.state_dict()

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Continue with the batch of `state_dict`.

        Lightning does not pass the state to the loader, because it has created it by then (for
        `estimated_stepping_batches`).
        """
        self._resumed = state_dict

    def val_dataloader(self) -> DataLoader[PointBatch]:
        """Batches of the validation part, in order."""
        return self._loader("val", self.val_indices)

    def test_dataloader(self) -> DataLoader[PointBatch]:
        """Batches of the test split, in order."""
        return self._loader("test", torch.arange(len(self._splits["test"])))

    def predict_dataloader(self) -> DataLoader[PointBatch]:
        """Batches of the test split, in order.

        An ordinary loader, because Lightning replaces it by one with a sampler that counts what is predicted.
        """
        loader = self.test_dataloader()
        return DataLoader(loader.dataset, sampler=loader.sampler, batch_size=None)

    def on_after_batch_transfer(self, batch: PointBatch, dataloader_idx: int) -> PointBatch:
        """Subsample and augment in training, on the device of the batch."""
        training = self.trainer is not None and self.trainer.training
        return (
            self._prepare(batch) if training and isinstance(batch, PointBatch) else batch
        )  # or a model summary's input

    def _prepare(self, batch: PointBatch) -> PointBatch:
        """A training batch, subsampled and augmented."""
        generator = torch.Generator(batch.pos.device).manual_seed(batch.seed)
        return self._augment(subsample(batch, self.num_points or batch.pos.shape[1], generator), generator)

    def _augment(self, batch: PointBatch, generator: torch.Generator) -> PointBatch:
        for transform in self.transforms:
            batch = transform(batch, generator)
        return batch

    def _read(self, split: str) -> DenseClouds:
        """A split, read on first use."""
        if split not in self._splits:
            dataset = open_dataset(self.dataset_name, self.root, split, **self.dataset_kwargs)
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
        if clouds.transformed:  # which may change the number of points
            return
        if self.num_points is not None and self.num_points > available and split == "train":
            raise DatasetError(
                f"expected num_points to be at most {available}, the points of the largest cloud of "
                f"{self.dataset_name}, but got {self.num_points}"
            )

    def _evaluated(self, split: str, spare: int = 1) -> DenseClouds:
        """A split for evaluation: always the same points of each cloud, up to `spare` times `num_points`."""
        clouds = self._splits[split]
        sampling = self.sampling or ("first" if clouds.dataset.shuffled and clouds.equal else "random")
        num_points = self.num_points or int(clouds.sizes[0])
        num_points = max(num_points, min(spare * num_points, int(clouds.sizes.min())))
        return clouds.sampled(num_points, sampling, seed=SPLITS.index(split))

    def _corrupted(self, split: str) -> CorruptedClouds:
        """A split for evaluation under `corruption`."""
        spare = CORRUPTIONS[parse_corruption(str(self.corruption))[0]].spare
        num_points = self.num_points or int(self._splits[split].sizes[0])
        return CorruptedClouds(
            self._evaluated(split, spare), str(self.corruption), num_points, self.corruption_seed, self.up_axis
        )

    def _training_clouds(self) -> DenseClouds:
        """The training split. Points of clouds of equal size are drawn later, on the device of the batch."""
        clouds = self._splits["train"]
        if self.num_points is None or (clouds.equal and not clouds.transformed):
            return clouds
        return clouds.sampled(self.num_points)

    def _evaluation_clouds(self, split: str) -> DenseClouds | CorruptedClouds:
        return self._evaluated(split) if self.corruption is None else self._corrupted(split)

    def _loader(self, split: str, indices: Tensor, shuffle: bool = False) -> EpochLoader:
        rank, world_size = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        batch_size = self.batch_size if shuffle else self.eval_batch_size
        sampler = EpochSampler(indices, batch_size, self.seed, shuffle, rank, world_size)
        if sampler.num_batches < world_size:  # processes that have one would wait for the others
            raise DatasetError(
                f"expected a {split} batch for each of {world_size} processes, but {len(indices)} clouds of "
                f"{self.dataset_name} make {sampler.num_batches} of {sampler.batch_size}"
            )
        clouds = self._training_clouds() if shuffle else self._evaluation_clouds(split)
        device = self.trainer.strategy.root_device if self.trainer else torch.device("cpu")
        finish = self._prepare if shuffle and self.trainer is None else None  # else `on_after_batch_transfer` does
        if self.resident is True or (self.resident and device.type == "cuda"):
            reason = why_not_resident(clouds, sampler, device, self.resident)
            if reason is None:
                return ResidentLoader(cast("DenseClouds", clouds), sampler, device, finish)
            say = rank_zero_warn if self.resident is True else rank_zero_info
            say(f"{split} clouds are read on the host for every batch: {reason}")
        return EpochLoader(clouds, sampler, finish)


def _check_choices(**arguments: tuple[Any, Sequence[Any]]) -> None:
    for name, (value, choices) in arguments.items():
        if value not in choices:
            known = ", ".join(str(choice).lower() for choice in choices if choice is not None)
            raise InputError(f"expected {name} to be one of {known}, but got {value!r}")


def _check_sizes(**arguments: tuple[int | None, int]) -> None:
    for name, (value, least) in arguments.items():
        if value is not None and value < least:
            raise InputError(f"expected {name} >= {least}, but got {value}")
