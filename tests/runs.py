"""Two small finished runs: part segmentation with pictures, and classification."""

from pathlib import Path

import pytest
import yaml

from pcattn.cli.main import main


def fit(folder: Path, task: str, network: dict | None = None, **settings) -> Path:
    """A run of one epoch on small `Shapes`."""
    network = network or {"variant": "pct", "network_kwargs": {"dim": 16, "depth": 2, "k": 4, "out_dim": 32}}
    arguments = {**network, "optimizer": "adamw", "lr": 0.01}
    kwargs = {"num_train": 88, "num_test": 22, "num_points": 64}
    data = {"num_points": 48, "val_fraction": 0.25, "batch_size": 16, "per_point": task == "PartSegmentation"}
    config = {
        "model": {"class_path": task, "init_args": arguments},
        "data": {**data, "dataset": "shapes", "root": str(folder / "shapes"), "dataset_kwargs": kwargs},
        "trainer": {"max_epochs": 1, "accelerator": "cpu", "enable_progress_bar": False, **settings},
        "checkpoint": {"monitor": "val/instance_miou" if data["per_point"] else "val/oa"},
    }
    path = folder / f"{task}.yaml"
    path.write_text(yaml.safe_dump(config))
    main(["fit", "-c", str(path), "--run", str(folder / task)])
    return folder / task


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="session")
def parts_run(folder: Path) -> Path:
    """Part segmentation, with the callback that draws."""
    pictures = {"class_path": "pcattn.training.Pictures", "init_args": {"every_n_epochs": 2, "number": 3}}
    return fit(folder, "PartSegmentation", callbacks=[pictures], max_epochs=2)


@pytest.fixture(scope="session")
def class_run(folder: Path) -> Path:
    """Classification."""
    return fit(folder, "Classification")
