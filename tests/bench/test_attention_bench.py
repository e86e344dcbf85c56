"""Costs of the mechanisms: counts are exact, and measurements are within bounds."""

import json
import math

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from pcattn.attention import ATTENTION, Geometry, build_attention
from pcattn.bench import attention as bench
from pcattn.cli.main import main
from pcattn.models import PCTClassifier

N, C, S = 300, 32, 64


def count(name, **kwargs):
    core = build_attention(name, C, **kwargs)
    x, geometry = torch.randn(2, N, C), Geometry(torch.rand(2, N, 3))
    core(x, geometry)
    return bench.count_multiply_adds(lambda: core(x, geometry)) / 2, geometry


@pytest.mark.parametrize(
    ("name", "kwargs", "expected"),
    [
        ("self", {}, 1.5 * N * C**2 + 1.25 * N**2 * C),
        (bench.REFERENCES["self, written out"], {}, 1.5 * N * C**2 + 1.25 * N**2 * C),
        ("offset", {}, 1.25 * N * C**2 + 1.25 * N**2 * C),
        ("external", {}, N * C**2 + 2 * N * S * C),
        ("multihead_external", {}, 8 * N * C**2 + 2 * N * S * 4 * C),
        ("neighborhood", {"bias": "none"}, 4 * N * C**2 + 2 * N * 16 * C),
    ],
)
def test_multiply_adds(name, kwargs, expected):
    assert count(name, **kwargs)[0] == expected


def test_torch_counts_a_whole_network():
    """SPCT: two operations per multiply-add of all matrix products, including attention."""
    network = PCTClassifier(40, "spct").eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(torch.randn(1, N, 3))
    layers = 4 * N * (128 * 32 + 2 * 128**2 + N * (32 + 128))
    points = N * (3 * 128 + 128**2 + 512 * 1024)
    assert counter.get_total_flops() == 2 * (layers + points + 1024 * 512 + 512 * 256 + 256 * 40)


def test_multiply_adds_of_pencils():
    counted, geometry = count("axial", axes="y", span=4, num_groups=2)
    pairs = torch.unique_consecutive(geometry.pencils(1).label, return_counts=True)[1].square().sum().item() / 2
    width = C // 2  # of a group; queries and keys have half of it, and each meets a table of 7 entries
    tables = 2 * N * 2 * width / 2 * 7 + N * 2 * width * 7
    attention, variances = pairs * 1.5 * C, pairs * 0.5 * C
    assert counted == 2 * N * C**2 + tables + attention + variances


def test_table_12_of_the_paper():
    counts = bench.count_table_12()
    assert counts["self"]["multiply_adds"] / 1e9 == pytest.approx(292.06, abs=0.005)
    assert counts["external"]["multiply_adds"] / 1e9 == pytest.approx(9.66, abs=0.005)
    assert counts["self"]["parameters"] / 2**20 == pytest.approx(1.00, abs=0.005)
    assert counts["external"]["parameters"] / 2**20 == pytest.approx(0.56, abs=0.005)


@pytest.mark.parametrize("reference", bench.REFERENCES)
def test_references_equal_the_mechanisms(reference):
    name = reference.partition(",")[0]
    core, plain = build_attention(name, C), build_attention(bench.REFERENCES[reference], C)
    plain.load_state_dict(core.state_dict())
    x, geometry = torch.randn(2, N, C), Geometry(torch.rand(2, N, 3))
    torch.testing.assert_close(plain(x, geometry), core(x, geometry), rtol=1e-4, atol=1e-5)


def test_neighborhoods_take_less_than_half_the_memory_of_the_gather():
    peaks = []
    geometry = Geometry(torch.rand(1, 4096, 3))
    for name in ("neighborhood", bench.REFERENCES["neighborhood, gathered"]):
        core, x = build_attention(name, 128), torch.randn(1, 4096, 128, requires_grad=True)
        core(x, geometry)
        peaks.append(bench.peak_memory(lambda: core(x, geometry).sum().backward()))  # noqa: B023
    assert peaks[0] < 0.5 * peaks[1]


def test_peak_memory_counts_simultaneous_tensors():
    size = 4 * 10**6

    def run():
        first = torch.empty(10**6)
        del first
        return torch.empty(10**6), torch.empty(10**6)

    assert bench.peak_memory(run) == pytest.approx(2 * size, rel=0.01)


