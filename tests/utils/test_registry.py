"""Names and import paths."""

import sys
from pathlib import Path

import pytest

from pcattn.models import HierarchicalClassifier, PCTClassifier
from pcattn.utils.registry import names_only, resolve


def test_own_modules_in_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are found for who trusts what names them, and hide nothing that is installed."""
    monkeypatch.setattr(sys, "path", sys.path[:])
    monkeypatch.chdir(tmp_path)
    Path("some_own_module.py").write_text("class Own:\n    pass\n")
    Path("h5py.py").write_text("class File:\n    stolen = True\n")
    with names_only("stranger.ckpt"), pytest.raises(ValueError, match=r"stranger\.ckpt names 'some_own_module\.Own'"):
        resolve("attention", "some_own_module.Own", {})
    assert not hasattr(resolve("data set", "h5py.File", {}), "stolen")
    assert str(tmp_path) not in sys.path
    assert resolve("attention", "some_own_module.Own", {}).__name__ == "Own"


class Own:
    """A mechanism that is handed over as a class."""


def test_a_class_is_told_its_import_path() -> None:
    expected = f"expected attention to be one name, but got <class .*>: its import path is '{__name__}.Own'"
    for build in (PCTClassifier, HierarchicalClassifier):
        with pytest.raises(ValueError, match=expected):
            build(4, attention=Own)
