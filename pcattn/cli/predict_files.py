"""`pcattn predict-files`: a trained network on one's own files, point clouds and meshes of any size."""

from __future__ import annotations

import argparse
import csv
import io
import json
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

import pcattn
from pcattn.cli.messages import fail
from pcattn.cli.options import add_ckpt_path
from pcattn.data.preprocessing import ESTIMATED_NORMALS
from pcattn.inference.model import Classes, Model, Parts
from pcattn.io.cloud import BLOCK, SUFFIXES, Cloud, CloudFile, write_blocks
from pcattn.io.find import find_files
from pcattn.tasks import PartSegmentation
from pcattn.utils.errors import InputError
from pcattn.utils.files import write_text
from pcattn.utils.text import escape_unprintable
from pcattn.visualize.colors import palette

#: One file: its path, and where its segmentation goes below the output folder, without suffix.
Job = tuple[Path, Path]


def name_outputs(jobs: Sequence[Job]) -> list[Path]:
    """Where each segmentation goes below the output folder: `chair.ply`; `chair-off.ply` where two files share a stem.

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


def segmented(cloud: Cloud, parts: Parts, ids: Sequence[int]) -> Cloud:
    """A cloud with `label`, `probability` and colors of its parts beside what it had.

    Attributes of these names that it had are kept as `original_label` and so on.

    Args:
        cloud: as it was read.
        parts: what the network says.
        ids: the parts to choose from, in the order of their colors.
    """
    colors = np.zeros((max(ids) + 1, 3), dtype=np.uint8)
    colors[list(ids)] = palette(len(ids))
    new = {
        "label": parts.labels.astype(np.int32),
        "probability": parts.probabilities,
        "colors": colors[parts.labels],
    }
    kept = {}
    for name, values in cloud.attributes.items():
        name = "_".join(name.split())  # PLY has no spaces in names
        while name in new or name in kept:
            name = f"original_{name}"
        kept[name] = values
    return Cloud(cloud.pos, {**kept, **new})


def classification_table(rows: Sequence[dict[str, Any]]) -> str:
    """Rows of `classify_files` as aligned text, safe to print."""
    if not rows:
        return ""
    cells = [["file", "points", "class", *[""] * (len(rows[0]["classes"]) - 1)]]
    for row in rows:
        found = [f"{entry['class']} {entry['probability']:.3f}" for entry in row["classes"]]
        cells.append([row["file"], f"{row['points']:,}", *found])
    return _align(cells)


def segmentation_table(rows: Sequence[dict[str, Any]]) -> str:
    """Rows of `segment_file` as aligned text, safe to print."""
    cells = [["file", "points", "written to", "parts"]]
    for row in rows:
        shares = ", ".join(
            f"{part['part']} {100 * part['points'] / row['points']:.1f} %" for part in row["parts"] if part["points"]
        )
        cells.append([row["file"], f"{row['points']:,}", row["output"], shares])
    return _align(cells) if rows else ""


def main(args: Sequence[str]) -> int:
    """The command line; status 1 if a file failed, 2 if the call itself is wrong."""
    parser = _parser()
    options = parser.parse_args(args)
    try:
        model = pcattn.load(options.ckpt_path, trust=options.trust, device=options.device)
        segments = isinstance(model.task, PartSegmentation)
        category = model.category_index(options.category) if segments else None
        if not segments and options.category is not None:
            raise InputError("expected no --category, because this network classifies")
        if not segments and options.out is not None:
            raise InputError("expected --csv or --json in place of --out, because this network classifies")
        for option in ("top_k", "votes", "mesh_points"):
            if getattr(options, option) < 1:
                raise InputError(f"expected --{option} >= 1, but got {getattr(options, option)}")
        for table in (options.json, options.csv):
            if table is not None and table.exists() and not options.overwrite:
                raise InputError(f"expected a new file, but {table} exists already: --overwrite replaces it")
        options.out = options.out or Path("predictions")
        if segments:
            options.out.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError, ValueError) as error:
        fail(str(error), error)
    jobs, wrong = find_files(options.files, options.out if segments else None)
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
                    if category is not None:
                        rows.append(_segment(model, path, options.out / name, category, options))
                    else:
                        rows.append(_classify(model, path, options))
                except (OSError, MemoryError, RuntimeError, ValueError) as error:
                    reason = " ".join(str(error).split()) or type(error).__name__
                    failures.append({"file": str(path), "error": reason})
                    named = path.name in reason or escape_unprintable(path.name) in reason
                    progress.write(escape_unprintable(reason if named else f"{path}: {reason}"), file=sys.stderr)
        except KeyboardInterrupt:
            interrupted = True
    return _finish(rows, failures, category is not None, interrupted, options)


def _classify(model: Model, path: Path, options: argparse.Namespace) -> dict[str, Any]:
    file = _read(model, path, options)
    found: Classes = model.classify_blocks(file, options.top_k, options.votes, options.seed)
    return {
        "file": str(path),
        "points": file.num_points,
        "classes": [
            {"class": name, "label": int(label), "probability": round(float(probability), 6)}
            for name, label, probability in zip(found.names, found.labels, found.probabilities, strict=True)
        ],
    }


def _segment(model: Model, path: Path, output: Path, category: int, options: argparse.Namespace) -> dict[str, Any]:
    if output.exists():
        if not options.overwrite:
            raise FileExistsError(f"expected a new file, but {output} exists already: --overwrite replaces it")
        if output.resolve() == path.resolve():
            raise InputError(f"expected another folder than that of the input for --out, but {output} is the input")
    file = _read(model, path, options)
    num_points = file.num_points
    ids = model.part_ids(category)
    counts = np.zeros(max(ids) + 1, dtype=np.int64)

    def results() -> Iterator[Cloud]:
        for block, parts in zip(file, model.segment_blocks(file, category, options.votes, options.seed), strict=True):
            counts[:] += np.bincount(parts.labels, minlength=len(counts))
            yield segmented(block, parts, ids)

    output.parent.mkdir(parents=True, exist_ok=True)
    write_blocks(output, num_points, results(), overwrite=options.overwrite)
    return {
        "file": str(path),
        "points": num_points,
        "category": model.class_names[category],
        "output": str(output),
        "parts": [
            {"part": model.part_names[label], "label": label, "color": color.tolist(), "points": int(counts[label])}
            for label, color in zip(ids, palette(len(ids)), strict=True)
        ],
    }


def _read(model: Model, path: Path, options: argparse.Namespace) -> CloudFile:
    """A file block by block, or as a whole where normals are estimated: those of a point depend on others."""
    block = None if ESTIMATED_NORMALS in model.preprocessing["features"] else BLOCK
    return CloudFile(
        path, block=block, num_points=options.mesh_points, seed=options.seed, drop_invalid=options.drop_invalid
    )


def _finish(
    rows: list[dict[str, Any]],
    failures: list[dict[str, str]],
    segments: bool,
    interrupted: bool,
    options: argparse.Namespace,
) -> int:
    """Print the table, write the files that were asked for, and tell how it went."""
    table = segmentation_table(rows) if segments else classification_table(rows)
    if table:
        print(table)
    try:
        if options.json is not None:
            _write(options.json, json.dumps([*rows, *failures], indent=2) + "\n", options.overwrite)
        if options.csv is not None:
            _write(options.csv, _to_csv(rows, segments), options.overwrite)
    except OSError as error:
        fail(str(error), error)
    if failures or interrupted:
        ending = "interrupted" if interrupted else f"{len(failures)} failed"
        print(f"{len(rows)} files predicted, {ending}", file=sys.stderr)
    return 130 if interrupted else int(bool(failures))


def _to_csv(rows: Sequence[dict[str, Any]], segments: bool) -> str:
    """A line for each class of each file, or for each part."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    if segments:
        writer.writerow(["file", "category", "output", "part", "label", "points"])
        for row in rows:
            for part in row["parts"]:
                head = [row["file"], row["category"], row["output"]]
                writer.writerow([*head, part["part"], part["label"], part["points"]])
    else:
        writer.writerow(["file", "points", "rank", "class", "label", "probability"])
        for row in rows:
            for rank, entry in enumerate(row["classes"], 1):
                writer.writerow([row["file"], row["points"], rank, *entry.values()])
    return text.getvalue()