def run(*args, status=0):
    with pytest.raises(SystemExit, match=str(status)):
        main(["bench", "attention", *args])


def test_all_mechanisms_are_measured(capsys):
    arguments = ["--sizes", "64", "2048", "2500", "--dim", "16", "--repeats", "1", "--max_seconds", "1000", "--json"]
    run(*arguments)
    result = json.loads(capsys.readouterr().out)
    assert {row["attention"] for row in result["rows"]} == {*ATTENTION, *bench.REFERENCES}
    for row in result["rows"]:
        assert row["step_ms"] > 0
        searches = row["attention"].startswith(("acmix", "neighborhood"))
        assert (row["search_multiply_adds"] > 0) == (row["search_ms"] > 0) == searches
    for name in ("external", "multihead_external", "polarized", "neighborhood", "acmix"):
        assert result["exponents"][name]["multiply_adds"] == pytest.approx(1, abs=0.01)
        assert result["exponents"][name]["memory"] < 1.1
    assert result["exponents"]["self, written out"]["memory"] > 1.8


def test_tables(capsys):
    run("--attention", "external", "--sizes", "64", "128", "--dim", "16", "--repeats", "1")
    out = capsys.readouterr().out
    assert "292.06 G" in out
    assert "exponents" in out


def test_skips_sizes_beyond_the_limits():
    result = bench.bench_attention(["self"], (64, 128, 10**6), dim=16, repeats=1, max_seconds=1)
    assert "more than 1 s" in result["rows"][2]["skipped"]
    assert result["exponents"]["self"]["step"] is None
    result = bench.bench_attention(["self"], (64, 128), dim=16, repeats=1, max_gib=1e-6)
    assert "MiB" in result["rows"][1]["skipped"]


def test_plot(tmp_path):
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    result = bench.bench_attention(["external", "polarized"], (64, 128), dim=16, repeats=1)
    bench.plot(result, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_output_folder(tmp_path, capsys):
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    names = ["--attention", "external", "self"]
    run(*names, "--sizes", "64", "128", "--dim", "16", "--repeats", "1", "--out", str(tmp_path))
    rows = json.loads((tmp_path / "attention.json").read_text())["rows"]
    table = (tmp_path / "attention.md").read_text()
    assert "| attention | N = 64 | N = 128 |" in table
    assert f"| external | {rows[0]['step_ms']:,.1f} | {rows[1]['step_ms']:,.1f} |" in table
    assert (tmp_path / "attention.png").read_bytes().startswith(b"\x89PNG")
    result = bench.bench_attention(["self"], (64, 10**6), dim=16, repeats=1, max_seconds=1)
    assert "| skipped |" in bench.format_markdown(result)
    assert "- self, N = 1,000,000: would take" in bench.format_markdown(result)


def test_slopes():
    rows = [
        {"num_points": n, "forward_ms": n, "step_ms": n**2, "search_ms": 0, "peak_mib": 3 * n, "multiply_adds": n**1.5}
        for n in (64, 2048, 4096, 8192)
    ]
    slopes = bench._exponents(rows)
    assert [round(slopes[key], 6) for key in ("forward", "step", "memory", "multiply_adds")] == [1, 2, 1, 1.5]
    assert bench._extrapolate(rows, "step_ms", 16384) == pytest.approx(16384**2)
    assert math.isclose(bench._extrapolate(rows[:1], "peak_mib", 128), 12 * 64)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--attention", "ofset"], "did you mean 'offset'"),
        (["--attention", "acmix", "--sizes", "4"], "pcattn: error: expected "),
        (["--sizes", "0"], "argument --sizes: expected at least 1, but got 0"),
        (["--dim", "0"], "argument --dim: expected at least 1, but got 0"),
        (["--dim", "7"], "pcattn: error: expected dim"),
        (["--device", "tpu"], "invalid choice: 'tpu'"),
        (["--device", "cuda"], "expected a CUDA device, but torch sees none"),
    ],
)
def test_wrong_arguments(args, message, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    run("--repeats", "1", "--dim", "16", "--device", "cpu", *args, status=2)
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
