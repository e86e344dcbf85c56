"""Clouds that lie on the device: the batches of the ordinary loader, bit by bit, also under Lightning."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from pytorch_lightning import Trainer
from torch.utils.data import DataLoader

from pcattn.data import DenseClouds, EpochSampler, PointBatch
from pcattn.data.loader import EpochLoader
from pcattn.data.resident import ResidentLoader
from pcattn.training import PointCloudDataModule
from tests.data.test_dense import Clouds
from tests.datasets.modelnet_files import write_modelnet40
from tests.training.test_datamodule import ManySizes, Recorder  # noqa: F401  ManySizes is named below

SPLITS = ("train", "val", "test")


class Parts(Clouds):
    """Clouds of equal size with normals and parts."""

    def __init__(self, root: str, train: bool) -> None:
        torch.manual_seed(int(train))
        super().__init__((20,) * 12)
        self._data.category = torch.arange(12) % 2
        self._data.pos.add_(100)


def loaders(name: str, **kwargs) -> tuple[list, list]:
    """Training, validation and test, once read on the host and once resident."""
    found = []
    for where in (False, True):
        torch.manual_seed(0)
        options = {"num_points": 12, "batch_size": 4, "val_fraction": 0.4, **kwargs}
        data = PointCloudDataModule("x", f"{__name__}.{name}", resident=where, **options)
        data.setup("fit")
        data.setup("test")
        found.append([data.train_dataloader(), data.val_dataloader(), data.test_dataloader()])
    return found[0], found[1]


def assert_equal(got: PointBatch, expected: PointBatch) -> None:
    for name, one, other in zip(PointBatch._fields, got, expected, strict=True):
        assert torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other, name


class TestSameBatches:
    @pytest.mark.parametrize(
        "kwargs",
        [
            {"features": ["normals", "height"], "per_point": True},
            {"features": ["estimated_normals"], "normalize": "box", "num_points": None},
            {"sampling": "fps", "per_point": True},
        ],
    )
    def test_as_the_loader(self, kwargs: dict) -> None:
        for read, lying in zip(*loaders("Parts", **kwargs), strict=True):
            assert (type(read), type(lying)) == (EpochLoader, ResidentLoader)
            assert len(read) == len(lying) > 0
            for epoch in (0, 1, 5, 0):
                for loader in (read, lying):
                    loader.sampler.set_epoch(epoch)
                for got, expected in zip(lying, read, strict=True):
                    assert_equal(got, expected)

    def test_the_batches_of_a_process(self) -> None:
        clouds = DenseClouds(Clouds((5,) * 11), per_point=True)
        for rank in range(3):
            sampler = EpochSampler(torch.tensor([9, 1, 2, 7, 5, 3, 0, 10]), 2, 4, True, rank, 3)
            read = EpochLoader(clouds, sampler)
            lying = ResidentLoader(clouds, sampler, torch.device("cpu"))
            for got, expected in zip(lying, read, strict=True):
                assert_equal(got, expected)
        none = EpochSampler(torch.arange(11), 8, 0, True, 1, 3)  # one batch for three processes
        assert list(ResidentLoader(clouds, none, torch.device("cpu"))) == []

    def test_goes_on_in_the_middle_of_an_epoch(self) -> None:
        """The state after the first batch, given to a new loader, brings the others, then the whole next epoch."""
        whole, began, resumed = (loaders("Parts", batch_size=2)[1][0] for _ in range(3))
        for loader in (whole, began):
            loader.sampler.set_epoch(3)
        next(iter(began))
        assert began.state_dict() == {"epoch": 3, "position": 1}
        resumed.load_state_dict(began.state_dict())
        resumed.sampler.set_epoch(3)
        for got, expected in zip(resumed, list(whole)[1:], strict=True):
            assert_equal(got, expected)
        assert resumed.state_dict()["position"] == len(whole) > 1
        resumed.sampler.set_epoch(4)
        assert len(list(resumed)) == len(whole)

    def test_a_batch_may_be_written_to(self) -> None:
        """The next epoch does not see it."""
        _, (train, *_) = loaders("Parts")
        before = [batch.pos.clone() for batch in train]
        train.sampler.set_epoch(0)
        for batch in train:
            batch.pos.zero_()
        train.sampler.set_epoch(0)
        for expected, batch in zip(before, train, strict=True):
            assert torch.equal(batch.pos, expected)


class TestSizesThatDiffer:
    def test_evaluation_only(self) -> None:
        with pytest.warns(
            UserWarning, match="train clouds are read on the host for every batch: their points are drawn"
        ):
            read, lying = loaders("ManySizes")
        assert [type(loader) for loader in lying] == [EpochLoader, ResidentLoader, ResidentLoader]
        for one, other in zip(read, lying, strict=True):
            for got, expected in zip(other, one, strict=True):
                assert_equal(got, expected)

    def test_draws_are_refused(self) -> None:
        with pytest.raises(ValueError, match="but they are drawn anew"):
            ResidentLoader(
                DenseClouds(Clouds((5, 4))).sampled(3), EpochSampler(torch.arange(2), 1, 0, False), torch.device("cpu")
            )


def test_corrupted_clouds_are_read() -> None:
    with pytest.warns(UserWarning, match="val clouds are read on the host for every batch: they come corrupted"):
        read, lying = loaders("Parts", corruption="gaussian:2", num_points=16)
    for got, expected in zip(lying[1], read[1], strict=True):
        assert_equal(got, expected)


class TestInTraining:
    def fit(self, root: Path, where: bool, epochs: int, *more: str, path: Path | None = None) -> Recorder:
        data = PointCloudDataModule(
            str(root), "modelnet40", num_points=16, batch_size=24, val_fraction=0.25, resident=where,
            augmentation=[{"scale": None}, {"dropout": None}],
        )  # fmt: skip
        recorder = Recorder()
        trainer = Trainer(
            max_epochs=epochs, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
            enable_model_summary=False, use_distributed_sampler=False, num_sanity_val_steps=0,
        )  # fmt: skip
        trainer.fit(recorder, data, ckpt_path=path, weights_only=True)
        if path is None and more:
            trainer.save_checkpoint(more[0])
        trainer.test(recorder, data, verbose=False)
        return recorder

    def test_same_as_the_loader_and_resumed(self, tmp_path: Path) -> None:
        """Order, subsampling and augmentation; a resumed training sees what the first would have."""
        root = write_modelnet40(tmp_path / "modelnet40", train=(160,), test=(40,))
        expected, got = (self.fit(root, where, 3).batches for where in (False, True))
        assert len(got["train"]) == 3 * 5
        for split in SPLITS:
            for one, other in zip(got[split], expected[split], strict=True):
                assert_equal(one, other)
        self.fit(root, True, 1, str(tmp_path / "one.ckpt"))
        resumed = self.fit(root, True, 3, path=tmp_path / "one.ckpt").batches
        for one, other in zip(resumed["train"], expected["train"][5:], strict=True):
            assert_equal(one, other)

    def test_prediction_takes_the_ordinary_loader(self) -> None:
        """Lightning makes the loader of a prediction a second time, by arguments that it knows."""
        data = PointCloudDataModule("x", f"{__name__}.Parts", num_points=12, val_fraction=0.4, resident=True)
        data.setup("predict")
        assert type(data.predict_dataloader()) is DataLoader
        for got, expected in zip(data.predict_dataloader(), data.test_dataloader(), strict=True):
            assert_equal(got, expected)

    def test_nothing_is_moved_in_the_loop(self) -> None:
        data = PointCloudDataModule("x", f"{__name__}.Parts", num_points=12, val_fraction=0.4, resident=True)
        data.setup("fit")
        batch = next(iter(data.train_dataloader()))
        moved = data.transfer_batch_to_device(batch, torch.device("cpu"), 0)
        assert all(one is other for one, other in zip(moved, batch, strict=True))


class TestAuto:
    """On a GPU, which is pretended: where the clouds fit."""

    @pytest.mark.parametrize(("free", "expected"), [(10**9, ResidentLoader), (4000, EpochLoader)])
    def test_where_they_fit(self, free: int, expected: type, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 10**9))
        data = PointCloudDataModule("x", f"{__name__}.Parts", num_points=12, val_fraction=0.4)
        data.setup("fit")
        strategy = SimpleNamespace(root_device=torch.device("cuda", 0))
        data.trainer = SimpleNamespace(training=True, global_rank=0, world_size=1, strategy=strategy)
        assert type(data.train_dataloader()) is expected

    def test_not_on_the_cpu(self) -> None:
        data = PointCloudDataModule("x", f"{__name__}.Parts", num_points=12, val_fraction=0.4)
        data.setup("fit")
        assert type(data.train_dataloader()) is EpochLoader

    def test_range(self) -> None:
        with pytest.raises(ValueError, match="expected resident to be one of true, false, auto, but got 'gpu'"):
            PointCloudDataModule("x", resident="gpu")
