"""The Lovász-Softmax loss: the IoU at the corners, convexity's slope between them, gradients."""

import pytest
import torch

from pcattn.metrics import part_iou
from pcattn.tasks.losses import lovasz_softmax, torch_smoothing


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
