"""Every reader of files: how it is called, what it starts from, and what it may answer."""

import io
import json
import os
import resource
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from pcattn.datasets import folder_layout, modelnet_layouts, scanobjectnn, shapenet_layouts
from pcattn.inference import checkpoints
from pcattn.io import cache
from pcattn.io.cloud import read_cloud
from pcattn.io.download import unpack
from pcattn.io.hdf5 import read_arrays
from pcattn.utils.errors import DatasetError
from tests.fuzz import seeds

#: Processor time that one small file may take, in seconds.
MAX_SECONDS = 1.0

#: Memory that reading may take beyond what the process has, in bytes.
MAX_BYTES = 1 << 30


class FindingError(Exception):
    """A reader did something else than to read the file, or to say what is wrong with it."""


class Reader(NamedTuple):
    """How one kind of file is read."""

    file: str  #: name of the file
    seeds: Callable[[], list[bytes]]  #: valid contents
    read: Callable[[Path], Any]  #: reads the file, and checks what comes of it
    errors: type[Exception] = DatasetError  #: what it may raise, naming the file


def check(reader: Reader, content: bytes, folder: Path) -> None:
    """Read a file with this content; the folder is the same in every call.

    Raises:
        FindingError: it took long, much memory, or an error that is none of ours or does not name the file.
    """
    path = folder / reader.file
    path.write_bytes(content)
    start = time.perf_counter()
    _read(reader, path)
    if time.perf_counter() - start > MAX_SECONDS:  # or the machine was busy
        path.write_bytes(content)
        start = time.process_time()
        _read(reader, path)
        if (seconds := time.process_time() - start) > MAX_SECONDS:
            raise FindingError(f"{seconds:.1f} s")


def _read(reader: Reader, path: Path) -> None:
    try:
        reader.read(path)
    except reader.errors as error:
        if path.name not in str(error):
            raise FindingError(f"the error does not name the file: {error}") from error
        if "memory of this machine" in str(error):
            raise FindingError(f"out of memory: {error}") from error


