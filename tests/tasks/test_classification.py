"""The classification task: loss, metrics over all samples, optimizers, randomness."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from pytorch_lightning import LightningDataModule, Trainer
from torch import Tensor
from torch.utils.data import DataLoader

from pcattn.data import PointBatch
from pcattn.tasks import Classification
from pcattn.tasks.base import NonFiniteError
from pcattn.tasks.classification import class_accuracy
from pcattn.tasks.optimization import build_optimizer, warmup_cosine


def make_task(**kwargs) -> Classification:
    return Classification(4, variant="spct", network_kwargs={"dim": 8, "depth": 1, "out_dim": 16}, **kwargs)


def make_batch(size: int, seed: int = 0) -> PointBatch:
    index = torch.arange(size)
    return PointBatch(torch.randn(size, 16, 3), None, index % 4, None, index, seed)


class TestLoss:
    @pytest.mark.parametrize("smoothing", [0.0, 0.2])
    def test_smoothing_is_that_of_pct(self, smoothing: float, monkeypatch: pytest.MonkeyPatch) -> None:
        """The true class gets 1 - eps, each of the K - 1 others eps / (K - 1)."""
        task, batch = make_task(label_smoothing=smoothing), make_batch(6)
        logits = torch.randn(6, 4)
        monkeypatch.setattr(task, "forward", lambda **inputs: logits)
        monkeypatch.setattr(task, "log", lambda *args, **kwargs: None)
        target = torch.full((6, 4), smoothing / 3)
        target[torch.arange(6), batch.label] = 1 - smoothing
        expected = -(target * logits.log_softmax(dim=1)).sum(dim=1).mean()
        torch.testing.assert_close(task.training_step(batch, 0), expected)

    def test_of_mixed_clouds(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The target of a mixed cloud is the weighted mean of the smoothed targets of its classes."""
        task, batch = make_task(label_smoothing=0.2), make_batch(6)
        other, ratio = (batch.label + 1) % 4, torch.linspace(0, 1, 6)
        mixed_weight = torch.stack((1 - ratio, ratio), dim=1)
        batch = batch._replace(mixed_label=torch.stack((batch.label, other), dim=1), mixed_weight=mixed_weight)
        logits = torch.randn(6, 4)
        monkeypatch.setattr(task, "forward", lambda **inputs: logits)
        monkeypatch.setattr(task, "log", lambda *args, **kwargs: None)
        smooth = torch.eye(4) * (1 - 0.2 - 0.2 / 3) + 0.2 / 3
        target = (1 - ratio)[:, None] * smooth[batch.label] + ratio[:, None] * smooth[other]
        expected = -(target * logits.log_softmax(dim=1)).sum(dim=1).mean()
        torch.testing.assert_close(task.training_step(batch, 0), expected)


class Batches(LightningDataModule):
    """Three batches, the second of which is spoiled."""

    def __init__(self, spoil: Callable[[PointBatch], PointBatch]) -> None:
        super().__init__()
        clouds = [make_batch(4, seed)._replace(indices=torch.arange(4) + 10 * seed) for seed in range(3)]
        self.batches = [clouds[0], spoil(clouds[1]), clouds[2]]

    def train_dataloader(self) -> DataLoader:
        return DataLoader(self.batches, batch_size=None)

    def test_dataloader(self) -> DataLoader:
        return self.train_dataloader()

    def predict_dataloader(self) -> DataLoader:
        return self.train_dataloader()


class TestNotFinite:
    def trainer(self, folder: Path) -> Trainer:
        quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
        return Trainer(accelerator="cpu", max_epochs=1, default_root_dir=folder, enable_checkpointing=False, **quiet)

    def test_a_loss_stops_training_before_the_weights_are_spoiled(self, tmp_path: Path) -> None:
        def spoil(batch: PointBatch) -> PointBatch:
            return batch._replace(pos=batch.pos * torch.tensor([1, 1, torch.inf, 1])[:, None, None])

        task = make_task(optimizer="adamw")
        task.network = Unchecked(task.network)
        with pytest.raises(NonFiniteError, match=r"nan in epoch 0, step 1 .*pos of clouds 12 of the data set") as error:
            self.trainer(tmp_path).fit(task, Batches(spoil))
        assert all(parameter.isfinite().all() for parameter in task.parameters())
        saved = torch.load(tmp_path / "nonfinite-epoch0-step1.pt", weights_only=True)
        assert str(tmp_path / "nonfinite-epoch0-step1.pt") in str(error.value)
        assert (saved["epoch"], saved["step"], saved["seed"]) == (0, 1, 1)
        assert saved["indices"].tolist() == [10, 11, 12, 13]
        assert not saved["pos"][2].isfinite().all()

    def test_a_batch_that_the_network_refuses_is_saved(self, tmp_path: Path) -> None:
        """Ours look at their input on the CPU: there is no loss then."""

        def spoil(batch: PointBatch) -> PointBatch:
            return batch._replace(pos=batch.pos * torch.tensor([1, 1, torch.nan, 1])[:, None, None])

        with pytest.raises(NonFiniteError, match=r"pos of clouds 12 of the data set has NaN .*The batch is saved in"):
            self.trainer(tmp_path).fit(make_task(), Batches(spoil))
        saved = torch.load(tmp_path / "nonfinite-epoch0-step1.pt", weights_only=True)
        assert saved["indices"].tolist() == [10, 11, 12, 13]

    def test_weights_are_named_where_they_are_the_reason(self, tmp_path: Path) -> None:
        task = make_task()
        with torch.no_grad():
            next(task.network.head.parameters()).fill_(torch.nan)
        with pytest.raises(NonFiniteError, match="the weights are not finite"):
            self.trainer(tmp_path).fit(task, Batches(lambda batch: batch))

    @pytest.mark.parametrize("stage", ["test", "predict"])
    @pytest.mark.parametrize("value", [torch.nan, -torch.inf])
    def test_evaluation_refuses_clouds(self, stage: str, value: float, tmp_path: Path) -> None:
        def spoil(batch: PointBatch) -> PointBatch:
            pos = batch.pos.clone()
            pos[3, 5, 1] = value
            return batch._replace(pos=pos)

        with pytest.raises(NonFiniteError, match="pos of clouds 13 of the data set has NaN or infinity"):
            getattr(self.trainer(tmp_path), stage)(make_task(), Batches(spoil))


