"""`pcattn export`: write a trained network in another format."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import pcattn
from pcattn.cli.options import add_ckpt_path
from pcattn.inference.checkpoints import DTYPES
from pcattn.inference.export import FORMATS, export
from pcattn.utils.errors import InputError


def main(args: Sequence[str]) -> int:
    """Run `pcattn export`."""
    parser = argparse.ArgumentParser(prog="pcattn export", description="Write a trained network in another format.")
    add_ckpt_path(
        parser, required=True, help="a .ckpt or .safetensors, the folder of a run, or a name of bundled weights"
    )
    parser.add_argument("--out", type=Path, required=True, help="the file to write")
    parser.add_argument("--format", choices=FORMATS, help="default: by the suffix of --out")
    parser.add_argument("--dtype", choices=tuple(DTYPES), default="float16", help="of safetensors")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing file")
    parser.add_argument("--trust", action="store_true", help="import the code that the checkpoint names")
    options = parser.parse_args(args)
    format = options.format or options.out.suffix.removeprefix(".")
    if format not in FORMATS:
        raise InputError(f"expected --format, or --out with a suffix of {', '.join(FORMATS)}, but got {options.out}")
    if options.out.exists() and not options.overwrite:
        raise InputError(f"expected a new file, but {options.out} exists already: --overwrite replaces it")
    model = pcattn.load(options.ckpt_path, trust=options.trust, device="cpu")
    print(export(model, options.out, format, options.dtype))
    return 0
