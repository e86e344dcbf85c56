"""The run behind a checkpoint: its task, its data, and pictures of what it predicts."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from pcattn.inference import checkpoints
from pcattn.training.selection import choose_clouds, read_batches, read_split
from pcattn.utils.errors import InputError
from pcattn.utils.registry import construct, find_import_path, names_only
from pcattn.visualize.montage import montage
from pcattn.visualize.page import page
from pcattn.visualize.scene import name_clouds, shown_fields

if TYPE_CHECKING:
    from pcattn.tasks.base import PointCloudTask
    from pcattn.training import PointCloudDataModule


class Run(NamedTuple):
    """A trained network and the data that it was trained with."""

    path: Path  #: of the checkpoint
    task: PointCloudTask  #: in evaluation mode
    data: PointCloudDataModule


def open_run(source: str | Path, trust: bool = False) -> Run:
    """The best checkpoint of a run, or a checkpoint. No code in it is run, see `pcattn.load`.

    Args:
        source: a run, a checkpoint, or the name of bundled weights.
        trust: import the code that the checkpoint names.

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
    # A data set resolves its own arguments later, when `names_only` no longer applies.
    code = None if trust else find_import_path(arguments.get("dataset_kwargs"))
    if code is not None:
        raise InputError(f"expected {path} to name no code, but its dataset_kwargs name {code!r}: --trust imports it")
    with names_only(None if trust else str(path)):
        data = construct("data module", "of the checkpoint", PointCloudDataModule, **arguments)
    if data.part_names is not None:  # old checkpoints lack them
        task.part_names = data.part_names
    return Run(path, task, data)


def draw_run(checkpoint: Path, data: PointCloudDataModule, folder: Path, number: int = 16) -> list[Path]:
    """Write `validation.png` and `validation.html` with clouds of the validation split to a run.

    Args:
        checkpoint: one of the run, hence trusted.
        data: the data of the run.
        folder: the run.
        number: number of clouds.

    Returns:
        Both files.
    """
    task = checkpoints.build(checkpoints.read(checkpoint), str(checkpoint), trust=True)
    dense, indices = read_split(data, "val")
    chosen = choose_clouds(dense, indices, number)
    clouds = [cloud for batch in read_batches(dense, chosen) for cloud in task.evaluated_clouds(batch)]
    clouds = name_clouds(clouds, data.cloud_names("val"))
    fields, heading = shown_fields(clouds, task.FIELDS), f"{folder}, validation"
    return [
        # Open3D takes longer to start than matplotlib to draw.
        montage(clouds, folder / "validation.png", fields, up=data.up_axis, renderer="matplotlib", heading=heading),
        page(clouds, folder / "validation.html", fields, up=data.up_axis, heading=heading),
    ]
