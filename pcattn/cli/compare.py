"""`pcattn compare`: train several networks with one data set, one budget and several seeds; one table, one plot."""

from __future__ import annotations

import argparse
import json
import math
import os
import shlex
import shutil
import signal
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import torch
from tqdm import tqdm

from pcattn.attention import ATTENTION
from pcattn.bench.attention import count_multiply_adds
from pcattn.cli.config_files import find_config
from pcattn.data.files import is_file_name
from pcattn.inference import checkpoints
from pcattn.inference.evaluate import open_run
from pcattn.tasks.base import MetricInfo
from pcattn.training import run_folder
from pcattn.training.selection import read_split
from pcattn.utils.errors import InputError
from pcattn.utils.files import write_figure, write_text
from pcattn.utils.locks import exclusive_lock
from pcattn.utils.processes import child_process
from pcattn.utils.registry import resolve
from pcattn.utils.text import escape_unprintable, in_markdown
from pcattn.visualize.text import plain_text


def compare(
    config: str, networks: Mapping[str, Sequence[str]], seeds: Sequence[int], out: Path, options: Sequence[str] = ()
) -> list[dict[str, Any]]:
    """Train every network with every seed and summarize the results.

    Each training is a process, `pcattn fit`, with its run in `out/<network>-seed<seed>`. Finished trainings are not
    repeated and interrupted ones are resumed, so the same call completes an interrupted comparison. When a comparison
    is interrupted (on Linux, also when it is killed), its training saves a checkpoint and stops.

    Args:
        config: configuration of the trainings, of any task.
        networks: options of `pcattn fit` that define each network, by its name in the table.
        seeds: each network is trained once per seed. The validation split is the same for all.
        out: folder of the comparison.
        options: further options of `pcattn fit` for all trainings.

    Returns:
        One row per network with a finished training, see `summarize`.

    Raises:
        InputError: `out` holds a comparison with another configuration or other options, another process uses it, or a
            seed is repeated.
    """
    if len(set(seeds)) < len(seeds):
        raise InputError(f"expected seeds that differ, but got {', '.join(map(str, seeds))}")
    out.mkdir(parents=True, exist_ok=True)
    with exclusive_lock(out) as lock:
        return _compare(config, networks, seeds, out, options, lock)


def _compare(
    config: str,
    networks: Mapping[str, Sequence[str]],
    seeds: Sequence[int],
    out: Path,
    options: Sequence[str],
    lock: int | None,
) -> list[dict[str, Any]]:
    """`compare`, while it holds the lock of the folder."""
    setting_file = out / "setting.json"
    setting = {"config": Path(config).read_text(), "options": list(options)}
    stored: dict[str, Any] = json.loads(setting_file.read_text()) if setting_file.exists() else setting
    known: dict[str, list[str]] = stored.get("networks", {})  # old files lack them
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
            progress.set_description(escape_unprintable(f"{name}, seed {seed}"))
            run = out / f"{name}-seed{seed}"
            if not (run / "results.json").exists() and not _train(config, seed, run, [*options, *networks[name]], lock):
                progress.write(escape_unprintable(f"{name}, seed {seed} failed: see {run}.log"), file=sys.stderr)
    finished = {
        name: [_read(run) for run in (out / f"{name}-seed{seed}" for seed in seeds) if (run / "results.json").exists()]
        for name in networks
    }
    return [summarize(name, results) for name, results in finished.items() if results]


def _has_begun(network: str, out: Path) -> bool:
    """Whether a training of this network, with any seed, is finished or can be resumed."""
    trainings = [run for run in out.glob("*-seed*") if run.name.rpartition("-seed")[0] == network]
    return any((run / "results.json").exists() or run_folder.checkpoint_path(run, "last").exists() for run in trainings)


def _train(config: str, seed: int, run: Path, options: Sequence[str], lock: int | None) -> bool:
    """Run one training as a process, store its peak memory beside its results, and return whether it succeeded."""
    # The training inherits the lock: if this process is killed, the training still saves, in a folder that no other
    # comparison may clear.
    inherited = () if lock is None else (lock,)
    command = [sys.executable, "-m", "pcattn", "fit", "-c", config, "--run", str(run), *options]
    command += ["--seed_everything", str(seed)]
    if run_folder.checkpoint_path(run, "last").exists():
        command += ["--ckpt_path", "last"]
    else:
        shutil.rmtree(run, ignore_errors=True)  # it was killed before its first checkpoint
    # The child has its own process group: Ctrl-C reaches only this process, which then stops the training.
    with (
        Path(f"{run}.log").open("a") as log,
        child_process(command, stdout=log, stderr=log, pass_fds=inherited) as process,
    ):
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode or not (run / "results.json").exists():
        return False
    # Linux counts in KiB, macOS in bytes.
    peak_mib = usage.ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
    write_text(run / "costs.json", json.dumps({"peak_mib": peak_mib}) + "\n")
    return True


