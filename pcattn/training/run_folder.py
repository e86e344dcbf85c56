"""Layout of a run on disk: `runs/<name>/` with configuration, logs, results, and `checkpoints/{best,last}.ckpt`."""

import re
from pathlib import Path

from pytorch_lightning.utilities.rank_zero import rank_zero_only  # type: ignore[attr-defined]

from pcattn.utils.errors import InputError

CHECKPOINTS = "checkpoints"


def is_first_process() -> bool:
    """Whether this process writes files and prints: the only process of a training, or rank 0 of several."""
    return getattr(rank_zero_only, "rank", 0) == 0


def run_of_config(config: Path) -> Path | None:
    """The run that saved this `config.yaml`; None for any other configuration."""
    return config.parent if config.name == "config.yaml" and (config.parent / CHECKPOINTS).is_dir() else None


def run_of_checkpoint(path: Path) -> Path | None:
    """The run that a checkpoint lies in; None for a file elsewhere."""
    return path.parent.parent if path.parent.name == CHECKPOINTS else None


def checkpoint_path(run: Path, name: str) -> Path:
    """The file of the checkpoint `best` or `last` of a run."""
    return run / CHECKPOINTS / f"{name}.ckpt"


def reserve(run: Path) -> Path:
    """Make the folder of a new run: `run`, or the next free one of `run.2`, `run.3`, ...

    No run overwrites another, even if several start at once. In a distributed training only rank 0 makes the folder;
    Lightning broadcasts the path of its checkpoints to the other ranks.

    Raises:
        InputError: a number cannot be appended to the name, as for `.`.
    """
    if run.name in ("", ".."):
        raise InputError(f"expected the folder of a run with a name, but got {run}")
    if not is_first_process():
        return run
    candidate, number = run, 1
    while True:
        try:
            candidate.mkdir(parents=True)
            return candidate
        except FileExistsError:
            number += 1
            candidate = run.with_name(f"{run.name}.{number}")


def latest(run: Path, checkpoint: str) -> Path | None:
    """Of `run`, `run.2`, ..., the one whose `best` or `last` checkpoint is the newest; None if there is none."""
    pattern = re.compile(re.escape(run.name) + r"(\.\d+)?")
    siblings = [path for path in run.parent.glob("*") if pattern.fullmatch(path.name)]
    written = [path for path in siblings if checkpoint_path(path, checkpoint).is_file()]
    return max(written, key=lambda path: checkpoint_path(path, checkpoint).stat().st_mtime, default=None)
