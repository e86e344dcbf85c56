"""Files are either complete or absent."""

from pathlib import Path

import pytest

from pcattn.utils.files import atomic_write, write_bytes, write_text


def test_failure_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / f"{'long' * 60}.txt"
    write_text(path, "old")

    def fail() -> None:
        with atomic_write(path) as temporary:
            temporary.write_text("half")
            assert temporary.suffix == path.suffix
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_errors_name_the_file(tmp_path: Path) -> None:
    path = tmp_path / "missing" / "file"
    with pytest.raises(OSError, match=f"expected to write {path}, but No such file"):
        write_bytes(path, b"")


def test_names_that_are_not_utf8(tmp_path: Path) -> None:
    write_text(tmp_path / "a", "\udcff")
    assert (tmp_path / "a").read_bytes() == b"\xff"
