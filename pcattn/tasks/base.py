"""What every task shares: optimiser and schedule, randomness, and the course of an evaluation."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from pytorch_lightning import Callback, LightningModule
from pytorch_lightning.trainer.states import TrainerFn
from pytorch_lightning.utilities import move_data_to_device
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torchmetrics import MeanMetric

from pcattn.tasks.optimization import OPTIMIZERS, AveragedWeights, build_optimizer, build_schedule
from pcattn.tasks.voting import draw_votes

if TYPE_CHECKING:
    from pcattn.datasets import PointBatch


class NonFiniteError(ValueError):
    """A batch holds NaN or infinity, or leads to a loss that is one."""


class PointCloudTask(LightningModule):
    """A network with its loss, metrics and optimiser.

    A task keeps its arguments, plain data all of them, as hyper-parameters: `optimizer`, `lr`, `momentum`,
    `weight_decay`, `warmup_epochs`, `min_lr` and `ema_decay` are read from there. It has the methods that raise
    `NotImplementedError` here, and `training_step` and `predict_step` of Lightning.

    Args:
        label_smoothing, optimizer, lr, min_lr, ema_decay: arguments of the task, to be checked.
        votes: likewise; more than one look at every cloud by `validate` and `test`, beside the evaluation by one.
        all_points: likewise; carry predictions to all points of every cloud, likewise.

    Raises:
        ValueError: one of them is out of range.
    """

    #: names of what `compute_metrics` returns
    METRICS: ClassVar[tuple[str, ...]] = ()
    network: nn.Module

    def __init__(
        self,
        label_smoothing: float,
        optimizer: str,
        lr: float,
        min_lr: float,
        ema_decay: float | None = None,
        votes: int = 1,
        all_points: bool = False,
    ) -> None:
        super().__init__()
        if optimizer not in OPTIMIZERS:
            raise ValueError(f"expected optimizer to be one of {', '.join(OPTIMIZERS)}, but got {optimizer!r}")
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"expected 0 <= label_smoothing < 1, but got {label_smoothing}")
        if not lr > 0 or not 0 <= min_lr <= lr:
            raise ValueError(f"expected 0 <= min_lr <= lr and lr > 0, but got lr={lr}, min_lr={min_lr}")
        if ema_decay is not None and not 0 <= ema_decay < 1:
            raise ValueError(f"expected 0 <= ema_decay < 1, but got {ema_decay}")
        if votes < 1:
            raise ValueError(f"expected votes >= 1, but got {votes}")
        self.votes, self.all_points = votes, all_points
        self.eval_loss = MeanMetric()
        self._train_loss = torch.zeros(2)  # sum over the clouds of the epoch so far, and their number

    def logits(self, batch: PointBatch) -> Tensor:
        """What the network answers to a batch."""
        raise NotImplementedError

    def evaluate(self, batch: PointBatch) -> None:
        """Add a batch to the metrics."""
        raise NotImplementedError

    def evaluate_looks(self, cloud: PointBatch, own: Tensor, looks: PointBatch) -> None:
        """Add several looks at one cloud to the metrics that are measured with them.

        Args:
            cloud: the complete cloud, a batch of one.
            own: (N,) the points of it that were evaluated by one look.
            looks: see `pcattn.tasks.voting.draw_votes`.
        """
        raise NotImplementedError

    def compute_metrics(self, split: str) -> dict[str, Tensor]:
        """The metrics over all batches since the last call, named `<split>/<metric>`."""
        raise NotImplementedError

    def report(self, split: str) -> str:
        """The last evaluation in words."""
        raise NotImplementedError

    def save_report(self, split: str, folder: Path) -> list[Path]:
        """Write the last evaluation as files into a folder, which is made if need be; which ones."""
        return []

    def save_predictions(self, batches: list[dict[str, Tensor]], folder: Path) -> Path:
        """Write what `predict_step` returned to a file in a folder, likewise; which one."""
        raise NotImplementedError

    def on_train_batch_start(self, batch: PointBatch, batch_idx: int) -> None:
        """Tie the network's own randomness to the batch, so that a resumed run repeats it."""
        torch.manual_seed(batch.seed)

    def on_validation_batch_start(self, batch: PointBatch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Refuse clouds with NaN or infinity, which metrics would count as any class."""
        if cause := _not_finite(batch):
            raise NonFiniteError(f"expected finite clouds, but {cause}")

    on_test_batch_start = on_predict_batch_start = on_validation_batch_start

    def validation_step(self, batch: PointBatch, batch_idx: int) -> None:
        """Add a batch to the metrics; further looks only where validation is all that is done."""
        self.evaluate(batch)
        if self._looks_again and self.trainer.state.fn == TrainerFn.VALIDATING:
            self._look_again(batch, "val")

    def test_step(self, batch: PointBatch, batch_idx: int) -> None:
        """Add a batch to the metrics."""
        self.evaluate(batch)
        if self._looks_again:
            self._look_again(batch, "test")

    @property
    def _looks_again(self) -> bool:
        """Whether there is more than one look at every cloud, or it is judged at all its points."""
        return self.votes > 1 or self.all_points

    def _look_again(self, batch: PointBatch, split: str) -> None:
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        points: Any = batch.point_indices
        for position, index in enumerate(batch.indices.tolist()):
            cloud, own = move_data_to_device(data.complete_cloud(split, index), self.device), points[position]
            self.evaluate_looks(cloud, own, draw_votes(cloud, own, self.votes))

    def on_validation_epoch_start(self) -> None:
        """Let all processes validate the network that the checkpoint will hold: with the same running statistics.

        Each process has those of its own batches, unless batch normalisation is synchronised. The mean over the
        processes is what a single one would have seen on average.
        """
        if self.trainer.world_size > 1:
            for buffer in self.network.buffers():
                if buffer.is_floating_point():
                    buffer.copy_(self.trainer.strategy.reduce(buffer.clone(), reduce_op="mean"))

    def on_validation_epoch_end(self) -> None:
        """Log the metrics over all validation samples, of all processes."""
        self.log_dict(self.compute_metrics("val"), prog_bar=True, sync_dist=True)

    def on_test_epoch_end(self) -> None:
        """Log the metrics over all test samples."""
        self.log_dict(self.compute_metrics("test"), prog_bar=True, sync_dist=True)

    def configure_callbacks(self) -> list[Callback]:
        """The averaging of the weights, where it is asked for."""
        decay = self.hparams.get("ema_decay")
        return [] if decay is None else [AveragedWeights(decay)]

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """The optimiser, with a cosine schedule stepped after every batch."""
        h: Any = self.hparams
        optimizer = build_optimizer(h["optimizer"], self.parameters(), h["lr"], h["momentum"], h["weight_decay"])
        total = int(self.trainer.estimated_stepping_batches)
        warmup = round(total * h["warmup_epochs"] / max(1, self.trainer.max_epochs or 1))
        schedule = build_schedule(optimizer, h["lr"], h["min_lr"], warmup, total)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def log_train_loss(self, loss: Tensor, batch: PointBatch) -> None:
        """Count a loss in `train/loss`, the mean over the epoch, once it is known to be a number.

        Raises:
            NonFiniteError: it is not. The batch lies in a file in the run then, and the weights are those before it.
        """
        if not bool(loss.detach().isfinite()):
            raise NonFiniteError(self._save_batch(loss, batch))
        size = len(batch.pos)
        self._train_loss = self._train_loss.to(loss.device) + torch.tensor([size * loss.item(), size]).to(loss.device)

    def on_train_epoch_end(self) -> None:
        """Log `train/loss`, before the checkpoint of the epoch is saved: killed in between, a run would lack it."""
        total, number = self._summed_train_loss().tolist()
        self._train_loss = torch.zeros(2)
        metrics = {"train/loss": total / max(number, 1)}
        self.log_dict(metrics, prog_bar=True, logger=False)
        for logger in self.loggers:
            logger.log_metrics(metrics | {"epoch": self.current_epoch}, step=self.global_step - 1)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the loss of an epoch that has not ended."""
        checkpoint["train_loss"] = self._summed_train_loss().cpu()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on with it, in one of the processes."""
        if "train_loss" in checkpoint and self._trainer is not None and self._trainer.is_global_zero:
            self._train_loss = checkpoint["train_loss"]

    def _summed_train_loss(self) -> Tensor:
        """Of all processes."""
        return self.trainer.strategy.reduce(self._train_loss.to(self.device).clone(), reduce_op="sum")

    def _save_batch(self, loss: Tensor, batch: PointBatch) -> str:
        """Save a batch whose loss is not finite; what happened, in words."""
        folder = Path(self.trainer.default_root_dir)
        path = folder / f"nonfinite-epoch{self.current_epoch}-step{self.global_step}.pt"
        fields = {name: value for name, value in batch._asdict().items() if value is not None}
        identity = {"epoch": self.current_epoch, "step": self.global_step, "loss": float(loss.detach())}
        folder.mkdir(parents=True, exist_ok=True)
        torch.save(identity | fields, path)
        cause = _not_finite(batch)
        if cause is None and not all(bool(parameter.isfinite().all()) for parameter in self.parameters()):
            cause = "the weights are not finite"
        clouds = ", ".join(map(str, batch.indices[:8].tolist())) + (", ..." if len(batch.indices) > 8 else "")
        return (
            f"expected a finite loss, but got {float(loss.detach())} in epoch {self.current_epoch}, step "
            f"{self.global_step} (batch of clouds {clouds}): "
            f"{cause or 'clouds and weights are finite, so training diverges: try a smaller lr'}. "
            f"The batch is saved in {path}"
        )


def _not_finite(batch: PointBatch) -> str | None:
    """Which clouds of a batch hold NaN or infinity, in words; None if none does."""
    for name in ("pos", "normals", "features"):
        field = getattr(batch, name)
        if field is not None and not bool((finite := field.isfinite().all(dim=2).all(dim=1)).all()):
            clouds = ", ".join(map(str, batch.indices[~finite].tolist()[:8]))
            return f"{name} of clouds {clouds} of the data set has NaN or infinity"
    return None
