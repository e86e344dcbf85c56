"""`pcattn robustness`: errors of a trained network under the corruptions of ModelNet40-C, as a table and JSON."""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from tqdm import tqdm

from pcattn.cli.lightning import PointCloudCLI
from pcattn.transforms.corruptions import CORRUPTIONS, SEVERITIES, corrupt, find
from pcattn.utils.errors import InputError
from pcattn.utils.files import write_figure, write_text

Errors = Mapping[str, Mapping[str, float]]

#: Options of the data that errors depend on; one table never mixes results under different ones.
COMPARED = (
    "dataset_kwargs",
    "num_points",
    "sampling",
    "features",
    "normalize",
    "up_axis",
    "val_fraction",
    "split_seed",
    "corruption_seed",
)


class RobustnessCLI(PointCloudCLI):
    """`pcattn test` or `validate`, once for the clean clouds and once for every corruption."""

    def __init__(self, args: list[str], suite: argparse.Namespace) -> None:
        self.suite = suite
        super().__init__(args)

    def test(self, model: Any, **kwargs: Any) -> None:
        """Run the evaluations that are still missing, and write each result immediately."""
        suite = self.suite
        if (name := model.ROBUSTNESS) is None:
            raise InputError(f"expected a task with a metric for corruptions, but {type(model).__name__} has none")
        metric = f"{'test' if self.subcommand == 'test' else 'val'}/{name}"
        path = suite.out or self.run / "robustness.json"
        setting = {
            "metric": metric,
            "checkpoint_sha256": hashlib.sha256(Path(str(self.checkpoint)).read_bytes()).hexdigest(),
            "dataset": self.datamodule.dataset_name,
            **{name: getattr(self.datamodule, name) for name in COMPARED},
        }
        report = resume(path, setting)
        baseline = None if suite.baseline is None else read_report(suite.baseline)
        if baseline is not None and baseline["setting"]["metric"] != metric:
            raise InputError(f"expected {suite.baseline} to have {metric}, but it has {baseline['setting']['metric']}")
        todo = [None, *((corruption, level) for corruption in suite.corruptions for level in suite.severities)]
        with tqdm(todo, unit="evaluation", desc=str(path)) as progress:
            for step in progress:
                if is_done(report, step):
                    continue
                self.datamodule.corruption = None if step is None else f"{step[0]}:{step[1]}"
                progress.set_postfix_str(self.datamodule.corruption or "clean")
                evaluate = self.trainer.test if self.subcommand == "test" else self.trainer.validate
                (metrics,) = evaluate(model, **kwargs)
                kwargs["ckpt_path"] = kwargs["weights_only"] = None  # the weights are loaded from now on
                error = 1 - metrics[metric]
                if step is None:
                    report["clean"] = error
                else:
                    report["errors"].setdefault(step[0], {})[str(step[1])] = error
                write(path, report)
        errors = {corruption: report["errors"][corruption] for corruption in suite.corruptions}
        report |= summarize(errors, suite.severities, None if baseline is None else baseline["errors"])
        write(path, report)
        text = format_table(report, errors, suite.severities, suite.baseline, model.METRICS[name].label)
        write_text(path.with_suffix(".md"), text + "\n")
        print(f"\n{text}\n\nwritten to {path} and {path.with_suffix('.md').name}")

    validate = test

    def after_test(self) -> None:
        """Nothing: the table has been printed."""

    after_validate = after_test


def resume(path: Path, setting: dict[str, Any]) -> dict[str, Any]:
    """The unfinished report in a file, or an empty one if there is no file.

    Raises:
        InputError: it belongs to another checkpoint or to other options.
    """
    if not path.exists():
        return {"setting": setting, "errors": {}}
    report = read_report(path)
    differing = [name for name, value in setting.items() if report["setting"].get(name) != value]
    if differing:
        raise InputError(
            f"expected {path} to be of this checkpoint and these options, but it differs in {', '.join(differing)}: "
            "remove it, or name another file with --out"
        )
    return report


def read_report(path: Path) -> dict[str, Any]:
    """Read a report of `pcattn robustness`.

    Raises:
        InputError: it holds something else.
        OSError: it cannot be read.
    """
    try:
        report: dict[str, Any] = json.loads(path.read_text())
        if {"setting", "errors"} <= report.keys():
            return report
        reason = f"it has {', '.join(report) or 'nothing'}"
    except (ValueError, AttributeError) as error:
        reason = str(error)
    raise InputError(f"expected {path} to be the robustness.json of a run, but {reason}")


def is_done(report: dict[str, Any], step: tuple[str, int] | None) -> bool:
    """Whether a report has the result of a step."""
    return "clean" in report if step is None else str(step[1]) in report["errors"].get(step[0], {})


