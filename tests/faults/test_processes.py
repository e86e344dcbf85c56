"""Several processes at once, and some that are killed."""

import os
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pcattn.datasets import PointCloudFolder, folder
from pcattn.io.cloud import Cloud
from pcattn.utils.errors import DatasetError

if sys.platform != "linux":
    pytest.skip("importing torch in every process would take longer than the tests", allow_module_level=True)

from tests.faults import kill


def write_clouds(root: Path, number: int) -> Path:
    for label in ("a", "b"):
        (root / label).mkdir(parents=True)
        for index in range(number):
            np.save(root / label / f"{index:05}.npy", np.random.default_rng(index).random((9, 3)))
    return root


def test_a_killed_reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the system does when memory is short: an error and not an endless wait, and nothing is left."""
    root = write_clouds(tmp_path, 10)
    read = folder.read_cloud

    def fatal(path: Path, **options: Any) -> Cloud:
        if path.name == "00007.npy":
            os.kill(os.getpid(), signal.SIGKILL)
        return read(path, **options)

    monkeypatch.setattr(folder, "read_cloud", fatal)
    with pytest.raises(DatasetError, match="a process that read clouds was killed"):
        PointCloudFolder(str(root))
    assert list((root / "processed").iterdir()) == []
    monkeypatch.undo()
    assert len(PointCloudFolder(str(root), test_fraction=0)) == 20


@pytest.mark.slow
def test_two_trainings_build_one_cache(tmp_path: Path) -> None:
    """Both begin without one, end with it, and are the same."""
    config = kill.write_tiny_config(tmp_path / "tiny.yaml", kill.write_resampled(tmp_path / "data", num_points=64))
    names = ("first", "second")
    processes = [kill.start(config, tmp_path / name) for name in names]
    assert [kill.wait(process) for process in processes] == [0, 0]
    assert kill.differences(*(tmp_path / name for name in names)) == []
    assert len(list((tmp_path / "data" / "processed").iterdir())) == 2  # of train and test
