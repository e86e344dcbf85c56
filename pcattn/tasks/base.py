"""The interface of a task: a network with its loss, metrics and optimizer, and everything other modules ask it.

Inference, export, drawing and the command line know no task by name. They call the methods below, so that a new task
is one file and one line, see `pcattn.tasks`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from pytorch_lightning import Callback, LightningModule
from pytorch_lightning.trainer.states import TrainerFn
from pytorch_lightning.utilities import move_data_to_device
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torchmetrics import MeanMetric

from pcattn.data import PointBatch
from pcattn.tasks.optimization import (
    OPTIMIZERS,
    AveragedWeights,
    build_optimizer,
    build_schedule,
    check_mode,
    compile_network,
)
from pcattn.tasks.voting import resample
from pcattn.tasks.watch import FiniteWatch, NonFiniteError
from pcattn.utils.errors import InputError
from pcattn.utils.files import atomic_write, write_bytes
from pcattn.utils.tensors import pack
from pcattn.visualize.scene import Cloud, Field

if TYPE_CHECKING:
    from pcattn.visualize.charts import Confusion

#: Arguments that a task takes from the data, where it has an argument of this name.
FROM_DATA = ("num_classes", "num_features", "class_names", "parts", "part_names")


class MetricInfo(NamedTuple):
    """How a metric is named, written and compared."""

    label: str  #: in tables: "mean class accuracy"
    mode: Literal["max", "min"] = "max"  #: which values are better
    unit: str = "%"  #: "%" for a share in [0, 1], which is written times 100; "°"; "" for none

    @property
    def heading(self) -> str:
        """Label and unit, for a column of a table or an axis of a plot."""
        return f"{self.label}, {self.unit}" if self.unit else self.label

    def in_unit(self, value: float) -> float:
        """A value as a number in its unit."""
        return 100 * value if self.unit == "%" else value

    def format(self, value: float) -> str:
        """A value with its unit."""
        if self.unit == "%":
            return f"{self.in_unit(value):.2f} %"
        return f"{value:.2f}{self.unit}" if self.unit else f"{value:.4f}"


class PointCloudTask(LightningModule):
    """Base class of tasks.

    A task has a `network`, a `loss` and metrics (`update_metrics`, `compute_metrics`). The other methods say how its
    predictions are stored, tabulated and drawn; their defaults suit a task that predicts plain numbers. Constructor
    arguments are plain data and saved as hyperparameters, from which the optimizer takes `optimizer`, `lr`, `momentum`,
    `weight_decay`, `warmup_epochs`, `min_lr` and `ema_decay`.

    Three kinds of values occur. *Logits* are the outputs of the network. *Predictions* are what logits mean, in numbers
    that can be averaged over votes and interpolated between points (probabilities, normals). *Attributes* are NumPy
    arrays by name, as files store them (`label`, `probability`, `normals`).

    Args:
        label_smoothing, optimizer, lr, min_lr, ema_decay: arguments of the task, checked here.
        votes: votes per cloud in `validate` and `test`, see `pcattn.tasks.voting`.
        all_points: also evaluate at all points of every cloud.
        compile: compile the network when a trainer moves it to its device.

    Raises:
        InputError: an argument is out of range.
    """

    #: What the task is called in reports.
    TITLE: ClassVar[str] = "task"
    #: What `compute_metrics` returns, by name.
    METRICS: ClassVar[Mapping[str, MetricInfo]] = {"loss": MetricInfo("loss", "min", "")}
    #: The metric that `best.ckpt` is chosen by.
    PRIMARY: ClassVar[str] = "loss"
    #: The metric that corruptions are judged by (`pcattn robustness`), a share in [0, 1]; None: they are not.
    ROBUSTNESS: ClassVar[str | None] = None
    #: Whether predictions are those of points; otherwise each is that of a whole cloud.
    PER_POINT: ClassVar[bool] = False
    #: Names of the `attributes`; of a task for whole clouds, the last holds what `entries` is made from.
    OUTPUTS: ClassVar[tuple[str, ...]] = ("prediction",)
    #: Whether a prediction depends on the category of the cloud.
    USES_CATEGORY: ClassVar[bool] = False
    #: Fields that pictures show unless others are asked for.
    FIELDS: ClassVar[tuple[str, ...]] = ("truth", "prediction", "error")
    #: Name of the list of `entries` in JSON, and the heading of its column in tables.
    ENTRIES: ClassVar[str] = "predictions"
    HEADING: ClassVar[str] = "prediction"

    network: nn.Module
    #: Names of the classes of clouds, or of their categories.
    class_names: list[str]
    #: Names of the parts of points, and the ids of the parts of each category.
    part_names: list[str]
    parts: list[list[int]]

    def __init__(
        self,
        label_smoothing: float = 0.0,
        optimizer: str = "adamw",
        lr: float = 0.001,
        min_lr: float = 0.0,
        ema_decay: float | None = None,
        votes: int = 1,
        all_points: bool = False,
        compile: bool | str = False,
    ) -> None:
        super().__init__()
        if optimizer not in OPTIMIZERS:
            raise InputError(f"expected optimizer to be one of {', '.join(OPTIMIZERS)}, but got {optimizer!r}")
        if not 0 <= label_smoothing < 1:
            raise InputError(f"expected 0 <= label_smoothing < 1, but got {label_smoothing}")
        if not lr > 0 or not 0 <= min_lr <= lr:
            raise InputError(f"expected 0 <= min_lr <= lr and lr > 0, but got lr={lr}, min_lr={min_lr}")
        if ema_decay is not None and not 0 <= ema_decay < 1:
            raise InputError(f"expected 0 <= ema_decay < 1, but got {ema_decay}")
        if votes < 1:
            raise InputError(f"expected votes >= 1, but got {votes}")
        if compile:
            check_mode(compile)
        self.class_names, self.part_names, self.parts = [], [], []
        self.votes, self.all_points = votes, all_points
        self._to_compile = compile
        self.eval_loss = MeanMetric()
        self._train_loss = torch.zeros(2)  # sum over the clouds of the epoch so far, and their number
        self.watch = FiniteWatch()

    # What goes through the network ------------------------------------------------------------------------------------

    @property
    def num_features(self) -> int:
        """Channels of a point that the network takes beside its position."""
        return int(self.hparams.get("num_features") or 0)

    @property
    def num_categories(self) -> int:
        """Categories that the network is conditioned on; 0 if it takes none."""
        return 0

    def inputs(self, batch: PointBatch) -> dict[str, Tensor]:
        """The arguments of the network for a batch, by name: `pos`, then `category` and `features` if it takes them."""
        inputs = {"pos": batch.pos}
        if self.num_categories and batch.category is not None:
            inputs["category"] = batch.category
        if (features := self.features(batch)) is not None:
            inputs["features"] = features
        return inputs

    def features(self, batch: PointBatch) -> Tensor | None:
        """Channels (B, N, F) of the points of a batch that the network takes beside their positions."""
        return batch.channels

    def example(self, batch_size: int, num_points: int) -> PointBatch:
        """A random batch that the network accepts, always the same one: clouds in the unit ball."""
        generator = torch.Generator().manual_seed(batch_size)
        directions = torch.randn(batch_size, num_points, 3, generator=generator)
        pos = nn.functional.normalize(directions, dim=2) * torch.rand(batch_size, num_points, 1, generator=generator)
        features = torch.randn(batch_size, num_points, self.num_features, generator=generator)
        category = torch.arange(batch_size) % max(self.num_categories, 1)
        return self.unlabeled(pos, features if self.num_features else None, category)

    def unlabeled(self, pos: Tensor, features: Tensor | None = None, category: Tensor | None = None) -> PointBatch:
        """A batch of clouds (B, N, 3) without a truth."""
        unknown = torch.zeros(len(pos), dtype=torch.long, device=pos.device)
        return PointBatch(pos, None, unknown, category, torch.arange(len(pos)), 0, features)

    def logits(self, batch: PointBatch) -> Tensor:
        """The network's outputs for a batch."""
        logits: Tensor = self(**self.inputs(batch))
        return logits

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """The network's outputs."""
        logits: Tensor = self.network(*args, **kwargs)
        return logits

    def finite_logits(self, batch: PointBatch) -> Tensor:
        """`logits`, checked: metrics would take NaN for some class.

        Raises:
            NonFiniteError: some are not finite. On a GPU it comes with the next batch or when metrics are computed.
        """
        logits = self.logits(batch)
        self.watch.see(logits.detach().isfinite().all(), lambda _: self._explain(batch, logits))
        return logits

    # Training and evaluation ------------------------------------------------------------------------------------------

    def check_targets(self, batch: PointBatch) -> None:
        """Refuse a batch whose targets the network has no output for.

        Raises:
            InputError: on the CPU.
        """

    def loss(self, logits: Tensor, batch: PointBatch) -> Tensor:
        """The loss of a training batch, a scalar."""
        raise NotImplementedError

    def update_metrics(self, logits: Tensor, batch: PointBatch) -> None:
        """Add a batch to the metrics."""
        self.eval_loss.update(self.loss(logits, batch), len(batch.pos))

    def update_voted_metrics(self, cloud: PointBatch, own: Tensor, views: PointBatch, predictions: Tensor) -> None:
        """Add one cloud to the metrics with votes and at all points.

        Args:
            cloud: the complete cloud, a batch of one.
            own: (N,) the points of it that are evaluated without votes.
            views: a view of the cloud per vote, see `pcattn.tasks.voting.resample`.
            predictions: (V, ...) of the views.
        """
        raise NotImplementedError

    def compute_metrics(self, split: str) -> dict[str, Tensor]:
        """The metrics over all batches since the last call, named `<split>/<metric>`."""
        self.last_metrics = {"loss": self.eval_loss.compute()}
        self.eval_loss.reset()
        return {f"{split}/{name}": value for name, value in self.last_metrics.items()}

    def report(self, split: str) -> str:
        """The last evaluation as text."""
        values = ", ".join(f"{info.label} {info.format(float(v))}" for info, v in self._last_values())
        return f"{split}: {values}"

    def _last_values(self) -> list[tuple[MetricInfo, Tensor]]:
        return [(self.METRICS[name], value) for name, value in self.last_metrics.items() if name in self.METRICS]

    def save_report(self, split: str, folder: Path) -> list[Path]:
        """Write the last evaluation to files in a folder, if the task has more to say than its metrics.

        Returns:
            The files.
        """
        return []

    def evaluate(self, batch: PointBatch) -> None:
        """Run the network on a batch and add the result to the metrics."""
        self.check_targets(batch)
        self.update_metrics(self.finite_logits(batch), batch)

    # Predictions ------------------------------------------------------------------------------------------------------

    def predictions(self, logits: Tensor, category: int = 0) -> Tensor:
        """What logits mean, in numbers that can be averaged over votes and interpolated between points.

        Args:
            logits: (B, K) of clouds, or (B, N, K) of points.
            category: of all these clouds, if the task uses it.
        """
        return logits

    def attributes(self, predictions: Tensor, category: int = 0) -> dict[str, NDArray[Any]]:
        """Predictions as arrays by name.

        Args:
            predictions: (K,) of one cloud, or (N, K) of points of one cloud.
            category: of the cloud.
        """
        return {"prediction": predictions.cpu().numpy()}

    def point_colors(self, attributes: Mapping[str, NDArray[Any]], category: int = 0) -> NDArray[np.uint8] | None:
        """Colors (N, 3) of the points of one cloud by their `attributes`, to be stored with them."""
        return None

    def count(self, attributes: Mapping[str, NDArray[Any]], category: int = 0) -> NDArray[np.int64]:
        """Points of each kind, which add up over the blocks of a cloud; what `entries` is made from."""
        return np.zeros(0, dtype=np.int64)

    def entries(self, result: NDArray[Any], category: int = 0) -> list[dict[str, Any]]:
        """What tables and files say of one cloud, as plain data, a dictionary per line.

        Args:
            result: predictions (K,) of a cloud, or the `count` of the predictions of points.
            category: of the cloud.
        """
        return [{"output": output, "value": round(float(value), 6)} for output, value in enumerate(result)]

    def format_entries(self, entries: Sequence[Mapping[str, Any]], num_points: int) -> list[str]:
        """The same as cells of a table."""
        return [f"{entry['value']:.4g}" for entry in entries]

    def predict_step(self, batch: PointBatch, batch_idx: int) -> dict[str, Tensor]:
        """Indices of the clouds of a batch with their predictions, and with the points that these are of if known."""
        predictions = self.predictions(self.finite_logits(batch))
        result = {"indices": batch.indices, "predictions": predictions}
        return result if batch.point_indices is None else result | {"points": batch.point_indices}

    def save_predictions(
        self, batches: Sequence[Mapping[str, Tensor]], folder: Path, names: Sequence[str] | None = None
    ) -> Path:
        """Write the results of `predict_step` to `predictions.npz` in a folder: an array per name.

        Args:
            batches: the results.
            folder: where to write.
            names: names of the clouds by their indices, stored as the array `files`.

        Returns:
            The file.
        """
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "predictions.npz"
        arrays: dict[str, Any] = {name: torch.cat([b[name] for b in batches]).cpu().numpy() for name in batches[0]}
        if names is not None:
            arrays["files"] = np.array([names[index] for index in arrays["indices"].tolist()])
        with atomic_write(path) as temporary:
            np.savez_compressed(temporary, **arrays)
        return path

    # Pictures and reports ---------------------------------------------------------------------------------------------

    def describe(self, batch: PointBatch, logits: Tensor) -> list[Cloud]:
        """The clouds of a batch with truth, prediction and error, ready to be drawn."""
        pos = batch.pos.cpu().numpy()
        return [Cloud(pos[i], f"cloud {index}", index=index) for i, index in enumerate(batch.indices.tolist())]

    @torch.no_grad()
    def evaluated_clouds(self, batch: PointBatch) -> list[Cloud]:
        """`describe` a batch by what the network predicts in evaluation mode."""
        batch = move_data_to_device(batch, self.device)
        training = self.training
        self.eval()
        try:
            return self.describe(batch, self.logits(batch))
        finally:
            self.train(training)

    def fields(
        self, attributes: Mapping[str, NDArray[Any]], num_points: int, category: int = 0
    ) -> tuple[dict[str, Field], str]:
        """Fields that color the points of a cloud without a truth by its `attributes`, and a short note on it."""
        return {}, ""

    def confusion_counts(self, batch: PointBatch, logits: Tensor) -> NDArray[np.int64]:
        """How often each truth of a batch was predicted as what; counts add up over batches."""
        return np.zeros(0, dtype=np.int64)

    def confusions(self, counts: NDArray[np.int64]) -> list[Confusion]:
        """Confusion matrices to draw from the sum of `confusion_counts`; none if there is nothing to confuse."""
        return []

    def category_scores(self) -> tuple[str, list[tuple[str, float | None, int]]]:
        """A score of the last evaluation for each category: its label, and rows of name, score and number of clouds."""
        return "", []

    def settings(self) -> list[tuple[str, str]]:
        """Names and values of settings that a report should mention beside those that all tasks have."""
        return []

    # Lightning's hooks ------------------------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        """Compile the network, once, if that was asked for and pays on the trainer's device."""
        mode, self._to_compile = self._to_compile, False
        if mode:
            compile_network(self.network, mode, self.trainer.strategy.root_device.type)

    def training_step(self, batch: PointBatch, batch_idx: int) -> Tensor:
        """The loss of a batch."""
        self.check_targets(batch)
        loss = self.loss(self.training_logits(batch), batch)
        self.log_train_loss(loss, batch)
        return loss

    def on_train_batch_start(self, batch: PointBatch, batch_idx: int) -> None:
        """Seed the network's own randomness by the batch, so that a resumed run repeats it."""
        torch.manual_seed(batch.seed)

    def on_validation_batch_start(self, batch: PointBatch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Refuse clouds with NaN or infinity. On a GPU `finite_logits` finds them, without a synchronization."""
        if batch.pos.device.type == "cpu" and (cause := _not_finite(batch)):
            raise NonFiniteError(f"expected finite clouds, but {cause}")

    on_test_batch_start = on_predict_batch_start = on_validation_batch_start

    def validation_step(self, batch: PointBatch, batch_idx: int) -> None:
        """Add a batch to the metrics. Votes and all points count in `validate` alone, not during training."""
        self.evaluate(batch)
        if self._votes and self.trainer.state.fn == TrainerFn.VALIDATING:
            self._evaluate_votes(batch, "val")

    def test_step(self, batch: PointBatch, batch_idx: int) -> None:
        """Add a batch to the metrics."""
        self.evaluate(batch)
        if self._votes:
            self._evaluate_votes(batch, "test")

    @property
    def _votes(self) -> bool:
        return self.votes > 1 or self.all_points

    def _evaluate_votes(self, batch: PointBatch, split: str) -> None:
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        points: Any = batch.point_indices
        for position, index in enumerate(batch.indices.tolist()):
            cloud, own = move_data_to_device(data.complete_cloud(split, index), self.device), points[position]
            views = resample(cloud, own, self.votes)
            category = 0 if cloud.category is None else int(cloud.category)
            predictions = self.predictions(self.logits(views).float(), category)
            self.update_voted_metrics(cloud, own, views, predictions)

    def on_validation_epoch_start(self) -> None:
        """Average the running statistics over all processes, so that each validates what the checkpoint will hold.

        Unless batch normalization is synchronized, each process has the statistics of its own batches.
        """
        self.watch.flush()
        if self.trainer.world_size > 1:
            for buffer in self.network.buffers():
                if buffer.is_floating_point():
                    buffer.copy_(self.trainer.strategy.reduce(buffer.clone(), reduce_op="mean"))

    def on_validation_epoch_end(self) -> None:
        """Log the metrics over all validation samples, of all processes."""
        self.watch.flush()
        self.log_dict(self.compute_metrics("val"), prog_bar=True, sync_dist=True)

    def on_test_epoch_end(self) -> None:
        """Log the metrics over all test samples."""
        self.watch.flush()
        self.log_dict(self.compute_metrics("test"), prog_bar=True, sync_dist=True)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Store the task and the loss of an unfinished epoch; weights that the last step made NaN are not saved."""
        self.watch.flush()
        checkpoint["task"] = f"{type(self).__module__}.{type(self).__qualname__}"
        checkpoint["train_loss"] = self._summed_train_loss().cpu()

    def on_train_end(self) -> None:
        """Check the last step."""
        self.watch.flush()

    on_predict_end = on_train_end

    def configure_callbacks(self) -> list[Callback]:
        """`AveragedWeights` if `ema_decay` is set."""
        decay = self.hparams.get("ema_decay")
        return [] if decay is None else [AveragedWeights(decay)]

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """The optimizer, with a cosine schedule stepped after every batch.

        Raises:
            InputError: the number of steps is not known.
        """
        h: Any = self.hparams
        optimizer = build_optimizer(h["optimizer"], self.parameters(), h["lr"], h["momentum"], h["weight_decay"])
        self.trainer.fit_loop.setup_data()  # else the length of an epoch may not be known yet
        total = self.trainer.estimated_stepping_batches
        epoch = self.trainer.num_training_batches / self.trainer.accumulate_grad_batches
        if math.isinf(total + epoch):
            raise InputError(
                "expected max_epochs or max_steps of the trainer, over which the learning rate falls, and epochs of "
                f"known length, but got {total} steps and {self.trainer.num_training_batches} batches an epoch"
            )
        warmup = round(math.ceil(epoch) * h["warmup_epochs"])
        schedule = build_schedule(optimizer, h["lr"], h["min_lr"], warmup, int(total))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def training_logits(self, batch: PointBatch) -> Tensor:
        """`logits` in training.

        Raises:
            NonFiniteError: the network refuses the batch because it holds NaN or infinity. The batch is saved in the
                run.
        """
        try:
            return self.logits(batch)
        except ValueError as error:
            if _not_finite(batch) is None:
                raise
            loss = torch.tensor(math.nan)
            raise NonFiniteError(self._save_batch(loss, batch, self.current_epoch, self.global_step, False)) from error

    def log_train_loss(self, loss: Tensor, batch: PointBatch) -> None:
        """Add a loss to `train/loss`, the mean over the epoch.

        Raises:
            NonFiniteError: it is not finite. The batch is saved in the run. On the CPU the weights are those before the
                step; on a GPU the error comes with the next batch, and no checkpoint is saved in between.
        """
        value, epoch, step = loss.detach(), self.current_epoch, self.global_step
        self.watch.see(value.isfinite(), lambda late: self._save_batch(value, batch, epoch, step, late))
        size = len(batch.pos)
        # Summed on the device: reading the loss would synchronize in every step.
        self._train_loss = self._train_loss.to(value.device) + torch.stack((value * size, torch.full_like(value, size)))

    def on_train_epoch_end(self) -> None:
        """Log `train/loss` before the checkpoint of the epoch is saved, so that a killed run has it."""
        total, number = self._summed_train_loss().tolist()
        self._train_loss = torch.zeros(2)
        metrics = {"train/loss": total / max(number, 1)}
        self.log_dict(metrics, prog_bar=True, logger=False)
        for logger in self.loggers:
            logger.log_metrics(metrics | {"epoch": self.current_epoch}, step=self.global_step - 1)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the loss of an unfinished epoch, in one process."""
        if "train_loss" in checkpoint and self._trainer is not None and self._trainer.is_global_zero:
            self._train_loss = checkpoint["train_loss"]

    def _summed_train_loss(self) -> Tensor:
        """Sum of losses and number of clouds, over all processes."""
        return self.trainer.strategy.reduce(self._train_loss.to(self.device).clone(), reduce_op="sum")

    def _save_batch(self, loss: Tensor, batch: PointBatch, epoch: int, step: int, late: bool) -> str:
        """Save a batch whose loss is not finite.

        Args:
            late: the weights have been updated since.

        Returns:
            The error message.
        """
        folder = Path(self.trainer.default_root_dir)
        # Each process has its own batches.
        rank = f"-rank{self.trainer.global_rank}" if self.trainer.world_size > 1 else ""
        path = folder / f"nonfinite-epoch{epoch}-step{step}{rank}.pt"
        fields = {name: value for name, value in batch._asdict().items() if value is not None}
        folder.mkdir(parents=True, exist_ok=True)
        write_bytes(path, pack({"epoch": epoch, "step": step, "loss": float(loss)} | fields))
        cause = _not_finite(batch) or (None if late else self._not_finite_weights())
        otherwise = "clouds are finite" if late else "clouds and weights are finite"
        return (
            f"expected a finite loss, but got {float(loss)} in epoch {epoch}, step {step} (batch of clouds "
            f"{_listed(batch.indices)}): {cause or f'{otherwise}, so training diverges: try a smaller lr'}. "
            f"The batch is saved in {path}"
        )

    def _explain(self, batch: PointBatch, logits: Tensor) -> str:
        """Why logits are not finite: the error message."""
        clouds = batch.indices[~logits.isfinite().flatten(1).all(dim=1)]
        cause = _not_finite(batch) or self._not_finite_weights() or "clouds and weights are finite, products are not"
        return f"expected finite logits, but the network has others for clouds {_listed(clouds)}: {cause}"

    def _not_finite_weights(self) -> str | None:
        finite = all(bool(values.isfinite().all()) for values in self.network.state_dict().values())
        return None if finite else "the weights are not finite"


def _not_finite(batch: PointBatch) -> str | None:
    """Which clouds of a batch hold NaN or infinity; None if none does."""
    for name in ("pos", "normals", "features"):
        field = getattr(batch, name)
        if field is not None and not bool((finite := field.isfinite().all(dim=2).all(dim=1)).all()):
            return f"{name} of clouds {_listed(batch.indices[~finite])} of the data set has NaN or infinity"
    return None


def _listed(clouds: Tensor) -> str:
    return ", ".join(map(str, clouds[:8].tolist())) + (", ..." if len(clouds) > 8 else "")
