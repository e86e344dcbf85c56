"""The data module in a real training loop: what reaches the network, and when it differs."""

from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from pytorch_lightning import LightningModule, Trainer

from pcattn.data import PointBatch, preprocess
from pcattn.training import PointCloudDataModule
from pcattn.utils.errors import DatasetError, DatasetNotFoundError
from tests.data.test_dense import Clouds
from tests.datasets.modelnet_files import NAMES, write_modelnet40


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_modelnet40(tmp_path_factory.mktemp("data") / "modelnet40")


class Recorder(LightningModule):
    """Keeps the batches it is given, and learns nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.batches: dict[str, list[PointBatch]] = {"train": [], "val": [], "test": []}

    def training_step(self, batch: PointBatch, batch_idx: int) -> torch.Tensor:
        self.batches["train"].append(batch)
        return self.weight.sum()

    def validation_step(self, batch: PointBatch, batch_idx: int) -> None:
        self.batches["val"].append(batch)

    def test_step(self, batch: PointBatch, batch_idx: int) -> None:
        self.batches["test"].append(batch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def run(root: Path, epochs: int = 2, test: bool = False, **kwargs) -> dict[str, list[PointBatch]]:
    options = {"num_points": 16, "batch_size": 24, "val_fraction": 0.25, **kwargs}
    data = PointCloudDataModule(str(root), "modelnet40", **options)
    recorder = Recorder()
    trainer = Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
    )
    trainer.fit(recorder, data)
    if test:
        trainer.test(recorder, data, verbose=False)
    return recorder.batches


def pos_of(batches: list[PointBatch]) -> torch.Tensor:
    return torch.cat([batch.pos for batch in batches])


SHIFT = [{"translate": {"max_offset": 5.0}}]


class TestBatches:
    def test_repeat_with_the_same_seed_only(self, root: Path) -> None:
        first, again, other = (pos_of(run(root, augmentation=SHIFT, seed=seed)["train"]) for seed in (3, 3, 4))
        assert torch.equal(first, again)
        assert not torch.equal(first, other)

    def test_every_epoch_has_its_own_order_and_randomness(self, root: Path) -> None:
        batches = run(root, epochs=3)["train"]
        assert len(batches) == 15
        assert len({batch.seed for batch in batches}) == 15
        epochs = [torch.cat([batch.indices for batch in batches[i : i + 5]]) for i in (0, 5, 10)]
        assert not torch.equal(epochs[0], epochs[1])
        assert all(epoch.unique().numel() == 120 for epoch in epochs)

    def test_training_and_validation_are_disjoint_and_stratified(self, root: Path) -> None:
        batches = run(root, epochs=1)
        train, val = (torch.cat([batch.indices for batch in batches[split]]) for split in ("train", "val"))
        assert not set(train.tolist()) & set(val.tolist())
        assert torch.cat([batch.label for batch in batches["val"]]).bincount().tolist() == [1] * 40

    def test_validation_set_does_not_depend_on_the_seed(self, root: Path) -> None:
        indices = [torch.cat([b.indices for b in run(root, epochs=1, seed=seed)["val"]]) for seed in (0, 1)]
        assert torch.equal(*indices)

    def test_only_training_is_augmented(self, root: Path) -> None:
        batches = run(root, test=True, augmentation=SHIFT)
        assert pos_of(batches["train"]).abs().max() > 2
        assert pos_of(batches["val"]).abs().max() <= 1.01
        assert pos_of(batches["test"]).abs().max() <= 1.01

    def test_points_are_chosen_anew_in_training_and_fixed_in_evaluation(self, root: Path) -> None:
        batches = run(root, epochs=2, test=True)
        stored = PointCloudDataModule(str(root), "modelnet40", num_points=16)._read("test").pos
        assert torch.equal(pos_of(batches["test"]), stored[:, :16])
        seen: dict[int, torch.Tensor] = {}
        for batch in batches["train"]:
            for index, cloud in zip(batch.indices.tolist(), batch.pos, strict=True):
                assert index not in seen or not torch.equal(seen[index], cloud)
                seen[index] = cloud

    def test_the_stored_clouds_stay_as_they_are(self, root: Path) -> None:
        data = PointCloudDataModule(
            str(root), "modelnet40", num_points=None, batch_size=8, augmentation=[{"dropout": None}, *SHIFT]
        )
        data.setup("fit")
        before = data._splits["train"].pos.clone()
        trainer = Trainer(max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False)
        trainer.fit(Recorder(), data)
        assert torch.equal(data._splits["train"].pos, before)


def test_scans_are_evaluated_as_a_whole(tmp_path: Path) -> None:
    """Where files hold their points in the order of the scan, also if all have as many, the first are but a corner."""
    scan = np.stack((np.arange(400.0), np.zeros(400), np.ones(400)), axis=1)
    for index in range(10):
        (folder := tmp_path / "ab"[index % 2]).mkdir(exist_ok=True)
        np.save(folder / f"{index}.npy", scan)
    data = PointCloudDataModule(str(tmp_path), "folder", num_points=64, val_fraction=0.25)
    data.setup("fit")
    (batch,) = data.val_dataloader()
    assert ((batch.point_indices // 100).sort().values.diff() > 0).sum(dim=1).tolist() == [3] * len(batch.label)


def loaded(**kwargs) -> PointCloudDataModule:
    options = {"num_points": 12, "batch_size": 4, "val_fraction": 0.5, **kwargs}
    data = PointCloudDataModule("x", f"{__name__}.{options.pop('dataset')}", **options)
    data.setup("fit")
    return data


class ManySizes(Clouds):
    """Clouds of 10 to 29 points, far from the origin, with colors."""

    feature_names = ("red", "green", "blue")

    def __init__(self, root: str, train: bool) -> None:
        super().__init__(tuple(range(10, 30)), parts=False)
        self._data.y = torch.arange(20) % 2
        self._data.pos.mul_(50).add_(1000)


class ThreeSplits(Clouds):
    """As `ShapeNet` of torch-geometric, called with `split`."""

    def __init__(self, root: str, split: str) -> None:
        super().__init__((9,) * {"train": 8, "val": 5, "test": 3}[split], parts=False)
        self._data.y = self._data.y % 2


class TwoSplits(ThreeSplits):
    splits = ("train", "test")


class TestSizesThatDiffer:
    def test_evaluation_depends_on_neither_batch_nor_order(self) -> None:
        torch.manual_seed(0)
        one = loaded(dataset="ManySizes", eval_batch_size=1)
        torch.manual_seed(0)
        ten = loaded(dataset="ManySizes", eval_batch_size=10)
        single, ((batch,)) = list(one.val_dataloader()), list(ten.val_dataloader())
        assert torch.equal(torch.cat([b.pos for b in single]), batch.pos)
        assert torch.equal(torch.cat([b.point_indices for b in single]), batch.point_indices)

    def test_training_draws_anew_every_epoch(self) -> None:
        data = loaded(dataset="ManySizes")
        loader = data.train_dataloader()
        epochs = []
        for epoch in range(2):
            loader.sampler.set_epoch(epoch)
            epochs.append({int(i): p.tolist() for b in loader for i, p in zip(b.indices, b.point_indices, strict=True)})
        shared = set(epochs[0]) & set(epochs[1])
        assert shared
        assert all(epochs[0][index] != epochs[1][index] for index in shared if index > 2)  # more than 12 points

    def test_all_points_need_a_number(self) -> None:
        with pytest.raises(DatasetError, match=r"expected num_points, because .* differ in size \(10 to 29 points\)"):
            loaded(dataset="ManySizes", num_points=None)

    def test_smaller_clouds_are_filled_up(self) -> None:
        """To the size of the largest at most, as clouds of equal size: beyond it there would be nothing but copies."""
        assert loaded(dataset="ManySizes", num_points=29).example().pos.shape == (2, 29, 3)
        with pytest.raises(DatasetError, match=r"at most 29, the points of the largest cloud of .*, but got 30"):
            loaded(dataset="ManySizes", num_points=30)


class TestWithoutTrainer:
    """A loop of one's own, and Lightning given the loader alone, see what a trainer with the data module sees."""

    OPTIONS: ClassVar = {"num_points": 16, "batch_size": 24, "val_fraction": 0.25, "augmentation": SHIFT}

    def data(self, root: Path, **kwargs) -> PointCloudDataModule:
        data = PointCloudDataModule(str(root), "modelnet40", **self.OPTIONS, **kwargs)
        data.setup("fit")
        return data

    @pytest.mark.parametrize("kwargs", [{}, {"resident": True}])
    def test_batches_of_every_epoch(self, root: Path, kwargs: dict) -> None:
        expected = run(root, epochs=3, **self.OPTIONS)["train"]
        data = self.data(root, **kwargs)
        loader = data.train_dataloader()
        again, kept = self.data(root), [batch for _ in range(3) for batch in loader]
        anew = [batch for _ in range(3) for batch in again.train_dataloader()]
        assert len(expected) == len(kept) == len(anew) == 15
        for one, first, second in zip(expected, kept, anew, strict=True):
            assert first.pos.shape == (24, 16, 3)
            assert torch.equal(first.pos, one.pos)
            assert torch.equal(second.pos, one.pos)

    def test_a_chosen_epoch_comes_again(self, root: Path) -> None:
        loader = self.data(root).train_dataloader()
        seeds = []
        for epoch in (2, 2, 0):
            loader.sampler.set_epoch(epoch)
            seeds.append([batch.seed for batch in loader])
        assert seeds[0] == seeds[1]
        assert not set(seeds[0]) & set(seeds[2])

    def test_lightning_with_the_loader_alone(self, root: Path) -> None:
        recorder = Recorder()
        trainer = Trainer(
            max_epochs=2, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
            enable_model_summary=False,
        )  # fmt: skip
        trainer.fit(recorder, self.data(root).train_dataloader())
        expected = run(root, epochs=2, **self.OPTIONS)["train"]
        assert torch.equal(pos_of(recorder.batches["train"]), pos_of(expected))


