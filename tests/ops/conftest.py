"""Fixtures: the backends of the CPU, and uninitialized memory filled with invalid values."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pcattn.ops import farthest_point_sample, knn


@pytest.fixture(params=["numba", "reference"])
def backend(request: pytest.FixtureRequest) -> str:
    """Every backend of the CPU; Triton is tested on small clouds in test_triton.py."""
    if request.param == "numba":
        pytest.importorskip("numba")
    return request.param


@pytest.fixture(scope="session")
def compiled() -> None:
    """Compile the CPU kernels before `poisoned` replaces `numpy.empty`, which the compiler would not know."""
    for dim in (3, 16):
        cloud, lengths = torch.randn(2, 8, dim), torch.tensor([8, 5])
        knn(cloud, cloud, 2)
        knn(cloud, cloud.clone(), 2, query_lengths=lengths, support_lengths=lengths)
        for rule in ("centroid", "pointnet2"):
            farthest_point_sample(cloud, 2, rule)


@pytest.fixture
def poisoned(compiled: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fill uninitialized memory with NaN and indices out of range, so that tests notice what is never written."""

    def poison(empty: Callable[..., Any], fill: Callable[[Any], Any]) -> Callable[..., Any]:
        return lambda *args, **kwargs: fill(empty(*args, **kwargs))

    def fill_tensor(x: Tensor) -> Tensor:
        return x.fill_(torch.nan) if x.is_floating_point() else x.fill_(-(2**31))

    def fill_array(x: np.ndarray) -> np.ndarray:
        x.fill(np.nan if x.dtype.kind == "f" else -(2**31))
        return x

    monkeypatch.setattr(torch, "empty", poison(torch.empty, fill_tensor))
    monkeypatch.setattr(Tensor, "new_empty", poison(Tensor.new_empty, fill_tensor))
    monkeypatch.setattr(np, "empty", poison(np.empty, fill_array))
