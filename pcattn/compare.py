"""`pcattn compare`: several attentions, one data set, one budget, several seeds; one table and one plot."""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from pcattn import runs
from pcattn.attention import ATTENTION
from pcattn.bench.attention import count_multiply_adds


def compare(
    config: str, attentions: Sequence[str], seeds: Sequence[int], out: Path, options: Sequence[str] = ()
) -> list[dict[str, Any]]:
    """Train every attention with every seed and collect what came of it.

    A training is a process of its own, `pcattn fit` with its run in `out/<attention>-seed<seed>`. What is finished is
    not trained again and what was interrupted goes on, so the same call completes an interrupted comparison.

    Args:
        config: configuration of the trainings.
        attentions: names of mechanisms.
        seeds: each trains once with every mechanism; the validation split is the same for all.
        out: folder of the comparison.
        options: further options of `pcattn fit`, the same for all.

    Returns:
        One row a mechanism, see `summarize`; a mechanism without a finished training has none.

    Raises:
        ValueError: `out` holds a comparison with another configuration or other options.
    """
    out.mkdir(parents=True, exist_ok=True)
    setting = {"config": Path(config).read_text(), "options": list(options)}
    setting_file = out / "setting.json"
    if setting_file.exists() and json.loads(setting_file.read_text()) != setting:
        raise ValueError(f"expected {out} to be empty or to hold this comparison, but its {setting_file.name} differs")
    setting_file.write_text(json.dumps(setting, indent=2) + "\n")
    trainings = [(attention, seed) for seed in seeds for attention in attentions]
    with tqdm(trainings, unit="run") as progress:
        for attention, seed in progress:
            progress.set_description(f"{attention}, seed {seed}")
            run = out / f"{attention}-seed{seed}"
            if not (run / "results.json").exists() and not _train(config, attention, seed, run, options):
                progress.write(f"{attention}, seed {seed} failed: see {run}.log", file=sys.stderr)
    finished = {
        attention: [
            _read(run) for run in (out / f"{attention}-seed{seed}" for seed in seeds) if (run / "results.json").exists()
        ]
        for attention in attentions
    }
    return [summarize(attention, results) for attention, results in finished.items() if results]


def _train(config: str, attention: str, seed: int, run: Path, options: Sequence[str]) -> bool:
    """One training as a process of its own, whose peak memory is kept beside its results; whether it succeeded."""
    command = [sys.executable, "-m", "pcattn", "fit", "-c", config, "--run", str(run), *options]
    command += ["--model.attention", attention, "--seed_everything", str(seed)]
    if runs.checkpoint_path(run, "last").exists():
        command += ["--ckpt_path", "last"]
    else:
        shutil.rmtree(run, ignore_errors=True)  # killed before its first checkpoint: nothing to go on from
    with Path(f"{run}.log").open("w") as log, subprocess.Popen(command, stdout=log, stderr=log) as process:
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode or not (run / "results.json").exists():
        return False
    # Linux counts in KiB, macOS in bytes.
    peak_mib = usage.ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
    (run / "costs.json").write_text(json.dumps({"peak_mib": peak_mib}) + "\n")
    return True


def _read(run: Path) -> dict[str, Any]:
    """Results and costs of a finished training. The peak is unknown (NaN) where this was interrupted just then."""
    costs = run / "costs.json"
    peak = json.loads(costs.read_text()) if costs.exists() else {"peak_mib": math.nan}
    return json.loads((run / "results.json").read_text()) | peak | _count(runs.checkpoint_path(run, "best"))


def _count(checkpoint: Path) -> dict[str, int]:
    """Parameters, and multiply-adds of the forward pass of one cloud."""
    from pcattn.tasks import Classification

    task = Classification.load_from_checkpoint(checkpoint, map_location="cpu", weights_only=True, compile=False).eval()
    stored = torch.load(checkpoint, weights_only=True, map_location="cpu")["datamodule_hyper_parameters"]
    pos = torch.rand(1, stored["num_points"], 3)
    channels = task.hparams["num_features"]
    features = torch.rand(1, stored["num_points"], channels) if channels else None
    with torch.no_grad():
        multiply_adds = count_multiply_adds(lambda: task(pos, features))
    return {"parameters": sum(p.numel() for p in task.network.parameters()), "multiply_adds": multiply_adds}


