"""Fixtures: random clouds, and the mechanism under test."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pcattn.attention import Geometry, build_attention
from tests.attention.attention_cases import MECHANISMS, randomize


def _label(case: tuple[str, dict[str, Any]]) -> str:
    name, kwargs = case
    return "-".join([name, *(f"{key}={value}" for key, value in kwargs.items())])


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "mechanism" in metafunc.fixturenames:
        metafunc.parametrize("mechanism", MECHANISMS, ids=_label)


@pytest.fixture
def core(mechanism: tuple[str, dict[str, Any]]) -> Callable[..., nn.Module]:
    """Build the core of the mechanism under test in float64, with random running statistics."""

    def build(dim: int = 16, **further: Any) -> nn.Module:
        name, kwargs = mechanism
        return randomize(build_attention(name, dim, **kwargs, **further).double())

    return build


@pytest.fixture
def cloud() -> Callable[..., tuple[Tensor, Geometry]]:
    """Draw random features (B, N, C) in float64 and a geometry of random positions."""

    def draw(batch: int = 2, num_points: int = 40, dim: int = 16) -> tuple[Tensor, Geometry]:
        pos = torch.randn(batch, num_points, 3, dtype=torch.float64)
        return torch.randn(batch, num_points, dim, dtype=torch.float64), Geometry(pos)

    return draw
