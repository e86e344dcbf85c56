"""`pcattn show`: clouds of files, or predictions of a run, in a window, a picture or a web page."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch

from pcattn.cli.options import add_ckpt_path
from pcattn.data.preprocessing import preprocess
from pcattn.inference.attention_maps import show_attention
from pcattn.inference.clouds import TurnedBlocks
from pcattn.inference.evaluate import Run, open_run
from pcattn.inference.model import Model, load
from pcattn.io.cloud import read_cloud
from pcattn.tasks.voting import draw_views
from pcattn.training.selection import SPLITS, choose_clouds, read_batches, read_split
from pcattn.utils.errors import InputError
from pcattn.utils.registry import resolve
from pcattn.visualize.camera import AXES
from pcattn.visualize.montage import RENDERERS, montage
from pcattn.visualize.offscreen import Open3DError
from pcattn.visualize.page import page
from pcattn.visualize.scene import Cloud, Field, field_names, labels, name_clouds, quantity, shown_fields
from pcattn.visualize.window import open_window

#: Suffixes of pictures.
PICTURES = (".png", ".jpg", ".jpeg", ".pdf", ".svg")

#: Fields of a file that are shown first.
FILE_FIELDS = ("truth", "prediction", "error", "rgb")

# Parts of the names of attributes that hold labels of points.
_LABELS = ("label", "part", "class", "seg", "pred")


def clouds_of_run(
    run: Run,
    split: str,
    number: int,
    classes: Sequence[str] = (),
    indices: Sequence[int] = (),
    worst: bool = False,
) -> list[Cloud]:
    """Clouds of a run's validation or test split, as many of each class as possible.

    Args:
        run: see `open_run`.
        split: `"val"` or `"test"`.
        number: how many.
        classes: names of the classes to choose from; none is all.
        indices: these clouds instead, by their index in the data set.
        worst: those with the lowest score, see `pcattn.visualize.scene.Cloud`.

    Raises:
        InputError: no such split, class or cloud.
    """
    known = {each: i for i, each in enumerate(run.task.class_names)}
    wanted = [resolve("category", name, known) for name in classes]
    dense, members = read_split(run.data, split)
    if indices:
        if unknown := sorted(set(indices) - set(members.tolist())):
            raise InputError(f"expected indices of the {split} split, but got {', '.join(map(str, unknown))}")
        chosen = torch.tensor(list(indices))
    else:
        chosen = choose_clouds(dense, members, len(members) if worst else number, wanted or None)
    clouds = [cloud for batch in read_batches(dense, chosen) for cloud in run.task.evaluated_clouds(batch)]
    clouds = name_clouds(clouds, run.data.cloud_names(split))
    return sorted(clouds, key=lambda cloud: cloud.score)[:number] if worst else clouds


def add_attention(
    run: Run, clouds: Sequence[Cloud], split: str, layer: int, point: int, head: int | None
) -> list[Cloud]:
    """The clouds of `clouds_of_run` with fields that show what a point of each attends to."""
    dense, _ = read_split(run.data, split)
    result = []
    for cloud in clouds:
        batch = dense[0, torch.tensor([cloud.index])]
        forward = partial(run.task.logits, batch)
        result.append(show_attention(cloud, run.task.network, forward, batch.pos[0], layer, point, head))
    return result


def cloud_of_file(path: Path, up: str) -> Cloud:
    """A file as it is, colored by its colors (`rgb`), labels and quantities, or else by height.

    Raises:
        DatasetError: it cannot be read.
    """
    pos, attributes = read_cloud(path)
    fields: dict[str, Field] = {}
    for name, values in attributes.items():
        if name == "colors":
            scale = 255 if values.dtype.kind == "f" else 255 / np.iinfo(values.dtype).max
            fields["rgb"] = Field((values * scale).round().clip(0, 255).astype(np.uint8))
        if values.ndim != 1:
            continue
        whole = values.dtype.kind in "iu" or bool((values == np.round(values)).all())
        if whole and any(word in name.lower() for word in _LABELS):
            present = np.unique(values.astype(np.int64)).tolist()
            ids = present if present[0] < 0 or present[-1] >= 256 else range(present[-1] + 1)
            fields[name] = labels(values.astype(np.int64), _Names(name), ids)  # type: ignore[arg-type]
        elif values.dtype.kind == "f":
            low, high = (0.0, 1.0) if name == "probability" else (float(values.min()), float(values.max()))
            fields[name] = quantity(values, low, high)
    if not fields:
        height = pos[:, AXES.index(up)]
        fields["height"] = quantity(height - height.min(), 0.0, float(np.ptp(height)))
    return Cloud((pos - pos.mean(axis=0)).astype(np.float32), path.name, fields, f"{len(pos):,} points")


class _Names:
    """Names for labels without names: `label 3`."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __getitem__(self, label: int) -> str:
        return f"{self.name} {label}"

    def __len__(self) -> int:
        return 1 << 62


