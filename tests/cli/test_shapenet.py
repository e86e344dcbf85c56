"""A user's own clouds in ShapeNetPart's layout, trained and tested from the command line with no Python written."""

import json
from pathlib import Path

import pytest
import torch

from pcattn.cli.main import main
from tests.cli.test_parts import write_config
from tests.datasets.shapenet_files import write_own


def test_a_new_category_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.chdir(tmp_path)
    root = write_own(tmp_path / "own")
    config = write_config(tmp_path / "own.yaml", dataset="shapenetpart", root=str(root))
    main(["fit", "-c", str(config), "--model.variant=spct", "--data.num_points=24", "--trainer.max_epochs=8"])
    summary = json.loads((tmp_path / "runs" / "own" / "test_categories.json").read_text())
    assert (summary["shapes"], summary["points_per_shape"]) == (20, 24)
    assert [row["category"] for row in summary["categories"]] == ["gadget"]
    assert summary["instance_miou"] > 0.5  # four slices of a ball; one part everywhere would be below 0.1
    assert "gadget" in capsys.readouterr().out
    # Checkpoints of old have the parts counted from 1, whatever their labels.
    path = tmp_path / "runs" / "own" / "checkpoints" / "best.ckpt"
    checkpoint = torch.load(path, weights_only=False)
    names = checkpoint["hyper_parameters"]["part_names"]
    assert names[50:] == ["gadget/50", "gadget/51", "gadget/52", "gadget/53"]
    names[50:] = ["gadget/1", "gadget/2", "gadget/3", "gadget/4"]
    torch.save(checkpoint, path)
    main(["validate", "-c", str(tmp_path / "runs" / "own" / "config.yaml")])
    assert "val: instance mIoU" in capsys.readouterr().out
