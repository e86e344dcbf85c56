"""The data module: from a data set's name in a configuration to dense, augmented batches."""

from __future__ import annotations

from typing import Any

import torch
from pytorch_lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader
from torch_geometric.data import InMemoryDataset

from pcattn.registry import construct, resolve
from pcattn.transforms import build_transforms, subsample

from .dense import DenseClouds, EpochSampler, PointBatch, stratified_split
from .errors import DatasetError
from .modelnet import ModelNet40
from .shapes import Shapes

#: Every data set by its name, called with `(root, train=True | False, **dataset_kwargs)`.
DATASETS: dict[str, type[InMemoryDataset]] = {
    "modelnet40": ModelNet40,
    "shapes": Shapes,
}


class PointCloudDataModule(LightningDataModule):
    """Dense batches of a torch-geometric data set: the only border between the two representations.

    The clouds stay in memory as one tensor, a batch is one indexed read, and subsampling and augmentation run on whole
    batches on the device they were moved to. A run is repeatable: order and augmentation of a batch are a function of
    `seed`, the epoch and the number of the batch.

    Validation clouds are carved out of the training split, stratified by class. The test split is read by `test` alone.

    Args:
        root: folder of the data set.
        dataset: name of the data set, a key of `DATASETS`, or the import path of a torch-geometric `InMemoryDataset`
            that is called with `(root, train)`.
        dataset_kwargs: further arguments of the data set.
        per_point: labels are the parts of the points; otherwise the classes of the clouds.
        num_points: points of a cloud given to the network: a new random choice for each training batch, the first
            ones in evaluation. None takes all.
        normals: give the normals to the network as features.
        batch_size: clouds a batch.
        eval_batch_size: clouds a batch in validation and test; None is `batch_size`.
        val_fraction: share of the training split that validates.
        split_seed: seed of that split; apart from `seed`, so that runs with several seeds share their validation set.
        augmentation: list of `{name: arguments}`, see `pcattn.transforms`.
        seed: seed of order and augmentation; the command line links it to `seed_everything`.
    """

    def __init__(
        self,
        root: str = "data/shapes",
        dataset: str = "shapes",
        dataset_kwargs: dict[str, Any] | None = None,
        per_point: bool = False,
        num_points: int | None = 1024,
        normals: bool = False,
        batch_size: int = 32,
        eval_batch_size: int | None = None,
        val_fraction: float = 0.1,
        split_seed: int = 0,
        augmentation: list[dict[str, Any]] | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if not 0 < val_fraction < 1:
            raise ValueError(f"expected 0 < val_fraction < 1, but got {val_fraction}")
        sizes = {"batch_size": batch_size, "eval_batch_size": eval_batch_size, "num_points": num_points}
        for name, value in sizes.items():
            least = 2 if name == "batch_size" else 1  # batch normalisation of one cloud's head has no variance
            if value is not None and value < least:
                raise ValueError(f"expected {name} >= {least}, but got {value}")
        if reserved := {"root", "train"} & set(dataset_kwargs or {}):
            raise ValueError(
                f"expected dataset_kwargs without {' and '.join(sorted(reserved))}, but got {dataset_kwargs}"
            )
        self.save_hyperparameters()
        self.root = root
        self.dataset_name = dataset
        self.dataset_kwargs = dataset_kwargs or {}
        self.dataset_class = resolve("dataset", dataset, DATASETS)
        self.per_point = per_point
        self.num_points = num_points
        self.normals = normals
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size or batch_size
        self.val_fraction = val_fraction
        self.split_seed = split_seed
        self.transforms = build_transforms(augmentation)
        self.seed = seed
        self._splits: dict[str, DenseClouds] = {}

    @property
    def class_names(self) -> list[str]:
        """Names of the classes, in the order of the labels."""
        # Where the names are known without the clouds, they are not read for them.
        if hasattr(self.dataset_class, "read_class_names"):
            return self.dataset_class.read_class_names(self.root)
        if hasattr(self.dataset_class, "class_names"):
            return list(self.dataset_class.class_names)
        if self.parts is not None:
            return [str(category) for category in range(len(self.parts))]
        return [str(label) for label in range(self._dataset(train=True).num_classes)]

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
        if hasattr(self.dataset_class, "parts"):
            return [list(ids) for ids in self.dataset_class.parts]
        clouds = self._train_split()
        if clouds.category is None:
            return [list(range(int(clouds.label.max()) + 1))]
        categories = range(int(clouds.category.max()) + 1)
        return [clouds.label[clouds.category == category].unique().tolist() for category in categories]

    @property
    def part_names(self) -> list[str] | None:
        """Names of the parts by their ids, where labels are those of points and the data set names them."""
        names = getattr(self.dataset_class, "part_names", None) if self.per_point else None
        return None if names is None else list(names)

    @property
    def num_features(self) -> int:
        """Channels of a point beside its position."""
        return 3 if self.normals else 0

    def setup(self, stage: str) -> None:
        """Read the split that the stage needs."""
        if stage in ("fit", "validate"):
            clouds = self._train_split()
            strata = clouds.category if clouds.category is not None else clouds.label
            if strata.dim() == 2:  # parts of points without a category: one stratum
                strata = torch.zeros(len(clouds))
            self.train_indices, self.val_indices = stratified_split(strata, self.val_fraction, self.split_seed)
            if not len(self.val_indices):
                raise DatasetError(f"expected a class with at least two clouds in {self.dataset_name}, one to validate")
            try:  # what the clouds do not allow shows now, and not in the middle of the first epoch
                self._augment(self.example(), torch.Generator().manual_seed(0))
            except ValueError as error:
                raise DatasetError(str(error)) from error
        if stage in ("test", "predict") and "test" not in self._splits:
            self._splits["test"] = self._read(train=False)

    def example(self) -> PointBatch:
        """Two clouds of the training split, as evaluation sees them."""
        clouds = self._splits["train"]
        return subsample(clouds[0, self.train_indices[:2]], self.num_points or clouds.pos.shape[1])

    def train_dataloader(self) -> DataLoader:
        """Shuffled batches of the training part."""
        return self._loader("train", self.train_indices, shuffle=True)

    def val_dataloader(self) -> DataLoader:
        """Batches of the validation part, in order."""
        return self._loader("train", self.val_indices)

    def test_dataloader(self) -> DataLoader:
        """Batches of the test split, in order."""
        return self._loader("test", torch.arange(len(self._splits["test"])))

    def predict_dataloader(self) -> DataLoader:
        """Batches of the test split, in order."""
        return self.test_dataloader()

    def on_after_batch_transfer(self, batch: PointBatch, dataloader_idx: int) -> PointBatch:
        """Subsample, and augment in training, on the device of the batch."""
        num_points = self.num_points or batch.pos.shape[1]
        if self.trainer is None or not self.trainer.training:
            return subsample(batch, num_points)
        generator = torch.Generator(batch.pos.device).manual_seed(batch.seed)
        return self._augment(subsample(batch, num_points, generator), generator)

    def _augment(self, batch: PointBatch, generator: torch.Generator) -> PointBatch:
        for transform in self.transforms:
            batch = transform(batch, generator)
        return batch

    def _dataset(self, train: bool) -> InMemoryDataset:
        try:
            return construct(
                "dataset", self.dataset_name, self.dataset_class, self.root, train=train, **self.dataset_kwargs
            )
        except DatasetError:
            raise
        except ValueError as error:
            raise DatasetError(str(error)) from error

    def _train_split(self) -> DenseClouds:
        if "train" not in self._splits:
            self._splits["train"] = self._read(train=True)
        return self._splits["train"]

    def _read(self, train: bool) -> DenseClouds:
        clouds = DenseClouds(self._dataset(train), self.per_point, self.normals, self.dataset_name)
        available = clouds.pos.shape[1]
        if self.num_points is not None and self.num_points > available:
            raise DatasetError(
                f"expected num_points to be at most {available}, the points of a cloud of {self.dataset_name}, "
                f"but got {self.num_points}"
            )
        return clouds

    def _loader(self, split: str, indices: Tensor, shuffle: bool = False) -> DataLoader:
        rank, world_size = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        batch_size = self.batch_size if shuffle else self.eval_batch_size
        sampler = EpochSampler(indices, batch_size, self.seed, shuffle, rank, world_size)
        # batch_size None: the sampler yields whole batches. Indexing memory needs no worker processes.
        return DataLoader(self._splits[split], sampler=sampler, batch_size=None)
