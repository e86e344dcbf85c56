"""Segmentation of clouds into the parts of their category."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import MeanMetric

from pcattn.attention import AttentionName
from pcattn.metrics import PROTOCOLS, PartIoU, part_iou, predict_parts
from pcattn.metrics.functional import PartIoUResult
from pcattn.models import ModelName, build_segmenter
from pcattn.ops import interpolate
from pcattn.tasks.base import MetricInfo, PointCloudTask
from pcattn.tasks.losses import lovasz_softmax, torch_smoothing
from pcattn.tasks.registry import register_task
from pcattn.tasks.voting import average_votes
from pcattn.utils.checks import check_labels
from pcattn.utils.errors import InputError
from pcattn.utils.files import atomic_write, write_text
from pcattn.utils.registry import import_path
from pcattn.visualize.charts import Confusion
from pcattn.visualize.colors import palette
from pcattn.visualize.scene import Cloud, Field, errors, labels, quantity

if TYPE_CHECKING:
    from pcattn.data import PointBatch


@register_task
class PartSegmentation(PointCloudTask):
    """Train and evaluate a network that finds the part of every point.

    Logs `train/loss`, and in validation and test `loss`, `point_accuracy`, `instance_miou` and `class_miou`, all over
    all samples. `train/loss` is what is minimized, with smoothed labels and the Lovász term; `val/loss` is the plain
    cross-entropy, so do not compare their levels. With one category this is semantic segmentation.

    Args:
        parts: part ids of each category; the command line takes them from the data (`per_point: true`).
        variant: network, a PCT (`pcattn.models.PCTSegmenter`) or a hierarchical one (`HierarchicalBackbone`).
        attention: name of the attention mechanism; None is the variant's own. A list gives each level of a
            hierarchical network its own.
        attention_kwargs: arguments of the mechanism.
        network_kwargs: further arguments of the network (`dim`, `depth`, `k`, `dropout`, ...).
        num_features: channels of a point beside its position; the command line takes it from the data.
        class_names: names of the categories; the command line takes them from the data.
        part_names: names of the parts by their ids; the command line takes them from the data.
        conditioned: give the network the category, if there are several.
        protocol: which parts are predicted and how IoU counts, see `pcattn.metrics.part_iou`. `"category"` chooses
            among the parts of the shape's category.
        label_smoothing: eps; the true part gets 1 - eps, the K - 1 others eps / (K - 1) each, as in PCT's code.
        lovasz: weight of the Lovász-Softmax loss beside the cross-entropy; 0 leaves it out.
        votes: votes per cloud in `validate` and `test`, see `pcattn.tasks.voting`. More than one are reported on a
            line below the result of one.
        all_points: also interpolate the predictions to all points of every cloud and report the result there.
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

    TITLE = "part segmentation"
    METRICS: ClassVar[Mapping[str, MetricInfo]] = {
        "loss": MetricInfo("loss", "min", ""),
        "point_accuracy": MetricInfo("point accuracy"),
        "instance_miou": MetricInfo("instance mIoU"),
        "class_miou": MetricInfo("class mIoU"),
    }
    PRIMARY = ROBUSTNESS = "instance_miou"
    PER_POINT = USES_CATEGORY = True
    OUTPUTS = ("label", "probability")
    ENTRIES = HEADING = "parts"

    def __init__(
        self,
        parts: list[list[int]],
        variant: ModelName = "pct",
        attention: list[str] | AttentionName | None = None,
        attention_kwargs: dict[str, Any] | None = None,
        network_kwargs: dict[str, Any] | None = None,
        num_features: int = 0,
        class_names: list[str] | None = None,
        part_names: list[str] | None = None,
        conditioned: bool = True,
        protocol: str = "category",
        label_smoothing: float = 0.2,
        lovasz: float = 0.0,
        votes: int = 1,
        all_points: bool = False,
        optimizer: str = "sgd",
        lr: float = 0.01,
        momentum: float = 0.9,
        weight_decay: float = 5e-4,
        warmup_epochs: float = 0.0,
        min_lr: float = 1e-4,
        ema_decay: float | None = None,
        compile: bool | str = False,
    ) -> None:
        super().__init__(label_smoothing, optimizer, lr, min_lr, ema_decay, votes, all_points, compile)
        if not parts:
            raise InputError(f"expected parts of each category (data with per_point: true), but got {parts}")
        if not lovasz >= 0:
            raise InputError(f"expected lovasz >= 0, but got {lovasz}")
        if class_names is not None and len(class_names) != len(parts):
            raise InputError(f"expected {len(parts)} class_names, one a category, but got {len(class_names)}")
        variant, attention = import_path(variant), import_path(attention)  # hyper-parameters are plain data
        self.save_hyperparameters()
        self.parts = parts
        self.class_names = class_names or [str(category) for category in range(len(parts))]
        self.conditioned, self.protocol = conditioned, protocol
        self.lovasz = lovasz
        self.iou = PartIoU(parts, protocol)
        self.accuracy = MeanMetric()
        #: (votes, whether at all points) of each further line of an evaluation, and its metric
        self.variants = [(v, everywhere) for everywhere in sorted({False, all_points}) for v in sorted({1, votes})][1:]
        self.variant_ious: Any = nn.ModuleList(PartIoU(parts, protocol) for _ in self.variants)
        self.sizes: list[int] = []  # of the complete clouds
        self.num_points = 0  # that evaluation has seen of each
        num_parts = self.iou.table.num_parts
        if part_names is not None and len(part_names) != num_parts:
            raise InputError(f"expected {num_parts} part_names, one a part, but got {len(part_names)}")
        self.part_names = part_names or [str(part) for part in range(num_parts)]
        self.network = build_segmenter(
            num_parts,
            self.num_categories or None,
            variant,
            attention=attention,
            attention_kwargs=attention_kwargs,
            num_features=num_features,
            **(network_kwargs or {}),
        )
        self.label_smoothing = torch_smoothing(label_smoothing, num_parts)

    def forward(self, pos: Tensor, category: Tensor | None = None, features: Tensor | None = None) -> Tensor:
        """Logits (B, N, num_parts) of clouds (B, N, 3) of categories (B,) with features (B, N, F)."""
        logits: Tensor = self.network(pos, category, features)
        return logits

    @property
    def num_categories(self) -> int:
        """Categories that the network is conditioned on; 0 if it takes none."""
        return len(self.parts) if self.conditioned and len(self.parts) > 1 else 0

    def part_ids(self, category: int) -> list[int]:
        """The parts that a prediction chooses from: those of the category, or all, depending on the protocol."""
        return sorted(self.parts[category]) if PROTOCOLS[self.protocol].own_parts else list(range(len(self.part_names)))

    def check_targets(self, batch: PointBatch) -> None:
        """Refuse labels and categories out of range."""
        check_labels("label", batch.label, self.iou.table.num_parts, batch.indices)
        if batch.category is not None:
            check_labels("category", batch.category, len(self.parts), batch.indices)

    def loss(self, logits: Tensor, batch: PointBatch) -> Tensor:
        """Smoothed cross-entropy over the points of a batch, and the Lovász term."""
        loss = F.cross_entropy(logits.flatten(0, 1), batch.label.flatten().long(), label_smoothing=self.label_smoothing)
        return loss + self.lovasz * lovasz_softmax(logits.softmax(dim=2), batch.label) if self.lovasz else loss

    def update_metrics(self, logits: Tensor, batch: PointBatch) -> None:
        """Add a batch to the part IoU, the accuracy of the points and the loss."""
        self.num_points = logits.shape[1]
        self.iou.update(logits, batch.label, batch.category)
        predicted = predict_parts(logits, batch.category, self.parts, self.protocol)
        # Means of shapes, weighted by their points: the mean over all points.
        self.accuracy.update((predicted == batch.label).float().mean(dim=1), self.num_points)
        loss = F.cross_entropy(logits.flatten(0, 1), batch.label.flatten().long(), reduction="none")
        self.eval_loss.update(loss.view_as(predicted).mean(dim=1), self.num_points)

    def update_voted_metrics(self, cloud: PointBatch, own: Tensor, views: PointBatch, predictions: Tensor) -> None:
        """Add one cloud to the part IoU of votes and of all points, with the predictions that `pcattn.load` gives."""
        points: Any = views.point_indices
        drawn, mean = average_votes(points, predictions)
        one = interpolate(cloud.pos, cloud.pos[:, points[0]], predictions[:1])
        all_votes = interpolate(cloud.pos, cloud.pos[:, drawn], mean[None])
        ids = torch.tensor(self.part_ids(0 if cloud.category is None else int(cloud.category)), device=mean.device)
        for (votes, everywhere), iou in zip(self.variants, self.variant_ious, strict=True):
            found, label = one if votes == 1 else all_votes, cloud.label
            if not everywhere:
                found, label = found[:, own], label[:, own]
            full = found.new_zeros(*found.shape[:2], len(self.part_names)).index_copy(2, ids, found)
            iou.update(full, label, cloud.category)
        self.sizes.append(cloud.pos.shape[1])

    def predictions(self, logits: Tensor, category: int = 0) -> Tensor:
        """Probabilities (B, N, P) of the parts to choose from, see `part_ids`."""
        return logits[..., torch.tensor(self.part_ids(category), device=logits.device)].softmax(dim=2)

    def attributes(self, predictions: Tensor, category: int = 0) -> dict[str, NDArray[Any]]:
        """The part (N,) of each point as `label`, and its `probability`."""
        best = predictions.max(dim=1)
        label = torch.tensor(self.part_ids(category))[best.indices.cpu()]
        # A mean of ones may exceed one by rounding.
        return {"label": label.numpy(), "probability": best.values.cpu().clamp(max=1.0).numpy()}

    def point_colors(self, attributes: Mapping[str, NDArray[Any]], category: int = 0) -> NDArray[np.uint8]:
        """A color per part, in the order of the parts."""
        ids = self.part_ids(category)
        return palette(len(ids))[np.searchsorted(ids, attributes["label"])]

    def count(self, attributes: Mapping[str, NDArray[Any]], category: int = 0) -> NDArray[np.int64]:
        """Points of each part."""
        return np.bincount(attributes["label"], minlength=len(self.part_names)).astype(np.int64)

    def entries(self, result: NDArray[Any], category: int = 0) -> list[dict[str, Any]]:
        """The parts to choose from, with their colors and numbers of points."""
        ids = self.part_ids(category)
        return [
            {"part": self.part_names[label], "label": label, "color": color.tolist(), "points": int(result[label])}
            for label, color in zip(ids, palette(len(ids)), strict=True)
        ]

    def format_entries(self, entries: Sequence[Mapping[str, Any]], num_points: int) -> list[str]:
        """The share of each part that occurs, in one cell."""
        present = [entry for entry in entries if entry["points"]]
        return [", ".join(f"{entry['part']} {100 * entry['points'] / num_points:.1f} %" for entry in present)]

    def describe(self, batch: PointBatch, logits: Tensor) -> list[Cloud]:
        """The clouds of a batch with the part of every point; the note is the IoU of the shape."""
        iou: Any = part_iou(logits, batch.label, batch.category, self.parts, self.protocol).shapes
        clouds = []
        for i, index in enumerate(batch.indices.tolist()):
            category = 0 if batch.category is None else int(batch.category[i])
            attributes = self.attributes(self.predictions(logits[i : i + 1], category)[0], category)
            fields, name = self.fields(attributes, len(batch.pos[i]), category)
            truth = batch.label[i].cpu().numpy()
            wrong = errors(attributes["label"] != truth)
            fields = {
                "truth": self._label_field(truth, category),
                "prediction": fields.pop("prediction"),
                "error": wrong,
                **fields,
            }
            pos, score = batch.pos[i].cpu().numpy(), float(iou[i])
            clouds.append(Cloud(pos, f"{name} {index}", fields, f"IoU {score:.3f}", index=index, score=score))
        return clouds

    def fields(
        self, attributes: Mapping[str, NDArray[Any]], num_points: int, category: int = 0
    ) -> tuple[dict[str, Field], str]:
        """The predicted parts, their probabilities and the category."""
        fields = {
            "prediction": self._label_field(attributes["label"], category),
            "probability": quantity(attributes["probability"]),
            "category": labels(np.full(num_points, category), self.class_names),
        }
        return fields, self.class_names[category]

    def _label_field(self, values: NDArray[Any], category: int) -> Field:
        names = [name.rpartition("/")[2] for name in self.part_names]
        return labels(values, names, sorted(self.parts[category]))

    def confusion_counts(self, batch: PointBatch, logits: Tensor) -> NDArray[np.int64]:
        """Points (C, P, P) by category, part and predicted part."""
        predicted = predict_parts(logits, batch.category, self.parts, self.protocol)
        category = torch.zeros_like(batch.indices) if batch.category is None else batch.category
        where = torch.broadcast_tensors(category[:, None], batch.label, predicted)
        counts = np.zeros((len(self.parts), len(self.part_names), len(self.part_names)), dtype=np.int64)
        np.add.at(counts, tuple(index.cpu().numpy() for index in where), 1)
        return counts

    def confusions(self, counts: NDArray[np.int64]) -> list[Confusion]:
        """The parts of each category that has points; a last column counts what was predicted as another's part."""
        confusions = []
        for matrix, parts, name in zip(counts, self.parts, self.class_names, strict=True):
            if matrix.any():
                rows = [self.part_names[part].rpartition("/")[2] for part in parts]
                own = matrix[np.ix_(parts, parts)]
                other = matrix[parts].sum(axis=1, keepdims=True) - own.sum(axis=1, keepdims=True)
                columns = [*rows, "other"] if other.any() else rows
                confusions.append(Confusion(name, np.hstack((own, other))[:, : len(columns)], rows, columns))
        return confusions

    def category_scores(self) -> tuple[str, list[tuple[str, float | None, int]]]:
        """The mean IoU of each category."""
        rows = self.last_summary["categories"]
        return "mean IoU, %", [(row["category"], row["miou"], row["shapes"]) for row in rows]

    def settings(self) -> list[tuple[str, str]]:
        """The protocol of the part IoU."""
        return [("protocol", f"{self.protocol}, see pcattn.metrics.part_iou")]

    def compute_metrics(self, split: str) -> dict[str, Tensor]:
        """Loss, accuracy and both mean IoUs over all samples since the last call."""
        result = self.iou.compute()
        metrics = {
            "loss": self.eval_loss.compute(),
            "point_accuracy": self.accuracy.compute(),
            "instance_miou": result.instance,
            "class_miou": result.classes,
        }
        self.last_summary: dict[str, Any] = {
            "protocol": self.protocol,
            "points_per_shape": self.num_points,
            "votes": 1,
            "shapes": int(result.counts.sum()),
            **{name: float(value) for name, value in metrics.items()},
            "categories": self._categories(result),
            "further": [],
        }
        for (votes, everywhere), iou in zip(self.variants, self.variant_ious, strict=True):
            if not iou.update_called:  # validation during training does not vote
                continue
            result = iou.compute()
            means = {"instance_miou": result.instance, "class_miou": result.classes}
            self.last_summary["further"].append(
                {
                    "votes": votes,
                    "points_per_shape": [min(self.sizes), max(self.sizes)] if everywhere else self.num_points,
                    **{name: float(value) for name, value in means.items()},
                    "categories": self._categories(result),
                }
            )
            kind = "_".join(["all_points"] * everywhere + [f"votes_{votes}"] * (votes > 1))
            metrics |= {f"{kind}/{name}": value for name, value in means.items()}
        for metric in (self.iou, self.accuracy, self.eval_loss, *self.variant_ious):
            metric.reset()
        self.sizes = []
        return {f"{split}/{name}": value for name, value in metrics.items()}

    def _categories(self, result: PartIoUResult) -> list[dict[str, Any]]:
        return [
            {"category": name, "miou": iou if shapes else None, "shapes": shapes}
            for name, iou, shapes in zip(
                self.class_names, result.per_class.tolist(), result.counts.tolist(), strict=True
            )
        ]

    def report(self, split: str) -> str:
        """Mean IoU of each category and over all, and how they were measured."""
        summary = self.last_summary
        width = max(len("category"), *map(len, self.class_names))
        lines = [f"{'category':{width}}    mIoU  shapes"]
        for row in summary["categories"]:
            miou = "     -" if row["miou"] is None else f"{row['miou']:.4f}"
            lines.append(f"{row['category']:{width}}  {miou}  {row['shapes']:6d}")
        lines.append(
            f"{split}: instance mIoU {summary['instance_miou']:.4f}, class mIoU {summary['class_miou']:.4f}, "
            f"point accuracy {summary['point_accuracy']:.4f}"
        )
        lines.append(
            f"measured on {summary['shapes']} shapes with {summary['points_per_shape']} points each, "
            f"protocol {summary['protocol']}, no voting"
        )
        for further in summary["further"]:
            points = further["points_per_shape"]
            if isinstance(points, list):
                sizes = f"{points[0]} to {points[1]}" if points[0] < points[1] else f"{points[0]}"
                where = f"all {sizes} points of each shape, from {summary['points_per_shape']}"
            else:
                where = f"the same {points} points"
            how = f"mean of {further['votes']} votes" if further["votes"] > 1 else "no voting"
            lines.append(
                f"{split}, {how}, {where}: instance mIoU {further['instance_miou']:.4f}, "
                f"class mIoU {further['class_miou']:.4f}"
            )
        return "\n".join(lines)

    def save_report(self, split: str, folder: Path) -> list[Path]:
        """Write `<split>_categories.csv`, a row per category, and `.json` with the means and how they were measured."""
        folder.mkdir(parents=True, exist_ok=True)
        table, summary = folder / f"{split}_categories.csv", folder / f"{split}_categories.json"
        rows = self.last_summary["categories"]
        with atomic_write(table) as temporary, temporary.open("w", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
        write_text(summary, json.dumps({"split": split, **self.last_summary}, indent=2) + "\n")
        return [table, summary]

    def predict_step(self, batch: PointBatch, batch_idx: int) -> dict[str, Tensor]:
        """Indices and predicted `parts` of the clouds of a batch, and which `points` these are of if known.

        In `predictions.npz`, point `points[i, j]` of cloud `indices[i]` is of part `parts[i, j]`. Clouds under a
        corruption, which may make new points, have no `points`.
        """
        predicted = predict_parts(self.finite_logits(batch), batch.category, self.parts, self.protocol)
        result = {"indices": batch.indices, "parts": predicted}
        return result if batch.point_indices is None else result | {"points": batch.point_indices}
