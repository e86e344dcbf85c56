"""Peak memory: both functions agree on a GPU, and headings name the measure."""

import pytest
import torch

from pcattn.bench import networks, train
from pcattn.bench.attention import peak_memory
from pcattn.bench.ops import table
from pcattn.bench.timing import peak_mib


def test_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """With fake counters: 1 MiB is allocated before, and the call allocates and frees 3 MiB."""
    held = {"now": 1 << 20, "peak": 9 << 20}
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda: held["now"])
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda: held.update(peak=held["now"]))
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: held["peak"])
    assert peak_mib(lambda: held.update(peak=4 << 20), "cuda") == 3.0
    assert peak_memory(lambda: held.update(peak=4 << 20), "cuda") == 3 << 20


@pytest.mark.parametrize(("device", "measure"), [("cpu", "process"), ("cuda", "torch")])
def test_headings(device: str, measure: str) -> None:
    assert f"| peak MiB ({measure}) |" in table([], device)
    assert f"| peak MiB ({measure}) |" in networks.table({"setting": {"device": device}, "rows": [], "exponents": {}})
    row = {"name": "pct", "clouds_per_second": 1, "median_ms": 1, "spread_ms": 1, "speedup": 1, "peak_mib": 1}
    errors = {"pct": [1.0], train.TEXTBOOK: [1.0]}
    result = {"rows": [{**row, "shares": None}], "gradient_errors": errors, "loading": 1.0, "resident_loading": 1.0}
    assert "| peak MiB (torch) |" in train.table(result)
