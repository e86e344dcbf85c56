"""Classification of whole clouds."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F
from torchmetrics.classification import MulticlassConfusionMatrix

from pcattn.attention import AttentionName
from pcattn.models import ModelName, build_classifier
from pcattn.tasks.base import MetricInfo, PointCloudTask
from pcattn.tasks.losses import mixed_cross_entropy, torch_smoothing
from pcattn.tasks.registry import register_task
from pcattn.utils.checks import check_labels
from pcattn.utils.errors import InputError
from pcattn.utils.files import atomic_write
from pcattn.utils.registry import import_path
from pcattn.visualize.charts import Confusion
from pcattn.visualize.scene import Cloud, Field, errors, labels, quantity

if TYPE_CHECKING:
    from pcattn.data import PointBatch


@register_task
class Classification(PointCloudTask):
    """Train and evaluate a point-cloud classifier.

    Logs `train/loss`, and in validation and test `loss`, the overall accuracy `oa` and the mean class accuracy `macc`,
    both from one confusion matrix over all samples. `train/loss` is what is minimized, with smoothed and mixed labels;
    `val/loss` is the plain cross-entropy, so do not compare their levels.

    Args:
        num_classes: number of classes; the command line takes it from the data.
        variant: network, a PCT (`pcattn.models.PCTClassifier`) or a hierarchical one (`HierarchicalBackbone`).
        attention: name of the attention mechanism; None is the variant's own. A list gives each level of a
            hierarchical network its own.
        attention_kwargs: arguments of the mechanism.
        network_kwargs: further arguments of the network (`dim`, `depth`, `k`, `dropout`, ...).
        num_features: channels of a point beside its position; the command line takes it from the data.
        class_names: names of the classes; the command line takes them from the data.
        votes: votes per cloud in `validate` and `test`, see `pcattn.tasks.voting`. More than one are reported on a
            line below the result of one.
        label_smoothing: eps; the true class gets 1 - eps, the K - 1 others eps / (K - 1) each, as in PCT's code.
        optimizer: `"sgd"` or `"adamw"`.
        lr: learning rate after the warm-up.
        momentum: momentum of SGD.
        weight_decay: weight decay of either optimizer.
        warmup_epochs: epochs of linear warm-up.
        min_lr: learning rate at the end of the cosine.
        ema_decay: decay of `AveragedWeights`, which validation, checkpoints and test then use; None turns it off.
        compile: compile the network with `torch.compile`: true, or a mode like `"reduce-overhead"` (CUDA graphs).
            Results stay the same; the first step is slow. On the CPU this is skipped with a warning if there is no C++
            compiler or the network has local aggregation.
    """

    TITLE = "classification"
    METRICS: ClassVar[Mapping[str, MetricInfo]] = {
        "loss": MetricInfo("loss", "min", ""),
        "oa": MetricInfo("accuracy"),
        "macc": MetricInfo("mean class accuracy"),
    }
    PRIMARY = ROBUSTNESS = "oa"
    FIELDS = ("prediction",)
    OUTPUTS = ("label", "probability", "probabilities")
    ENTRIES, HEADING = "classes", "class"

    last_confusion: Tensor

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
        logits: Tensor = self.network(pos, features)
        return logits

    def check_targets(self, batch: PointBatch) -> None:
        """Refuse labels out of range."""
        check_labels("label", batch.label, self.num_classes, batch.indices)

    def loss(self, logits: Tensor, batch: PointBatch) -> Tensor:
        """Cross-entropy with smoothed labels, of clouds that may be mixed."""
        if batch.mixed_label is None or batch.mixed_weight is None:
            return F.cross_entropy(logits, batch.label.long(), label_smoothing=self.label_smoothing)
        return mixed_cross_entropy(logits, batch.mixed_label, batch.mixed_weight, self.label_smoothing)

    def update_metrics(self, logits: Tensor, batch: PointBatch) -> None:
        """Add a batch to the confusion matrix and the loss."""
        self.confusion.update(logits, batch.label)
        self.eval_loss.update(F.cross_entropy(logits, batch.label.long(), reduction="none"))

    def update_voted_metrics(self, cloud: PointBatch, own: Tensor, views: PointBatch, predictions: Tensor) -> None:
        """Add the mean of the views' probabilities to the confusion matrix of votes."""
        self.vote_confusion.update(predictions.mean(dim=0, keepdim=True), cloud.label)

    def predictions(self, logits: Tensor, category: int = 0) -> Tensor:
        """Probabilities (B, num_classes)."""
        return logits.softmax(dim=1)

    def attributes(self, predictions: Tensor, category: int = 0) -> dict[str, NDArray[Any]]:
        """`label` and its `probability`, and the `probabilities` (K,) of all classes."""
        probabilities = predictions.cpu().numpy()
        label = probabilities.argmax()
        return {"label": label, "probability": probabilities[label], "probabilities": probabilities}

    def entries(self, result: NDArray[Any], category: int = 0) -> list[dict[str, Any]]:
        """The classes, the most probable first."""
        order = np.argsort(-result, kind="stable").tolist()
        return [
            {
                "rank": rank,
                "class": self.class_names[label],
                "label": label,
                "probability": round(float(result[label]), 6),
            }
            for rank, label in enumerate(order, 1)
        ]

    def format_entries(self, entries: Sequence[Mapping[str, Any]], num_points: int) -> list[str]:
        """A cell per class."""
        return [f"{entry['class']} {entry['probability']:.3f}" for entry in entries]

    def predict_step(self, batch: PointBatch, batch_idx: int) -> dict[str, Tensor]:
        """Index, class, predicted class, and probabilities of each cloud of a batch."""
        probabilities = self.predictions(self.finite_logits(batch))
        label = probabilities.argmax(dim=1)
        return {"indices": batch.indices, "truth": batch.label, "label": label, "probabilities": probabilities}

    def describe(self, batch: PointBatch, logits: Tensor) -> list[Cloud]:
        """The clouds of a batch; all points of a cloud have its class, its error and its probability."""
        names = self.class_names
        top = self.predictions(logits).max(dim=1)
        clouds = []
        for i, index in enumerate(batch.indices.tolist()):
            truth, label, probability = int(batch.label[i]), int(top.indices[i]), float(top.values[i])
            right, ones = label == truth, np.ones(batch.pos.shape[1], dtype=np.int64)
            fields = {
                "prediction": labels(label * ones, names),
                "truth": labels(truth * ones, names),
                "error": errors(ones * (not right) > 0),
                "probability": quantity(probability * ones),
            }
            pos, score = batch.pos[i].cpu().numpy(), probability if right else -probability
            note = f"{names[label]} {100 * probability:.0f} %"
            clouds.append(Cloud(pos, f"{names[truth]} {index}", fields, note, right, index=index, score=score))
        return clouds

    def fields(
        self, attributes: Mapping[str, NDArray[Any]], num_points: int, category: int = 0
    ) -> tuple[dict[str, Field], str]:
        """The predicted class, at every point."""
        label, probability = int(attributes["label"]), float(attributes["probability"])
        field = labels(np.full(num_points, label), self.class_names)
        return {"prediction": field}, f"{self.class_names[label]} {100 * probability:.0f} %"

    def confusion_counts(self, batch: PointBatch, logits: Tensor) -> NDArray[np.int64]:
        """Clouds by class (rows) and predicted class (columns)."""
        counts = np.zeros((self.num_classes, self.num_classes), dtype=np.int64)
        np.add.at(counts, (batch.label.cpu().numpy(), logits.argmax(dim=1).cpu().numpy()), 1)
        return counts

    def confusions(self, counts: NDArray[np.int64]) -> list[Confusion]:
        """The confusion matrix of the classes."""
        return [Confusion("", counts, self.class_names, self.class_names)]

    def category_scores(self) -> tuple[str, list[tuple[str, float | None, int]]]:
        """The accuracy of each class."""
        counts = self.last_confusion.sum(dim=1).tolist()
        accuracy = class_accuracy(self.last_confusion).tolist()
        scores = [score if count else None for score, count in zip(accuracy, counts, strict=True)]
        return "accuracy, %", list(zip(self.class_names, scores, counts, strict=True))

    def compute_metrics(self, split: str) -> dict[str, Tensor]:
        """Loss and both accuracies over all samples since the last call, with votes as well if there were any."""
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
        """Accuracy and most frequent mistake of each class, and both means."""
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

    def save_predictions(
        self, batches: Sequence[Mapping[str, Tensor]], folder: Path, names: Sequence[str] | None = None
    ) -> Path:
        """Write `predictions.csv`: file, class, predicted class and its probability for each cloud."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "predictions.csv"
        with atomic_write(path) as temporary, temporary.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["index", "file", "truth", "prediction", "probability"])
            for batch in batches:
                columns = (batch["indices"], batch["truth"], batch["label"], batch["probabilities"].amax(dim=1))
                for index, truth, label, probability in zip(*(column.tolist() for column in columns), strict=True):
                    file_name = "" if names is None else names[index]
                    classes = self.class_names[truth], self.class_names[label]
                    writer.writerow([index, file_name, *classes, f"{probability:.6f}"])
        return path


def accuracies(confusion: Tensor) -> dict[str, Tensor]:
    """Overall accuracy and mean class accuracy of a confusion matrix (K, K) with the truth in its rows."""
    return {"oa": confusion.diagonal().sum() / confusion.sum(), "macc": class_accuracy(confusion).nanmean()}


def class_accuracy(confusion: Tensor) -> Tensor:
    """Accuracy of each class, from a confusion matrix (K, K) with the truth in its rows.

    Shape:
        (K,), NaN for a class without samples, which the mean class accuracy leaves out.
    """
    return confusion.diagonal() / confusion.sum(dim=1)
