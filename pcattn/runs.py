"""Where runs lie on disk: `runs/<name>/` with its configuration, logs, results and `checkpoints/{best,last}.ckpt`."""

import os
import re
from pathlib import Path
from typing import Any

from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.utilities import rank_zero

CHECKPOINTS = "checkpoints"


class RunCheckpoint(ModelCheckpoint):
    """A checkpoint under one name in the run, replaced whenever a newer one counts.

    A run may be moved, or be named by another path: what is restored on resumption refers to where it lies now.
    """

    def __init__(self, run: Path, name: str, monitor: str | None = None, mode: str = "max") -> None:
        super().__init__(
            dirpath=str((run / CHECKPOINTS).absolute()),
            filename=name,
            monitor=monitor,
            mode=mode,
            save_top_k=1,
            enable_version_counter=False,
            # The best is chosen at validation. The last is the end of an epoch, validation included.
            save_on_train_epoch_end=monitor is None,
        )

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the best score, with paths of the present folder."""

        def here(path: str) -> str:
            return os.path.join(str(self.dirpath), os.path.basename(path)) if path else path

        state = {**state_dict, "dirpath": self.dirpath}
        for key in ("best_model_path", "kth_best_model_path", "last_model_path"):
            state[key] = here(state[key])
        state["best_k_models"] = {here(path): score for path, score in state["best_k_models"].items()}
        super().load_state_dict(state)


def is_first_process() -> bool:
    """Whether this is the one process of a training, or the first of several: the one that writes and speaks."""
    return getattr(rank_zero.rank_zero_only, "rank", 0) == 0


def run_of_config(config: Path) -> Path | None:
    """The run whose own `config.yaml` this is; None for any other configuration."""
    return config.parent if config.name == "config.yaml" and (config.parent / CHECKPOINTS).is_dir() else None


def run_of_checkpoint(path: Path) -> Path | None:
    """The run in whose `checkpoints/` a file lies, if it lies in one."""
    return path.parent.parent if path.parent.name == CHECKPOINTS else None


def checkpoint_path(run: Path, name: str) -> Path:
    """The file of the checkpoint `best` or `last` of a run."""
    return run / CHECKPOINTS / f"{name}.ckpt"


def reserve(run: Path) -> Path:
    """Make the folder of a new run: `run` itself, or the next free of `run.2`, `run.3`, ...

    No run overwrites another, also when several start at once. Of the processes of one training the first makes it; the
    others write nothing, and are told by Lightning where their checkpoints are.
    """
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
    """Among `run`, `run.2`, ... the one whose checkpoint of that name was written last; None if there is none."""
    pattern = re.compile(re.escape(run.name) + r"(\.\d+)?")
    siblings = [path for path in run.parent.glob("*") if pattern.fullmatch(path.name)]
    written = [path for path in siblings if checkpoint_path(path, checkpoint).is_file()]
    return max(written, key=lambda path: checkpoint_path(path, checkpoint).stat().st_mtime, default=None)


def keep_metrics(run: Path) -> None:
    """Number the `metrics.csv` of an interrupted run, because the logger of the resumed one starts a new file."""
    metrics = run / "metrics.csv"
    if not is_first_process():
        return
    if metrics.is_file():
        number = 1 + len(list(run.glob("metrics-*.csv")))
        metrics.rename(run / f"metrics-{number}.csv")
