"""Where runs lie on disk: `runs/<name>/` with its configuration, logs, results and `checkpoints/{best,last}.ckpt`."""

from pathlib import Path

CHECKPOINTS = "checkpoints"


def config_run(config: Path) -> Path:
    """The run that a configuration belongs to: `runs/<file name>`, or the folder of a run whose own it is."""
    if config.name == "config.yaml" and (config.parent / CHECKPOINTS).is_dir():
        return config.parent
    return Path("runs") / config.stem


def new_run(run: Path) -> Path:
    """`run` itself if nothing is there yet, else the next free of `run-2`, `run-3`, ...: no run overwrites another."""
    candidate, number = run, 1
    while candidate.exists():
        number += 1
        candidate = run.with_name(f"{run.name}-{number}")
    return candidate


def latest_run(run: Path, checkpoint: str) -> Path | None:
    """Among `run`, `run-2`, ... the one whose checkpoint of that name was written last; None if there is none."""
    siblings = [run, *run.parent.glob(f"{run.name}-[0-9]*")]
    written = [sibling for sibling in siblings if checkpoint_path(sibling, checkpoint).is_file()]
    return max(written, key=lambda sibling: checkpoint_path(sibling, checkpoint).stat().st_mtime, default=None)


def checkpoint_path(run: Path, name: str) -> Path:
    """The file of the checkpoint `best` or `last` of a run."""
    return run / CHECKPOINTS / f"{name}.ckpt"


def run_of_checkpoint(path: Path) -> Path | None:
    """The run in whose `checkpoints/` a file lies, if it lies in one."""
    return path.parent.parent if path.parent.name == CHECKPOINTS else None


def keep_metrics(run: Path) -> None:
    """Number the `metrics.csv` of an interrupted run, because the logger of the resumed one starts a new file."""
    metrics = run / "metrics.csv"
    if metrics.is_file():
        number = 1 + len(list(run.glob("metrics-*.csv")))
        metrics.rename(run / f"metrics-{number}.csv")
