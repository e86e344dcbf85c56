"""Kill trainings by SIGKILL at random moments, resume them, and compare with one that was not killed.

    python -m tests.faults.kill --kills 20 --seed 0

Each training is a tiny one by the command line, in a process of its own. It is killed at a random moment after the
beginning of a step, of a batch of validation, of a checkpoint that is written, of a cache that is built, or of a
configuration that is written. After every kill all that lies under a final name must be complete. The next process
goes on from `last.ckpt`, until one ends; then weights, averages, state of the optimizer, progress, log and results must
equal those of the training that was not killed, bit by bit.
"""

from __future__ import annotations

import argparse
import csv
import json
import multiprocessing
import os
import random
import resource
import shutil
import signal
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml

from pcattn.cli import lightning as cli
from pcattn.cli import main as commands
from pcattn.io import cache
from pcattn.tasks.base import PointCloudTask
from pcattn.training import checkpointing, run_folder
from tests.datasets.modelnet_files import write_resampled
from tests.tiny import write_tiny_config

#: Where to kill: an object, its function, and among how many of its calls the fatal one is drawn.
MOMENTS: dict[str, tuple[Any, str, int]] = {
    "epoch": (PointCloudTask, "on_train_batch_start", 12),
    "validation": (PointCloudTask, "on_validation_batch_start", 6),
    "checkpoint": (checkpointing.AtomicCheckpointIO, "save_checkpoint", 8),
    "cache": (cache.ArrayWriter, "append", 300),
    "configuration": (cli.SaveRunConfig, "save_config", 1),
}

#: Options of the training: three epochs of ten steps, validated twice each, with averaged weights.
OPTIONS = [
    "--data.batch_size=4",
    "--data.eval_batch_size=20",
    "--model.ema_decay=0.9",
    "--trainer.val_check_interval=0.5",
]


#: Every training starts in a fresh interpreter: torch must not be forked once it has threads.
PROCESSES = multiprocessing.get_context("spawn")


class Plan(NamedTuple):
    """When a process gets a signal: `delay` seconds after the beginning of the `call`-th call."""

    moment: str
    call: int
    delay: float = 0.0
    signal: signal.Signals = signal.SIGKILL


class Outcome(NamedTuple):
    """What came of it."""

    kills: Counter[str]  #: by moment
    resumed: int  #: processes that went on from a checkpoint
    finished: int  #: trainings that came to their end
    findings: list[str]  #: what was not as it should be


def prepare(folder: Path) -> Path:
    """Data, a configuration, and the training without kills, `folder/whole`; the configuration."""
    config = write_tiny_config(folder / "tiny.yaml", write_resampled(folder / "data", num_points=64))
    if (status := run(config, folder / "whole")) != 0:
        raise RuntimeError(f"the training without kills ended with {status}: see {folder}/whole.log")
    return config


def kill_and_resume(config: Path, kills: int, seed: int, moments: Sequence[str] = tuple(MOMENTS)) -> Outcome:
    """Train with kills until so many have happened; see above.

    Args:
        config: as `prepare` left it.
        kills: how many.
        seed: of the moments.
        moments: names in `MOMENTS`, taken in turn. Where a process ends before its moment comes, the next has the next.
    """
    rng = random.Random(seed)
    folder = config.parent
    happened: Counter[str] = Counter()
    findings: list[str] = []
    resumed, finished = 0, 0
    attempts = 0
    while happened.total() < kills:
        killed, status = folder / f"killed-{finished + 1}", -signal.SIGKILL
        while status == -signal.SIGKILL:
            plan = None
            if happened.total() < kills:
                moment = moments[attempts % len(moments)]
                attempts += 1
                plan = Plan(moment, rng.randint(1, MOMENTS[moment][2]), rng.choice((0.0, rng.uniform(0, 0.05))))
                if moment == "cache":
                    shutil.rmtree(folder / "data" / "processed", ignore_errors=True)
            goes_on = run_folder.checkpoint_path(killed, "last").exists()
            if not goes_on:  # killed before its first checkpoint: nothing to go on from
                shutil.rmtree(killed, ignore_errors=True)
            resumed += goes_on
            status = run(config, killed, plan, goes_on)
            findings += [f"{killed.name}, {plan}: {finding}" for finding in incomplete(killed, folder / "data")]
            if status == -signal.SIGKILL and plan is not None:
                happened[plan.moment] += 1
        finished += 1
        if status != 0:
            findings.append(f"{killed.name} ended with {status}: see {killed}.log")
            break
        findings += [f"{killed.name}: {finding}" for finding in differences(folder / "whole", killed)]
    return Outcome(happened, resumed, finished, findings)


def run(
    config: Path, folder: Path, plan: Plan | None = None, resume: bool = False, largest_file: int | None = None
) -> int:
    """Train in a new process, which cannot write files larger than `largest_file` bytes, and return its status."""
    return wait(start(config, folder, plan, resume, largest_file))