def predict_file(
    model: Model,
    path: Path,
    category: str | None,
    up: str,
    layer: int | None = None,
    point: int | None = None,
    head: int | None = None,
) -> Cloud:
    """A file with the predictions of a trained network, drawn with the points that went through the network.

    Args:
        model: the network.
        path: the file. Columns without names have those of the training.
        category: name or index of the category, if the task uses it.
        up: the axis that points up in the file.
        layer, point, head: the attention to show, see `show_attention`; None shows none.
    """
    task, whole = model.task, read_cloud(path, columns=model.columns)
    keep = draw_views(len(whole.pos), model.num_points, votes=1, seed=0)[0]
    shown = whole.pos[keep.numpy()]
    index = model.category_index(category) if task.USES_CATEGORY else 0
    attributes = model.predict(whole, index, up_axis=up)
    if task.PER_POINT:
        attributes = {name: values[keep.numpy()] for name, values in attributes.items()}
    fields, note = task.fields(attributes, len(shown), index)
    cloud = Cloud((shown - shown.mean(axis=0)).astype(np.float32), path.name, fields, note)
    if layer is None or point is None:
        return cloud
    (points,) = TurnedBlocks([whole], model.channel_names, up, model.up_axis)
    pos, features = preprocess(*points, **model.preprocessing)
    pos = pos[keep].float().to(model.device)
    of_points = None if features is None else features[keep][None].float().to(model.device)
    batch = task.unlabeled(pos[None], of_points, torch.tensor([index], device=model.device))
    return show_attention(cloud, model.network, partial(task.logits, batch), pos, layer, point, head)


def main(args: Sequence[str]) -> int:
    """Run `pcattn show`."""
    parser = _parser()
    given = parser.parse_args(args)
    out: Path | None = given.out
    if out is not None and out.suffix.lower() not in (*PICTURES, ".html"):
        parser.error(f"expected --out to end in .html or {', '.join(PICTURES)}, but got {out}")
    if (given.attention is None) != (given.point is None):
        parser.error("expected --attention LAYER and --point I together")
    if given.number < 1:
        parser.error(f"expected --number >= 1, but got {given.number}")
    clouds, preferred, up, heading = _gather(given)
    known = field_names(clouds)
    fields = given.fields or shown_fields(clouds, preferred)
    if given.attention is not None and not given.fields:
        fields = [*(["prediction"] if "prediction" in fields else []), *(n for n in known if n.startswith("layer"))]
    if unknown := [name for name in fields if name not in known]:
        parser.error(f"expected --fields among {', '.join(known)}, but got {', '.join(unknown)}")
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        done = "replaced" if out.exists() else "written"
        _write(clouds, out, fields, up, heading, given.renderer, given.columns)
        print(f"{done}: {out}")
    else:
        _window(clouds, fields, up, heading)
    return 0


