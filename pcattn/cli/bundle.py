"""`pcattn bundle`: turn a checkpoint of a run into weights that come with the package."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from pcattn.cli.options import add_ckpt_path
from pcattn.inference import checkpoints
from pcattn.training import run_folder
from pcattn.utils.errors import InputError

#: Every user of the package downloads the weights.
MAX_BYTES = 6_000_000

_FOLDER = Path(__file__).parents[1] / "weights"


def bundle(run: Path, name: str, command: str, folder: Path = _FOLDER, which: str = "best") -> Path:
    """Write `<folder>/<name>.safetensors` in float16 from a checkpoint of a finished run.

    The metadata of the file say how the weights were made: `training` holds the command, the seed, the epoch of the
    checkpoint, the epochs of the run, and the metrics that the run stored for it. The arguments of task and data are
    stored beside it, see `pcattn.inference.checkpoints.save_weights`.

    Args:
        run: folder of the run.
        name: name of the weights; `modelnet40-cpu` belongs to `configs/modelnet40_cpu.yaml`.
        command: command line that trained them.
        folder: folder to write to.
        which: "best" by validation, or "last". If the best of many epochs stands out by chance, the end of the schedule
            is the better choice, and its score is the more honest one.

    Returns:
        The file.

    Raises:
        InputError: the run is not finished, the file exists, or it would be larger than `MAX_BYTES`.
    """
    path = folder / f"{name}.safetensors"
    if path.exists():
        raise InputError(f"expected a new name, but {path} exists")
    config, results = run / "config.yaml", run / "results.json"
    for file in (config, results):
        if not file.is_file():
            raise InputError(f"expected the folder of a finished run, but {file} does not exist")
    settings = yaml.safe_load(config.read_text())
    checkpoint = checkpoints.read(run_folder.checkpoint_path(run, which))
    training: dict[str, Any] = {
        "command": command,
        "seed": settings["seed_everything"],
        "epoch": checkpoint.training["epochs"],
        "epochs": settings["trainer"]["max_epochs"],
        "metrics": json.loads(results.read_text()).get("best", {}) if which == "best" else {},
    }
    folder.mkdir(parents=True, exist_ok=True)
    checkpoints.save_weights(checkpoints.build(checkpoint, str(run)), path, checkpoint.data, training)
    if (size := path.stat().st_size) > MAX_BYTES:
        path.unlink()
        raise InputError(f"expected weights of at most {MAX_BYTES:,} bytes, but got {size:,}")
    return path


def main(args: Sequence[str]) -> int:
    """Run `pcattn bundle`."""
    parser = argparse.ArgumentParser(prog="pcattn bundle", description=__doc__)
    parser.add_argument("run", type=Path, help="folder of a finished run")
    parser.add_argument("name", help="name of the weights for --ckpt_path and pcattn.load")
    parser.add_argument("--command", required=True, help="command line that trained them, stored in the file")
    add_ckpt_path(parser, choices=("best", "last"), default="best", help="default: best by validation")
    parser.add_argument("--folder", type=Path, default=_FOLDER, help="folder to write to (default: the package's own)")
    options = parser.parse_args(args)
    path = bundle(options.run, options.name, options.command, options.folder, options.ckpt_path)
    print(f"{path} ({path.stat().st_size:,} bytes)\nNext:\n  pcattn validate -c CONFIG --ckpt_path {path}")
    return 0