@contextmanager
def limited_memory() -> Iterator[None]:
    """What is allocated within is limited."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + MAX_BYTES, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def _expect(condition: Any, what: str) -> None:
    if not condition:
        raise FindingError(f"a result that is none: {what}")


def _expect_inside(path: Path, folder: Path) -> None:
    _expect(Path(os.path.normpath(path)).is_relative_to(folder), f"{path} outside")


def _cloud(path: Path) -> None:
    pos, attributes = read_cloud(path, num_points=16)
    _expect(pos.ndim == 2 and pos.shape[1] == 3 and len(pos) and pos.dtype.kind == "f", f"pos {pos.dtype} {pos.shape}")
    _expect(np.isfinite(pos).all(), "pos is not finite")
    for name, values in attributes.items():
        _expect(values.shape[0] == len(pos) and values.ndim < 3, f"{name} {values.shape}")
        _expect(values.dtype.kind in "biufc" and values.dtype.isnative, f"{name} {values.dtype}")


def _table(path: Path) -> None:
    from pcattn.io.text import read_table

    table = read_table(path, 3)
    _expect(table.ndim == 2 and table.shape[1] >= 3 and len(table) and np.isfinite(table).all(), "table")
    plain = path.read_text(encoding="latin-1").removeprefix("ï»¿").translate(str.maketrans(",;", "  ", '"'))
    expected = np.loadtxt(io.StringIO(plain), np.float64, comments=["#", "//"], ndmin=2)
    _expect(np.allclose(table, expected.astype(np.float32), 1e-6, 1e-44), "other numbers than those of numpy")


def _labels(path: Path) -> None:
    (points := path.with_name("cloud.pts")).write_bytes(b"0 0 0\n1 1 1\n2 2 2\n")
    layout = object.__new__(shapenet_layouts.PointsLayout)
    table, labels = layout.parse(shapenet_layouts.Source(points, path, 0, "cloud"))
    _expect(table.shape == (3, 3) and labels.shape == (3,) and labels.min() >= 0, "labels")


def _modelnet(path: Path) -> None:
    arrays = modelnet_layouts.HDF5Layout(path.parent, 40).parse(path)
    _expect(arrays["data"].shape[2] == 3 and arrays["data"].dtype == np.float32, "data")


def _shapenet(path: Path) -> None:
    pos, category, part, _ = object.__new__(shapenet_layouts.HDF5Layout).parse(path)
    _expect(pos.shape[:2] == part.shape and len(category) == len(pos), "data")


def _scanobjectnn(path: Path) -> None:
    try:
        found = scanobjectnn.ScanObjectNN(str(path.parent), split="test")
    except DatasetError as error:
        if "NaN" in str(error) or "expected" in str(error):
            raise
        raise FindingError(str(error)) from error
    _expect(len(found) and bool(found._data.pos.isfinite().all()), "clouds")


def _names(path: Path) -> None:
    (path.parent / "modelnet10_shape_names.txt").write_text(" ".join(f"class_{i}" for i in range(10)))
    for source in modelnet_layouts.TextLayout(path.parent, 10).sources("train"):
        _expect_inside(source.path, path.parent)


def _categories(path: Path) -> None:
    layout = shapenet_layouts.TextLayout(path.parent)
    for category in layout.categories:
        _expect((path.parent / category.folder).parent == path.parent, f"{category.folder} outside")
    list(layout.sources())


def _split_list(path: Path) -> None:
    folder = path.parent.parent
    (folder / "synsetoffset2category.txt").write_text("Mug 03797390\n")
    layout = shapenet_layouts.TextLayout(folder)
    source = shapenet_layouts.Source(folder / "03797390" / "id0.txt", None, 0, "id0")
    _expect(set(layout.split([source], False, 0)) == {"train"}, "splits")


def _list(path: Path) -> None:
    for entry in folder_layout.find_layout(path).entries:
        _expect_inside(entry.path, path.parent)


def _archive(path: Path) -> None:
    import shutil

    target = path.parent / "target"
    before = {file.name for file in path.parent.iterdir()}
    try:
        unpack(path, target, 1 << 20, 100)
        _expect(all(not file.is_symlink() for file in target.rglob("*")), "a link")
    finally:
        shutil.rmtree(target, ignore_errors=True)
        _expect({file.name for file in path.parent.iterdir()} == before, "something is left behind")


def _checkpoint(path: Path) -> None:
    pickled = path.read_bytes()
    writer = torch._C.PyTorchFileWriter(str(path))  # as torch.save does
    writer.write_record("data.pkl", pickled, len(pickled))
    writer.write_record("data/0", bytes(64), 64)
    writer.write_end_of_file()
    _plain(checkpoints.read(path))


def _safetensors(path: Path) -> None:
    _plain(checkpoints.read(path))


def _plain(found: checkpoints.Checkpoint) -> None:
    _expect(isinstance(found.task, str), f"task {found.task!r}")
    for part in (found.hyper_parameters, found.data, found.training, found.state):
        _expect(isinstance(part, dict) and all(isinstance(name, str) for name in part), f"{part!r}")


def _cache(path: Path) -> None:
    (path.parent / "pos.bin").write_bytes(bytes(60))
    (path.parent / "label.bin").write_bytes(bytes(40))
    found = cache._open(path.parent)
    if found is not None:
        for array in found.arrays.values():
            _expect(array.dtype.kind in "biuf" and array.nbytes in (0, 40, 60), f"{array.dtype} {array.shape}")
            array.sum()
        json.dumps(found.info)


def _plain_hdf5(path: Path) -> None:
    for array in read_arrays(path, {"data": np.float32}).values():
        _expect(np.isfinite(array).all(), "data")


_DATA = np.random.default_rng(0).normal(size=(2, 4, 3)).astype(np.float32)
_LABEL = np.array([[2], [11]], np.uint8)
_PID = np.array([[6, 7, 6, 7], [36, 37, 36, 37]], np.uint8)
_SCANS = {"data": _DATA, "label": _LABEL[:, 0], "mask": _PID.astype(np.int64) - 37}

READERS: dict[str, Reader] = {
    "ply": Reader("cloud.ply", seeds.ply, _cloud),
    "pcd": Reader("cloud.pcd", seeds.pcd, _cloud),
    "text": Reader("cloud.txt", seeds.text, _cloud),
    "pts": Reader("cloud.pts", seeds.text, _cloud),
    "npy": Reader("cloud.npy", seeds.npy, _cloud),
    "npz": Reader("cloud.npz", seeds.npz, _cloud),
    "off": Reader("mesh.off", seeds.off, _cloud),
    "obj": Reader("mesh.obj", seeds.obj, _cloud),
    "stl": Reader("mesh.stl", seeds.stl, _cloud),
    "las": Reader("cloud.las", seeds.las, _cloud),
    "kitti": Reader("000000.bin", seeds.kitti, _cloud),
    "table": Reader("cloud_0001.txt", lambda: [seeds.text()[0], b"1,2.5e-3,-3\n.4,5,6E+2 # a\n\n1 2 3"], _table),
    "seg": Reader("labels.seg", lambda: [b"1\n2\n1\n", b"1 \r\n4\r\n4"], _labels),
    "hdf5_modelnet": Reader(
        "ply_data_train0.h5", lambda: seeds.hdf5(data=_DATA, label=_LABEL, normal=_DATA), _modelnet
    ),
    "hdf5_shapenet": Reader("ply_data_train1.h5", lambda: seeds.hdf5(data=_DATA, label=_LABEL, pid=_PID), _shapenet),
    "hdf5_scanobjectnn": Reader(
        "main_split/test_objectdataset_augmentedrot_scale75.h5", lambda: seeds.hdf5(**_SCANS), _scanobjectnn
    ),
    "names": Reader("modelnet10_train.txt", lambda: [b"class_1_0001\nclass_2_0001\n"], _names),
    "categories": Reader(
        "synsetoffset2category.txt", lambda: [b"Mug\t03797390\nCap\t02954340\n", b"bolt  bolts\n"], _categories
    ),
    "split_list": Reader(
        "train_test_split/shuffled_train_file_list.json", lambda: [b'["shape_data/03797390/id0"]'], _split_list
    ),
    "list": Reader("list.csv", lambda: [b"path,label,split\na.ply,chair,train\nb/c.ply,sofa,test\n", b"a,1"], _list),
    "archive": Reader("shapes.zip", seeds.archive, _archive),
    "safetensors": Reader("a.safetensors", seeds.safetensors, _safetensors, ValueError),
    "checkpoint": Reader("a.ckpt", seeds.checkpoint, _checkpoint, ValueError),
    "cache": Reader("index.json", seeds.cache, _cache),
}
