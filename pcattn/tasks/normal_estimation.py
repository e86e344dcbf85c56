"""Estimation of the surface normal at every point."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F
from torchmetrics import MeanMetric

from pcattn.metrics import angle_error, cosine_distance
from pcattn.models import PCTNormals
from pcattn.tasks.base import MetricInfo, PointCloudTask
from pcattn.tasks.registry import register_task
from pcattn.utils.errors import InputError
from pcattn.visualize.scene import Cloud, Field, directions, quantity

if TYPE_CHECKING:
    from pcattn.data import PointBatch

#: Angle errors up to this many degrees are told apart in pictures.
_MAX_ANGLE = 90.0


@register_task
class NormalEstimation(PointCloudTask):
    r"""Train and evaluate a network that estimates the normal of every point (PCT section 4.3).

    The loss is the mean cosine distance :math:`1 - n \cdot \hat n`. Logs `train/loss`, and in validation and test
    `loss`, the cosine distance, and `angle`, the mean angle between normals in degrees, over all points.

    The true normals come from the data set (`target: normals` in the data). They are rotated and scaled with the clouds
    but never given to the network.

    Args:
        variant: network, see `pcattn.models.PCTNormals`.
        attention: name of the attention mechanism; None is the variant's own.
        attention_kwargs: arguments of the mechanism.
        network_kwargs: further arguments of the network (`dim`, `depth`, `k`, `dropout`, ...).
        num_features: channels of a point beside its position; the command line takes it from the data.
        class_names: names of the classes of clouds; the command line takes them from the data.
        oriented: tell a normal from its opposite. Use false for surfaces without a consistent outside, like the meshes
            of ModelNet40: the loss is then :math:`1 - |n \cdot \hat n|`, and errors are at most 90 degrees.
        optimizer: `"sgd"` or `"adamw"`.
        lr: learning rate after the warm-up.
        momentum: momentum of SGD.
        weight_decay: weight decay of either optimizer.
        warmup_epochs: epochs of linear warm-up.
        min_lr: learning rate at the end of the cosine.
        ema_decay: decay of `AveragedWeights`, which validation, checkpoints and test then use; None turns it off.
        compile: compile the network with `torch.compile`, see `Classification`.

    Raises:
        InputError: an argument is out of range.

    Source: https://arxiv.org/abs/2012.09688, section 4.3.
    """

    TITLE = "normal estimation"
    METRICS: ClassVar[Mapping[str, MetricInfo]] = {
        "loss": MetricInfo("cosine distance", "min", ""),
        "angle": MetricInfo("angle error", "min", "°"),
    }
    PRIMARY = "angle"
    PER_POINT = True
    FIELDS = ("truth", "prediction", "angle error")
    OUTPUTS = ("normals",)
    ENTRIES = HEADING = "normals"

    def __init__(
        self,
        variant: str = "pct",
        attention: str | None = None,
        attention_kwargs: dict[str, Any] | None = None,
        network_kwargs: dict[str, Any] | None = None,
        num_features: int = 0,
        class_names: list[str] | None = None,
        oriented: bool = True,
        optimizer: str = "sgd",
        lr: float = 0.01,
        momentum: float = 0.9,
        weight_decay: float = 5e-4,
        warmup_epochs: float = 0.0,
        min_lr: float = 1e-4,
        ema_decay: float | None = None,
        compile: bool | str = False,
    ) -> None:
        super().__init__(optimizer=optimizer, lr=lr, min_lr=min_lr, ema_decay=ema_decay, compile=compile)
        self.save_hyperparameters()
        self.class_names = class_names or []
        self.oriented = oriented
        self.network = PCTNormals(
            variant, attention, attention_kwargs, num_features=num_features, **(network_kwargs or {})
        )
        self.angle = MeanMetric()

    def forward(self, pos: Tensor, features: Tensor | None = None) -> Tensor:
        """Unit normals (B, N, 3) of clouds (B, N, 3) with features (B, N, F)."""
        logits: Tensor = self.network(pos, features)
        return logits

    def features(self, batch: PointBatch) -> Tensor | None:
        """The features of a batch without its normals, which are the target."""
        return batch.features

    def check_targets(self, batch: PointBatch) -> None:
        """Refuse a batch without normals."""
        if batch.normals is None:
            raise InputError("expected normals as the target (target: normals in the data), but the data has none")

    def loss(self, logits: Tensor, batch: PointBatch) -> Tensor:
        """Mean cosine distance."""
        return cosine_distance(logits, self._target(batch, logits), self.oriented).mean()

    def update_metrics(self, logits: Tensor, batch: PointBatch) -> None:
        """Add a batch to the mean cosine distance and the mean angle."""
        target = self._target(batch, logits)
        self.eval_loss.update(cosine_distance(logits, target, self.oriented))
        self.angle.update(angle_error(logits, target, self.oriented))

    def compute_metrics(self, split: str) -> dict[str, Tensor]:
        """Cosine distance and angle over all points since the last call."""
        self.last_metrics = {"loss": self.eval_loss.compute(), "angle": self.angle.compute()}
        for metric in (self.eval_loss, self.angle):
            metric.reset()
        return {f"{split}/{name}": value for name, value in self.last_metrics.items()}

    def predictions(self, logits: Tensor, category: int = 0) -> Tensor:
        """Unit normals (B, N, 3). Without orientation, products (B, N, 9) of their coordinates: n and -n agree."""
        return logits if self.oriented else (logits[..., :, None] * logits[..., None, :]).flatten(-2)

    def attributes(self, predictions: Tensor, category: int = 0) -> dict[str, NDArray[Any]]:
        """Unit `normals` (N, 3) from the mean of predictions."""
        if self.oriented:
            normals = F.normalize(predictions, dim=-1)
        else:  # the eigenvector of the largest eigenvalue
            normals = torch.linalg.eigh(predictions.unflatten(-1, (3, 3))).eigenvectors[..., -1]
        return {"normals": normals.cpu().numpy()}

    def entries(self, result: NDArray[Any], category: int = 0) -> list[dict[str, Any]]:
        """Nothing: normals have no summary."""
        return []

    def predict_step(self, batch: PointBatch, batch_idx: int) -> dict[str, Tensor]:
        """Indices and `normals` (B, N, 3) of the clouds of a batch, and which `points` these are of if known."""
        result = {"indices": batch.indices, "normals": self.finite_logits(batch)}
        return result if batch.point_indices is None else result | {"points": batch.point_indices}

    def describe(self, batch: PointBatch, logits: Tensor) -> list[Cloud]:
        """The clouds of a batch with true and predicted normals as colors, and the angle between them."""
        target = self._target(batch, logits)
        angle = angle_error(logits, target, self.oriented)
        clouds = []
        for i, index in enumerate(batch.indices.tolist()):
            fields = {
                "truth": directions(target[i].cpu().numpy()),
                "prediction": directions(logits[i].cpu().numpy()),
                "angle error": quantity(angle[i].cpu().numpy(), 0.0, _MAX_ANGLE),
            }
            label = int(batch.label[i]) if batch.label.dim() == 1 else -1
            name = self.class_names[label] if 0 <= label < len(self.class_names) else "cloud"
            pos, mean = batch.pos[i].cpu().numpy(), float(angle[i].mean())
            clouds.append(Cloud(pos, f"{name} {index}", fields, f"{mean:.1f}°", index=index, score=-mean))
        return clouds

    def fields(
        self, attributes: Mapping[str, NDArray[Any]], num_points: int, category: int = 0
    ) -> tuple[dict[str, Field], str]:
        """The predicted normals as colors."""
        return {"prediction": directions(attributes["normals"])}, ""

    def settings(self) -> list[tuple[str, str]]:
        """Whether normals have an orientation."""
        return [("normals", "oriented" if self.oriented else "without orientation")]

    def _target(self, batch: PointBatch, logits: Tensor) -> Tensor:
        self.check_targets(batch)
        return batch.normals.to(logits)  # type: ignore[union-attr]
