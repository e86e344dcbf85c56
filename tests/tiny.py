"""A configuration that trains in seconds on small files in the layout of ModelNet40."""

from pathlib import Path

import yaml


def write_tiny_config(path: Path, root: Path) -> Path:
    """A PCT of two narrow layers on 32 points of the clouds under `root`."""
    network = {"dim": 16, "depth": 2, "k": 4, "out_dim": 32}
    init_args = {"variant": "pct", "network_kwargs": network, "optimizer": "adamw", "lr": 0.01}
    settings = {
        "model": {"class_path": "Classification", "init_args": init_args},
        "data": {
            "dataset": "modelnet40",
            "root": str(root),
            "num_points": 32,
            "augmentation": [{"translate": {"max_offset": 0.01}}, {"dropout": None}],
        },
        "trainer": {"max_epochs": 3, "accelerator": "cpu", "enable_progress_bar": False},
    }
    path.write_text(yaml.safe_dump(settings))
    return path
