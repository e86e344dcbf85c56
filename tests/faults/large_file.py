"""Segment a file of many points, and tell how much memory that takes.

    python -m tests.faults.large_file --points 50000000

The network is a tiny one, untrained. The file is a binary PLY, of which a block is in memory at a time: the peak does
not grow with the number of points. Other formats (text, compressed PCD, NPZ, LAS) are read as a whole, and so is every
cloud whose normals are estimated.
"""

from __future__ import annotations

import argparse
import resource
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pcattn.cli.main import main as pcattn
from pcattn.inference import checkpoints
from pcattn.tasks import PartSegmentation

_ROWS = 1 << 20  # written at a time


def write_points(path: Path, num_points: int, seed: int = 0) -> None:
    """A binary PLY of points in the unit cube, 12 bytes each."""
    rng = np.random.default_rng(seed)
    with path.open("wb") as file:
        lines = ["ply", "format binary_little_endian 1.0", f"element vertex {num_points}"]
        file.write("\n".join([*lines, *(f"property float {axis}" for axis in "xyz"), "end_header", ""]).encode())
        for start in range(0, num_points, _ROWS):
            rng.random((min(_ROWS, num_points - start), 3), dtype=np.float32).tofile(file)


def write_segmenter(path: Path) -> Path:
    """Weights of a network with two parts."""
    network = {"dim": 16, "depth": 1, "out_dim": 32}
    task = PartSegmentation([[0, 1]], variant="spct", network_kwargs=network, class_names=["cube"])
    return checkpoints.save_weights(task, path, {"num_points": 32})


def peak() -> float:
    """Of this process so far, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e6


def main(args: Sequence[str] | None = None) -> int:
    """The command line; the status is that of `pcattn predict-files`."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--points", type=int, default=50_000_000)
    parser.add_argument(
        "--folder", type=Path, help="where to make the files, which are removed; default: a temporary one"
    )
    options = parser.parse_args(args)
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        cloud, weights, small = Path(folder, "large.ply"), Path(folder, "tiny.safetensors"), Path(folder, "small.ply")
        write_points(cloud, options.points)
        write_points(small, 1000)
        write_segmenter(weights)
        command = ["predict-files", "--ckpt_path", str(weights), "--device", "cpu", "--overwrite", "--out", folder]
        status, before = run([*command[:-1], f"{folder}/out", str(small)]), peak()
        start = time.perf_counter()
        status = status or run([*command[:-1], f"{folder}/out", str(cloud)])
        seconds, size = time.perf_counter() - start, cloud.stat().st_size / 1e6
        print(f"{options.points:,} points, a file of {size:,.0f} MB: {seconds:.0f} s")
        print(f"peak of memory {peak():,.0f} MB, with a small file {before:,.0f} MB")
    return status


def run(command: Sequence[str]) -> int:
    """A command of pcattn; its exit status."""
    try:
        pcattn(list(command))
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
