"""`pcattn convert`: weights of a released PCT network as a file of this package."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from pcattn.inference.checkpoints import DTYPES, build, save_weights
from pcattn.inference.convert import ARCHITECTURES, CLASSES, convert
from pcattn.utils.errors import InputError


def main(args: Sequence[str]) -> int:
    """Run `pcattn convert`."""
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
    options = parser.parse_args(args)
    out = options.out or options.weights.with_suffix(".safetensors")
    checkpoint = convert(options.weights, options.architecture, _class_names(options.classes))
    task = build(checkpoint, str(options.weights))
    save_weights(task, out, checkpoint.data, checkpoint.training, options.dtype)
    parameters = sum(parameter.numel() for parameter in task.network.parameters())
    print(
        f"{out}: {checkpoint.task}, {checkpoint.hyper_parameters['variant']}, {parameters:,} parameters\n"
        f"Next:\n  pcattn test -c CONFIG --ckpt_path {out}\n  pcattn predict-files FILES --ckpt_path {out}"
    )
    return 0


def _class_names(classes: str | None) -> list[str] | None:
    """The names of a data set, or the lines of a file."""
    if classes is None:
        return None
    if classes in CLASSES:
        return CLASSES[classes].split()
    try:
        return Path(classes).read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise InputError(f"expected --classes to be a text file in UTF-8, but got {classes}") from error