def summarize(attention: str, results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Mean and spread (standard deviation) of the results of several seeds.

    Accuracies are those of the test split, or of the validation split where there is no test split.
    """
    split, name = ("test", "test/oa") if "test" in results[0] else ("best", "val/oa")
    accuracy = [result[split][name] for result in results]
    return {
        "attention": attention,
        "split": "test" if split == "test" else "validation",
        "accuracies": accuracy,
        "mean": statistics.mean(accuracy),
        "std": statistics.stdev(accuracy) if len(accuracy) > 1 else 0.0,
        "parameters": results[0]["parameters"],
        "multiply_adds": results[0]["multiply_adds"],
        "clouds_per_second": statistics.median(result["clouds_per_second"] for result in results),
        "peak_mib": max(result["peak_mib"] for result in results),
    }


def format_table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as a Markdown table, the most accurate first."""
    split = rows[0]["split"] if rows else "test"
    lines = [
        f"| attention | {split} accuracy, % | runs | parameters | M multiply-adds a cloud | clouds/s in training "
        "| peak MiB of the process |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in sorted(rows, key=lambda row: -row["mean"]):
        lines.append(
            f"| {row['attention']} | {100 * row['mean']:.1f} ± {100 * row['std']:.1f} | {len(row['accuracies'])} "
            f"| {row['parameters']:,} | {row['multiply_adds'] / 1e6:,.0f} | {row['clouds_per_second']:.0f} "
            f"| {row['peak_mib']:,.0f} |"
        )
    return "\n".join(lines)


def plot(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Accuracy of every seed, its mean and spread, and accuracy against throughput, as an image."""
    from matplotlib.figure import Figure

    rows = sorted(rows, key=lambda row: row["mean"])
    figure = Figure(figsize=(11, 4.5), layout="constrained")
    left, right = figure.subplots(1, 2, sharex=False)
    for place, row in enumerate(rows):
        accuracy = [100 * value for value in row["accuracies"]]
        left.plot(accuracy, [place] * len(accuracy), "o", color="tab:gray", ms=4, alpha=0.7)
        left.errorbar(100 * row["mean"], place, xerr=100 * row["std"], fmt="|", color="tab:blue", ms=14, capsize=4)
        right.errorbar(row["clouds_per_second"], 100 * row["mean"], 100 * row["std"], fmt="o", color="tab:blue")
        right.annotate(
            row["attention"],
            (row["clouds_per_second"], 100 * row["mean"]),
            xytext=(6, 4),
            textcoords="offset points",
            fontsize=8,
        )
    left.set_yticks(range(len(rows)), [row["attention"] for row in rows])
    left.set_xlabel(f"{rows[0]['split']} accuracy, %: seeds, mean and standard deviation")
    right.set_xlabel("clouds/s in training")
    right.set_ylabel(f"{rows[0]['split']} accuracy, %")
    right.margins(x=0.2)
    for axes in (left, right):
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=150)


def main(args: Sequence[str]) -> int:
    """The command line; status 1 if a training failed."""
    parser = argparse.ArgumentParser(
        prog="pcattn compare",
        description="Train several attentions with one budget and several seeds. Further options are those of fit.",
    )
    parser.add_argument("-c", "--config", required=True, help="configuration of the trainings")
    parser.add_argument("--attentions", nargs="+", default=list(ATTENTION), help="default: all")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--out", type=Path, help="folder of the comparison; default runs/compare-<configuration>")
    known, options = parser.parse_known_args(args)
    if not Path(known.config).is_file():
        parser.error(f"expected --config to be a file, but got {known.config}")
    out = known.out or Path("runs") / f"compare-{Path(known.config).stem}"
    try:
        rows = compare(known.config, known.attentions, known.seeds, out, options)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    except KeyboardInterrupt:
        print("\ninterrupted; the same command goes on", file=sys.stderr)
        return 130
    if rows:
        table = format_table(rows)
        (out / "compare.json").write_text(json.dumps(rows, indent=2) + "\n")
        (out / "compare.md").write_text(table + "\n")
        plot(rows, out / "compare.png")
        print(f"\n{table}\n\nwritten to {out}/compare.md, compare.json, compare.png")
    return int(sum(len(row["accuracies"]) for row in rows) < len(known.attentions) * len(known.seeds))