def start(
    config: Path, folder: Path, plan: Plan | None = None, resume: bool = False, largest_file: int | None = None
) -> BaseProcess:
    """Start such a training."""
    args = ["fit", "-c", str(config), f"--run={folder}", f"--checkpoint.minutes={0.1 / 60}", *OPTIONS]
    args += ["--ckpt_path=last"] if resume else []
    process = PROCESSES.Process(target=_train, args=(args, folder, plan, largest_file))
    process.start()
    return process


def wait(process: BaseProcess) -> int:
    """Wait for such a training, and return its exit status."""
    process.join()
    return int(process.exitcode or 0)


def _train(args: list[str], folder: Path, plan: Plan | None, largest_file: int | None) -> None:
    torch.set_num_threads(1)
    if plan is not None:
        _arm(plan)
    if largest_file is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))
    cli.PointCloudCLI._draw = lambda self: []  # type: ignore[method-assign]  # takes longer than the training
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell's background jobs ignore
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # which nohup ignores
    with open(f"{folder}.log", "a") as log, redirect_stdout(log), redirect_stderr(log):
        os.dup2(log.fileno(), 2)  # what is written to the system's standard error as well
        commands.main(args)


def _arm(plan: Plan) -> None:
    """Let the call that is planned start the clock."""
    owner, name, _ = MOMENTS[plan.moment]
    original, calls = getattr(owner, name), [0]

    def send() -> None:
        time.sleep(plan.delay)
        os.kill(os.getpid(), plan.signal)

    def counted(*args: Any, **kwargs: Any) -> Any:
        calls[0] += 1
        if calls[0] == plan.call:
            threading.Thread(target=send, daemon=True).start() if plan.delay else send()
        return original(*args, **kwargs)

    setattr(owner, name, counted)


def incomplete(run: Path, root: Path) -> list[str]:
    """What lies under a final name without being complete."""
    wrong = []
    readers = {
        "checkpoints/*.ckpt": lambda path: torch.load(path, weights_only=True)["state_dict"],
        "*.json": lambda path: json.loads(path.read_text()),
        "config.yaml": lambda path: yaml.safe_load(path.read_text())["model"],
        "metrics.csv": lambda path: [float(row["step"]) for row in csv.DictReader(path.open())],
    }
    for pattern, read in readers.items():
        for path in run.glob(pattern):
            if path.name.startswith("."):  # temporary
                continue
            try:
                read(path)
            except Exception as error:  # whatever half a file makes a reader raise
                wrong.append(f"{path.name} is broken: {error!r}")
    for folder in (root / "processed").glob("*"):
        if folder.suffix != ".tmp" and cache._open(folder) is None:
            wrong.append(f"the cache {folder.name} is broken")
    return wrong


def differences(first: Path, second: Path) -> list[str]:
    """In what two finished trainings differ that should be the same."""
    found = []
    for name in ("best", "last"):
        stored = [torch.load(run_folder.checkpoint_path(run, name), weights_only=True) for run in (first, second)]
        keys = ["state_dict", "current_model_state", "averaging_state", "optimizer_states", "lr_schedulers"]
        keys += ["global_step", "epoch", "train_loss", "loops"] if name == "last" else ["global_step", "epoch"]
        found += [f"{key} of {name}.ckpt" for key in keys if not same(stored[0][key], stored[1][key])]
    results = [json.loads((run / "results.json").read_text()) for run in (first, second)]
    found += [f"{key} in results.json" for key in ("best", "test") if results[0][key] != results[1][key]]
    if (first / "metrics.csv").read_bytes() != (second / "metrics.csv").read_bytes():
        found.append("metrics.csv")
    return found


def same(first: Any, second: Any) -> bool:
    """Whether nested data with tensors is equal, bit by bit."""
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same(value, second[key]) for key, value in first.items())
    if isinstance(first, (list, tuple)):
        return len(first) == len(second) and all(map(same, first, second))
    return torch.equal(first, second) if isinstance(first, torch.Tensor) else first == second


def main(args: Sequence[str] | None = None) -> int:
    """The command line; status 1 if anything was found."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--moments", nargs="+", choices=list(MOMENTS), default=list(MOMENTS))
    parser.add_argument("--out", type=Path, help="folder to keep; default: a temporary one")
    options = parser.parse_args(args)
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.out or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        outcome = kill_and_resume(prepare(folder), options.kills, options.seed, options.moments)
    print(f"killed {outcome.kills.total()} times: {dict(outcome.kills)}")
    print(f"resumed {outcome.resumed} times; {outcome.finished} trainings came to their end")
    print("\n".join(outcome.findings) or "nothing was broken, and every end was bit-identical")
    return int(bool(outcome.findings))


if __name__ == "__main__":
    raise SystemExit(main())
