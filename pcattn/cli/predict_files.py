"""`pcattn predict-files`: predictions for your own files, point clouds and meshes of any size."""

from __future__ import annotations

import argparse
import csv
import io
import json
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

import pcattn
from pcattn.cli.messages import announce_compilation
from pcattn.cli.options import add_ckpt_path
from pcattn.data.preprocessing import ESTIMATED_NORMALS
from pcattn.inference.model import Model
from pcattn.io.cloud import BLOCK, SUFFIXES, Cloud, CloudFile, write_blocks
from pcattn.io.find import find_files
from pcattn.tasks.base import PointCloudTask
from pcattn.utils.errors import InputError
from pcattn.utils.files import write_text
from pcattn.utils.text import escape_unprintable
from pcattn.visualize.camera import AXES

#: One file: its path, and that of its result below the output folder.
Job = tuple[Path, Path]


#: Scores of a cloud that comes with labels.
SCORES = ("accuracy", "mean IoU")


def name_outputs(jobs: Sequence[Job]) -> list[Path]:
    """The path of each result below the output folder: `chair.ply`; `chair-off.ply` if two files share a stem.

    Files that still share a name are numbered.
    """
    plain = [below.with_suffix(".ply") for _, below in jobs]
    shared = Counter(plain)
    taken: set[Path] = set()
    names = []
    for (_, below), name in zip(jobs, plain, strict=True):
        if shared[name] > 1:
            name = below.with_name(f"{below.stem}-{below.suffix[1:].lower()}.ply")
        number = 1
        while name in taken:
            number += 1
            name = name.with_name(f"{below.stem}-{below.suffix[1:].lower()}-{number}.ply")
        taken.add(name)
        names.append(name)
    return names


def add_attributes(cloud: Cloud, new: Mapping[str, NDArray[Any]]) -> Cloud:
    """A cloud with new attributes of its points.

    Attributes of the same names that it had are kept as `original_label` and so on.
    """
    kept: dict[str, NDArray[Any]] = {}
    for name, values in cloud.attributes.items():
        name = "_".join(name.split())  # PLY has no spaces in names
        while name in new or name in kept:
            name = f"original_{name}"
        kept[name] = values
    return Cloud(cloud.pos, {**kept, **new})


class Agreement:
    """Counts how often the predicted labels of points are those that a file has already.

    The file has them under the name that the training read them by (`label` of the data set), with the values by which
    the network names its parts. Files without such labels have no scores.

    Args:
        model: the network.
        category: of the cloud.
    """

    def __init__(self, model: Model, category: int) -> None:
        options = model.data.get("dataset_kwargs") or {}
        parts = model.task.parts[category] if model.task.parts else []
        self.name = str(options.get("label") or "label")
        ids = {model.part_names[part].rpartition("/")[2]: part for part in parts}
        self.ids = {int(value): part for value, part in ids.items() if value.isdecimal()}
        self.counts = np.zeros((len(model.part_names),) * 2, dtype=np.int64)  # by truth and prediction

    def add(self, block: Cloud, attributes: Mapping[str, NDArray[Any]]) -> None:
        """Count the points of a block."""
        truth, predicted = block.attributes.get(self.name), attributes.get("label")
        if truth is None or predicted is None or not set(np.unique(truth).tolist()) <= self.ids.keys():
            return
        values, where = np.unique(truth, return_inverse=True)
        parts = np.array([self.ids[int(value)] for value in values])[where.reshape(-1)]
        np.add.at(self.counts, (parts, predicted), 1)

    def scores(self) -> dict[str, float]:
        """Accuracy of the points and mean IoU of the parts that occur; empty without labels."""
        right, total = self.counts.diagonal(), self.counts.sum()
        union = self.counts.sum(axis=0) + self.counts.sum(axis=1) - right
        if not total:
            return {}
        iou = right[union > 0] / union[union > 0]
        return dict(zip(SCORES, (round(float(right.sum() / total), 6), round(float(iou.mean()), 6)), strict=True))


