"""`pcattn report`: a page about a finished run, as one HTML file and as Markdown."""

from __future__ import annotations

import argparse
import base64
import html
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from pcattn.inference.evaluate import Run, open_run
from pcattn.tasks.base import PointCloudTask
from pcattn.training.run_folder import run_of_checkpoint
from pcattn.training.selection import SPLITS, read_batches, read_split
from pcattn.utils.errors import InputError
from pcattn.utils.files import write_text
from pcattn.utils.text import in_html, in_markdown
from pcattn.visualize import charts
from pcattn.visualize.montage import montage
from pcattn.visualize.scene import Cloud, name_clouds, shown_fields

_STYLE = """body { font: 15px/1.5 system-ui, sans-serif; max-width: 1080px; margin: 24px auto; padding: 0 16px }
h1 { font-size: 24px; margin-bottom: 4px } h2 { font-size: 18px; margin: 28px 0 8px; border-bottom: 1px solid #ddd }
table { border-collapse: collapse } td, th { padding: 3px 14px 3px 0; text-align: left; border-bottom: 1px solid #eee }
img { max-width: 100% } pre { background: #f6f6f6; padding: 10px; overflow-x: auto; font-size: 13px }"""


@dataclass
class Section:
    """A heading with lines of text, a table with a header row, a picture, and preformatted text."""

    title: str
    lines: list[str] = field(default_factory=list)
    table: list[Sequence[str]] = field(default_factory=list)
    picture: Path | None = None
    verbatim: str = ""


def report(run: Path, split: str | None = None, worst: int = 16, trust: bool = False) -> tuple[Path, Path]:
    """Write `report.html` and `report.md` to a run, and the pictures of the latter to its folder `report`.

    The best checkpoint is evaluated once more by the metrics of its task. An existing report is replaced.

    Args:
        run: the folder of the run.
        split: `"val"` or `"test"`; None is test if the run was tested, else val.
        worst: how many of the worst clouds to draw.
        trust: import the code that the checkpoint names.

    Returns:
        Both files.

    Raises:
        InputError: there is no checkpoint, or it cannot be used.
        DatasetError: the data cannot be read.
    """
    opened = open_run(run, trust)
    folder = run_of_checkpoint(opened.path)
    if folder is None or not run.is_dir():
        raise InputError(f"expected the folder of a run, but got {run}")
    results = json.loads((run / "results.json").read_text()) if (run / "results.json").is_file() else {}
    split = split or ("test" if "test" in results else "val")
    pictures = run / "report"
    pictures.mkdir(exist_ok=True)
    clouds, metrics, confusions = evaluate(opened, split)
    sections = [_summary(opened, run, split, metrics, results, len(clouds))]
    curves = charts.draw_curves(charts.read_curves(run), pictures / "curves.png")
    if curves is not None:
        sections.append(Section("Curves", picture=curves))
    if (categories := _categories(opened.task, pictures)) is not None:
        sections.append(categories)
    if confusions:
        unit = "Points by part" if opened.task.PER_POINT else "Shapes by class"
        drawn = charts.draw_confusion(confusions, pictures / "confusion.png")
        sections.append(Section("Confusion", [f"{unit}, in percent of the truth in each row."], picture=drawn))
    if worst:
        chosen = sorted(clouds, key=lambda cloud: cloud.score)[:worst]
        names = opened.data.cloud_names(split)
        rows = [(cloud.title, names[cloud.index or 0] if names else "", cloud.note) for cloud in chosen]
        chosen = name_clouds(chosen, names)
        path = montage(
            chosen,
            pictures / "worst.png",
            shown_fields(chosen, opened.task.FIELDS),
            up=opened.data.up_axis,
            renderer="matplotlib",
        )
        sections.append(Section(f"The worst of {len(clouds)} shapes", picture=path))
        sections.append(Section("Their files", table=[("shape", "file", "prediction"), *rows]))
    config = run / "config.yaml"
    if config.is_file():
        sections.append(Section("Configuration", verbatim=config.read_text()))
    title = f"{run.name}: {_describe(opened.task)}"
    page, text = run / "report.html", run / "report.md"
    write_text(page, _html(title, sections))
    write_text(text, _markdown(title, sections, run))
    return page, text


def evaluate(run: Run, split: str) -> tuple[list[Cloud], dict[str, float], list[charts.Confusion]]:
    """The clouds of a split with predictions, the metrics of the task, and its confusion matrices."""
    task = run.task
    dense, indices = read_split(run.data, split)
    clouds: list[Cloud] = []
    counts: Any = 0
    for batch in read_batches(dense, indices):
        with torch.no_grad():
            task.check_targets(batch)
            logits = task.finite_logits(batch)
            task.update_metrics(logits, batch)
        clouds += task.describe(batch, logits)
        counts = counts + task.confusion_counts(batch, logits)
    metrics = {name.partition("/")[2]: float(value) for name, value in task.compute_metrics(split).items()}
    return clouds, metrics, task.confusions(counts)


