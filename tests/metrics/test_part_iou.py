"""Part IoU against loops over shapes, parts and points, and the metric against the function."""

import doctest
import importlib
import math
import pickle

import pytest
import torch
from torch import Tensor

from pcattn.metrics import PROTOCOLS, PartIoU, part_iou, predict_parts

#: Categories with 4, 2, 1 and 3 parts, not sorted, with gaps, and one part in two categories.
PARTS = [[4, 2, 7, 0], [1, 3], [9], [8, 5, 3]]
NUM_PARTS = 11


def iou_of_shape(logits: list[list[float]], target: list[int], own: list[int], protocol: str) -> float:
    """IoU of one shape by loops over points and parts, as in the released code."""
    candidates = own if protocol.startswith("category") else range(len(logits[0]))
    prediction = [max(candidates, key=lambda part: row[part]) for row in logits]
    ious = []
    for part in own:
        intersection = sum(p == t == part for p, t in zip(prediction, target, strict=True))
        union = sum(part in pair for pair in zip(prediction, target, strict=True))
        if protocol.endswith("present") and part not in target:
            continue
        ious.append(intersection / union if union else 1.0)
    return sum(ious) / len(ious)


def random_shapes(size: int, num_points: int = 12, confident: float = 2.0) -> tuple[Tensor, Tensor, Tensor]:
    """Logits, truth and categories. With few points, many parts are absent from the truth, the prediction or both."""
    category = torch.randint(len(PARTS), (size,))
    target = torch.empty(size, num_points, dtype=torch.long)
    for row, which in zip(target, category, strict=True):
        own = torch.tensor(PARTS[which])
        kept = own[torch.randperm(len(own))[: int(torch.randint(1, len(own) + 1, ()))]]
        row.copy_(kept[torch.randint(len(kept), (num_points,))])
    logits = torch.randn(size, num_points, NUM_PARTS)
    return logits.scatter_add(2, target[..., None], torch.full((size, num_points, 1), confident)), target, category


@pytest.mark.parametrize("protocol", PROTOCOLS)
class TestAgainstLoops:
    @pytest.mark.parametrize("num_points", [1, 12, 60])
    def test_shapes_and_means(self, protocol: str, num_points: int) -> None:
        logits, target, category = random_shapes(120, num_points)
        result = part_iou(logits, target, category, PARTS, protocol)
        expected = [
            iou_of_shape(*pair, PARTS[which], protocol)
            for *pair, which in zip(logits.tolist(), target.tolist(), category.tolist(), strict=True)
        ]
        assert result.shapes.tolist() == pytest.approx(expected, abs=1e-14)
        assert float(result.instance) == pytest.approx(sum(expected) / 120, abs=1e-14)
        means = []
        for which in range(len(PARTS)):
            members = [iou for iou, of in zip(expected, category.tolist(), strict=True) if of == which]
            assert int(result.counts[which]) == len(members)
            means.append(sum(members) / len(members))
        assert result.per_class.tolist() == pytest.approx(means, abs=1e-14)
        assert float(result.classes) == pytest.approx(sum(means) / len(means), abs=1e-14)

    def test_metric_does_not_depend_on_batches(self, protocol: str) -> None:
        shapes = random_shapes(40)
        expected = part_iou(*shapes, PARTS, protocol)
        for batch_size in (1, 7, 32, 40):
            metric = PartIoU(PARTS, protocol)
            for batch in zip(*(tensor.split(batch_size) for tensor in shapes), strict=True):
                metric.update(*batch)
            for ours, theirs in zip(metric.compute()[:4], expected[:4], strict=True):
                torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-14)

    def test_metric_adds_up_over_processes(self, protocol: str) -> None:
        """Two processes with different numbers of shapes: gathering both gives the result for all shapes."""
        shapes = random_shapes(30)
        first, second = PartIoU(PARTS, protocol), PartIoU(PARTS, protocol)
        first.update(*(tensor[:23] for tensor in shapes))
        second.update(*(tensor[23:] for tensor in shapes))
        states = iter([second.sums, second.counts])
        first.dist_sync_fn = lambda state, group: [state, next(states)]
        first.distributed_available_fn = lambda: True
        torch.testing.assert_close(
            first.compute()[:4], part_iou(*shapes, PARTS, protocol)[:4], rtol=0, atol=1e-14, equal_nan=True
        )