def format_table(task: PointCloudTask, rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows of files as aligned text, safe to print."""
    if not rows:
        return ""
    scores = [name for name in SCORES if any(name in row for row in rows)]
    body = []
    for row in rows:
        output = [row["output"]] if "output" in row else []
        output += [f"{row[name]:.3f}" if name in row else "-" for name in scores]
        entries = task.format_entries(row[task.ENTRIES], row["points"])
        body.append([row["file"], f"{row['points']:,}", *output, *entries])
    header = ["file", "points", *(["written to"] if "output" in rows[0] else []), *scores, task.HEADING]
    width = max(map(len, body))
    return _align([(cells + [""] * width)[:width] for cells in (header, *body)])


def main(args: Sequence[str]) -> int:
    """The command line; status 1 if a file failed, 2 if the call itself is wrong."""
    options = _parser().parse_args(args)
    model = pcattn.load(options.ckpt_path, trust=options.trust, device=options.device)
    _check(model, options)
    category = model.category_index(options.category) if model.task.USES_CATEGORY else None
    options.out = options.out or Path("predictions")
    if model.task.PER_POINT:
        options.out.mkdir(parents=True, exist_ok=True)
    jobs, wrong = find_files(options.files, options.out if model.task.PER_POINT else None)
    failures = [{"file": name, "error": reason} for name, reason in wrong]
    for failure in failures:
        print(escape_unprintable(f"{failure['file']}: {failure['error']}"), file=sys.stderr)
    rows: list[dict[str, Any]] = []
    interrupted = False
    with tqdm(jobs, unit="file", disable=None) as progress:
        try:
            for (path, _), name in zip(progress, name_outputs(jobs), strict=True):
                progress.set_description(escape_unprintable(path.name[-30:]))
                try:
                    with nullcontext() if rows else announce_compilation():
                        if model.task.PER_POINT:
                            rows.append(_predict_points(model, path, options.out / name, category, options))
                        else:
                            rows.append(_predict_cloud(model, path, category, options))
                except (OSError, MemoryError, RuntimeError, ValueError) as error:
                    reason = " ".join(str(error).split()) or type(error).__name__
                    failures.append({"file": str(path), "error": reason})
                    named = path.name in reason or escape_unprintable(path.name) in reason
                    progress.write(escape_unprintable(reason if named else f"{path}: {reason}"), file=sys.stderr)
        except KeyboardInterrupt:
            interrupted = True
    return _finish(model.task, rows, failures, interrupted, options)


def _check(model: Model, options: argparse.Namespace) -> None:
    """Refuse options that do not fit the network, or values out of range."""
    task = model.task
    if not task.USES_CATEGORY and options.category is not None:
        raise InputError(f"expected no --category, because {type(task).__name__} does not use one")
    if not task.PER_POINT and options.out is not None:
        raise InputError(
            f"expected --csv or --json in place of --out, because {type(task).__name__} predicts nothing for points"
        )
    for option in ("top_k", "votes", "mesh_points"):
        if getattr(options, option) < 1:
            raise InputError(f"expected --{option} >= 1, but got {getattr(options, option)}")
    for table in (options.json, options.csv):
        if table is not None and table.exists() and not options.overwrite:
            raise InputError(f"expected a new file, but {table} exists already: --overwrite replaces it")


def _predict_cloud(model: Model, path: Path, category: int | None, options: argparse.Namespace) -> dict[str, Any]:
    file, task = _read(model, path, options), model.task
    (attributes,) = model.predict_blocks(file, category, options.votes, options.seed, options.up)
    entries = task.entries(attributes[task.OUTPUTS[-1]], category or 0)[: options.top_k]
    return _row(model, path, file, category) | {task.ENTRIES: entries}


def _predict_points(
    model: Model, path: Path, output: Path, category: int | None, options: argparse.Namespace
) -> dict[str, Any]:
    if output.exists():
        if not options.overwrite:
            raise FileExistsError(f"expected a new file, but {output} exists already: --overwrite replaces it")
        if output.resolve() == path.resolve():
            raise InputError(f"expected another folder than that of the input for --out, but {output} is the input")
    file, task, index = _read(model, path, options), model.task, category or 0
    counts = np.zeros(0, dtype=np.int64)
    agreement = Agreement(model, index)

    def results() -> Iterator[Cloud]:
        nonlocal counts
        predicted = model.predict_blocks(file, category, options.votes, options.seed, options.up)
        for block, attributes in zip(file, predicted, strict=True):
            counts = task.count(attributes, index) + (counts if len(counts) else 0)
            agreement.add(block, attributes)
            colors = task.point_colors(attributes, index)
            yield add_attributes(block, attributes if colors is None else {**attributes, "colors": colors})

    output.parent.mkdir(parents=True, exist_ok=True)
    write_blocks(output, file.num_points, results(), overwrite=options.overwrite)
    row = _row(model, path, file, category) | {"output": str(output)} | agreement.scores()
    return row | {task.ENTRIES: task.entries(counts, index)}


def _row(model: Model, path: Path, file: CloudFile, category: int | None) -> dict[str, Any]:
    row = {"file": str(path), "points": file.num_points}
    return row if category is None else row | {"category": model.class_names[category]}


def _read(model: Model, path: Path, options: argparse.Namespace) -> CloudFile:
    """A file in blocks, or as a whole if normals are estimated, because those depend on neighboring points."""
    block = None if ESTIMATED_NORMALS in model.preprocessing["features"] else BLOCK
    return CloudFile(
        path,
        block=block,
        columns=options.columns or model.columns,
        num_points=options.mesh_points,
        seed=options.seed,
        drop_invalid=options.drop_invalid,
    )


def _finish(
    task: PointCloudTask,
    rows: list[dict[str, Any]],
    failures: list[dict[str, str]],
    interrupted: bool,
    options: argparse.Namespace,
) -> int:
    """Print the table, write the requested files, and return the exit status."""
    if table := format_table(task, rows):
        print(table)
    if options.json is not None:
        _write(options.json, json.dumps([*rows, *failures], indent=2) + "\n", options.overwrite)
    if options.csv is not None:
        _write(options.csv, _to_csv(rows), options.overwrite)
    if failures or interrupted:
        ending = "interrupted" if interrupted else f"{len(failures)} failed"
        print(f"{len(rows)} files predicted, {ending}", file=sys.stderr)
    return 130 if interrupted else int(bool(failures))


def _to_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """A line per entry of each file; a column of an entry replaces one of its file with the same name."""
    lines = []
    for row in rows:
        of_file = {name: value for name, value in row.items() if not isinstance(value, list)}
        entries = next((value for value in row.values() if isinstance(value, list)), []) or [{}]
        for entry in entries:
            of_entry = {name: value for name, value in entry.items() if not isinstance(value, list)}
            lines.append({name: value for name, value in of_file.items() if name not in of_entry} | of_entry)
    text = io.StringIO()
    writer = csv.DictWriter(text, list(lines[0]) if lines else ["file"], lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue()


def _write(path: Path, text: str, overwrite: bool) -> None:
    """Write a text file atomically."""
    if path.exists() and not overwrite:  # created in the meantime
        raise FileExistsError(f"expected a new file, but {path} exists already: --overwrite replaces it")
    write_text(path, text)


def _align(cells: Sequence[Sequence[str]]) -> str:
    cells = [[escape_unprintable(cell) for cell in row] for row in cells]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = []
    for row in cells:
        padded = [
            cell.rjust(width) if index == 1 else cell.ljust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(padded).rstrip())
    return "\n".join(lines)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="pcattn predict-files",
        description="Predictions of a trained network for point clouds and meshes on disk, of any size. Clouds are "
        "normalized as in training and turned upright if --up says how they lie. Some of their points go through the "
        "network; predictions for the others are interpolated.",
        epilog=f"Formats: {', '.join(SUFFIXES)}. Exit status: 0 if all files were predicted, 1 if one failed (the "
        "others are still predicted), 2 if nothing was done.",
    )
    parser.add_argument("files", nargs="+", help="files, folders (searched recursively) or quoted patterns: '*.pcd'")
    add_ckpt_path(
        parser, required=True, help="a .ckpt or .safetensors, the folder of a run, or a name of bundled weights"
    )
    parser.add_argument("--category", help="name or index of the objects' category, to choose among its parts")
    parser.add_argument(
        "--out",
        type=Path,
        help="folder of the results if the network predicts for points: PLY with all original attributes, and label, "
        "probability and colors, or normals (default: predictions)",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write results and failures as JSON")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="write the results as CSV")
    parser.add_argument("--overwrite", action="store_true", help="replace existing results")
    parser.add_argument("--top_k", type=int, default=3, help="classes to list (default: %(default)s)")
    parser.add_argument(
        "--votes",
        type=int,
        default=1,
        help="scaled and resampled views of each cloud, whose predictions are averaged (default: %(default)s)",
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the draws of points (default: %(default)s)")
    parser.add_argument(
        "--mesh_points", type=int, default=10_000, help="points drawn from a mesh (default: %(default)s)"
    )
    parser.add_argument("--up", choices=AXES, help="axis that points up in the files (default: as in the training)")
    parser.add_argument(
        "--columns",
        nargs="+",
        metavar="NAME",
        help="names of the columns of text files and arrays: x y z nx ny nz (default: as in the training)",
    )
    parser.add_argument("--drop_invalid", action="store_true", help="drop points with NaN instead of refusing the file")
    parser.add_argument("--device", default="auto", help="cpu, cuda, ... (default: a GPU where there is one)")
    parser.add_argument("--trust", action="store_true", help="import the code that the checkpoint names")
    return parser
