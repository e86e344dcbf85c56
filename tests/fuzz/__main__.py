"""Coverage-guided fuzzing of readers: `python -m tests.fuzz ply pcd --runs 200000`; needs `pip install pcattn[fuzz]`.

Every input is read as a file. A finding is an answer that is neither a valid result nor one of our errors with the name
of the file, or a reading that takes more than a second or a gigabyte. It is written to `--out`, one file for each place
in the code, and fuzzing goes on. A crash of the process leaves its input there as well, and ends that reader.
"""

import argparse
import gc
import os
import sys
import tempfile
import traceback
import zipfile
from hashlib import sha256
from pathlib import Path

# In Python the guide sees into the loops that numba would compile.
os.environ["NUMBA_DISABLE_JIT"] = "1"

import atheris
import laspy
import torch
import trimesh
from numpy.lib import format as numpy_format

from pcattn.cli import download
from pcattn.data import files as storage
from pcattn.datasets import folder_layout, modelnet_layouts, scanobjectnn, shapenet_layouts
from pcattn.inference import checkpoints
from pcattn.io import cache, channels, columns, hdf5, kitti, las, limits, mesh, numpy, obj, off, pcd, ply, stl, text
from pcattn.io import cloud as clouds
from pcattn.utils import tensors
from tests.fuzz.instrument import instrument
from tests.fuzz.readers import READERS, check, limited_memory

#: The modules that the guide sees into.
MODULES = (
    *(cache, channels, clouds, columns, hdf5, kitti, las, limits, mesh, numpy, obj, off, pcd, ply, stl, text),
    *(checkpoints, download, folder_layout, modelnet_layouts, scanobjectnn, shapenet_layouts, storage, tensors),
    *(zipfile, numpy_format, torch._weights_only_unpickler),
    *(trimesh.exchange.load, trimesh.exchange.obj, trimesh.exchange.stl),
    *(laspy.header, laspy.lasreader, laspy.vlrs.vlrlist, laspy.vlrs.known, laspy.vlrs.vlr),
)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("readers", nargs="+", choices=READERS)
    parser.add_argument("--runs", type=int, default=200_000, help="inputs for each reader")
    parser.add_argument("--seconds", type=int, default=0, help="stop each reader after this many; 0: never")
    parser.add_argument(
        "--max-length",
        type=int,
        default=4096,
        help="of an input, in bytes; at least as long as the longest valid file",
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("fuzz-findings"))
    given = parser.parse_args()
    instrument(*MODULES)
    gc.freeze()  # the imported modules stay
    for name in given.readers:
        if (process := os.fork()) == 0:  # libFuzzer ends its process
            fuzz(name, given)
        _, status, used = os.wait4(process, 0)
        seconds = used.ru_utime + used.ru_stime
        print(f"{name}: {seconds:.0f} s of processor time, status {os.waitstatus_to_exitcode(status)}", flush=True)


def fuzz(name: str, given: argparse.Namespace) -> None:
    """Fuzz one reader, and end the process."""
    reader, out = READERS[name], given.out / name
    out.mkdir(parents=True, exist_ok=True)
    shared_memory = Path("/dev/shm")
    work = Path(tempfile.mkdtemp(dir=shared_memory if shared_memory.is_dir() else None))
    (work / "files" / reader.file).parent.mkdir(parents=True)
    (work / "corpus").mkdir()
    seeds = reader.seeds()
    for index, content in enumerate(seeds):
        (work / "corpus" / str(index)).write_bytes(content)
        (work / "files" / reader.file).write_bytes(content)
        reader.read(work / "files" / reader.file)  # compiling at the first use does not count as slow reading

    def once(content: bytes) -> None:
        try:
            check(reader, content, work / "files")
        except Exception as error:
            place = traceback.extract_tb(error.__traceback__)[-1]
            key = f"{type(error).__name__}-{Path(place.filename).stem}-{place.lineno}"
            path = out / f"{key}-{sha256(key.encode()).hexdigest()[:6]}"
            if not path.exists() or path.stat().st_size > len(content):
                path.write_bytes(content)
                print(f"finding: {path.name}: {error}"[:300], flush=True)

    options = [
        f"-runs={given.runs}",
        f"-max_total_time={given.seconds}",
        f"-max_len={max(given.max_length, *map(len, seeds))}",
        f"-seed={given.seed}",
        f"-artifact_prefix={out}/",
        "-timeout=300",  # by the clock, which is no measure on a busy machine: `check` measures processor time
        "-rss_limit_mb=4096",
        "-verbosity=0",
        "-print_final_stats=1",
    ]
    with limited_memory():
        atheris.Setup([sys.argv[0], *options, str(work / "corpus")], once)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