class TestCases:
    """One shape of the category with parts 1 and 3."""

    @pytest.mark.parametrize(
        ("truth", "predicted", "expected"),  # in the order of `PROTOCOLS`
        [
            ([1, 1, 1, 1], [1, 1, 1, 1], (1, 1, 1, 1)),  # part 3 absent from both
            ([1, 1, 1, 1], [1, 1, 3, 3], (1 / 4, 1 / 4, 1 / 2, 1 / 2)),  # absent from the truth: IoU 0, or left out
            ([1, 1, 3, 3], [1, 1, 1, 1], (1 / 4, 1 / 4, 1 / 4, 1 / 4)),  # absent from the prediction
            (
                [1, 1, 1, 1],
                [1, 1, 1, 0],
                (1, 7 / 8, 3 / 4, 1),
            ),  # a foreign part; in its own category the point is right
        ],
    )
    def test_absent_parts(self, truth: list, predicted: list, expected: tuple) -> None:
        logits = 2.0 * torch.eye(NUM_PARTS)[torch.tensor(predicted)][None]
        logits[..., 1] += 1  # second choice
        results = [part_iou(logits, torch.tensor([truth]), torch.tensor([1]), PARTS, name) for name in PROTOCOLS]
        assert [float(result.instance) for result in results] == pytest.approx(list(expected))

    @pytest.mark.parametrize("protocol", PROTOCOLS)
    def test_ignored_points(self, protocol: str) -> None:
        """The result is the same without them, and a cloud with only such points is not counted."""
        logits, target, category = random_shapes(8)
        expected = part_iou(logits[:, :9], target[:, :9], category, PARTS, protocol)
        target[:, 9:] = -1
        nothing = (logits[:1], torch.full_like(target[:1], -1), category[:1])
        shapes = [torch.cat(pair) for pair in zip((logits, target, category), nothing, strict=True)]
        result, metric = part_iou(*shapes, PARTS, protocol, ignore_index=-1), PartIoU(PARTS, protocol, ignore_index=-1)
        metric.update(*shapes)
        for got in (result, metric.compute()):
            torch.testing.assert_close(got[:4], expected[:4], equal_nan=True)
        assert result.shapes.isnan().tolist() == [False] * 8 + [True]

    def test_a_single_part_cannot_be_missed_within_its_category(self) -> None:
        logits, target = torch.randn(3, 5, NUM_PARTS), torch.full((3, 5), 9)
        category = torch.tensor([2, 2, 2])
        assert part_iou(logits, target, category, PARTS).shapes.tolist() == [1, 1, 1]
        assert part_iou(logits, target, category, PARTS, "all50").instance < 1

    def test_a_category_without_shapes_is_left_out(self) -> None:
        logits, target = torch.eye(NUM_PARTS)[torch.tensor([[1, 3]])], torch.tensor([[1, 3]])
        result = part_iou(logits, target, torch.tensor([1]), PARTS)
        assert [math.isnan(iou) for iou in result.per_class.tolist()] == [True, False, True, True]
        assert result.classes == result.instance == 1

    def test_one_category_needs_no_category(self) -> None:
        logits, target = torch.randn(4, 9, 3), torch.randint(3, (4, 9))
        zeros = torch.zeros(4, dtype=torch.long)
        expected = part_iou(logits, target, zeros, [[0, 1, 2]])
        torch.testing.assert_close(part_iou(logits, target, None, [[0, 1, 2]]), expected)
        metric = PartIoU([[0, 1, 2]])
        metric.update(logits, target)
        copy = pickle.loads(pickle.dumps(metric))
        for result in (metric.compute(), metric.compute(), copy.compute()):
            assert result.per_class.shape == result.counts.shape == (1,)
            torch.testing.assert_close(result[:4], expected[:4])

    def test_prediction_is_a_part_of_the_category_whatever_the_logits(self) -> None:
        logits = torch.full((1, 4, NUM_PARTS), -torch.inf)
        assert set(predict_parts(logits, torch.tensor([3]), PARTS).flatten().tolist()) <= set(PARTS[3])

    def test_reset(self) -> None:
        metric, shapes = PartIoU(PARTS), random_shapes(5)
        metric.update(*random_shapes(9))
        metric.reset()
        metric.update(*shapes)
        torch.testing.assert_close(metric.compute().instance, part_iou(*shapes, PARTS).instance)


class TestErrors:
    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"logits": torch.zeros(2, NUM_PARTS)}, r"logits to be \(B, N, num_parts\)"),
            ({"logits": torch.zeros(2, 4, 9)}, "num_parts >= 10, but got shape"),
            ({"target": torch.zeros(2, 3, dtype=torch.long)}, r"target to be integers of shape \(2, 4\), but got"),
            ({"target": torch.zeros(2, 4)}, "target to be integers .* but got torch.float32"),
            ({"target": torch.tensor([[1] * 4, [9, 9, 9, 8]])}, r"\(\[9\] for shape 1 of category 2\), but got 8"),
            ({"category": None}, r"category \(B,\) because there are 4 categories, but got None"),
            ({"category": torch.zeros(3, dtype=torch.long)}, r"category to be integers of shape \(2,\)"),
            ({"category": torch.tensor([0, 4])}, r"category in \[0, 4\), but got 4 for shape 1"),
            ({"category": torch.tensor([0, -1])}, r"category in \[0, 4\), but got -1 for shape 1"),
            ({"parts": []}, "expected parts to list"),
            ({"parts": [[0], []]}, "expected parts to list"),
            ({"parts": [[0, 0]]}, r"different and >= 0, but got \[0, 0\]"),
            ({"parts": [[-1, 0]]}, "different and >= 0"),
            ({"protocol": "all"}, "one of category, all50, present, category_present, but got 'all'"),
        ],
    )
    def test_function(self, change: dict, message: str) -> None:
        arguments = {
            "logits": torch.zeros(2, 4, NUM_PARTS),
            "target": torch.tensor([[1] * 4, [9] * 4]),
            "category": torch.tensor([1, 2]),
            "parts": PARTS,
            "protocol": "category",
        }
        with pytest.raises(ValueError, match=message):
            part_iou(**{**arguments, **change})

    @pytest.mark.parametrize(("args", "message"), [((PARTS, "any"), "protocol"), (([],), "parts")])
    def test_metric(self, args: tuple, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            PartIoU(*args)


@pytest.mark.parametrize("module", ["functional", "metric", "normals"])
def test_the_worked_examples(module: str) -> None:
    results = doctest.testmod(importlib.import_module(f"pcattn.metrics.{module}"))
    assert results.attempted > 0
    assert results.failed == 0
