"""What every task shares: optimiser and schedule, randomness, and the course of an evaluation."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from pytorch_lightning import LightningModule
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torchmetrics import MeanMetric

from pcattn.tasks.optimization import OPTIMIZERS, build_optimizer, build_schedule

if TYPE_CHECKING:
    from pcattn.datasets import PointBatch


class NonFiniteError(ValueError):
    """A batch holds NaN or infinity, or leads to a loss that is one."""


class PointCloudTask(LightningModule):
    """A network with its loss, metrics and optimiser.

    A task keeps its arguments, plain data all of them, as hyper-parameters: `optimizer`, `lr`, `momentum`,
    `weight_decay`, `warmup_epochs` and `min_lr` are read from there. It has the methods that raise
    `NotImplementedError` here, and `training_step` and `predict_step` of Lightning.

    Args:
        label_smoothing, optimizer, lr, min_lr: arguments of the task, to be checked.

    Raises:
        ValueError: one of them is out of range.
    """

    #: names of what `compute_metrics` returns
    METRICS: ClassVar[tuple[str, ...]] = ()
    network: nn.Module

    def __init__(self, label_smoothing: float, optimizer: str, lr: float, min_lr: float) -> None:
        super().__init__()
        if optimizer not in OPTIMIZERS:
            raise ValueError(f"expected optimizer to be one of {', '.join(OPTIMIZERS)}, but got {optimizer!r}")
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"expected 0 <= label_smoothing < 1, but got {label_smoothing}")
        if not lr > 0 or not 0 <= min_lr <= lr:
            raise ValueError(f"expected 0 <= min_lr <= lr and lr > 0, but got lr={lr}, min_lr={min_lr}")
        self.eval_loss = MeanMetric()

    def evaluate(self, batch: PointBatch) -> None:
        """Add a batch to the metrics."""
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
        """Add a batch to the metrics."""
        self.evaluate(batch)

    def test_step(self, batch: PointBatch, batch_idx: int) -> None:
        """Add a batch to the metrics."""
        self.evaluate(batch)

    def on_validation_epoch_end(self) -> None:
        """Log the metrics over all validation samples."""
        self.log_dict(self.compute_metrics("val"), prog_bar=True)

    def on_test_epoch_end(self) -> None:
        """Log the metrics over all test samples."""
        self.log_dict(self.compute_metrics("test"), prog_bar=True)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """The optimiser, with a cosine schedule stepped after every batch."""
        h: Any = self.hparams
        optimizer = build_optimizer(h["optimizer"], self.parameters(), h["lr"], h["momentum"], h["weight_decay"])
        total = int(self.trainer.estimated_stepping_batches)
        warmup = round(total * h["warmup_epochs"] / max(1, self.trainer.max_epochs or 1))
        schedule = build_schedule(optimizer, h["lr"], h["min_lr"], warmup, total)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def log_train_loss(self, loss: Tensor, batch: PointBatch) -> None:
        """Log `train/loss`, the mean over the epoch, once it is known to be a number.

        Raises:
            NonFiniteError: it is not. The batch lies in a file in the run then, and the weights are those before it.
        """
        if not bool(loss.detach().isfinite()):
            raise NonFiniteError(self._save_batch(loss, batch))
        self.log("train/loss", loss, on_step=False, on_epoch=True, batch_size=len(batch.pos), prog_bar=True)

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
