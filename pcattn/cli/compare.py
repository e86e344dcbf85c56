"""`pcattn compare`: several networks, one data set, one budget, several seeds; one table and one plot."""

from __future__ import annotations

import argparse
import ctypes
import json
import math
import os
import shlex
import shutil
import signal
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import torch
from tqdm import tqdm

from pcattn.attention import ATTENTION
from pcattn.bench.attention import count_multiply_adds
from pcattn.cli.config_files import find_configuration
from pcattn.cli.messages import fail
from pcattn.data.storage import is_file_name
from pcattn.inference import checkpoints
from pcattn.inference import evaluate as evaluated
from pcattn.training import runs
from pcattn.utils.errors import InputError
from pcattn.utils.files import write_figure, write_text
from pcattn.utils.registry import resolve
from pcattn.utils.text import in_markdown, printable
from pcattn.visualize.text import plain_text

#: What results are compared by, of any task, and its name in words; a table is ordered by the first that it has.
METRICS = {
    "oa": "accuracy",
    "macc": "mean class accuracy",
    "instance_miou": "instance mIoU",
    "class_miou": "class mIoU",
}

_PR_SET_PDEATHSIG = 1  # of <linux/prctl.h>


def compare(
    config: str, networks: Mapping[str, Sequence[str]], seeds: Sequence[int], out: Path, options: Sequence[str] = ()
) -> list[dict[str, Any]]:
    """Train every network with every seed and collect what came of it.

    A training is a process of its own, `pcattn fit` with its run in `out/<network>-seed<seed>`. What is finished is not
    trained again and what was interrupted goes on, so the same call completes an interrupted comparison. An interrupted
    comparison stops its training, which saves a checkpoint; on Linux also one that is killed.

    Args:
        config: configuration of the trainings, of any task.
        networks: options of `pcattn fit` that make each network, by the name it has in the table.
        seeds: each trains once with every network; the validation split is the same for all.
        out: folder of the comparison.
        options: further options of `pcattn fit`, the same for all.

    Returns:
        One row a network, see `summarize`; a network without a finished training has none.

    Raises:
        InputError: `out` holds a comparison with another configuration or other options, also of one of the networks;
            another process works there; or a seed is there twice.
    """
    if len(set(seeds)) < len(seeds):
        raise InputError(f"expected seeds that differ, but got {', '.join(map(str, seeds))}")
    out.mkdir(parents=True, exist_ok=True)
    with runs.alone(out) as lock:
        return _compare(config, networks, seeds, out, options, lock)


def _compare(
    config: str,
    networks: Mapping[str, Sequence[str]],
    seeds: Sequence[int],
    out: Path,
    options: Sequence[str],
    lock: int | None,
) -> list[dict[str, Any]]:
    """The same, with the folder for itself."""
    setting_file = out / "setting.json"
    setting = {"config": Path(config).read_text(), "options": list(options)}
    stored: dict[str, Any] = json.loads(setting_file.read_text()) if setting_file.exists() else setting
    known: dict[str, list[str]] = stored.get("networks", {})  # files of old do not have them
    if {name: stored.get(name) for name in setting} != setting:
        raise InputError(f"expected {out} to be empty or to hold this comparison, but its {setting_file.name} differs")
    given = {name: list(of_network) for name, of_network in networks.items()}
    for name, now in given.items():
        before = known.get(name, now)
        if now != before and _has_begun(name, out):
            raise InputError(
                f"expected another name, or another folder than {out}, because {name} was trained there with "
                f"{shlex.join(before)}, but got {shlex.join(now)}"
            )
    write_text(setting_file, json.dumps({**setting, "networks": known | given}, indent=2) + "\n")
    trainings = [(name, seed) for seed in seeds for name in networks]
    with tqdm(trainings, unit="run") as progress:
        for name, seed in progress:
            progress.set_description(printable(f"{name}, seed {seed}"))
            run = out / f"{name}-seed{seed}"
            if not (run / "results.json").exists() and not _train(config, seed, run, [*options, *networks[name]], lock):
                progress.write(printable(f"{name}, seed {seed} failed: see {run}.log"), file=sys.stderr)
    finished = {
        name: [_read(run) for run in (out / f"{name}-seed{seed}" for seed in seeds) if (run / "results.json").exists()]
        for name in networks
    }
    return [summarize(name, results) for name, results in finished.items() if results]


def _has_begun(network: str, out: Path) -> bool:
    """Whether there is a training of this network that has finished or would go on, with any seed."""
    trainings = [run for run in out.glob("*-seed*") if run.name.rpartition("-seed")[0] == network]
    return any((run / "results.json").exists() or runs.checkpoint_path(run, "last").exists() for run in trainings)


