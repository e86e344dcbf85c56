"""Metrics on arbitrary shapes: against loops, and for any order, batches and processes."""

from collections import Counter
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pcattn.metrics import PROTOCOLS, PartIoU, part_iou
from pcattn.tasks.classification import accuracies, class_accuracy
from tests.metrics.test_part_iou import iou_of_shape

BOUNDED = settings(max_examples=25, derandomize=True, deadline=None)

Shapes = tuple[Tensor, Tensor, Tensor, list[list[int]]]


@st.composite
def shapes(draw: st.DrawFn) -> Shapes:
    """Logits with ties, truth, categories and their parts: few, in any order, some shared."""
    parts = draw(st.lists(st.lists(st.integers(0, 6), min_size=1, max_size=4, unique=True), min_size=1, max_size=3))
    number, num_points = draw(st.integers(1, 6)), draw(st.integers(1, 5))
    category = draw(st.lists(st.integers(0, len(parts) - 1), min_size=number, max_size=number))
    target = [draw(st.lists(st.sampled_from(parts[c]), min_size=num_points, max_size=num_points)) for c in category]
    width = 1 + max(map(max, parts)) + draw(st.integers(0, 2))
    size = number * num_points * width
    values = draw(st.lists(st.sampled_from([-1.0, 0.0, 1.0, 2.0]), min_size=size, max_size=size))
    logits = torch.tensor(values).view(number, num_points, width)
    return logits, torch.tensor(target), torch.tensor(category), parts


@pytest.mark.parametrize("protocol", PROTOCOLS)
class TestPartIoU:
    @BOUNDED
    @given(data=shapes())
    def test_is_that_of_loops(self, protocol: str, data: Shapes) -> None:
        logits, target, category, parts = data
        result = part_iou(logits, target, category, parts, protocol)
        rows = zip(logits.tolist(), target.tolist(), category.tolist(), strict=True)
        expected = [iou_of_shape(row, truth, parts[which], protocol) for row, truth, which in rows]
        assert result.shapes is not None
        assert result.shapes.tolist() == pytest.approx(expected, abs=1e-12)
        assert float(result.instance) == pytest.approx(sum(expected) / len(expected), abs=1e-12)
        groups = [
            [iou for iou, c in zip(expected, category.tolist(), strict=True) if c == k] for k in range(len(parts))
        ]
        means = [sum(group) / len(group) for group in groups if group]
        assert float(result.classes) == pytest.approx(sum(means) / len(means), abs=1e-12)
        assert 0 <= float(result.shapes.min()) <= float(result.shapes.max()) <= 1

    @BOUNDED
    @given(data=shapes(), random=st.randoms(use_true_random=False))
    def test_order_does_not_matter(self, protocol: str, data: Shapes, random) -> None:
        logits, target, category, parts = data
        whole = part_iou(logits, target, category, parts, protocol)
        order = torch.tensor(random.sample(range(len(logits)), len(logits)))
        points = torch.tensor(random.sample(range(logits.shape[1]), logits.shape[1]))
        other = part_iou(logits[order][:, points], target[order][:, points], category[order], parts, protocol)
        torch.testing.assert_close(other.shapes, whole.shapes[order], rtol=0, atol=1e-12)
        torch.testing.assert_close(other[:4], whole[:4], rtol=0, atol=1e-12, equal_nan=True)

    @BOUNDED
    @given(data=shapes(), cuts=st.sets(st.integers(1, 5)), processes=st.integers(1, 3))
    def test_batches_and_processes_do_not_matter(
        self, protocol: str, data: Shapes, cuts: set[int], processes: int
    ) -> None:
        """Batches are distributed over the processes in turn, and the states of the processes are added."""
        logits, target, category, parts = data
        bounds = [0, *sorted(cut for cut in cuts if cut < len(logits)), len(logits)]
        metrics = [PartIoU(parts, protocol) for _ in range(processes)]
        for number, (start, stop) in enumerate(pairwise(bounds)):
            part = slice(start, stop)
            metrics[number % processes].update(logits[part], target[part], category[part])
        first = metrics[0]
        states = iter([[m.sums for m in metrics], [m.counts for m in metrics]])
        first.dist_sync_fn = lambda state, group: next(states)
        first.distributed_available_fn = lambda: True
        expected = part_iou(logits, target, category, parts, protocol)
        torch.testing.assert_close(first.compute()[:4], expected[:4], rtol=0, atol=1e-12, equal_nan=True)

    @BOUNDED
    @given(data=shapes())
    def test_the_truth_is_right(self, protocol: str, data: Shapes) -> None:
        logits, target, category, parts = data
        perfect = torch.zeros_like(logits).scatter(2, target[..., None], 1.0)
        result = part_iou(perfect, target, category, parts, protocol)
        assert result.shapes is not None
        assert result.shapes.eq(1).all()


class TestAccuracy:
    @BOUNDED
    @given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=30))
    def test_is_that_of_counting(self, pairs: list[tuple[int, int]]) -> None:
        """Over all samples; classes without samples are left out."""
        matrix = torch.zeros(4, 4, dtype=torch.long)
        for truth, predicted in pairs:
            matrix[truth, predicted] += 1
        right = sum(truth == predicted for truth, predicted in pairs)
        of_class = Counter(truth for truth, _ in pairs)
        means = [sum(t == p == k for t, p in pairs) / of_class[k] for k in of_class]
        found = accuracies(matrix)
        assert float(found["oa"]) == pytest.approx(right / len(pairs))
        assert float(found["macc"]) == pytest.approx(sum(means) / len(means))
        assert class_accuracy(matrix).isnan().tolist() == [k not in of_class for k in range(4)]
