"""Classification of whole clouds."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor
from torch.nn import functional as F
from torchmetrics.classification import MulticlassConfusionMatrix

from pcattn.attention import AttentionName
from pcattn.models import ModelName, build_classifier
from pcattn.tasks.base import PointCloudTask
from pcattn.tasks.losses import mixed_cross_entropy, torch_smoothing
from pcattn.utils.checks import check_labels
from pcattn.utils.errors import InputError
from pcattn.utils.files import atomic_write
from pcattn.utils.registry import import_path

if TYPE_CHECKING:
    from pcattn.data import PointBatch


class Classification(PointCloudTask):
    """Train and evaluate a point-cloud classifier.

    Logs `train/loss`, `val/loss`, and on validation and test the overall accuracy `oa` and the mean class accuracy
    `macc`, both from one confusion matrix over all samples. `train/loss` is what is minimized, with smoothed and mixed
    labels; `val/loss` is the cross-entropy alone, so that their levels cannot be compared. Every argument is plain data
    and kept in the checkpoint, so that YAML, command line, Python and checkpoints build the same object.

    Args:
        num_classes: number of classes; the command line takes it from the data.
        variant: network, a PCT (`pcattn.models.PCTClassifier`) or a hierarchical one (`HierarchicalBackbone`).
        attention: name of the attention mechanism; None is the variant's own. A list, of a hierarchical network, has
            one a level.
        attention_kwargs: arguments of the mechanism.
        network_kwargs: further arguments of the network (`dim`, `depth`, `k`, `dropout`, ...).
        num_features: channels of a point beside its position; the command line takes it from the data.
        class_names: names of the classes; likewise.
        votes: looks at every cloud by `validate` and `test`, see `pcattn.tasks.voting`; with more than one, what they
            agree on is measured beside what one look finds, in a line of its own.
        label_smoothing: eps; the true class gets 1 - eps, the K - 1 others eps / (K - 1) each, as in PCT's code.
        optimizer: `"sgd"` or `"adamw"`.
        lr: learning rate after the warm-up.
        momentum: of SGD.
        weight_decay: of either.
        warmup_epochs: epochs of linear warm-up.
        min_lr: learning rate at the end of the cosine.
        ema_decay: of `AveragedWeights`, with which validation, checkpoints and test then work; None is off.
        compile: compile the network with `torch.compile`, true or a mode of it like `"reduce-overhead"` (CUDA graphs);
            the same function, faster after a slow first step. On the CPU it is left out, with a warning, without a C++
            compiler and for networks that have local aggregation.
    """

    METRICS: ClassVar[tuple[str, ...]] = ("loss", "oa", "macc")

    def __init__(
        self,
        num_classes: int,
        variant: ModelName = "pct",
        attention: list[str] | AttentionName | None = None,
        attention_kwargs: dict[str, Any] | None = None,
        network_kwargs: dict[str, Any] | None = None,
        num_features: int = 0,
        class_names: list[str] | None = None,
        votes: int = 1,
        label_smoothing: float = 0.2,
        optimizer: str = "sgd",
        lr: float = 0.01,
        momentum: float = 0.9,
        weight_decay: float = 5e-4,
        warmup_epochs: float = 0.0,
        min_lr: float = 1e-4,
        ema_decay: float | None = None,
        compile: bool | str = False,
    ) -> None:
        super().__init__(label_smoothing, optimizer, lr, min_lr, ema_decay, votes, compile=compile)
        if num_classes < 2:
            raise InputError(f"expected at least two classes to tell apart, but got num_classes {num_classes}")
        if class_names is not None and len(class_names) != num_classes:
            raise InputError(f"expected {num_classes} class_names, one a class, but got {len(class_names)}")
        variant, attention = import_path(variant), import_path(attention)  # hyper-parameters are plain data
        self.save_hyperparameters()
        self.num_classes = num_classes
        self.network = build_classifier(
            num_classes,
            variant,
            attention=attention,
            attention_kwargs=attention_kwargs,
            num_features=num_features,
            **(network_kwargs or {}),
        )
        self.class_names = class_names or [str(label) for label in range(num_classes)]
        self.label_smoothing = torch_smoothing(label_smoothing, num_classes)
        self.confusion = MulticlassConfusionMatrix(num_classes)
        self.vote_confusion = MulticlassConfusionMatrix(num_classes)

    def forward(self, pos: Tensor, features: Tensor | None = None) -> Tensor:
        """Logits (B, num_classes) of clouds (B, N, 3) with features (B, N, F)."""
        return self.network(pos, features)

    def logits(self, batch: PointBatch) -> Tensor:
        """Logits (B, num_classes) of a batch."""
        return self(batch.pos, batch.channels)

    def training_step(self, batch: PointBatch, batch_idx: int) -> Tensor:
        """Smoothed cross-entropy of a batch, whose clouds may be mixed."""
        check_labels("label", batch.label, self.num_classes, batch.indices)
        logits = self.training_logits(batch)
        if batch.mixed_label is None or batch.mixed_weight is None:
            loss = F.cross_entropy(logits, batch.label.long(), label_smoothing=self.label_smoothing)
        else:
            loss = mixed_cross_entropy(logits, batch.mixed_label, batch.mixed_weight, self.label_smoothing)
        self.log_train_loss(loss, batch)
        return loss

    def predict_step(self, batch: PointBatch, batch_idx: int) -> dict[str, Tensor]:
        """Index, predicted class, and probabilities of each cloud of a batch."""
        probabilities = self.finite_logits(batch).softmax(dim=1)
        return {"indices": batch.indices, "label": probabilities.argmax(dim=1), "probabilities": probabilities}

    def evaluate(self, batch: PointBatch) -> None:
        """Add a batch to the metrics."""
        check_labels("label", batch.label, self.num_classes, batch.indices)
        logits = self.finite_logits(batch)
        self.confusion.update(logits, batch.label)
        self.eval_loss.update(F.cross_entropy(logits, batch.label.long(), reduction="none"))

    def evaluate_looks(self, cloud: PointBatch, own: Tensor, looks: PointBatch) -> None:
        """Add the mean of the looks' probabilities to the metrics of votes."""
        self.vote_confusion.update(self.logits(looks).softmax(dim=1).mean(dim=0, keepdim=True), cloud.label)

    def compute_metrics(self, split: str) -> dict[str, Tensor]:
        """Loss and both accuracies over all samples since the last call, and both with votes where there were any."""
        matrix = self.confusion.compute()
        self.last_confusion = matrix
        self.last_votes: Tensor | None = None
        metrics = {"loss": self.eval_loss.compute(), **accuracies(matrix)}
        if self.vote_confusion.update_called:
            self.last_votes = self.vote_confusion.compute()
            found = accuracies(self.last_votes)
            metrics |= {f"votes_{self.votes}/{name}": value for name, value in found.items()}
        for metric in (self.confusion, self.vote_confusion, self.eval_loss):
            metric.reset()
        return {f"{split}/{name}": value for name, value in metrics.items()}

    def report(self, split: str) -> str:
        """The last evaluation in words: both accuracies, and for each class its own and its most frequent mistake."""
        matrix = self.last_confusion.cpu()
        total, right = int(matrix.sum()), int(matrix.diagonal().sum())
        accuracy = class_accuracy(matrix)
        width = max(map(len, self.class_names))
        lines = [f"{'class':{width}}  accuracy  clouds  most often taken for"]
        for label, name in enumerate(self.class_names):
            count = int(matrix[label].sum())
            if count == 0:
                lines.append(f"{name:{width}}         -       0")
                continue
            wrong = matrix[label].clone()
            wrong[label] = 0
            mistake = f"{self.class_names[int(wrong.argmax())]} ({int(wrong.max())})" if wrong.any() else ""
            lines.append(f"{name:{width}}  {accuracy[label]:8.4f}  {count:6d}  {mistake}".rstrip())
        lines.append(
            f"{split}: overall accuracy {right / total:.4f} ({right} of {total}), "
            f"mean class accuracy {accuracy.nanmean():.4f}"
        )
        if self.last_votes is not None:
            voted = accuracies(self.last_votes.cpu())
            lines.append(
                f"{split}, mean of {self.votes} votes: overall accuracy {voted['oa']:.4f}, "
                f"mean class accuracy {voted['macc']:.4f}"
            )
        return "\n".join(lines)

    def save_predictions(self, batches: list[dict[str, Tensor]], folder: Path) -> Path:
        """Write `predictions.csv`: the predicted class of each cloud and its probability."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "predictions.csv"
        with atomic_write(path) as temporary, temporary.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["index", "label", "class", "probability"])
            for batch in batches:
                top = batch["probabilities"].amax(dim=1)
                for index, label, probability in zip(batch["indices"], batch["label"], top, strict=True):
                    writer.writerow([int(index), int(label), self.class_names[int(label)], f"{probability:.6f}"])
        return path


def accuracies(confusion: Tensor) -> dict[str, Tensor]:
    """Overall accuracy and mean class accuracy of a confusion matrix (K, K) with the truth in its rows."""
    return {"oa": confusion.diagonal().sum() / confusion.sum(), "macc": class_accuracy(confusion).nanmean()}


def class_accuracy(confusion: Tensor) -> Tensor:
    """Share of each class's samples that were recognized, from a confusion matrix (K, K) with the truth in its rows.

    Shape:
        (K,), NaN for a class without samples: it is left out of the mean class accuracy, where counting it as zero
        would punish a prediction that no sample asked for.
    """
    return confusion.diagonal() / confusion.sum(dim=1)