class TestLabels:
    """Labels that no output of the network stands for are found when the data is read, not by a GPU in training."""

    def test_of_clouds(self) -> None:
        data = PointCloudDataModule("x", f"{__name__}.ManySizes", num_points=12)
        clouds = data._read("train")
        clouds.label = clouds.label.clone()
        clouds.label[5] = -100  # torch's cross-entropy leaves it out without a word
        with pytest.raises(DatasetError, match=r"label in .* in \[0, 2\), but got -100 for cloud 5 of the data set"):
            data.setup("fit")

    def test_of_points(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(PointCloudDataModule, "parts", property(lambda self: [[0, 1, 2]]))
        data = PointCloudDataModule("x", f"{__name__}.ManySizes", num_points=12)
        clouds = data._read("train")
        clouds.label = torch.zeros(len(clouds.pos), dtype=torch.long)
        clouds.label[10 + 11 + 3] = 7
        with pytest.raises(DatasetError, match=r"category 0 \(\[0, 1, 2\]\), but got 7 for point 3 of cloud 2$"):
            data.setup("fit")


class TestPreprocessing:
    def test_clouds_of_ones_own_are_put_into_the_unit_sphere(self) -> None:
        data = loaded(dataset="ManySizes", features=["color", "height"])
        cloud = data._splits["train"].cloud(7)
        torch.testing.assert_close(cloud.pos[0].norm(dim=1).max(), torch.tensor(1.0))
        raw = data._splits["train"].dataset[7]
        expected = preprocess(raw.pos, raw.x, data.dataset_class.feature_names, **data.hparams["preprocessing"])
        torch.testing.assert_close((cloud.pos[0], cloud.channels[0]), expected)
        assert (data.num_features, data.example().channels.shape) == (4, (2, 12, 4))

    def test_those_that_come_normalized_stay_as_they_are(self, root: Path) -> None:
        data = PointCloudDataModule(str(root), "modelnet40", num_points=None)
        data.setup("test")
        assert torch.equal(data._splits["test"].cloud(3).pos[0], data._splits["test"].dataset[3].pos)
        assert data.hparams["preprocessing"] == {"features": [], "normalize": "sphere", "up_axis": "z"}
        data = PointCloudDataModule(str(root), "modelnet40", num_points=None, normalize="box")
        data.setup("test")
        torch.testing.assert_close(data._splits["test"].cloud(3).pos.abs().max(), torch.tensor(1.0))

    def test_is_kept_in_the_checkpoint(self, tmp_path: Path) -> None:
        data = loaded(dataset="ManySizes", normalize="box", up_axis="y")
        trainer = Trainer(max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False)
        trainer.fit(Recorder(), data)
        trainer.save_checkpoint(tmp_path / "x.ckpt")
        stored = torch.load(tmp_path / "x.ckpt", weights_only=True)["datamodule_hyper_parameters"]
        assert stored["preprocessing"] == {"features": [], "normalize": "box", "up_axis": "y"}


class TestSplits:
    def test_an_official_validation_split_is_used(self) -> None:
        data = loaded(dataset="ThreeSplits", num_points=4)
        assert sum(len(batch.pos) for batch in data.train_dataloader()) == 8
        assert sum(len(batch.pos) for batch in data.val_dataloader()) == 5
        data.setup("test")
        assert sum(len(batch.pos) for batch in data.test_dataloader()) == 3

    def test_one_that_is_lacking_is_carved(self) -> None:
        data = loaded(dataset="TwoSplits", num_points=4)
        assert (len(data.train_indices), len(data.val_indices)) == (4, 4)


class TestNames:
    def test_modelnet40(self, root: Path) -> None:
        data = PointCloudDataModule(str(root), "modelnet40")
        assert (data.class_names, data.num_classes, data.num_features) == (NAMES, 40, 0)

    def test_shapes_are_not_generated_for_their_names(self, tmp_path: Path) -> None:
        assert PointCloudDataModule(str(tmp_path), "shapes", features=["normals"]).num_classes == 22
        assert not list(tmp_path.iterdir())

    def test_a_data_set_of_ones_own(self) -> None:
        data = PointCloudDataModule("x", "tests.data.test_dense.TenClouds", num_points=4, val_fraction=0.5)
        assert data.class_names == ["0", "1"]
        data.setup("fit")
        assert len(data.val_indices) == 4


class TestErrors:
    @pytest.mark.parametrize(
        ("kwargs", "message"),
        [
            ({"val_fraction": 1.5}, "val_fraction"),
            ({"val_fraction": 0.0}, "val_fraction"),
            ({"batch_size": 1}, "batch_size >= 2"),
            ({"dataset_kwargs": {"train": False}}, "without train"),
            ({"sampling": "last"}, "expected sampling to be one of random, first, fps, but got 'last'"),
            ({"normalize": "cube"}, "expected normalize"),
            ({"eval_batch_size": 0}, "eval_batch_size"),
            ({"num_points": 0}, "num_points"),
            ({"dataset": "shape"}, "did you mean 'shapes'"),
            ({"augmentation": [{"zoom": {}}]}, "augmentation step"),
        ],
    )
    def test_arguments(self, root: Path, kwargs: dict, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            PointCloudDataModule(str(root), **{"dataset": "modelnet40", **kwargs})

    def test_what_the_data_lacks(self, root: Path) -> None:
        with pytest.raises(DatasetError, match="at most 64"):
            PointCloudDataModule(str(root), "modelnet40", num_points=65).setup("fit")
        with pytest.raises(DatasetError, match="expected normals among the features of modelnet40, but it has height"):
            PointCloudDataModule(str(root), "modelnet40", num_points=8, features=["normals"]).setup("fit")
        with pytest.raises(ValueError, match="color"):
            PointCloudDataModule(str(root), "modelnet40", dataset_kwargs={"color": True}).setup("fit")

    def test_an_augmentation_that_the_clouds_do_not_allow(self, root: Path) -> None:
        options = {"num_points": 8, "augmentation": [{"feature_dropout": None}]}
        with pytest.raises(DatasetError, match="expected features for feature_dropout"):
            PointCloudDataModule(str(root), "modelnet40", **options).setup("fit")

    def test_a_missing_test_split(self, tmp_path: Path) -> None:
        data = PointCloudDataModule(str(write_modelnet40(tmp_path / "x", test=())), "modelnet40", num_points=8)
        with pytest.raises(DatasetNotFoundError):
            data.setup("test")
