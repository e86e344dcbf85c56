"""Bundled configurations by their names, on every command that takes one."""

from pathlib import Path

import pytest

from pcattn.commands import main
from pcattn.configurations import bundled, find_configuration, with_files

CONFIGS = Path(__file__).parent.parent / "configs"


def test_all_of_them() -> None:
    assert bundled() == {path.stem: path for path in CONFIGS.glob("*.yaml")}


def test_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    smoke = str(CONFIGS / "smoke.yaml")
    for name in ("smoke", "smoke.yaml", "configs/smoke.yaml"):
        assert find_configuration(name) == smoke
    with pytest.raises(ValueError, match=r"expected a configuration, .* but got 'smok' \(did you mean 'smoke'\?\)"):
        find_configuration("smok")
    for name in ("other/smoke.yaml", "smoke.txt", "/configs/smoke.yaml"):
        assert find_configuration(name) == name
    Path("smoke.yaml").write_text("")
    assert find_configuration("smoke.yaml") == "smoke.yaml"
    words = ["fit", "-c", "smoke", "--config=smoke_parts", "--run", "smoke"]
    assert with_files(words) == ["fit", "-c", smoke, f"--config={CONFIGS / 'smoke_parts.yaml'}", "--run", "smoke"]


def test_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        main(["fit", "-c", "smoke", "--print_config"])
    assert stop.value.code == 0
    assert "dataset: shapes" in capsys.readouterr().out
    with pytest.raises(SystemExit) as stop:
        main(["fit", "-c", "no_such"])
    assert stop.value.code == 2
    assert "no_such" in capsys.readouterr().err
