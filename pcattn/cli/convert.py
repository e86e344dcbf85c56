"""`pcattn convert`: weights of a released PCT network as a file of this package."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from pcattn.cli.messages import fail
from pcattn.inference.checkpoints import DTYPES, build, save_weights
from pcattn.inference.convert import ARCHITECTURES, CLASSES, convert


def main(argv: Sequence[str]) -> int:
    """Run the command; see `--help`. Returns the exit status."""
    parser = argparse.ArgumentParser(prog="pcattn convert", description=__doc__)
    parser.add_argument("weights", type=Path, help="state dict: .t7, .pth, ... of torch, or .pkl of Jittor")
    parser.add_argument("--out", type=Path, help="file to write (default: the same name with .safetensors)")
    parser.add_argument("--architecture", choices=tuple(ARCHITECTURES), default="pct_pytorch",
                        help="code base that the weights belong to (default: %(default)s)")  # fmt: skip
    parser.add_argument("--classes", metavar="NAMES",
                        help=f"{' or '.join(CLASSES)}, or a text file with one class name per line")  # fmt: skip
    parser.add_argument(
        "--dtype", choices=tuple(DTYPES), default="float32", help="of the matrices (default: %(default)s)"
    )
    args = parser.parse_args(argv)
    out = args.out or args.weights.with_suffix(".safetensors")
    try:
        checkpoint = convert(args.weights, args.architecture, _class_names(args.classes))
        task = build(checkpoint, str(args.weights))
        save_weights(task, out, checkpoint.data, checkpoint.training, args.dtype)
    except (ValueError, OSError) as error:
        fail(str(error), error)
    parameters = sum(parameter.numel() for parameter in task.network.parameters())
    print(
        f"{out}: {checkpoint.task}, {checkpoint.hyper_parameters['variant']}, {parameters:,} parameters\n"
        f"Next:\n  pcattn test -c CONFIG --ckpt_path {out}\n  pcattn predict-files --checkpoint {out} FILES"
    )
    return 0


def _class_names(classes: str | None) -> list[str] | None:
    """The names of a data set, or the lines of a file."""
    if classes is None:
        return None
    return CLASSES[classes].split() if classes in CLASSES else Path(classes).read_text().splitlines()
