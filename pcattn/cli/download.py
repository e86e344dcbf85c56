"""`pcattn download`: fetch a data set, check it, and unpack it."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from pcattn.io.download import ARCHIVES, download
from pcattn.utils.errors import InputError


def main(args: Sequence[str]) -> int:
    """Run `pcattn download`."""
    parser = argparse.ArgumentParser(prog="pcattn download", description=__doc__)
    parser.add_argument("name", choices=ARCHIVES, help="data set to download")
    parser.add_argument("--root", default="data", help="folder to unpack into (default: data)")
    parser.add_argument("--accept_terms", action="store_true", help="agree to the terms of use, if there are any")
    options = parser.parse_args(args)
    archive = ARCHIVES[options.name]
    target = Path(options.root) / archive.folder
    if target.exists():
        print(f"{target} exists already")
        return 0
    if archive.terms and not options.accept_terms:
        raise InputError(f"expected --accept_terms, which says that you agree to {archive.terms}, but it is missing")
    print(f"{options.name} is in {download(options.name, options.root)}")
    return 0
