"""Shared fixtures: the authors' numbers, and random clouds."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

pytest_plugins = ["tests.runs"]

# Without a GPU the Triton kernels run in Triton's interpreter, which is chosen before triton is first imported.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

FIXTURES = Path(os.environ.get("PCATTN_FIXTURES", Path(__file__).parent / "fixtures"))


@pytest.fixture
def load_fixture() -> Callable[[str], dict[str, Tensor]]:
    """Read the arrays of one .npz file of `PCATTN_FIXTURES` as tensors."""

    def load(name: str) -> dict[str, Tensor]:
        with np.load(FIXTURES / f"{name}.npz") as arrays:
            return {key: torch.from_numpy(arrays[key]) for key in arrays}

    return load


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
