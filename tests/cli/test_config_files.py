"""Bundled configurations by their names, on every command that takes one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pcattn.cli.config_files import bundled, class_paths, find_configuration, with_files
from pcattn.cli.main import main

CONFIGS = Path(__file__).parents[2] / "configs"


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


def test_classes_that_are_named(tmp_path: Path) -> None:
    config = tmp_path / "mine.yaml"
    config.write_text(
        "model: {class_path: mine.Task, init_args: {attention: mine.Other}}\n"
        "trainer: {callbacks: [{class_path: mine.Stop}, {class_path: 3}]}\n"
    )
    words = ["fit", "-c", str(config), "--model", "own.Task", "--optimizer.class_path=own.Adam", "--data.root", "a.b"]
    assert list(class_paths(words)) == ["mine.Task", "mine.Stop", "own.Task", "own.Adam"]
    listed = "[{class_path: mine.Stop, init_args: {logger: {class_path: mine.Log}}}, mine.Short]"
    assert list(class_paths(["fit", "--trainer.callbacks", listed])) == ["mine.Stop", "mine.Log", "mine.Short"]
    config.write_text("model: mine.Task")
    assert list(class_paths(["-c", str(config), "--trainer.callbacks+=mine.More"])) == ["mine.Task", "mine.More"]
    config.write_text("{")
    assert list(class_paths(["fit", f"--config={config}", "--config", "none.yaml", "-c"])) == []


@pytest.mark.skipif(not Path("/dev/fd").is_dir(), reason="descriptors have no names")
def test_a_pipe_is_left_to_the_parser() -> None:
    """As in `pcattn fit -c <(...)`: whoever reads it a second time finds nothing."""
    read, write = os.pipe()
    with open(write, "w") as pipe:
        pipe.write("model: {class_path: mine.Task}")
    with open(read) as pipe:
        assert list(class_paths(["fit", "-c", f"/dev/fd/{read}"])) == []
        assert pipe.read() == "model: {class_path: mine.Task}"


def test_a_task_of_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The program finds it as `python -m pcattn` does."""
    monkeypatch.chdir(tmp_path)
    Path("some_task.py").write_text("from pcattn.tasks import Classification\nclass Own(Classification):\n    pass\n")
    words = ["fit", "-c", "smoke", "--model", "some_task.Own", "--model.num_classes", "22", "--print_config"]
    script = Path(sys.executable).with_name("pcattn")
    done = subprocess.run([script, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "class_path: some_task.Own" in done.stdout