def _train(config: str, seed: int, run: Path, options: Sequence[str], lock: int | None) -> bool:
    """One training as a process of its own, whose peak memory is kept beside its results; whether it succeeded."""
    # It keeps the lock: where this is killed, it still saves, and nobody may clear its folder meanwhile.
    inherited = () if lock is None else (lock,)
    command = [sys.executable, "-m", "pcattn", "fit", "-c", config, "--run", str(run), *options]
    command += ["--seed_everything", str(seed)]
    if runs.checkpoint_path(run, "last").exists():
        command += ["--ckpt_path", "last"]
    else:
        shutil.rmtree(run, ignore_errors=True)  # killed before its first checkpoint: nothing to go on from
    with (
        Path(f"{run}.log").open("a") as log,
        # In a group of its own: Ctrl-C is for this process, which tells the training.
        subprocess.Popen(
            command, stdout=log, stderr=log, process_group=0, preexec_fn=_end_with_this(), pass_fds=inherited
        ) as process,
    ):
        try:
            _, status, usage = os.wait4(process.pid, 0)
        except BaseException:
            process.terminate()
            process.wait()
            raise
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode or not (run / "results.json").exists():
        return False
    # Linux counts in KiB, macOS in bytes.
    peak_mib = usage.ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
    write_text(run / "costs.json", json.dumps({"peak_mib": peak_mib}) + "\n")
    return True


def _end_with_this() -> Callable[[], None] | None:
    """What a new process calls to get SIGTERM when this one ends in any way; Linux alone has it."""
    if sys.platform != "linux":
        return None
    prctl, parent = ctypes.CDLL(None).prctl, os.getpid()

    def call() -> None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:  # it has ended already
            os._exit(1)

    return call


def _stop(number: int, frame: FrameType | None) -> NoReturn:
    """End by an exception, on which the training is told."""
    raise SystemExit(128 + number)


def _read(run: Path) -> dict[str, Any]:
    """Results and costs of a finished training. The peak is unknown (NaN) where this was interrupted just then.

    After a training on a GPU the results hold the peak of its memory, which takes the place of that of the process.
    """
    costs, results = run / "costs.json", json.loads((run / "results.json").read_text())
    peak = json.loads(costs.read_text()) if costs.exists() else {"peak_mib": math.nan}
    peak["peak_of"] = "GPU" if "peak_mib" in results else "process"
    return peak | results | _count(runs.checkpoint_path(run, "best"))


def _count(checkpoint: Path) -> dict[str, int]:
    """Parameters, and multiply-adds of the forward pass of one cloud."""
    stored = checkpoints.read(checkpoint)
    task = checkpoints.build(stored, str(checkpoint), trust=True)
    batch = task.example(1, stored.data["num_points"] or _cloud_size(checkpoint))
    with torch.no_grad():
        multiply_adds = count_multiply_adds(lambda: task.logits(batch))
    return {"parameters": sum(p.numel() for p in task.network.parameters()), "multiply_adds": multiply_adds}


def _cloud_size(checkpoint: Path) -> int:
    """Points of every cloud of a training that takes all of them; its data is opened, because nothing else tells."""
    clouds, indices = evaluated.read_split(evaluated.open_run(checkpoint, trust=True).data, "val")
    return clouds[0, indices[:1]].pos.shape[1]


