"""What is installed, and what importing it loads."""

import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parent.parent


def python(code: str, *, cwd: Path, path: Path | None = None) -> str:
    command = [sys.executable, "-c", code]
    environment = {"PYTHONPATH": str(path)} if path else {}
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=True).stdout.strip()


def test_import_is_light(tmp_path: Path) -> None:
    heavy = ["h5py", "open3d", "pytorch_lightning", "torch_geometric", "torchmetrics", "numba", "triton"]
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
    assert Path(found) == REPOSITORY / "datasets" / "__init__.py"


def test_sdist_and_wheel(tmp_path: Path) -> None:
    """`build` makes the sdist and from it, in another folder, the wheel; the wheel imports without the repository."""
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(tmp_path), str(REPOSITORY)]
    subprocess.run(command, check=True, capture_output=True)
    (sdist,), (wheel,) = tmp_path.glob("*.tar.gz"), tmp_path.glob("*.whl")
    assert sdist.name.startswith("pcattn-")
    site = tmp_path / "site"
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(site), str(wheel)]
    subprocess.run(install, check=True, capture_output=True)
    code = "import pcattn, pcattn.cli, pcattn.datasets as d; print(pcattn.__file__); print(d.__file__)"
    package, datasets = python(code, cwd=tmp_path, path=site).splitlines()
    assert Path(package) == site / "pcattn" / "__init__.py"
    assert Path(datasets) == site / "pcattn" / "datasets" / "__init__.py"
    assert (site / "pcattn" / "py.typed").is_file()
