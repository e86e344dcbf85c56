"""Cross-entropy of mixed clouds, and the Lovász-Softmax loss: the IoU at the corners, the slope between, gradients."""

import math

import pytest
import torch

from pcattn.metrics import part_iou
from pcattn.tasks.losses import lovasz_softmax, mixed_cross_entropy, torch_smoothing


def test_on_hard_predictions_it_is_one_minus_iou() -> None:
    """Of the parts in the truth: the protocol `present`."""
    target, predicted = torch.randint(4, (50, 12)), torch.randint(4, (50, 12))
    one_hot = torch.eye(4)[predicted]
    expected = 1 - part_iou(one_hot, target, None, [[0, 1, 2, 3]], "present").instance
    assert float(lovasz_softmax(one_hot, target)) == pytest.approx(float(expected), abs=1e-6)


def test_one_point() -> None:
    """A single point of the true part with probability p is wrong by 1 - p."""
    assert float(lovasz_softmax(torch.tensor([[[0.3, 0.7]]]), torch.tensor([[0]]))) == pytest.approx(0.7)


def test_worked_example() -> None:
    """Errors 0.8 (part 0's second point), 0.4, of G = 2 points: J goes 0, 1/2, 1, so 0.8 / 2 + 0.4 / 2 = 0.6.

    For part 1, in whose truth no point is, nothing is added.
    """
    probabilities = torch.tensor([[[0.6, 0.4], [0.2, 0.8]]])
    assert float(lovasz_softmax(probabilities, torch.tensor([[0, 0]]))) == pytest.approx(0.6)


def test_gradients() -> None:
    logits = torch.randn(2, 6, 3, dtype=torch.float64, requires_grad=True)
    target = torch.randint(3, (2, 6))
    assert torch.autograd.gradcheck(lambda x: lovasz_softmax(x.softmax(dim=2), target), logits)


@pytest.mark.parametrize(("eps", "classes", "expected"), [(0.2, 5, 0.25), (0.0, 5, 0.0), (0.2, 1, 0.0)])
def test_smoothing(eps: float, classes: int, expected: float) -> None:
    assert torch_smoothing(eps, classes) == pytest.approx(expected)


class TestMixedCrossEntropy:
    def test_by_hand(self) -> None:
        """Three classes, logits log 1, log 2, log 5 (probabilities 1/8, 2/8, 5/8), 3/4 of class 0 and 1/4 of class 2.

        With eps 0.2 a class counts 0.8 and the others 0.1 each: the target is 3/4 (0.8, 0.1, 0.1) +
        1/4 (0.1, 0.1, 0.8) = (0.625, 0.1, 0.275).
        """
        logits = torch.tensor([[1.0, 2.0, 5.0]]).log()
        loss = mixed_cross_entropy(
            logits, torch.tensor([[0, 2]]), torch.tensor([[0.75, 0.25]]), torch_smoothing(0.2, num_classes=3)
        )
        expected = -(0.625 * math.log(1 / 8) + 0.1 * math.log(2 / 8) + 0.275 * math.log(5 / 8))
        assert float(loss) == pytest.approx(expected, rel=1e-6)

    def test_of_one_class_it_is_the_ordinary_one(self) -> None:
        logits, label = torch.randn(5, 4), torch.randint(4, (5,))
        other = torch.randint(4, (5,))
        weight = torch.tensor([1.0, 0.0]).expand(5, -1)
        loss = mixed_cross_entropy(logits, torch.stack((label, other), dim=1), weight, 0.1)
        torch.testing.assert_close(loss, torch.nn.functional.cross_entropy(logits, label, label_smoothing=0.1))
        same = mixed_cross_entropy(logits, torch.stack((label, label), dim=1), torch.full((5, 2), 0.5), 0.1)
        torch.testing.assert_close(same, loss)
