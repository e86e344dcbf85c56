"""Surroundings that are poor, and left as they were: no home, no network, data that cannot be written, odd paths."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.datasets.modelnet_files import write_resampled
from tests.faults.large_file import write_segmenter
from tests.tiny import write_tiny_config

#: The command line, where it must not ask for the network.
OFFLINE = """
import sys

def refuse(event, args):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto"):
        raise AssertionError(f"{event} {args[1:]}")

sys.addaudithook(refuse)
from pcattn.cli.main import main
main(sys.argv[1:])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="names of files are shorter elsewhere")
@pytest.mark.slow
def test_fit(tmp_path: Path) -> None:
    """Paths of more than 200 characters beyond ASCII, read-only data, no home and no network, all at once."""
    folder = tmp_path / ("Wölkchen " * 12).strip() / ("点云" * 20) / ("long" * 25)
    data = write_resampled(folder / "data", num_points=40)
    config = write_tiny_config(folder / "tiny.yaml", data)
    data.chmod(0o555)
    run = folder / "run"
    args = ["fit", "-c", str(config), f"--run={run}", "--trainer.max_epochs=1", "--data.batch_size=8"]
    environment = {"HOME": "/dev/null/home", "XDG_CACHE_HOME": str(folder / "cache"), "PATH": os.environ["PATH"]}
    try:
        done = subprocess.run(
            [sys.executable, "-c", OFFLINE, *args],
            env=environment,
            cwd=folder,
            capture_output=True,
            text=True,
            encoding="utf-8",
            check=False,
        )
    finally:
        data.chmod(0o755)
    assert done.returncode == 0, done.stderr
    assert f"The run is in {run}/" in done.stdout
    assert {path.name for path in (run / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt"}
    assert not (data / "processed").exists()
    assert len(list((folder / "cache" / "pcattn").iterdir())) == 2


@pytest.mark.slow
def test_export(tmp_path: Path) -> None:
    """Nothing of onnxruntime's is left at home, which keeps and sends records of its use."""
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    weights, home = write_segmenter(tmp_path / "tiny.safetensors"), tmp_path / "home"
    home.mkdir()
    args = ["export", f"--ckpt_path={weights}", "--format=onnx", f"--out={tmp_path / 'tiny.onnx'}"]
    environment = {"HOME": str(home), "PATH": os.environ["PATH"]}
    command = [sys.executable, "-c", OFFLINE, *args]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "tiny.onnx").stat().st_size > 1000
    left = [path.relative_to(home).as_posix() for path in home.rglob("*") if path.is_file()]
    assert [name for name in left if not name.startswith(".cache/matplotlib/")] == []  # its list of fonts
