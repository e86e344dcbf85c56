"""Registries and import paths."""

import sys
from pathlib import Path

import pytest

from pcattn.utils.errors import InputError
from pcattn.utils.registry import Registry, import_path, names_only, resolve


def test_own_modules_in_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are found only for trusted names, and never hide an installed module."""
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
    """A class at the top level of a module."""


class TestRegistry:
    def test_a_name_an_import_path_and_a_class(self) -> None:
        registry = Registry("thing", {"dict": dict})
        assert registry.find("dict") is dict
        assert registry.find(f"{__name__}.Own") is Own
        assert registry.find(Own) is Own
        with pytest.raises(InputError, match=r"expected thing to be one of dict or an import path, .*mean 'dict'"):
            registry.find("dct")

    def test_decorator(self) -> None:
        registry = Registry("thing", {"dict": dict})
        assert registry.register("own")(Own) is Own
        assert registry.register(Own) is Own
        assert registry.names() == ["dict", "own", "Own"]
        assert registry.names("?own") == []
        assert registry.names("[oO]wn") == ["own", "Own"]
        registry.register("own")(Own)  # as if its module were imported again
        with pytest.raises(InputError, match=r"expected a new name for thing builtins\.list, but 'own' exists"):
            registry.register("own")(list)


def test_import_paths_of_classes() -> None:
    assert import_path([Own, "self", None]) == [f"{__name__}.Own", "self", None]

    class Inner: ...

    with pytest.raises(InputError, match="expected a class at the top level of a module"):
        import_path(Inner)
