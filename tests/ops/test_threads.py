"""Threads of the compiled kernels."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor

from pcattn.ops import knn
from pcattn.ops.threads import jit
from tests.ops.clouds import make_cloud


def test_without_a_folder_for_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    numba = pytest.importorskip("numba")
    njit = numba.njit

    def refuse_to_cache(*functions: object, **options: object) -> object:
        if options.get("cache"):
            raise RuntimeError("cannot cache function: no locator available")
        return njit(*functions, **options)

    monkeypatch.setattr(numba, "njit", refuse_to_cache)
    assert jit(lambda x: x + 1)(1) == 2


def test_from_several_threads_and_after_a_fork() -> None:
    cloud = make_cloud("random")
    expected = knn(cloud, cloud, 8).indices
    with ThreadPoolExecutor(3) as pool:
        results = list(pool.map(lambda _: knn(cloud, cloud, 8).indices, range(6)))
    assert all(torch.equal(result, expected) for result in results)
    # A DataLoader's workers are forks.
    loader = torch.utils.data.DataLoader(
        list(cloud), num_workers=1, collate_fn=_search_own, multiprocessing_context="fork"
    )
    assert torch.equal(torch.cat(list(loader)), expected)


def _search_own(clouds: list[Tensor]) -> Tensor:
    cloud = torch.stack(clouds)
    return knn(cloud, cloud, 8).indices