def _exit_on_signal(number: int, frame: FrameType | None) -> NoReturn:
    """Raise an exception, so that the running training is stopped."""
    raise SystemExit(128 + number)


def _read(run: Path) -> dict[str, Any]:
    """Results and costs of a finished training. The peak is NaN if the comparison was interrupted before storing it.

    After a training on a GPU, the peak is that of the GPU memory.
    """
    costs, results = run / "costs.json", json.loads((run / "results.json").read_text())
    peak = json.loads(costs.read_text()) if costs.exists() else {"peak_mib": math.nan}
    peak["peak_of"] = "GPU" if "peak_mib" in results else "process"
    return {**peak, **results, **_inspect(run_folder.checkpoint_path(run, "best"))}


def _inspect(checkpoint: Path) -> dict[str, Any]:
    """The class of the task, its parameters, and the multiply-adds of its forward pass for one cloud."""
    stored = checkpoints.read(checkpoint)
    task = checkpoints.build(stored, str(checkpoint), trust=True)
    batch = task.example(1, stored.data["num_points"] or _cloud_size(checkpoint))
    with torch.no_grad():
        multiply_adds = count_multiply_adds(lambda: task.logits(batch))
    parameters = sum(parameter.numel() for parameter in task.network.parameters())
    return {"task": type(task), "parameters": parameters, "multiply_adds": multiply_adds}


def _cloud_size(checkpoint: Path) -> int:
    """Points per cloud of a training that uses all of them. Only the data has this number."""
    clouds, indices = read_split(open_run(checkpoint, trust=True).data, "val")
    return clouds[0, indices[:1]].pos.shape[1]


