"""Where runs lie on disk: `runs/<name>/` with its configuration, logs, results and `checkpoints/{best,last}.ckpt`."""

import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pytorch_lightning.utilities import rank_zero

from pcattn.utils.errors import InputError

CHECKPOINTS = "checkpoints"


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

    Raises:
        InputError: the folder has no name that a number could follow, like `.`.
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


@contextmanager
def alone(folder: Path, patience: float = 10.0) -> Iterator[int | None]:
    """Within it no other process is in its own `alone` of a folder; where the system cannot promise that, none asks.

    Args:
        folder: that is there.
        patience: seconds to wait for another, which may be about to end.

    Yields:
        The descriptor that holds the lock, also for processes that inherit it.

    Raises:
        InputError: another process is there all that time.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        yield None
        return
    lock = os.open(folder, os.O_RDONLY)
    try:
        end = time.monotonic() + patience
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                if time.monotonic() > end:
                    raise InputError(
                        f"expected {folder} for this process alone, but another one works there"
                    ) from error
                time.sleep(0.05)
                continue
            except OSError:  # a file system without locks
                pass
            break
        yield lock
    finally:
        os.close(lock)


def latest(run: Path, checkpoint: str) -> Path | None:
    """Among `run`, `run.2`, ... the one whose checkpoint of that name was written last; None if there is none."""
    pattern = re.compile(re.escape(run.name) + r"(\.\d+)?")
    siblings = [path for path in run.parent.glob("*") if pattern.fullmatch(path.name)]
    written = [path for path in siblings if checkpoint_path(path, checkpoint).is_file()]
    return max(written, key=lambda path: checkpoint_path(path, checkpoint).stat().st_mtime, default=None)