def _write(path: Path, text: str, overwrite: bool) -> None:
    """Write a text file, at once and complete."""
    if path.exists() and not overwrite:  # it came into being in the meantime
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
        description="Classify or segment point clouds and meshes on disk, with a trained network. Clouds of any size: "
        "they are normalized as in training, some of their points go through the network, and its predictions are "
        "carried to all others.",
        epilog=f"Formats: {', '.join(SUFFIXES)}. Exit status: 0 if all files were predicted, 1 if one failed (the "
        "others are predicted nevertheless), 2 if nothing was done.",
    )
    parser.add_argument("files", nargs="+", help="files, folders (searched through) or quoted patterns: '*.pcd'")
    add_ckpt_path(
        parser, required=True, help="a .ckpt or .safetensors, the folder of a run, or a name of bundled weights"
    )
    parser.add_argument("--category", help="name or index of the objects' category, to choose among its parts")
    parser.add_argument(
        "--out",
        type=Path,
        help="folder of the segmented clouds, PLY with all original attributes, label, probability and colors of the "
        "parts (default: predictions)",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results, and what failed, as JSON")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="write the results as CSV")
    parser.add_argument("--overwrite", action="store_true", help="replace results that are there already")
    parser.add_argument("--top_k", type=int, default=3, help="classes to tell (default: %(default)s)")
    parser.add_argument(
        "--votes", type=int, default=1, help="draws of points from larger clouds; more are finer (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the draws (default: %(default)s)")
    parser.add_argument("--mesh_points", type=int, default=10_000, help="points on a mesh (default: %(default)s)")
    parser.add_argument("--drop_invalid", action="store_true", help="leave out points with NaN instead of refusing")
    parser.add_argument("--device", default="auto", help="cpu, cuda, ... (default: a GPU where there is one)")
    parser.add_argument("--trust", action="store_true", help="import code of one's own that the checkpoint names")
    return parser
