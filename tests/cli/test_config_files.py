"""Bundled configurations by name, classes from the current folder, and import paths of earlier releases."""

import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from pcattn.cli.config_files import MOVED, bundled_configs, find_config, resolve_args, translate
from pcattn.cli.main import main
from pcattn.utils.errors import InputError

CONFIGS = Path(__file__).parents[2] / "configs"
TASK = "from pcattn.tasks import Classification\nclass Own(Classification):\n    pass\n"
PICTURES = "trainer: {callbacks: [{class_path: pcattn.visualize.Pictures, init_args: {number: 3}}]}\n"


@pytest.fixture(autouse=True)
def _in_tmp_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path[:])


def printed_config(args: list[str], capsys: pytest.CaptureFixture) -> str:
    with pytest.raises(SystemExit, match="0"):
        main(["fit", "-c", "smoke", *args, "--print_config"])
    return capsys.readouterr().out


def test_all_bundled_configs() -> None:
    assert bundled_configs() == {path.stem: path for path in CONFIGS.glob("*.yaml")}


def test_names() -> None:
    smoke = str(CONFIGS / "smoke.yaml")
    for name in ("smoke", "smoke.yaml", "configs/smoke.yaml"):
        assert find_config(name) == smoke
    with pytest.raises(InputError, match=r"expected a configuration, .* but got 'smok' \(did you mean 'smoke'\?\)"):
        find_config("smok")
    for name in ("other/smoke.yaml", "smoke.txt", "/configs/smoke.yaml"):
        assert find_config(name) == name
    Path("smoke.yaml").write_text("")
    assert find_config("smoke.yaml") == "smoke.yaml"
    args = ["fit", "-c", "smoke", "--config=smoke_parts", "--run", "smoke"]
    expected = ["fit", "-c", smoke, f"--config={CONFIGS / 'smoke_parts.yaml'}", "--run", "smoke"]
    assert resolve_args(args) == expected


def test_command(capsys: pytest.CaptureFixture) -> None:
    assert "dataset: shapes" in printed_config([], capsys)
    with pytest.raises(SystemExit, match="2"):
        main(["fit", "-c", "no_such"])
    assert "no_such" in capsys.readouterr().err


class TestMovedImportPaths:
    @pytest.mark.parametrize("path", MOVED.values())
    def test_today_s_paths_exist(self, path: str) -> None:
        module, _, name = path.rpartition(".")
        assert hasattr(import_module(module), name) or import_module(path)

    def test_translation(self) -> None:
        text = "- pcattn.visualize.Pictures\n- pcattn.saving.LastCheckpoint"
        assert translate(text) == "- pcattn.training.Pictures\n- pcattn.training.checkpointing.LastCheckpoint"
        for other in ("my.pcattn.saving", "pcattn.savings", "pcattn.visualize.PicturesToo"):
            assert translate(other) == other

    @pytest.mark.parametrize("given", ["in a configuration", "as an option"])
    def test_configuration(self, given: str, capsys: pytest.CaptureFixture) -> None:
        Path("old.yaml").write_text(PICTURES)
        args = ["-c", "old.yaml"] if "config" in given else ["--trainer.callbacks+=pcattn.visualize.Pictures"]
        assert "class_path: pcattn.training.Pictures" in printed_config(args, capsys)


class TestClassesOfTheCurrentFolder:
    @pytest.mark.parametrize("module", ["by_option", "by_value", "in_a_file"])
    def test_found(self, module: str, capsys: pytest.CaptureFixture) -> None:
        path = f"{module}.Own"
        Path(f"{module}.py").write_text(TASK)
        Path("configs").mkdir()
        Path("configs/own.yaml").write_text(f"model: {{class_path: {path}}}")
        args = {
            "in_a_file": ["-c", "configs/own.yaml"],
            "by_option": ["--model", path],
            "by_value": [f"--model={path}"],
        }
        assert f"class_path: {path}" in printed_config([*args[module], "--model.num_classes=22"], capsys)

    def test_in_a_list(self, capsys: pytest.CaptureFixture) -> None:
        Path("stop.py").write_text("from pytorch_lightning import Callback\nclass Own(Callback):\n    pass\n")
        assert "class_path: stop.Own" in printed_config(["--trainer.callbacks", "[{class_path: stop.Own}]"], capsys)

    @pytest.mark.skipif(not Path("/dev/fd").is_dir(), reason="descriptors have no names")
    def test_in_a_pipe(self, capsys: pytest.CaptureFixture) -> None:
        """As in `pcattn fit -c <(...)`, which can be read once."""
        Path("in_a_pipe.py").write_text(TASK)
        read, write = os.pipe()
        with open(write, "w") as pipe:
            pipe.write("model: {class_path: in_a_pipe.Own, init_args: {num_classes: 22}}")
        with open(read):
            assert "class_path: in_a_pipe.Own" in printed_config(["-c", f"/dev/fd/{read}"], capsys)

    @pytest.mark.slow
    def test_by_the_program(self) -> None:
        """The script `pcattn` does not have the current folder in its path."""
        Path("some_task.py").write_text(TASK)
        words = ["fit", "-c", "smoke", "--model", "some_task.Own", "--model.num_classes", "22", "--print_config"]
        script = Path(sys.executable).with_name("pcattn")
        done = subprocess.run([script, *words], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert "class_path: some_task.Own" in done.stdout
