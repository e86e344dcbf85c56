"""The benchmark of training: the textbook network is the same function, and what the command reports."""

import json

import pytest
import torch

from pcattn.bench import train
from pcattn.bench.inputs import noisy_spheres
from pcattn.bench.textbook import TextbookPCT
from pcattn.cli.main import main
from pcattn.models import PCTClassifier


def test_textbook_is_the_same_function() -> None:
    sizes = {"num_classes": 4, "dim": 16, "depth": 2, "k": 4, "out_dim": 16, "dropout": 0.0}
    network = PCTClassifier(**sizes, fps_rule="pointnet2").double()
    textbook = TextbookPCT(network, **sizes).double()
    pos = noisy_spheres(3, 32).double()
    ours, theirs = (torch.autograd.grad(f(pos).square().sum(), list(f.parameters())) for f in (network, textbook))
    torch.testing.assert_close(textbook(pos), network(pos))
    for got, expected in zip(ours, theirs, strict=True):
        torch.testing.assert_close(got, expected.view_as(got), rtol=1e-7, atol=1e-7)


def test_command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "LOADED_CLOUDS", 64)
    args = ["--quick", "--repeats", "1", "--device", "cpu", "--json", "--autocast"]
    args += ["--networks", "pct", "npct", "hierarchical_tiny"]
    with pytest.raises(SystemExit, match="0"):
        main(["bench", "train", *args])
    result = json.loads(capsys.readouterr().out)
    rows = {row["name"]: row for row in result["rows"]}
    networks = ("textbook pct", "pct", "npct", "hierarchical_tiny")
    assert set(rows) == {*networks, *(f"{name}, bf16-mixed" for name in networks)}
    assert rows["textbook pct"]["speedup"] == 1
    for row in rows.values():
        assert sum(row["shares"].values()) == pytest.approx(1)
        assert row["clouds_per_second"] > 0
        assert row["peak_mib"] > 0
    for where in train.SHARES:
        assert rows["pct"]["shares"][where] > 0
        assert rows["hierarchical_tiny"]["shares"][where] > 0
    assert rows["npct"]["shares"]["sampling"] == rows["npct"]["shares"]["grouping"] == 0
    for errors in result["gradient_errors"].values():
        assert len(errors) == train.GRADIENT_SEEDS
        assert all(0 < error < 1e-2 for error in errors)
    assert result["loading"] > 0
    assert result["resident_loading"] > 0
    assert train.table(result).count("\n") >= len(rows) + 3


@pytest.mark.parametrize(
    "args", [["--repeats", "0"], ["--batch", "1"], ["--num_points", "64"], ["--networks", "pointnet"]]
)
def test_wrong_arguments(args: list[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["bench", "train", *args])
