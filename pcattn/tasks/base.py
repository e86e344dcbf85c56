"""What every task shares: optimizer and schedule, randomness, and the course of an evaluation."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from pytorch_lightning import Callback, LightningModule
from pytorch_lightning.trainer.states import TrainerFn
from pytorch_lightning.utilities import move_data_to_device
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torchmetrics import MeanMetric

from pcattn.tasks.optimization import (
    OPTIMIZERS,
    AveragedWeights,
    build_optimizer,
    build_schedule,
    check_mode,
    compile_network,
)
from pcattn.tasks.voting import draw_votes
from pcattn.tasks.watch import FiniteWatch, NonFiniteError
from pcattn.utils.errors import InputError
from pcattn.utils.files import write_bytes
from pcattn.utils.tensors import pack

if TYPE_CHECKING:
    from pcattn.data import PointBatch


class PointCloudTask(LightningModule):
    """A network with its loss, metrics and optimizer.

    A task keeps its arguments, plain data all of them, as hyper-parameters: `optimizer`, `lr`, `momentum`,
    `weight_decay`, `warmup_epochs`, `min_lr` and `ema_decay` are read from there. It has the methods that raise
    `NotImplementedError` here, and `training_step` and `predict_step` of Lightning.

    Args:
        label_smoothing, optimizer, lr, min_lr, ema_decay: arguments of the task, to be checked.
        votes: likewise; more than one look at every cloud by `validate` and `test`, beside the evaluation by one.
        all_points: likewise; carry predictions to all points of every cloud, likewise.
        compile: likewise; compile the network when a trainer takes it to its device.

    Raises:
        InputError: one of them is out of range.
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
        self.votes, self.all_points = votes, all_points
        self._to_compile = compile
        self.eval_loss = MeanMetric()
        self._train_loss = torch.zeros(2)  # sum over the clouds of the epoch so far, and their number
        self.watch = FiniteWatch()

    def setup(self, stage: str) -> None:
        """Compile the network, once, where that is asked for and pays on the device of the trainer."""
        mode, self._to_compile = self._to_compile, False
        if mode:
            compile_network(self.network, mode, self.trainer.strategy.root_device.type)

    def logits(self, batch: PointBatch) -> Tensor:
        """What the network answers to a batch."""
        raise NotImplementedError

    def finite_logits(self, batch: PointBatch) -> Tensor:
        """`logits`, which metrics would take for any class where they are NaN.

        Raises:
            NonFiniteError: some are not finite; on a GPU with the next batch, or when the metrics are computed.
        """
        logits = self.logits(batch)
        self.watch.see(logits.detach().isfinite().all(), lambda _: self._explain(batch, logits))
        return logits

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
        """Refuse clouds with NaN or infinity; on a GPU `finite_logits` finds out, without waiting for it."""
        if batch.pos.device.type == "cpu" and (cause := _not_finite(batch)):
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

        Each process has those of its own batches, unless batch normalization is synchronized. The mean over the
        processes is what a single one would have seen on average.
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
        """Save no weights that the last step has spoiled, and the loss of an epoch that has not ended."""
        self.watch.flush()
        checkpoint["train_loss"] = self._summed_train_loss().cpu()

    def on_train_end(self) -> None:
        """Look at the last step."""
        self.watch.flush()

    on_predict_end = on_train_end

    def configure_callbacks(self) -> list[Callback]:
        """The averaging of the weights, where it is asked for."""
        decay = self.hparams.get("ema_decay")
        return [] if decay is None else [AveragedWeights(decay)]

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """The optimizer, with a cosine schedule stepped after every batch.

        Raises:
            InputError: the training has no end that is known.
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
            NonFiniteError: the network refuses the batch, as ours do on the CPU, and it holds NaN or infinity. It lies
                in a file in the run then.
        """
        try:
            return self.logits(batch)
        except ValueError as error:
            if _not_finite(batch) is None:
                raise
            loss = torch.tensor(math.nan)
            raise NonFiniteError(self._save_batch(loss, batch, self.current_epoch, self.global_step, False)) from error

    def log_train_loss(self, loss: Tensor, batch: PointBatch) -> None:
        """Count a loss in `train/loss`, the mean over the epoch, once it is known to be a number.

        Raises:
            NonFiniteError: it is not. The batch lies in a file in the run then. On the CPU the weights are those before
                it; on a GPU the error comes with the next batch, and no checkpoint holds what the weights became.
        """
        value, epoch, step = loss.detach(), self.current_epoch, self.global_step
        self.watch.see(value.isfinite(), lambda late: self._save_batch(value, batch, epoch, step, late))
        size = len(batch.pos)
        # Added up where the loss is: reading it would wait for the GPU in every step.
        self._train_loss = self._train_loss.to(value.device) + torch.stack((value * size, torch.full_like(value, size)))

    def on_train_epoch_end(self) -> None:
        """Log `train/loss`, before the checkpoint of the epoch is saved: killed in between, a run would lack it."""
        total, number = self._summed_train_loss().tolist()
        self._train_loss = torch.zeros(2)
        metrics = {"train/loss": total / max(number, 1)}
        self.log_dict(metrics, prog_bar=True, logger=False)
        for logger in self.loggers:
            logger.log_metrics(metrics | {"epoch": self.current_epoch}, step=self.global_step - 1)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on with that loss, in one of the processes."""
        if "train_loss" in checkpoint and self._trainer is not None and self._trainer.is_global_zero:
            self._train_loss = checkpoint["train_loss"]

    def _summed_train_loss(self) -> Tensor:
        """Of all processes."""
        return self.trainer.strategy.reduce(self._train_loss.to(self.device).clone(), reduce_op="sum")

    def _save_batch(self, loss: Tensor, batch: PointBatch, epoch: int, step: int, late: bool) -> str:
        """Save a batch whose loss is not finite; what happened, in words. Late means after a step that it spoiled."""
        folder = Path(self.trainer.default_root_dir)
        # The processes of one training have batches of their own.
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
        """What is wrong with logits that are not finite, in words."""
        clouds = batch.indices[~logits.isfinite().flatten(1).all(dim=1)]
        cause = _not_finite(batch) or self._not_finite_weights() or "clouds and weights are finite, products are not"
        return f"expected finite logits, but the network has others for clouds {_listed(clouds)}: {cause}"

    def _not_finite_weights(self) -> str | None:
        finite = all(bool(values.isfinite().all()) for values in self.network.state_dict().values())
        return None if finite else "the weights are not finite"


def _not_finite(batch: PointBatch) -> str | None:
    """Which clouds of a batch hold NaN or infinity, in words; None if none does."""
    for name in ("pos", "normals", "features"):
        field = getattr(batch, name)
        if field is not None and not bool((finite := field.isfinite().all(dim=2).all(dim=1)).all()):
            return f"{name} of clouds {_listed(batch.indices[~finite])} of the data set has NaN or infinity"
    return None


def _listed(clouds: Tensor) -> str:
    return ", ".join(map(str, clouds[:8].tolist())) + (", ..." if len(clouds) > 8 else "")
