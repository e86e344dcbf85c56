"""Names of files and classes that hold tags, formulas, line breaks and control sequences of a terminal."""

import csv
import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pcattn.cli import compare, report
from pcattn.cli.main import main
from pcattn.inference import checkpoints
from pcattn.io import read_cloud
from pcattn.tasks import Classification
from pcattn.utils.errors import DatasetBrokenError
from pcattn.utils.text import escape_unprintable
from pcattn.visualize import charts
from pcattn.visualize.montage import montage
from pcattn.visualize.page import page
from tests.datasets.user_files import write_clouds
from tests.inference.test_checkpoints import classifier
from tests.visualize.examples import ball

SCRIPT = "<script>alert(1)</script>"
ESCAPES = "\x1b[31mred\nnext\r\u202etxt\udcff"
FORMULA = r"$\frac{1 | $x_"


@pytest.fixture(autouse=True)
def _in_tmp_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def run(*arguments: Any) -> int:
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    return int(stop.value.code or 0)


def is_safe(text: str) -> bool:
    """No control characters but line breaks, and all of it UTF-8."""
    return all(c.isprintable() or c == "\n" for c in text)


def test_printable() -> None:
    assert escape_unprintable("Stühle 椅子 a  b.ply") == "Stühle 椅子 a  b.ply"
    assert escape_unprintable(ESCAPES) == r"\x1b[31mred\nnext\r\u202etxt\udcff"
    assert escape_unprintable(Path("a\tb")) == r"a\tb"


def test_predicted_files(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """The terminal shows the escaped name; JSON and CSV have the real one."""
    model = checkpoints.save_weights(classifier(), tmp_path / "a.safetensors", {"num_points": 32})
    folder = tmp_path / "clouds"
    folder.mkdir()
    good, bad = folder / f"good{ESCAPES}.xyz", folder / f"bad{ESCAPES}.xyz"
    good.write_text("".join(f"{i} {i * i % 7} 0\n" for i in range(40)))
    bad.write_text("1 2 fish\x1b[31m\n")
    assert run("predict-files", folder, "--ckpt_path", model, "--json", "a.json", "--csv", "a.csv") == 1
    captured = capsys.readouterr()
    assert r"good\x1b[31mred\nnext" in captured.out
    assert r"bad\x1b[31mred\nnext" in captured.err
    assert is_safe(captured.out)
    assert is_safe(re.sub(r"\r[^\r\n]*", "", captured.err))  # a progress bar
    assert {row["file"] for row in json.loads(Path("a.json").read_text())} == {str(good), str(bad)}
    with open("a.csv", newline="", encoding="utf-8", errors="surrogateescape") as file:
        assert {row["file"] for row in csv.DictReader(file)} == {str(good)}


def test_errors_tell_names_that_print(tmp_path: Path) -> None:
    path = tmp_path / f"a{ESCAPES}.xyz"
    path.write_text("1 2 \x1b[2J\n")
    with pytest.raises(DatasetBrokenError) as caught:
        read_cloud(path)
    assert is_safe(str(caught.value))
    assert caught.value.path == path


def test_data(capsys: pytest.CaptureFixture) -> None:
    """Folders of classes that are called so: numbers and picture, without a formula that fails."""
    names = {ESCAPES: 4, SCRIPT.replace("/", ""): 4, FORMULA: 4}
    write_clouds(Path("data"), names)
    (Path("data") / ESCAPES / "broken\x1b[2J.ply").write_bytes(b"ply\n")
    assert run("data", "data", "--picture", "a.png") == 0
    captured = capsys.readouterr()
    assert is_safe(captured.out)
    assert r"\x1b[31mred\nnext" in captured.out
    assert r"broken\x1b[2J.ply" in captured.out
    assert Path("a.png").stat().st_size > 1000


def test_pictures() -> None:
    names = [SCRIPT, FORMULA, ESCAPES]
    cloud = ball(title=f"{FORMULA} {ESCAPES}")
    montage([cloud], Path("a.png"), renderer="matplotlib", heading=FORMULA)
    montage([cloud], Path("a.svg"), renderer="matplotlib", heading=SCRIPT)
    assert "<script" not in Path("a.svg").read_text()
    charts.draw_bars(names, [0.5, None, 1.0], [1, 0, 2], "accuracy", Path("b.png"))
    confusion = charts.Confusion(FORMULA, np.eye(3), names, names)
    charts.draw_confusion([confusion], Path("c.png"))
    charts.draw_confusion([confusion, confusion], Path("d.png"))


def test_comparison(capsys: pytest.CaptureFixture) -> None:
    """In its table and its plot, and when a network cannot be called so."""
    metric = {**Classification.METRICS["oa"]._asdict(), "mean": 0.5, "std": 0.0, "values": [0.5]}
    values = {"metrics": {"oa": metric}, "split": "test"}
    costs = {"clouds_per_second": 1.0, "parameters": 1, "multiply_adds": 1, "peak_mib": 1.0, "peak_of": "process"}
    rows = [{"network": name, **values, **costs} for name in (SCRIPT, FORMULA, ESCAPES)]
    compare.plot(rows, Path("a.png"))
    table = compare.format_table(rows)
    assert "<script" not in table
    assert is_safe(table)
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in table.split("\n")} == {8}
    Path("a.yaml").write_text("")
    for name in (f"../{ESCAPES}", "self"):
        assert run("compare", "-c", "a.yaml", "--attentions", "self", "--also", name, "") == 2
        error = capsys.readouterr().err
        assert "expected --also NAME to be" in error
        assert is_safe(error)
    assert not Path("runs").exists()


def test_pages() -> None:
    """No tag of a name reaches a page, nor the Markdown, where it would be one as well."""
    text = page([ball(title=SCRIPT)], Path("p.html"), heading=f"{SCRIPT} {{{{data}}}} {os.sep} {ESCAPES}").read_text()
    assert text.count("<script") == text.count("</script>") == 2
    section = report.Section(SCRIPT, [SCRIPT], [(SCRIPT, "b"), (FORMULA, ESCAPES)], None, SCRIPT)
    for made in (report._html(SCRIPT, [section]), report._markdown(SCRIPT, [section], Path())):
        outside = made.partition("```yaml")[0]  # text of a fence is no tag
        assert "<script" not in outside
        assert is_safe(made)
        made.encode()
    rows = report._markdown("a", [section], Path()).split("\n")
    assert [len(re.findall(r"(?<!\\)\|", row)) for row in rows if row.startswith("|")] == [3, 3, 3]


@pytest.mark.parametrize("text", ["a: 1\n```\n<script>", "a: ````\n```````\n"])
def test_a_configuration_stays_in_its_block(text: str) -> None:
    """That of a run from a stranger: nothing in it ends the block of Markdown that it is shown in."""
    lines = report._markdown("a", [report.Section("b", verbatim=text)], Path()).split("\n")
    first = next(index for index, line in enumerate(lines) if line.startswith("```"))
    fence = lines[first].removesuffix("yaml")
    assert lines[first + 1 : -2] == text.rstrip().split("\n")
    assert lines[-2] == fence
    assert fence not in text