def _gather(given: argparse.Namespace) -> tuple[list[Cloud], Sequence[str], str, str]:
    """The clouds that a command line asks for, the fields to prefer, which coordinate points up, and a heading."""
    attention = {"layer": given.attention, "point": given.point, "head": given.head}
    sources = [Path(name) for name in given.what]
    for path in sources:
        if not path.exists():
            raise InputError(f"expected a run, or files of clouds, but there is no {path}")
    if _is_run(sources[0]) and given.ckpt_path is None:
        if len(sources) > 1:
            raise InputError(f"expected one run, or files, but got {' '.join(given.what)}")
        run = open_run(sources[0], given.trust)
        clouds = clouds_of_run(run, given.split, given.number, given.category or (), given.index or (), given.worst)
        if not clouds:
            raise InputError(f"expected clouds of the {given.split} split to show, but there are none")
        if given.attention is not None:
            clouds = add_attention(run, clouds, given.split, **attention)
        split = "validation" if given.split == "val" else given.split
        heading = f"{sources[0]}, {split}" + (", the worst" if given.worst else "")
        return clouds, run.task.FIELDS, given.up or run.data.up_axis, heading
    if given.ckpt_path is None:
        up = given.up or "z"
        if given.attention is not None:
            raise InputError("expected a run, or files with --ckpt_path, to show attention of")
        return [cloud_of_file(path, up) for path in sources], FILE_FIELDS, up, ""
    model = load(given.ckpt_path, given.trust)
    up = given.up or model.up_axis
    category = given.category[0] if given.category else None
    clouds = [predict_file(model, path, category, up, **attention) for path in sources]
    return clouds, model.task.FIELDS, up, f"{given.ckpt_path}"


def _is_run(path: Path) -> bool:
    return path.is_dir() or path.suffix in (".ckpt", ".safetensors")


def _window(clouds: list[Cloud], fields: list[str], up: str, heading: str) -> None:
    """A window or, if none can be opened, a page in the current folder."""
    try:
        open_window(clouds, fields, up)
    except Open3DError as error:
        path, number = Path("show.html"), 1
        while path.exists():
            number += 1
            path = Path(f"show.{number}.html")
        _write(clouds, path, fields, up, heading)
        print(f"{error}; a page to open in a browser instead: {path}")


def _write(
    clouds: list[Cloud],
    out: Path,
    fields: list[str],
    up: str,
    heading: str,
    renderer: str = "auto",
    columns: int = 8,
) -> None:
    if out.suffix.lower() == ".html":
        page(clouds, out, fields, up=up, heading=heading or "Point clouds")
    else:
        montage(clouds, out, fields, up=up, heading=heading, renderer=renderer, columns=columns)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="pcattn show",
        description="Show clouds of files, or of a run with truth, prediction and error, in a window. With --out: in a "
        "picture or a web page.",
    )
    parser.add_argument("what", nargs="+", help="files of clouds (PLY, PCD, OFF, text, ...), or one run or checkpoint")
    parser.add_argument("--out", type=Path, help="write a picture (.png, .pdf, ...) or a page (.html) instead")
    add_ckpt_path(parser, help="show what this run or checkpoint predicts for the files")
    parser.add_argument("--category", nargs="+", help="of a run: only these; of files to segment: theirs")
    parser.add_argument("--split", choices=SPLITS, default="val", help="of a run; default val")
    parser.add_argument("--number", type=int, default=16, help="clouds of a run; default 16")
    parser.add_argument("--index", type=int, nargs="+", help="clouds of a run, by their index in the data set")
    parser.add_argument("--worst", action="store_true", help="of a run: the clouds with most errors")
    parser.add_argument("--fields", nargs="+", help="what to color by: truth, prediction, error, probability, ...")
    parser.add_argument(
        "--attention", type=int, metavar="LAYER", help="show what --point attends to in this layer, from 0"
    )
    parser.add_argument("--point", type=int, metavar="I", help="the point whose attention is shown, from 0")
    parser.add_argument("--head", type=int, metavar="H", help="one head, slot or gate only, from 0")
    parser.add_argument(
        "--up",
        choices=AXES,
        help="axis that points up; files are turned for the network. Default: that of the data or network, else z",
    )
    parser.add_argument("--columns", type=int, default=8, help="clouds side by side in a picture; default 8")
    parser.add_argument("--renderer", choices=RENDERERS, default="auto", help="of a picture; default: Open3D if it can")
    parser.add_argument("--trust", action="store_true", help="import the code that a checkpoint names")
    return parser