def summarize(network: str, results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Mean and spread (standard deviation, None of one seed) of the results of several seeds.

    The metrics are those of the test split, or of the validation split where there is no test split: there, the one
    that chose the checkpoint.

    Raises:
        InputError: the results hold none of `METRICS`.
    """
    which, split = ("test", "test") if "test" in results[0] else ("best", "validation")
    found = {name.partition("/")[2]: name for name in results[0][which]}
    if not METRICS.keys() & found:
        raise InputError(f"expected {split} results with one of {', '.join(METRICS)}, but got {', '.join(found)}")
    return {
        "network": network,
        "split": split,
        "metrics": {
            name: _spread([result[which][found[name]] for result in results]) for name in METRICS if name in found
        },
        "parameters": results[0]["parameters"],
        "multiply_adds": results[0]["multiply_adds"],
        "clouds_per_second": statistics.median(result["clouds_per_second"] for result in results),
        "peak_mib": max(result["peak_mib"] for result in results),
        "peak_of": results[0]["peak_of"],
    }


def _spread(values: list[float]) -> dict[str, Any]:
    std = statistics.stdev(values) if len(values) > 1 else None  # of one value it is not known
    return {"mean": statistics.mean(values), "std": std, "values": values}


def _first(row: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """The metric that a row is judged by, and its values."""
    return next(iter(row["metrics"].items()))


def format_table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as a Markdown table, the best first."""
    names = list(rows[0]["metrics"])
    headings = [f"{rows[0]['split']} {METRICS[name]}, %" for name in names]
    headings += [
        "runs",
        "parameters",
        "M multiply-adds a cloud",
        "clouds/s in training",
        f"peak MiB, {rows[0]['peak_of']}",
    ]
    lines = [f"| network | {' | '.join(headings)} |", "| --- " * (1 + len(headings)) + "|"]
    for row in sorted(rows, key=lambda row: -_first(row)[1]["mean"]):
        values = [_percent(row["metrics"][name]) for name in names]
        values += [f"{len(_first(row)[1]['values'])}", f"{row['parameters']:,}", f"{row['multiply_adds'] / 1e6:,.0f}"]
        values += [f"{row['clouds_per_second']:.0f}", f"{row['peak_mib']:,.0f}"]
        lines.append(f"| {in_markdown(row['network'])} | {' | '.join(values)} |")
    return "\n".join(lines)


def _percent(metric: dict[str, Any]) -> str:
    spread = "" if metric["std"] is None else f" ± {100 * metric['std']:.1f}"
    return f"{100 * metric['mean']:.1f}{spread}"


@plain_text()
def plot(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """The first metric of every seed with its mean and spread, and throughput beside it, as an image."""
    from matplotlib.figure import Figure

    rows = sorted(rows, key=lambda row: _first(row)[1]["mean"])
    places = range(len(rows))
    figure = Figure(figsize=(11, 1.1 + 0.35 * len(rows)), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(3, 2))
    for place, row in enumerate(rows):
        metric = _first(row)[1]
        values = [100 * value for value in metric["values"]]
        left.plot(values, [place] * len(values), "o", color="tab:gray", ms=4, alpha=0.7)
        spread = None if metric["std"] is None else 100 * metric["std"]
        left.errorbar(100 * metric["mean"], place, xerr=spread, fmt="|", color="tab:blue", ms=14, capsize=4)
    bars = right.barh(places, [row["clouds_per_second"] for row in rows], color="tab:blue", alpha=0.6, height=0.6)
    right.bar_label(bars, fmt="%.0f", padding=3, fontsize=8)
    left.set_yticks(places, [printable(row["network"]) for row in rows])
    left.set_xlabel(f"{rows[0]['split']} {METRICS[_first(rows[0])[0]]}, %: seeds, mean and standard deviation")
    right.set_xlabel("clouds/s in training")
    right.margins(x=0.15)
    right.set_ylim(-0.7, len(rows) - 0.3)
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.set_axisbelow(True)
    write_figure(path, figure, dpi=150)


def main(args: Sequence[str]) -> int:
    """The command line; status 1 if a training failed."""
    parser = argparse.ArgumentParser(
        prog="pcattn compare",
        description="Train several attentions, and other networks, with one budget and several seeds, for any task. "
        "Further options are those of fit.",
    )
    parser.add_argument("-c", "--config", required=True, help="configuration of the trainings")
    parser.add_argument("--attentions", nargs="*", default=list(ATTENTION), help="default: all; none: --also alone")
    parser.add_argument(
        "--also",
        nargs=2,
        action="append",
        default=[],
        metavar=("NAME", "OPTIONS"),
        help="one more network, by the options of fit that make it: "
        "--also pointnet '--model.variant spct --model.network_kwargs.depth 0'; may be given several times",
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--out", type=Path, help="folder of the comparison; default runs/compare-<configuration>")
    known, options = parser.parse_known_args(args)
    try:
        known.config = find_configuration(known.config)
    except ValueError as error:
        parser.error(printable(error))
    if not Path(known.config).is_file():
        parser.error(f"expected --config to be a file, but got {printable(known.config)}")
    out = known.out or Path("runs") / f"compare-{Path(known.config).stem}"
    before = signal.signal(signal.SIGTERM, _stop)
    try:
        for name in known.attentions:
            resolve("attention", name, ATTENTION)  # a wrong one is found out before the first training
        networks = {name: ["--model.attention", name] for name in known.attentions}
        for name, further in known.also:
            if not name or not is_file_name(name) or name in networks:
                parser.error(f"expected --also NAME to be a name of its own for files, but got {printable(repr(name))}")
            networks[name] = shlex.split(further)
        if not networks:
            parser.error("expected at least one network, of --attentions or --also")
        rows = compare(known.config, networks, known.seeds, out, options)
    except (OSError, ValueError) as error:
        fail(str(error), error)
    except KeyboardInterrupt:
        print("\ninterrupted; the same command goes on", file=sys.stderr)
        return 130
    finally:
        signal.signal(signal.SIGTERM, before)
    if rows:
        table = format_table(rows)
        write_text(out / "compare.json", json.dumps(rows, indent=2) + "\n")
        write_text(out / "compare.md", table + "\n")
        plot(rows, out / "compare.png")
        print(f"\n{table}\n\nwritten to {printable(out)}/compare.md, compare.json, compare.png")
    return int(sum(len(_first(row)[1]["values"]) for row in rows) < len(networks) * len(known.seeds))
