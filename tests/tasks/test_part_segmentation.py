"""The part segmentation task: loss, metrics over all samples, restricted predictions, what it reports and writes."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from pcattn.data import PointBatch
from pcattn.metrics import PROTOCOLS, part_iou
from pcattn.tasks import PartSegmentation
from pcattn.tasks.losses import lovasz_softmax

PARTS = [[0, 1, 2], [3, 4], [5]]
NETWORK = {"dim": 8, "depth": 1, "out_dim": 16}


def make_task(parts: list[list[int]] = PARTS, **kwargs) -> PartSegmentation:
    return PartSegmentation(parts, variant="spct", network_kwargs=NETWORK, **kwargs)


def make_batch(size: int, seed: int = 0, num_points: int = 16) -> PointBatch:
    index = torch.arange(size)
    category = index % 2
    label = torch.randint(2, (size, num_points)) + 3 * category[:, None]
    return PointBatch(torch.randn(size, num_points, 3), None, label, category, index, seed)


def replace_network(task: PartSegmentation, logits: Tensor, sizes: list[int]) -> None:
    """Answer batches of the given sizes from a table of logits."""
    rows = iter(logits.split(sizes))
    task.forward = lambda **inputs: next(rows)


class TestLoss:
    @pytest.mark.parametrize("lovasz", [0.0, 0.5])
    @pytest.mark.parametrize("smoothing", [0.0, 0.2])
    def test_is_the_documented_one(self, smoothing: float, lovasz: float, monkeypatch: pytest.MonkeyPatch) -> None:
        task, batch = make_task(label_smoothing=smoothing, lovasz=lovasz), make_batch(4)
        logits = torch.randn(4, 16, 6)
        replace_network(task, logits, [4])
        monkeypatch.setattr(task, "log", lambda *args, **kwargs: None)
        target = torch.full_like(logits, smoothing / 5).scatter(2, batch.label[..., None], 1 - smoothing)
        expected = -(target * logits.log_softmax(dim=2)).sum(dim=2).mean()
        expected = expected + lovasz * lovasz_softmax(logits.softmax(dim=2), batch.label)
        torch.testing.assert_close(task.training_step(batch, 0), expected)


class TestMetrics:
    @pytest.fixture
    def logged(self, monkeypatch: pytest.MonkeyPatch) -> dict[str, Tensor]:
        logged: dict[str, Tensor] = {}
        monkeypatch.setattr(PartSegmentation, "log_dict", lambda self, metrics, **kwargs: logged.update(metrics))
        return logged

    def evaluate(self, task: PartSegmentation, batch: PointBatch, logits: Tensor, sizes: list[int]) -> None:
        replace_network(task, logits, sizes)
        for part in zip(*(t.split(sizes) for t in (batch.pos, batch.label, batch.category)), strict=True):
            task.validation_step(PointBatch(part[0], None, part[1], part[2], batch.indices, 0), 0)
        task.on_validation_epoch_end()

    @pytest.mark.parametrize("protocol", PROTOCOLS)
    def test_over_all_samples_and_not_over_batches(self, protocol: str, logged: dict) -> None:
        batch, logits = make_batch(11), torch.randn(11, 16, 6)
        expected = part_iou(logits, batch.label, batch.category, PARTS, protocol)
        allowed = logits.clone()
        if PROTOCOLS[protocol].own_parts:
            for cloud, category in zip(allowed, batch.category, strict=True):
                cloud[:, [part for part in range(6) if part not in PARTS[category]]] = -torch.inf
        for sizes in ([11], [8, 2, 1], [1] * 11):
            self.evaluate(make_task(protocol=protocol), batch, logits, sizes)
            assert set(logged) == {f"val/{name}" for name in PartSegmentation.METRICS}
            torch.testing.assert_close(logged["val/instance_miou"], expected.instance, rtol=0, atol=1e-14)
            torch.testing.assert_close(logged["val/class_miou"], expected.classes, rtol=0, atol=1e-14)
            torch.testing.assert_close(
                logged["val/point_accuracy"], (allowed.argmax(dim=2) == batch.label).float().mean()
            )
            torch.testing.assert_close(
                logged["val/loss"], torch.nn.functional.cross_entropy(logits.transpose(1, 2), batch.label)
            )

    def test_each_evaluation_starts_afresh(self, logged: dict) -> None:
        task, batch = make_task(), make_batch(4)
        right = torch.eye(6)[batch.label]
        self.evaluate(task, batch, right, [4])
        assert logged["val/instance_miou"] == 1
        self.evaluate(task, batch, -right, [4])
        assert logged["val/instance_miou"] < 0.5

    def test_report(self, logged: dict, tmp_path: Path) -> None:
        task, batch = make_task(class_names=["chair", "mug", "ball"]), make_batch(3)
        logits = torch.eye(6)[batch.label]
        logits[1, :, :] = torch.eye(6)[3]  # the mug: all points of its first part
        self.evaluate(task, batch, logits, [3])
        mug = part_iou(logits[1:2], batch.label[1:2], batch.category[1:2], PARTS).instance
        lines = task.report("val").splitlines()
        assert [line.split() for line in lines[1:4]] == [
            ["chair", "1.0000", "2"],
            ["mug", f"{mug:.4f}", "1"],
            ["ball", "-", "0"],
        ]
        assert lines[4].startswith(f"val: instance mIoU {(2 + mug) / 3:.4f}, class mIoU {(1 + mug) / 2:.4f}, point ")
        assert lines[5] == "measured on 3 shapes with 16 points each, protocol category, no voting"

        table, summary = task.save_report("val", tmp_path / "new")
        with table.open() as file:
            rows = list(csv.DictReader(file))
        assert [row["category"] for row in rows] == ["chair", "mug", "ball"]
        assert float(rows[1]["miou"]) == pytest.approx(float(mug))
        assert rows[2]["miou"] == ""
        content = json.loads(summary.read_text())
        assert (content["split"], content["protocol"], content["points_per_shape"]) == ("val", "category", 16)
        assert (content["votes"], content["shapes"]) == (1, 3)
        assert content["instance_miou"] == pytest.approx(float(logged["val/instance_miou"]))
        assert content["categories"][2] == {"category": "ball", "miou": None, "shapes": 0}


class TestPrediction:
    def test_is_of_the_shapes_category(self, tmp_path: Path) -> None:
        task, batch = make_task().eval(), make_batch(4)
        with torch.no_grad():
            batches = [task.predict_step(batch._replace(category=torch.full((4,), c)), 0) for c in range(3)]
        for found, own in zip(batches, PARTS, strict=True):
            assert set(found["parts"].flatten().tolist()) <= set(own)
        with np.load(task.save_predictions(batches, tmp_path / "new")) as arrays:
            assert arrays["parts"].shape == (12, 16)
            assert arrays["indices"].tolist() == [0, 1, 2, 3] * 3
            assert "points" not in arrays  # which points these are is not known of corrupted clouds

    def test_tells_which_points_they_are_of(self, tmp_path: Path) -> None:
        task, points = make_task().eval(), torch.stack([torch.randperm(90)[:16] for _ in range(4)])
        with torch.no_grad():
            found = task.predict_step(make_batch(4)._replace(point_indices=points), 0)
        with np.load(task.save_predictions([found, found], tmp_path)) as arrays:
            assert arrays["parts"].shape == (8, 16)
            assert arrays["points"].tolist() == [*points.tolist()] * 2

    def test_other_protocols_choose_among_all(self) -> None:
        task, batch = make_task(protocol="all50"), make_batch(2)
        logits = torch.randn(2, 16, 6)
        replace_network(task, logits, [2])
        assert torch.equal(task.predict_step(batch, 0)["parts"], logits.argmax(dim=2))


class TestConditioning:
    def test_one_category_is_semantic_segmentation(self) -> None:
        task = make_task([[0, 1, 2, 3, 4]]).eval()
        assert task.network.category is None
        batch = make_batch(2)._replace(category=None)
        task.evaluate(batch)
        assert 0 <= task.compute_metrics("val")["val/class_miou"] <= 1

    def test_off(self) -> None:
        task, batch = make_task(conditioned=False).eval(), make_batch(2)
        assert torch.equal(task(batch.pos), task(batch.pos, batch.category))

    def test_on(self) -> None:
        task, batch = make_task().eval(), make_batch(2)
        assert not torch.equal(task(batch.pos, batch.category), task(batch.pos, 1 - batch.category))


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"parts": None}, "per_point: true"),
        ({"parts": [[0], []]}, "at least one part"),
        ({"protocol": "any"}, "one of category, all50, present"),
        ({"class_names": ["one"]}, "expected 3 class_names, one a category, but got 1"),
        ({"lovasz": -1.0}, "lovasz >= 0"),
        ({"optimizer": "lion"}, "sgd, adamw"),
        ({"label_smoothing": 1.0}, "label_smoothing"),
        ({"network_kwargs": {"detph": 2}}, "detph"),
    ],
)
def test_bad_arguments(kwargs: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PartSegmentation(**{"parts": PARTS, "variant": "spct", **kwargs})


def test_dropout_is_a_function_of_the_batch() -> None:
    task, batch = make_task().train(), make_batch(4)

    def run(seed: int) -> Tensor:
        task.on_train_batch_start(batch._replace(seed=seed), 0)
        return task(batch.pos, batch.category)

    assert torch.equal(run(5), run(5))
    assert not torch.equal(run(5), run(6))
