"""Clouds with what a trained network says of them, ready to be drawn."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pcattn.inference import checkpoints
from pcattn.metrics import PROTOCOLS, part_iou, predict_parts
from pcattn.utils.errors import InputError
from pcattn.utils.registry import construct, find_import_path, names_only
from pcattn.visualize.scene import Cloud, Field, errors, labels, quantity

if TYPE_CHECKING:
    from pcattn.data import DenseClouds, PointBatch
    from pcattn.tasks.base import PointCloudTask
    from pcattn.training import PointCloudDataModule

#: Splits that can be shown.
SPLITS = ("val", "test")

# Clouds that go through the network at once.
_BATCH = 32


class Run(NamedTuple):
    """A trained network and the data that it was trained with."""

    path: Path  #: of the checkpoint
    task: PointCloudTask  #: in evaluation mode
    data: PointCloudDataModule


def open_run(source: str | Path, trust: bool = False) -> Run:
    """The best checkpoint of a run, or the checkpoint behind a path; nothing of it is run, see `pcattn.load`.

    Raises:
        InputError: there is none, it is broken, or it names code and `trust` is false.
    """
    from pcattn.training import PointCloudDataModule

    path = checkpoints.find(source)
    checkpoint = checkpoints.read(path)
    task = checkpoints.build(checkpoint, str(path), trust)
    if "root" not in checkpoint.data:
        raise InputError(f"expected {path} to tell where its data lies, but it does not: it was not written by fit")
    known = inspect.signature(PointCloudDataModule).parameters
    arguments = {name: value for name, value in checkpoint.data.items() if name in known}
    # A data set resolves its own arguments, later and out of reach of `names_only`.
    code = None if trust else find_import_path(arguments.get("dataset_kwargs"))
    if code is not None:
        raise InputError(f"expected {path} to name no code, but its dataset_kwargs name {code!r}: --trust imports it")
    with names_only(None if trust else str(path)):
        data = construct("data module", "of the checkpoint", PointCloudDataModule, **arguments)
    if data.part_names is not None:  # checkpoints of old do not have them
        task.part_names = data.part_names
    return Run(path, task, data)


def read_split(data: PointCloudDataModule, split: str) -> tuple[DenseClouds, Tensor]:
    """The clouds of a split as evaluation sees them, and the indices (M,) of those that belong to it.

    Raises:
        InputError: no such split.
        DatasetError: the data cannot be read.
    """
    if split not in SPLITS:
        raise InputError(f"expected split to be one of {', '.join(SPLITS)}, but got {split!r}")
    data.setup("validate" if split == "val" else "test")
    loader = data.val_dataloader() if split == "val" else data.test_dataloader()
    clouds: Any = loader.dataset
    return clouds, data.val_indices if split == "val" else torch.arange(len(clouds))


def choose(clouds: DenseClouds, indices: Tensor, number: int, classes: Sequence[int] | None = None) -> Tensor:
    """At most `number` of the clouds, as many of each class as possible, sorted by class.

    Args:
        clouds: see `read_split`.
        indices: (M,) clouds to choose from.
        number: how many.
        classes: classes to choose from; None is all.
    """
    of_cloud = _classes(clouds)[indices]
    if classes is not None:
        wanted = torch.isin(of_cloud, torch.tensor(list(classes)))
        indices, of_cloud = indices[wanted], of_cloud[wanted]
    turn = torch.zeros_like(of_cloud)  # the how-manieth of its class a cloud is
    for label in of_cloud.unique():
        members = of_cloud == label
        turn[members] = torch.arange(int(members.sum()))
    order = np.lexsort((of_cloud.numpy(), turn.numpy()))[:number]
    return indices[order][of_cloud[order].argsort(stable=True)]


def batches(clouds: DenseClouds, indices: Tensor) -> Iterable[PointBatch]:
    """The clouds in batches."""
    for some in indices.split(_BATCH):
        yield clouds[0, some]


@torch.no_grad()
def evaluate(task: PointCloudTask, batch: PointBatch) -> list[Cloud]:
    """The clouds of a batch with truth, prediction, error and probability.

    Of a segmented cloud every point has its own; of a classified one all points have those of the cloud.
    """
    batch = type(batch)(*(x.to(task.device) if isinstance(x, Tensor) else x for x in batch))
    training = task.training
    task.eval()
    try:
        return describe(task, batch, task.logits(batch))
    finally:
        task.train(training)


def describe(task: PointCloudTask, batch: PointBatch, logits: Tensor) -> list[Cloud]:
    """`evaluate` where the logits of the batch are known."""
    return (_parts if batch.label.dim() == 2 else _classified)(task, batch, logits)


def draw_run(checkpoint: Path, data: PointCloudDataModule, folder: Path, number: int = 16) -> list[Path]:
    """Write `validation.png` and `validation.html` with clouds of the validation split into a run.

    Args:
        checkpoint: of the run itself, hence trusted.
        data: of the run.
        folder: the run.
        number: clouds.

    Returns:
        Both files.
    """
    from pcattn.visualize.montage import montage
    from pcattn.visualize.page import page

    task = checkpoints.build(checkpoints.read(checkpoint), str(checkpoint), trust=True)
    dense, indices = read_split(data, "val")
    chosen = choose(dense, indices, number)
    clouds = [cloud for batch in batches(dense, chosen) for cloud in evaluate(task, batch)]
    fields, heading = default_fields(clouds), f"{folder}, validation"
    return [
        # Open3D would take longer to start than matplotlib to draw.
        montage(clouds, folder / "validation.png", fields, up=data.up_axis, renderer="matplotlib", heading=heading),
        page(clouds, folder / "validation.html", fields, up=data.up_axis, heading=heading),
    ]


def _classified(task: Any, batch: PointBatch, logits: Tensor) -> list[Cloud]:
    names = task.class_names
    top = logits.softmax(dim=1).max(dim=1)
    clouds = []
    for i, index in enumerate(batch.indices.tolist()):
        truth, predicted, probability = int(batch.label[i]), int(top.indices[i]), float(top.values[i])
        num_points = batch.pos.shape[1]
        everywhere = np.ones(num_points, dtype=np.int64)
        fields = {
            "prediction": labels(predicted * everywhere, names),
            "truth": labels(truth * everywhere, names),
            "error": errors(everywhere * (predicted != truth) > 0),
            "probability": quantity(np.full(num_points, probability)),
        }
        note = f"{names[predicted]} {100 * probability:.0f} %"
        title, good = f"{names[truth]} {index}", predicted == truth
        score = probability if good else -probability
        clouds.append(Cloud(_array(batch.pos[i]), title, fields, note, good, index=index, score=score))
    return clouds


def _parts(task: Any, batch: PointBatch, logits: Tensor) -> list[Cloud]:
    predicted = predict_parts(logits, batch.category, task.parts, task.protocol)
    iou = part_iou(logits, batch.label, batch.category, task.parts, task.protocol).shapes
    clouds = []
    for i, index in enumerate(batch.indices.tolist()):
        category = 0 if batch.category is None else int(batch.category[i])
        ids = sorted(task.parts[category])
        # As in the metrics: the protocol says which parts are chosen from.
        among = ids if PROTOCOLS[task.protocol].own_parts else list(range(logits.shape[2]))
        probability = logits[i][:, among].softmax(dim=1).max(dim=1).values
        fields = part_fields(task, category, _array(predicted[i]), _array(probability), _array(batch.label[i]))
        title, score = f"{task.class_names[category]} {index}", float(iou[i])  # type: ignore[index]
        clouds.append(Cloud(_array(batch.pos[i]), title, fields, f"IoU {score:.3f}", index=index, score=score))
    return clouds


def part_fields(
    task: Any, category: int, predicted: np.ndarray, probability: np.ndarray, truth: np.ndarray | None = None
) -> dict[str, Field]:
    """Fields of a cloud of which the parts were predicted, with truth and error where the truth is known."""
    names = [name.rpartition("/")[2] for name in task.part_names]
    ids = sorted(task.parts[category])
    fields = {} if truth is None else {"truth": labels(truth, names, ids)}
    fields["prediction"] = labels(predicted, names, ids)
    if truth is not None:
        fields["error"] = errors(predicted != truth)
    fields["probability"] = quantity(probability)
    fields["category"] = labels(np.full(len(predicted), category), task.class_names)
    return fields


def default_fields(clouds: Sequence[Cloud]) -> list[str]:
    """What of these clouds is shown unless something else is asked for."""
    known = {name for cloud in clouds for name in cloud.fields}
    if clouds and clouds[0].good is not None:  # classified as a whole: one picture says it all
        return ["prediction"]
    return [name for name in ("truth", "prediction", "error") if name in known] or sorted(known)[:1]


def _classes(clouds: DenseClouds) -> Tensor:
    """Class or category (M,) of every cloud; zeros where there is none."""
    if clouds.per_point:
        return clouds.category if clouds.category is not None else torch.zeros(len(clouds), dtype=torch.long)
    return clouds.label


def _array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().cpu().numpy()
