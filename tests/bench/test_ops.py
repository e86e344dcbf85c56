"""The benchmark of neighbor search and sampling, on small clouds."""

import json

import pytest

from pcattn.bench.ops import bench_ops, table
from pcattn.cli.main import main


def test_rows_and_table() -> None:
    rows = bench_ops(repeats=2, quick=True)
    assert {row["task"] for row in rows} == {"kNN B=2 N=256 k=8", "FPS B=2 N=256 -> 32"}
    measured = {(row["task"][:3], row["name"]): row for row in rows}
    for task, baseline in (("kNN", "cdist + topk"), ("FPS", "textbook loop")):
        assert measured[task, baseline]["ratio"] == 1
        for backend in ("numba", "reference"):
            row = measured[task, f"pcattn, {backend}"]
            assert row["exact"] == row["shifted"] == 1
            assert row["median_ms"] > 0
    assert measured["kNN", "cdist + topk"]["shifted"] < 1
    assert table(rows, "cpu").count("\n") == len(rows) + 1


def test_json(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["bench", "ops", "--quick", "--repeats", "1", "--device", "cpu", "--json"])
    result = json.loads(capsys.readouterr().out)
    assert result["device"] == "cpu"
    assert all("ratio" in row or "error" in row for row in result["rows"])


@pytest.mark.parametrize("args", [["--repeats", "0"], ["--device", "tpu"]])
def test_wrong_arguments(args: list[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["bench", "ops", *args])
