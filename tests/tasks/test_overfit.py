"""Part segmentation learns real shapes by heart: one of each category of ShapeNetPart, through the real loader."""

import os
from pathlib import Path

import pytest
import torch

from pcattn.data import DenseClouds
from pcattn.datasets import ShapeNetPart
from pcattn.tasks import PartSegmentation

ROOT = Path(os.environ.get("PCATTN_DATA", "data")) / "shapenetcore_partanno_segmentation_benchmark_v0"
STEPS = 90


@pytest.mark.skipif(not ROOT.is_dir(), reason=f"no {ROOT} (.pts and .seg); PCATTN_DATA names the folder above it")
@pytest.mark.filterwarnings("ignore:.*cannot be written")
def test_sixteen_real_shapes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    dataset = ShapeNetPart(str(ROOT))
    clouds = DenseClouds(dataset, per_point=True, normalize="sphere").sampled(256, seed=0)
    order = DenseClouds(dataset).label.tolist()
    batch = clouds[0, torch.tensor([order.index(category) for category in range(dataset.num_classes)])]
    network = {"dim": 32, "depth": 2, "k": 16, "out_dim": 256, "dropout": 0.0}
    task = PartSegmentation(dataset.parts, network_kwargs=network, label_smoothing=0.0)
    monkeypatch.setattr(task, "log", lambda *args, **kwargs: None)
    optimizer = torch.optim.AdamW(task.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.01, STEPS)
    for step in range(STEPS):
        optimizer.zero_grad()
        task.training_step(batch, step).backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        task.eval().evaluate(batch)
    assert task.compute_metrics("val")["val/instance_miou"] >= 0.97
    assert len(task.last_summary["categories"]) == 16