def summarize(network: str, results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Mean and standard deviation (None for a single seed) of the results of several seeds.

    The metrics are those of the task on the test split, the primary one first, without the loss unless it is the only
    one. Without a test split, it is the metric that chose the checkpoint.

    Raises:
        InputError: the results have none of the task's metrics.
    """
    task = results[0]["task"]
    which, split = ("test", "test") if "test" in results[0] else ("best", "validation")
    found = {name.partition("/")[2]: name for name in results[0][which]}
    names = [name for name in dict.fromkeys((task.PRIMARY, *task.METRICS)) if name in found and name in task.METRICS]
    if not names:
        raise InputError(f"expected {split} results with one of {', '.join(task.METRICS)}, but got {', '.join(found)}")
    names = [name for name in names if name != "loss"] or names
    return {
        "network": network,
        "split": split,
        "metrics": {
            name: task.METRICS[name]._asdict() | _spread([result[which][found[name]] for result in results])
            for name in names
        },
        "parameters": results[0]["parameters"],
        "multiply_adds": results[0]["multiply_adds"],
        "clouds_per_second": statistics.median(result["clouds_per_second"] for result in results),
        "peak_mib": max(result["peak_mib"] for result in results),
        "peak_of": results[0]["peak_of"],
    }


def _spread(values: list[float]) -> dict[str, Any]:
    std = statistics.stdev(values) if len(values) > 1 else None
    return {"mean": statistics.mean(values), "std": std, "values": values}


def _primary(row: dict[str, Any]) -> dict[str, Any]:
    """The metric that networks are ordered by."""
    metric: dict[str, Any] = next(iter(row["metrics"].values()))
    return metric


def _best_first(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted(rows, key=lambda row: _primary(row)["mean"], reverse=_primary(rows[0])["mode"] == "max")


def _info(metric: Mapping[str, Any]) -> MetricInfo:
    return MetricInfo(metric["label"], metric["mode"], metric["unit"])


def format_table(rows: Sequence[dict[str, Any]]) -> str:
    """Format the rows as a Markdown table, the best network first."""
    headings = [f"{rows[0]['split']} {_info(metric).heading}" for metric in rows[0]["metrics"].values()]
    headings += [
        "runs",
        "parameters",
        "M multiply-adds a cloud",
        "clouds/s in training",
        f"peak MiB, {rows[0]['peak_of']}",
    ]
    lines = [f"| network | {' | '.join(headings)} |", "| --- " * (1 + len(headings)) + "|"]
    for row in _best_first(rows):
        values = [_format_spread(row["metrics"][name]) for name in rows[0]["metrics"]]
        values += [f"{len(_primary(row)['values'])}", f"{row['parameters']:,}", f"{row['multiply_adds'] / 1e6:,.0f}"]
        values += [f"{row['clouds_per_second']:.0f}", f"{row['peak_mib']:,.0f}"]
        lines.append(f"| {in_markdown(row['network'])} | {' | '.join(values)} |")
    return "\n".join(lines)


def _format_spread(metric: Mapping[str, Any]) -> str:
    """Mean and standard deviation in the unit of the metric, which the heading names."""
    info, digits = _info(metric), {"%": 1, "": 4}.get(metric["unit"], 2)
    spread = "" if metric["std"] is None else f" ± {info.in_unit(metric['std']):.{digits}f}"
    return f"{info.in_unit(metric['mean']):.{digits}f}{spread}"


@plain_text()
def plot(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Plot the primary metric (every seed, mean and standard deviation) and the training speed of each network."""
    from matplotlib.figure import Figure

    rows = _best_first(rows)[::-1]  # the first bar is the lowest
    info = _info(_primary(rows[0]))
    places = range(len(rows))
    figure = Figure(figsize=(11, 1.1 + 0.35 * len(rows)), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(3, 2))
    for place, row in enumerate(rows):
        metric = _primary(row)
        values = [info.in_unit(value) for value in metric["values"]]
        left.plot(values, [place] * len(values), "o", color="tab:gray", ms=4, alpha=0.7)
        spread = None if metric["std"] is None else info.in_unit(metric["std"])
        left.errorbar(info.in_unit(metric["mean"]), place, xerr=spread, fmt="|", color="tab:blue", ms=14, capsize=4)
    bars = right.barh(places, [row["clouds_per_second"] for row in rows], color="tab:blue", alpha=0.6, height=0.6)
    right.bar_label(bars, fmt="%.0f", padding=3, fontsize=8)
    left.set_yticks(places, [escape_unprintable(row["network"]) for row in rows])
    left.set_xlabel(f"{rows[0]['split']} {info.heading}: seeds, mean and standard deviation")
    right.set_xlabel("clouds/s in training")
    right.margins(x=0.15)
    right.set_ylim(-0.7, len(rows) - 0.3)
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.set_axisbelow(True)
    write_figure(path, figure, dpi=150)


def main(args: Sequence[str]) -> int:
    """Run `pcattn compare`; status 1 if a training failed."""
    parser = argparse.ArgumentParser(
        prog="pcattn compare",
        description="Train several attentions, and other networks, with one budget and several seeds, for any task. "
        "Further options are passed to fit.",
    )
    parser.add_argument("-c", "--config", required=True, help="configuration of the trainings")
    parser.add_argument("--attentions", nargs="*", default=list(ATTENTION), help="default: all; may be empty")
    parser.add_argument(
        "--also",
        nargs=2,
        action="append",
        default=[],
        metavar=("NAME", "OPTIONS"),
        help="one more network, defined by options of fit: "
        "--also pointnet '--model.variant spct --model.network_kwargs.depth 0'; may be repeated",
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--out", type=Path, help="folder of the comparison; default: runs/compare-<configuration>")
    known, options = parser.parse_known_args(args)
    config = find_config(known.config)
    if not Path(config).is_file():
        raise InputError(f"expected --config to be a file, but got {config}")
    networks = _networks(known.attentions, known.also)
    out = known.out or Path("runs") / f"compare-{Path(config).stem}"
    previous = signal.signal(signal.SIGTERM, _exit_on_signal)
    try:
        rows = compare(config, networks, known.seeds, out, options)
    except KeyboardInterrupt:
        print("\ninterrupted; run the same command to resume", file=sys.stderr)
        return 128 + signal.SIGINT
    finally:
        signal.signal(signal.SIGTERM, previous)
    if rows:
        table = format_table(rows)
        write_text(out / "compare.json", json.dumps(rows, indent=2) + "\n")
        write_text(out / "compare.md", table + "\n")
        plot(rows, out / "compare.png")
        print(f"\n{table}\n\nwritten to {escape_unprintable(out)}/compare.md, compare.json, compare.png")
    return int(sum(len(_primary(row)["values"]) for row in rows) < len(networks) * len(known.seeds))


def _networks(attentions: Sequence[str], also: Sequence[tuple[str, str]]) -> dict[str, list[str]]:
    """The options of every network by its name. Mistakes are found here, before the first training."""
    for name in attentions:
        resolve("attention", name, ATTENTION)
    networks = {name: ["--model.attention", name] for name in attentions}
    for name, options in also:
        if not name or not is_file_name(name) or name in networks:
            raise InputError(f"expected --also NAME to be a new name that a file can have, but got {name!r}")
        try:
            networks[name] = shlex.split(options)
        except ValueError as error:
            raise InputError(f"expected --also OPTIONS to be options of fit, but got {options!r}: {error}") from error
    if not networks:
        raise InputError("expected at least one network in --attentions or --also, but got none")
    return networks
