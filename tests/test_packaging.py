"""What is installed, and what importing it loads."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parent.parent


def python(code: str, *, cwd: Path, path: Path | None = None) -> str:
    command = [sys.executable, "-c", code]
    environment = {"PYTHONPATH": str(path)} if path else {}
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=True).stdout.strip()


def test_import_is_light(tmp_path: Path) -> None:
    # torch's counter of operations, where formulas are registered, imports triton itself.
    heavy = ["h5py", "open3d", "pytorch_lightning", "torch_geometric", "torchmetrics", "numba"]
    code = f"""
import sys, torch
before = set(sys.modules)
import pcattn, pcattn.ops, pcattn.attention, pcattn.models
print(sorted(set({heavy!r}) & (set(sys.modules) - before)))
"""
    assert python(code, cwd=tmp_path) == "[]"


@pytest.mark.parametrize("cwd", [REPOSITORY, None], ids=["in the repository", "elsewhere"])
def test_editable_install(cwd: Path | None, tmp_path: Path) -> None:
    found = python("import pcattn.datasets as d; print(d.__file__)", cwd=cwd or tmp_path)
    assert Path(found).resolve() == REPOSITORY / "datasets" / "__init__.py"


@pytest.mark.slow
def test_sdist_and_wheel(tmp_path: Path) -> None:
    """`build` makes the sdist and from it, in another folder, the wheel; the wheel imports without the repository."""
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(tmp_path), str(REPOSITORY)]
    subprocess.run(command, check=True, capture_output=True)
    (sdist,), (wheel,) = tmp_path.glob("*.tar.gz"), tmp_path.glob("*.whl")
    assert sdist.name.startswith("pcattn-")
    _check_files(wheel)
    site = tmp_path / "site"
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(site), str(wheel)]
    subprocess.run(install, check=True, capture_output=True)
    code = "import pcattn, pcattn.cli.lightning, pcattn.datasets as d; print(pcattn.__file__); print(d.__file__)"
    package, datasets = python(code, cwd=tmp_path, path=site).splitlines()
    assert Path(package) == site / "pcattn" / "__init__.py"
    assert Path(datasets) == site / "pcattn" / "datasets" / "__init__.py"
    # With nothing but the wheel: bundled weights, and a bundled configuration by its name.
    code = "import pcattn; print(len(pcattn.load('modelnet40-cpu').class_names))"
    assert python(code, cwd=tmp_path, path=site) == "40"
    code = "from pcattn.cli.main import main; main(['fit', '-c', 'smoke_parts', '--print_config'])"
    assert "class_path: pcattn.tasks.PartSegmentation" in python(code, cwd=tmp_path, path=site)


def _check_files(wheel: Path) -> None:
    """All that belongs to the package, below `pcattn` alone."""
    with zipfile.ZipFile(wheel) as archive:
        files = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert {name.split("/")[0] for name in files} == {"pcattn"}
    expected = {
        f"{below}{path.relative_to(REPOSITORY / folder)}"
        for folder, below, patterns in (
            ("pcattn", "pcattn/", ("*.py", "py.typed", "*.safetensors", "*.html")),
            ("datasets", "pcattn/datasets/", ("*.py",)),
            ("configs", "pcattn/configs/", ("*.yaml",)),
        )
        for pattern in patterns
        for path in (REPOSITORY / folder).rglob(pattern)
    }
    assert files == expected