def _summary(
    run: Run, folder: Path, split: str, metrics: dict[str, float], results: dict[str, Any], number: int
) -> Section:
    task = run.task
    h, data = dict(task.hparams), run.data
    parameters = sum(parameter.numel() for parameter in task.network.parameters())
    network = h.get("network_kwargs") or {}
    options = ", ".join(f"{name} {value}" for name, value in network.items())
    where = "test" if split == "test" else "validation"
    rows = [
        ("task", type(task).__name__),
        ("network", f"{h.get('variant')}, attention {h.get('attention') or 'of the variant'}, {options}".rstrip(", ")),
        ("parameters", f"{parameters:,}"),
        ("data", f"{data.dataset_name}, {data.num_points or 'all'} points a shape, batches of {data.batch_size}"),
        ("optimizer", f"{h.get('optimizer')}, learning rate {h.get('lr')}, weight decay {h.get('weight_decay')}"),
        ("checkpoint", str(run.path.relative_to(folder))),
        ("measured on", f"{number} shapes of the {where} split, one vote"),
    ]
    rows += task.settings()
    rows += [(name.replace("_", " "), task.METRICS[name].format(value)) for name, value in metrics.items()]
    if "clouds_per_second" in results:
        rows.append(("speed of training", f"{results['clouds_per_second']:.0f} shapes a second"))
    return Section("Summary", table=[("", ""), *rows])


def _categories(task: PointCloudTask, folder: Path) -> Section | None:
    """The score of each category in the last evaluation, the best first; None if the task has none."""
    label, rows = task.category_scores()
    if not rows:
        return None
    table: list[Sequence[str]] = [("category", label, "shapes")]
    for name, score, count in sorted(rows, key=lambda row: -(row[1] or 0.0)):
        table.append((name, "-" if score is None else f"{100 * score:.1f}", str(count)))
    names, scores, counts = zip(*rows, strict=True)
    return Section(
        "Categories", table=table, picture=charts.draw_bars(names, scores, counts, label, folder / "bars.png")
    )


def _describe(task: PointCloudTask) -> str:
    h = dict(task.hparams)
    attention = f", {h['attention']} attention" if h.get("attention") else ""
    return f"{task.TITLE} by {h.get('variant', type(task.network).__name__)}{attention}"


def _html(title: str, sections: Sequence[Section]) -> str:
    parts = [
        f"<!DOCTYPE html><html lang='en'><head><meta charset='utf-8'><title>{in_html(title)}</title>"
        f"<style>{_STYLE}</style></head><body><h1>{in_html(title)}</h1>"
    ]
    for section in sections:
        parts.append(f"<h2>{html.escape(section.title)}</h2>")
        parts += [f"<p>{in_html(line)}</p>" for line in section.lines]
        # A chart replaces the table of categories; Markdown has both.
        if section.table and section.picture is None:
            parts.append("<table>")
            for row in section.table[any(section.table[0]) ^ 1 :]:
                parts.append("<tr>" + "".join(f"<td>{in_html(cell)}</td>" for cell in row) + "</tr>")
            parts.append("</table>")
        if section.picture is not None:
            data = base64.b64encode(section.picture.read_bytes()).decode()
            parts.append(f"<img alt='{html.escape(section.title)}' src='data:image/png;base64,{data}'>")
        if section.verbatim:
            parts.append(
                f"<details><summary>every option</summary><pre>{html.escape(section.verbatim)}</pre></details>"
            )
    return "\n".join([*parts, "</body></html>\n"])


def _markdown(title: str, sections: Sequence[Section], run: Path) -> str:
    lines = [f"# {in_markdown(title)}"]
    for section in sections:
        lines += ["", f"## {in_markdown(section.title)}", "", *map(in_markdown, section.lines)]
        if section.table:
            header, *rows = ["| " + " | ".join(map(in_markdown, row)) + " |" for row in section.table]
            lines += [header, "|" + " --- |" * len(section.table[0]), *rows, ""]
        if section.picture is not None:
            lines.append(f"![{section.title}]({section.picture.relative_to(run).as_posix()})")
        if section.verbatim:
            longest = max(map(len, re.findall("`+", section.verbatim)), default=0)
            fence = "`" * max(3, longest + 1)  # which nothing in the text ends
            lines += [f"{fence}yaml", section.verbatim.rstrip(), fence]
    return "\n".join(lines) + "\n"


def main(args: Sequence[str]) -> int:
    """Run `pcattn report`."""
    parser = argparse.ArgumentParser(
        prog="pcattn report",
        description="A page about a run: configuration, curves, metrics, categories, confusion, the worst shapes.",
    )
    parser.add_argument("run", type=Path, help="folder of the run")
    parser.add_argument("--split", choices=SPLITS, help="default: test if the run was tested, else val")
    parser.add_argument("--worst", type=int, default=16, help="shapes to draw; default 16")
    parser.add_argument("--trust", action="store_true", help="import the code that the checkpoint names")
    given = parser.parse_args(args)
    if given.worst < 0:
        parser.error(f"expected --worst >= 0, but got {given.worst}")
    files = report(given.run, given.split, given.worst, given.trust)
    print("written: " + ", ".join(map(str, files)))
    return 0
