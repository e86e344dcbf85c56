"""The benchmark of segmentation networks: its exponents, and its command."""

import json
import re

import pytest

from pcattn.bench import networks
from pcattn.bench.train import SHARES
from pcattn.cli.main import main

TINY = '{"dims": [8, 8], "depths": [1, 1], "num_heads": [1, 1], "k": 4, "dilation": 2}'


def test_command(capsys: pytest.CaptureFixture[str]) -> None:
    args = ["--sizes", "128", "64", "128", "--device", "cpu", "--network_kwargs", TINY]
    with pytest.raises(SystemExit, match="0"):
        main(["bench", "networks", *args, "--json"])
    printed = capsys.readouterr()
    result = json.loads(printed.out)
    assert [row["num_points"] for row in result["rows"]] == [64, 128]
    assert result["setting"]["network_kwargs"]["dims"] == [8, 8]
    for row in result["rows"]:
        assert row["seconds"] > 0
        assert sum(row["shares"].values()) == pytest.approx(1)
        assert all(row["shares"][where] > 0 for where in SHARES)
    assert result["exponents"]["hierarchical_tiny"]["seconds"] is not None
    lines = networks.table(result).splitlines()
    assert all(row in lines for row in printed.err.splitlines())
    assert lines[-1].startswith("hierarchical_tiny: time grows with N to the power of ")


def test_exponent() -> None:
    rows = [{"num_points": n, "seconds": 3 * n**1.25, "peak_mib": None} for n in (100, 200, 800)]
    assert networks._exponent(rows, "seconds") == pytest.approx(1.25)
    assert networks._exponent(rows, "peak_mib") is None
    assert networks._exponent(rows[:1], "seconds") is None


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--networks", "pointnet"], "invalid choice: 'pointnet'"),
        (["--sizes", "1"], "argument --sizes: expected at least 2, but got 1"),
        (["--network_kwargs", "{"], "expected a JSON object, but got {"),
        (["--network_kwargs", "[1]"], r"argument --network_kwargs: expected a JSON object, but got \[1\]"),
        (["--network_kwargs", '{"dmis": 3}'], "dmis"),
        (["--attention", "neighbourhood"], "did you mean 'neighborhood'"),
    ],
)
def test_wrong_arguments(args: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["bench", "networks", *args, "--device", "cpu"])
    assert re.search(message, capsys.readouterr().err)
