"""Cosine distance and angle of normals at known angles."""

import math

import pytest
import torch

from pcattn.metrics import angle_error, cosine_distance


@pytest.mark.parametrize("degrees", [0.0, 1e-4, 30.0, 90.0, 135.0, 180.0])
def test_known_angles(degrees: float) -> None:
    angle = math.radians(degrees)
    predicted = torch.tensor([[math.cos(angle), math.sin(angle), 0.0]])
    target = torch.tensor([[2.0, 0.0, 0.0]])
    unoriented = min(degrees, 180 - degrees)
    assert float(angle_error(predicted, target)) == pytest.approx(degrees, abs=1e-5)
    assert float(angle_error(predicted, target, oriented=False)) == pytest.approx(unoriented, abs=1e-5)
    assert float(cosine_distance(predicted, target)) == pytest.approx(1 - math.cos(angle), abs=1e-6)
    unsigned = 1 - abs(math.cos(angle))
    assert float(cosine_distance(predicted, target, oriented=False)) == pytest.approx(unsigned, abs=1e-6)


@pytest.mark.parametrize("function", [angle_error, cosine_distance])
@pytest.mark.parametrize(("first", "second"), [((2, 3), (3,)), ((2, 4), (2, 4))])
def test_shapes_must_fit(function, first: tuple, second: tuple) -> None:
    with pytest.raises(ValueError, match=r"the same shape \(..., 3\), but got"):
        function(torch.zeros(first), torch.zeros(second))