class Unchecked(torch.nn.Module):
    """A network that ignores its input."""

    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__()
        self.head = network.head
        self.linear = torch.nn.Linear(3, 16)

    def forward(self, pos: Tensor, features: Tensor | None = None) -> Tensor:
        return self.head(self.linear(pos).amax(dim=1))


class TestMetrics:
    @pytest.fixture
    def logged(self, monkeypatch: pytest.MonkeyPatch) -> dict[str, Tensor]:
        logged: dict[str, Tensor] = {}
        monkeypatch.setattr(Classification, "log_dict", lambda self, metrics, **kwargs: logged.update(metrics))
        return logged

    def evaluate(self, task: Classification, logits: Tensor, label: Tensor, sizes: list[int]) -> None:
        """Feed logits in batches of the given sizes: the network is replaced by a look-up."""
        rows = iter(logits.split(sizes))
        task.forward = lambda **inputs: next(rows)
        for part in label.split(sizes):
            task.validation_step(make_batch(len(part))._replace(label=part), 0)
        task.on_validation_epoch_end()

    def test_over_all_samples_and_not_over_batches(self, logged: dict) -> None:
        logits, label = torch.randn(11, 4), torch.tensor([0] * 5 + [1] * 3 + [3] * 3)
        predicted = logits.argmax(dim=1)
        recalls = [(predicted[label == c] == c).float().mean() for c in (0, 1, 3)]
        for sizes in ([11], [8, 2, 1]):
            self.evaluate(make_task(), logits, label, sizes)
            torch.testing.assert_close(logged["val/oa"], (predicted == label).float().mean())
            torch.testing.assert_close(logged["val/macc"], torch.stack(recalls).mean())
            torch.testing.assert_close(logged["val/loss"], torch.nn.functional.cross_entropy(logits, label))

    def test_each_evaluation_starts_afresh(self, logged: dict) -> None:
        task, label = make_task(), torch.tensor([0, 1])
        self.evaluate(task, torch.eye(4)[label], label, [2])
        assert logged["val/oa"] == 1
        self.evaluate(task, torch.eye(4)[label.flip(0)], label, [2])
        assert logged["val/oa"] == 0

    def test_a_class_without_samples_is_left_out(self) -> None:
        accuracy = class_accuracy(torch.tensor([[3, 1], [0, 0]]))
        assert accuracy[0] == 0.75
        assert accuracy[1].isnan()

    def test_report(self, logged: dict) -> None:
        task = make_task(class_names=["cup", "mug", "bowl", "jar"])
        label = torch.tensor([0, 0, 0, 1])
        self.evaluate(task, torch.eye(4)[torch.tensor([0, 1, 1, 1])], label, [4])
        lines = task.report("val").splitlines()
        assert lines[1].split() == ["cup", "0.3333", "3", "mug", "(2)"]
        assert lines[2].split() == ["mug", "1.0000", "1"]
        assert lines[3].split() == ["bowl", "-", "0"]
        assert lines[-1] == "val: overall accuracy 0.5000 (2 of 4), mean class accuracy 0.6667"


class TestOptimization:
    def test_schedule(self) -> None:
        factor = warmup_cosine(warmup=4, total=14, floor=0.01)
        assert [factor(step) for step in range(5)] == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0])
        assert factor(9) == pytest.approx(0.505)
        assert factor(14) == factor(20) == pytest.approx(0.01)

    def test_optimizers(self) -> None:
        parameters = [torch.nn.Parameter(torch.ones(1))]
        sgd = build_optimizer("sgd", parameters, 0.1, 0.9, 1e-4)
        assert (type(sgd), sgd.defaults["momentum"]) == (torch.optim.SGD, 0.9)
        adamw = build_optimizer("adamw", parameters, 0.1, 0.9, 0.05)
        assert (type(adamw), adamw.defaults["weight_decay"]) == (torch.optim.AdamW, 0.05)
        with pytest.raises(ValueError, match="sgd, adamw"):
            build_optimizer("adam", parameters, 0.1, 0.9, 0.05)

    @pytest.mark.parametrize(
        ("kwargs", "message"),
        [
            ({"optimizer": "lion"}, "sgd, adamw"),
            ({"label_smoothing": 1.0}, "label_smoothing"),
            ({"lr": 0.0}, "lr > 0"),
            ({"lr": 0.1, "min_lr": 0.2}, "min_lr"),
            ({"variant": "pcd"}, "variant"),
        ],
    )
    def test_bad_arguments(self, kwargs: dict, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            Classification(4, **kwargs)

    def test_unknown_network_argument_is_named(self) -> None:
        with pytest.raises(ValueError, match="detph"):
            Classification(4, network_kwargs={"detph": 2})


def test_dropout_is_a_function_of_the_batch() -> None:
    task, batch = make_task().train(), make_batch(4, seed=5)

    def run(seed: int) -> Tensor:
        task.on_train_batch_start(batch._replace(seed=seed), 0)
        return task(batch.pos)

    assert torch.equal(run(5), run(5))
    assert not torch.equal(run(5), run(6))
