"""Where the disk is full: nothing half under a final name, an error that names file and cause, and then it works.

A limit on the size of files stands for the disk: like that it fails the system's `write`, but it needs no superuser.
`test_checkpointing.py` and `test_kill.py` do the same for checkpoints.
"""

import re
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import pcattn
from pcattn.cli.main import main
from pcattn.datasets import ModelNet40, PointCloudFolder, Shapes
from pcattn.inference import checkpoints
from pcattn.inference.export import FORMATS, export
from pcattn.io import read_cloud
from pcattn.tasks import Classification, PartSegmentation
from pcattn.utils.errors import DatasetError
from pcattn.visualize.montage import montage
from pcattn.visualize.page import page
from pcattn.visualize.scene import Cloud, quantity
from tests.datasets.modelnet_files import write_resampled
from tests.faults.large_file import write_points, write_segmenter

if sys.platform == "win32":
    pytest.skip("no limit on the size of files there", allow_module_level=True)

FULL = "File too large|No space left on device"


@contextmanager
def full_disk(size: int = 1000) -> Iterator[None]:
    """Files of this process cannot grow beyond `size` bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def files(folder: Path) -> list[str]:
    """All files below a folder."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def write_clouds(root: Path, number: int) -> Path:
    for label in ("a", "b"):
        (root / label).mkdir(parents=True)
        for index in range(number):
            np.save(root / label / f"{index}.npy", np.random.default_rng(index).random((200, 3), np.float32))
    return root


@pytest.mark.parametrize(
    ("name", "write", "read", "size"),
    [
        ("modelnet40-text-train", lambda root: write_resampled(root, num_points=64), ModelNet40, 1000),
        ("folder", lambda root: write_clouds(root, 2), PointCloudFolder, 1000),
        ("folder", lambda root: write_clouds(root, 2), PointCloudFolder, 4000),  # holds a cloud, but not all of them
        ("folder", lambda root: write_clouds(root, 8), PointCloudFolder, 1000),  # read by processes of their own
        ("train-v1", lambda root: root, lambda root: Shapes(root, num_points=64, num_train=4), 1000),
    ],
)
def test_caches(name: str, write: Any, read: Any, size: int, tmp_path: Path) -> None:
    root = write(tmp_path / "data")
    before = files(root)
    message = rf"expected to write .*{re.escape(str(root / 'processed' / name))}.*, but ({FULL})"
    with full_disk(size), pytest.raises((DatasetError, OSError), match=message):
        read(str(root))
    assert files(root) == before
    assert len(read(str(root))) > 0


def test_predicted_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    """One that does not fit fails alone."""
    monkeypatch.chdir(tmp_path)
    for name, number in (("large", 5000), ("small", 40)):
        write_points(Path(f"{name}.ply"), number)
    weights = write_segmenter(Path("tiny.safetensors"))
    command = ["predict-files", "--ckpt_path", str(weights), "--device", "cpu", "large.ply", "small.ply"]
    before = files(tmp_path)
    with full_disk(10_000), pytest.raises(SystemExit, match="1"):
        main(command)
    error = capsys.readouterr().err
    assert re.search(rf"^expected to write predictions/large\.ply, but ({FULL})$", error, re.MULTILINE)
    assert files(tmp_path) == sorted([*before, "predictions/small.ply"])
    with full_disk(100), pytest.raises(SystemExit, match="2"):
        main([*command[:-2], "small.ply", "--overwrite", "--json", "found.json"])
    assert re.search(rf"^pcattn: error: expected to write found\.json, but ({FULL})$", capsys.readouterr().err, re.M)
    with pytest.raises(SystemExit, match="0"):
        main([*command, "--overwrite", "--json", "found.json"])
    assert len(read_cloud("predictions/large.ply").pos) == 5000


@pytest.mark.parametrize("format", FORMATS)
def test_export(format: str, tmp_path: Path) -> None:
    """And the file of before stays."""
    if format == "onnx":
        pytest.importorskip("onnxscript")
        pytest.importorskip("onnxruntime")
    path = tmp_path / f"network.{format}"
    path.write_bytes(b"before")
    network = {"dim": 16, "depth": 1, "out_dim": 32}
    task = Classification(3, variant="spct", network_kwargs=network)
    weights = checkpoints.save_weights(task, tmp_path / "weights.safetensors", {"num_points": 16})
    model = pcattn.load(weights, device="cpu")
    with full_disk(), pytest.raises(OSError, match=rf"^expected to write {path}, but ({FULL})$"):
        export(model, path, format)
    assert files(tmp_path) == [path.name, weights.name]
    assert path.read_bytes() == b"before"


def clouds() -> list[Cloud]:
    return [Cloud(np.random.default_rng(0).random((300, 3)), "a", {"height": quantity(np.arange(300.0))})]


def predictions(folder: Path) -> None:
    batch = {"indices": torch.arange(400), "parts": torch.randint(2, (400, 20))}
    PartSegmentation([[0, 1]], variant="spct", network_kwargs={"dim": 8, "depth": 1, "out_dim": 8}).save_predictions(
        [batch], folder
    )


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("a.png", lambda folder: montage(clouds(), folder / "a.png", renderer="matplotlib")),
        ("a.html", lambda folder: page(clouds(), folder / "a.html")),
        ("predictions.npz", predictions),
    ],
)
def test_what_a_run_ends_with(name: str, write: Any, tmp_path: Path) -> None:
    with full_disk(), pytest.raises(OSError, match=rf"^expected to write {tmp_path / name}, but ({FULL})$"):
        write(tmp_path)
    assert files(tmp_path) == []
    write(tmp_path)
    assert files(tmp_path) == [name]
