"""`pcattn bundle`: a checkpoint of a run as weights that come with the package, with how they were made."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from pcattn.cli.messages import fail
from pcattn.inference import checkpoints
from pcattn.training import runs
from pcattn.utils.errors import InputError

#: Weights of a package are downloaded by all of its users.
MAX_BYTES = 6_000_000

_FOLDER = Path(__file__).parent / "weights"


def bundle(run: Path, name: str, command: str, folder: Path = _FOLDER, which: str = "best") -> Path:
    """Write `<folder>/<name>.safetensors` in float16 from a checkpoint of a finished run.

    Its metadata say how the weights were made: `training` holds the command, the seed, the epoch of the checkpoint, the
    epochs of the run, and the metrics that the run kept for it; beside it are the arguments of task and data, see
    `pcattn.inference.checkpoints.save_weights`.

    Args:
        run: folder of the run.
        name: of the weights; `modelnet40-cpu` belongs to `configs/modelnet40_cpu.yaml`.
        command: that trained them.
        folder: where to.
        which: `"best"` by validation, or `"last"`: where the best of many epochs stands out by chance, the end of the
            schedule is the better choice and its score the more honest one.

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
    checkpoint = checkpoints.read(runs.checkpoint_path(run, which))
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


def main(argv: Sequence[str]) -> int:
    """The command; see `--help`. Returns the exit status."""
    parser = argparse.ArgumentParser(prog="pcattn bundle", description=__doc__)
    parser.add_argument("run", type=Path, help="folder of a finished run")
    parser.add_argument("name", help="of the weights, as --ckpt_path and pcattn.load will know them")
    parser.add_argument("--command", required=True, help="that trained them, to be kept with them")
    parser.add_argument("--checkpoint", choices=("best", "last"), default="best", help="default: best by validation")
    parser.add_argument("--folder", type=Path, default=_FOLDER, help="where to (default: the package's own)")
    args = parser.parse_args(argv)
    try:
        path = bundle(args.run, args.name, args.command, args.folder, args.checkpoint)
    except (ValueError, OSError) as error:
        fail(str(error), error)
    print(f"{path} ({path.stat().st_size:,} bytes)\nNext:\n  pcattn validate -c CONFIG --ckpt_path {path}")
    return 0
