"""Segmentation of clouds into the parts of their category."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import MeanMetric

from pcattn.attention import AttentionName
from pcattn.metrics import PROTOCOLS, PartIoU, predict_parts
from pcattn.metrics.functional import PartIoUResult
from pcattn.models import ModelName, build_segmenter
from pcattn.tasks.base import PointCloudTask
from pcattn.tasks.losses import lovasz_softmax, torch_smoothing
from pcattn.tasks.voting import carry
from pcattn.utils.checks import check_labels
from pcattn.utils.errors import InputError
from pcattn.utils.files import atomic_write, write_text
from pcattn.utils.registry import import_path

if TYPE_CHECKING:
    from pcattn.data import PointBatch


class PartSegmentation(PointCloudTask):
    """Train and evaluate a network that finds the part of every point.

    Logs `train/loss`, and on validation and test `loss`, `point_accuracy`, `instance_miou` and `class_miou`, all over
    all samples. `train/loss` is what is minimized, with smoothed labels and the Lovász term; `val/loss` is the
    cross-entropy alone, so that their levels cannot be compared. With one category, all points are told apart by their
    label alone: semantic segmentation. Every argument is plain data and kept in the checkpoint.

    Args:
        parts: part ids of each category; the command line takes them from the data (`per_point: true`).
        variant: network, a PCT (`pcattn.models.PCTSegmenter`) or a hierarchical one (`HierarchicalBackbone`).
        attention: name of the attention mechanism; None is the variant's own. A list, of a hierarchical network, has
            one a level.
        attention_kwargs: arguments of the mechanism.
        network_kwargs: further arguments of the network (`dim`, `depth`, `k`, `dropout`, ...).
        num_features: channels of a point beside its position; the command line takes it from the data.
        class_names: names of the categories; likewise.
        part_names: names of the parts by their ids; likewise.
        conditioned: tell the network the category; with one category there is nothing to tell.
        protocol: which parts are predicted and how IoU counts, see `pcattn.metrics.part_iou`. `"category"` chooses
            among the parts of the shape's category.
        label_smoothing: eps; the true part gets 1 - eps, the K - 1 others eps / (K - 1) each, as in PCT's code.
        lovasz: weight of the Lovász-Softmax loss beside the cross-entropy; 0 leaves it out.
        votes: looks at every cloud by `validate` and `test`, see `pcattn.tasks.voting`; with more than one, what they
            agree on is measured beside what one look finds, in a line of its own.
        all_points: also carry the predictions to all points of every cloud, and measure there, likewise.
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

    METRICS: ClassVar[tuple[str, ...]] = ("loss", "point_accuracy", "instance_miou", "class_miou")

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
        self.protocol = protocol
        self.lovasz = lovasz
        self.iou = PartIoU(parts, protocol)
        self.accuracy = MeanMetric()
        #: (votes, whether on all points) of each further line of an evaluation, and its metric
        self.looks = [(v, everywhere) for everywhere in sorted({False, all_points}) for v in sorted({1, votes})][1:]
        self.look_ious: Any = nn.ModuleList(PartIoU(parts, protocol) for _ in self.looks)
        self.sizes: list[int] = []  # of the complete clouds
        self.num_points = 0  # that evaluation has seen of each
        num_parts = self.iou.table.num_parts
        if part_names is not None and len(part_names) != num_parts:
            raise InputError(f"expected {num_parts} part_names, one a part, but got {len(part_names)}")
        self.part_names = part_names or [str(part) for part in range(num_parts)]
        self.num_categories = len(parts) if conditioned and len(parts) > 1 else None
        self.network = build_segmenter(
            num_parts,
            self.num_categories,
            variant,
            attention=attention,
            attention_kwargs=attention_kwargs,
            num_features=num_features,
            **(network_kwargs or {}),
        )
        self.label_smoothing = torch_smoothing(label_smoothing, num_parts)

    def forward(self, pos: Tensor, category: Tensor | None = None, features: Tensor | None = None) -> Tensor:
        """Logits (B, N, num_parts) of clouds (B, N, 3) of categories (B,) with features (B, N, F)."""
        return self.network(pos, category, features)

    def logits(self, batch: PointBatch) -> Tensor:
        """Logits (B, N, num_parts) of a batch."""
        if batch.category is not None:
            check_labels("category", batch.category, len(self.parts), batch.indices)
        return self(batch.pos, batch.category, batch.channels)

    def training_step(self, batch: PointBatch, batch_idx: int) -> Tensor:
        """Smoothed cross-entropy over the points of a batch, and the Lovász term."""
        check_labels("label", batch.label, self.iou.table.num_parts, batch.indices)
        logits = self.training_logits(batch)
        loss = F.cross_entropy(logits.flatten(0, 1), batch.label.flatten().long(), label_smoothing=self.label_smoothing)
        if self.lovasz:
            loss = loss + self.lovasz * lovasz_softmax(logits.softmax(dim=2), batch.label)
        self.log_train_loss(loss, batch)
        return loss

    def evaluate(self, batch: PointBatch) -> None:
        """Add a batch to the metrics."""
        check_labels("label", batch.label, self.iou.table.num_parts, batch.indices)
        logits = self.finite_logits(batch)
        self.num_points = logits.shape[1]
        self.iou.update(logits, batch.label, batch.category)
        predicted = predict_parts(logits, batch.category, self.parts, self.protocol)
        # Means of shapes, weighted by their points: the mean over all points.
        self.accuracy.update((predicted == batch.label).float().mean(dim=1), self.num_points)
        loss = F.cross_entropy(logits.flatten(0, 1), batch.label.flatten().long(), reduction="none")
        self.eval_loss.update(loss.view_as(predicted).mean(dim=1), self.num_points)

    def evaluate_looks(self, cloud: PointBatch, own: Tensor, looks: PointBatch) -> None:
        """Add what votes agree on, and what is found at all points, to their metrics, as `pcattn.load` finds them."""
        answers = self.logits(looks).float()
        ids = torch.tensor(self.part_ids(0 if cloud.category is None else int(cloud.category)), device=answers.device)
        probabilities = torch.zeros_like(answers).index_copy(2, ids, answers[..., ids].softmax(dim=2))
        one, mean = carry(cloud, looks, probabilities)
        for (votes, everywhere), iou in zip(self.looks, self.look_ious, strict=True):
            found, label = one if votes == 1 else mean, cloud.label
            if not everywhere:
                found, label = found[:, own], label[:, own]
            iou.update(found, label, cloud.category)
        self.sizes.append(cloud.pos.shape[1])

    def part_ids(self, category: int) -> list[int]:
        """The parts to choose from: those of the category, or all, as the protocol has it."""
        own_parts = PROTOCOLS[self.protocol].own_parts
        return sorted(self.parts[category]) if own_parts else list(range(len(self.part_names)))

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
        for (votes, everywhere), iou in zip(self.looks, self.look_ious, strict=True):
            if not iou.update_called:  # validation during training looks once
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
        for metric in (self.iou, self.accuracy, self.eval_loss, *self.look_ious):
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
        """The last evaluation in words: mean IoU of each category and of all, and how they were measured."""
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
        """Write `<split>_categories.csv`, a row a category, and `.json` with the means and how they were measured."""
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
        """Index and predicted parts of each cloud of a batch, and which of its points they are of, where known."""
        logits = self.finite_logits(batch)
        found = {
            "indices": batch.indices,
            "parts": predict_parts(logits, batch.category, self.parts, self.protocol),
        }
        return found if batch.point_indices is None else found | {"points": batch.point_indices}

    def save_predictions(self, batches: list[dict[str, Tensor]], folder: Path) -> Path:
        """Write `predictions.npz`: `parts` (M, N) of the points `points` (M, N) of the clouds `indices` (M,).

        Point `points[i, j]` of cloud `indices[i]` is of part `parts[i, j]`. Under a corruption, which may make new
        points, there is no `points`.
        """
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "predictions.npz"
        arrays: dict[str, Any] = {
            name: torch.cat([batch[name] for batch in batches]).cpu().numpy() for name in batches[0]
        }
        with atomic_write(path) as temporary:
            np.savez_compressed(temporary, **arrays)
        return path
