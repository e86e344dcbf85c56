"""Which backend computes an operation."""

import subprocess
import sys

import pytest
import torch

from pcattn.ops import farthest_point_sample, knn
from pcattn.ops.batch_norm import normalize
from pcattn.ops.local_aggregation import pool
from pcattn.ops.neighborhood_attention import neighborhood_attention
from pcattn.utils.errors import InputError

Q = torch.randn(1, 9, 1, 4)


@pytest.fixture
def nothing_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pcattn.ops.backends.is_installed", lambda module: False)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)


def test_errors_list_every_reason(nothing_installed: None) -> None:
    cloud = torch.rand(1, 300, 3)
    with pytest.raises(InputError, match=r"'triton': triton is not installed; .* on cpu.*; k=300 is more than"):
        knn(cloud, cloud, 300, backend="triton")
    with pytest.raises(InputError, match=r"'triton': triton is not installed; .* on cpu"):
        farthest_point_sample(cloud, 3, backend="triton")
    with pytest.raises(InputError, match=r"'numba': numba is not installed"):
        neighborhood_attention(Q, Q, Q, torch.zeros(1, 9, 2).long(), backend="numba")
    norm = torch.nn.BatchNorm1d(3).eval()
    with pytest.raises(InputError, match=r"'numba': numba is not installed; torch.float16 is none of torch.float32"):
        normalize(norm, cloud.half(), backend="numba")
    with pytest.raises(InputError, match=r"'numba': numba is not installed; the features do not require gradients"):
        pool(cloud, torch.nn.Linear(3, 3), norm, backend="numba")


def test_the_reference_remains(nothing_installed: None) -> None:
    cloud = torch.rand(1, 30, 3)
    assert knn(cloud, cloud, 3).indices.shape == (1, 30, 3)
    assert farthest_point_sample(cloud, 4).shape == (1, 4)
    assert neighborhood_attention(Q, Q, Q, torch.zeros(1, 9, 2).long()).shape == Q.shape
    assert normalize(torch.nn.BatchNorm1d(3), cloud).shape == cloud.shape


def test_a_backend_that_an_operation_lacks() -> None:
    with pytest.raises(InputError, match="expected a backend that this operation has, but got backend='triton'"):
        normalize(torch.nn.BatchNorm1d(3), torch.rand(1, 30, 3), backend="triton")
    with pytest.raises(
        InputError, match="expected backend to be one of auto, triton, numba, reference, but got 'fast'"
    ):
        normalize(torch.nn.BatchNorm1d(3), torch.rand(1, 30, 3), backend="fast")


def test_import_is_light() -> None:
    code = "import sys, pcattn.ops; print([m for m in ('numba', 'triton', 'scipy') if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