def write(path: Path, report: dict[str, Any]) -> None:
    """Write a report atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(report, indent=2) + "\n")


def summarize(errors: Errors, severities: Sequence[int], baseline: Errors | None = None) -> dict[str, Any]:
    r"""Means of the errors, and the corruption error against a baseline.

    With the error :math:`E_{c,s}` of the network and :math:`E^b_{c,s}` of the baseline,

    .. math::
        \mathrm{CE}_c = \frac{\sum_s E_{c,s}}{\sum_s E^b_{c,s}}, \qquad \mathrm{mCE} = \frac{1}{C} \sum_c \mathrm{CE}_c

    Args:
        errors: by corruption and severity.
        severities: the severities that count.
        baseline: the same of the baseline.

    Returns:
        `by_corruption`, `by_family` and `mean`, the mean error (ER_cor in ModelNet40-C); with a baseline also `ce` by
        corruption and `mce`.

    Raises:
        InputError: the baseline lacks a result, or has no errors under a corruption.

    Source: Hendrycks and Dietterich 2019, https://arxiv.org/abs/1903.12261, section 4; for point clouds, Ren et al.
        2022, https://arxiv.org/abs/2202.03377.
    """
    by_corruption = {name: mean(found[str(s)] for s in severities) for name, found in errors.items()}
    families: dict[str, list[float]] = {}
    for name, error in by_corruption.items():
        families.setdefault(CORRUPTIONS[name].family, []).append(error)
    summary: dict[str, Any] = {
        "by_corruption": by_corruption,
        "by_family": {family: mean(members) for family, members in families.items()},
        "mean": mean(by_corruption.values()),
    }
    if baseline is None:
        return summary
    missing = [f"{name}:{s}" for name in errors for s in severities if str(s) not in baseline.get(name, {})]
    if missing:
        raise InputError(f"expected results for {', '.join(missing)} in the baseline, but it has none")
    sums = {name: sum(baseline[name][str(s)] for s in severities) for name in errors}
    if perfect := [name for name, total in sums.items() if total == 0]:
        raise InputError(f"expected a baseline with errors, but it has none under {', '.join(perfect)}")
    ce = {name: by_corruption[name] * len(severities) / sums[name] for name in errors}
    return summary | {"ce": ce, "mce": mean(ce.values())}


def format_table(
    report: Mapping[str, Any], errors: Errors, severities: Sequence[int], baseline: Path | None, metric: str
) -> str:
    """The report as a Markdown table, errors in percent, where an error is 1 - `metric`."""
    columns = ["corruption", *(str(s) for s in severities), "mean", *(["CE"] if baseline else [])]
    rows = []
    for name, found in errors.items():
        row = [name, *(f"{100 * found[str(s)]:.1f}" for s in severities), f"{100 * report['by_corruption'][name]:.1f}"]
        rows.append(row + ([f"{100 * report['ce'][name]:.1f}"] if baseline else []))
    lines = [columns, ["---", *["---:"] * (len(columns) - 1)], *rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    table = [
        "| "
        + " | ".join(
            cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(line, widths, strict=True))
        )
        + " |"
        for line in lines
    ]
    text = [
        *table,
        "",
        f"error = 1 - {metric} on {report['setting']['dataset']} ({report['setting']['metric']}), "
        "in percent, by severity",
        f"clean {100 * report['clean']:.1f}, mean over corruptions {100 * report['mean']:.1f} ("
        + ", ".join(f"{family} {100 * error:.1f}" for family, error in report["by_family"].items())
        + ")",
    ]
    if baseline:
        text.append(f"mCE {100 * report['mce']:.1f} against {baseline}")
    return "\n".join(text)


def plot(pos: Any, num_points: int, path: Path, seed: int = 0, index: int = 0, up: str = "z") -> None:
    """One cloud (P, 3) under every corruption (rows) at every severity (columns), as an image."""
    import numpy as np
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 15), layout="constrained")
    axes = figure.subplots(len(CORRUPTIONS), len(SEVERITIES), subplot_kw={"projection": "3d"})
    for row, name in zip(axes, CORRUPTIONS, strict=True):
        for panel, severity in zip(row, SEVERITIES, strict=True):
            cloud, _ = corrupt(pos, name, severity, num_points, seed, index, up)
            upright = np.roll(cloud, 2 - "xyz".index(up), axis=1)
            # Scaled one by one: some corruptions fit the cloud into a box, others do not.
            middle, half = (upright.max(0) + upright.min(0)) / 2, np.ptp(upright, axis=0).max() / 2
            height = (upright[:, 2] - middle[2]) / half
            panel.scatter(*upright.T, s=1.6, c=height, cmap="viridis", vmin=-1.1, vmax=1.3, linewidths=0)
            panel.set(**{f"{axis}lim": (m - half, m + half) for axis, m in zip("xyz", middle, strict=True)})
            panel.set_box_aspect((1, 1, 1), zoom=1.5)
            panel.set_axis_off()
            panel.set_title(f"{name} {severity}", fontsize=6, pad=0)
    write_figure(path, figure, dpi=90)


def main(args: Sequence[str]) -> int:
    """Run `pcattn robustness`."""
    parser = argparse.ArgumentParser(
        prog="pcattn robustness",
        description="Evaluate a trained network under the corruptions of ModelNet40-C (Sun et al. 2022). The same "
        "command completes an interrupted suite. Further options are those of test, like --ckpt_path or --data.root.",
    )
    parser.add_argument("-c", "--config", required=True, help="configuration of the run: runs/<name>/config.yaml")
    parser.add_argument("--baseline", type=Path, help="robustness.json of another network, for the mCE")
    parser.add_argument(
        "--out", type=Path, help="JSON file; a table is written beside it. Default: robustness.json in the run"
    )
    parser.add_argument("--corruptions", nargs="+", default=list(CORRUPTIONS), help="default: all 15")
    parser.add_argument("--severities", nargs="+", type=int, default=list(SEVERITIES), help="default: 1 to 5")
    parser.add_argument("--split", choices=("test", "val"), default="test", help="clouds to evaluate; default: test")
    suite, options = parser.parse_known_args(args)
    subcommand = "test" if suite.split == "test" else "validate"
    for name in suite.corruptions:
        for severity in suite.severities:
            find(name, severity)
    if suite.baseline is not None:
        read_report(suite.baseline)
    quiet = ["--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"]
    RobustnessCLI([subcommand, "-c", suite.config, *quiet, *options], suite)
    return 0
