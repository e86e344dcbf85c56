"""Files behind paths, folders and patterns: each once, and nothing that is not a file."""

import os
from pathlib import Path

import pytest

from pcattn.io.find import find_files


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("d/a.npy", "d/sub/b.npy", "d/sub/c.txt", "d/.hidden.npy", "d/__MACOSX/._a.npy"):
        path = Path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")
    return Path("d")


@pytest.mark.parametrize("pattern", ["d/**/*.npy", "**/*.npy", "*/**/**/*.npy", "{}/d/**/*.npy"])
def test_links_to_their_own_folder_end(pattern: str, folder: Path) -> None:
    for name in ("first", "second"):
        (folder / name).symlink_to(folder.resolve())
    jobs, wrong = find_files([pattern.format(os.getcwd())])
    assert [path.name for path, _ in jobs] == ["a.npy", "b.npy"]
    assert not wrong
    jobs, wrong = find_files(["d"])
    assert [str(below) for _, below in jobs] == ["a.npy", "sub/b.npy", "sub/c.txt"]


def test_each_file_once_by_its_real_path(folder: Path) -> None:
    (folder / "link.npy").symlink_to("a.npy")
    jobs, _ = find_files(["d/link.npy", "d/a.npy", "d", "d/*.npy"])
    assert [str(path) for path, _ in jobs] == ["d/link.npy", "d/sub/b.npy", "d/sub/c.txt"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes on this system")
def test_only_regular_files(folder: Path) -> None:
    os.mkfifo(folder / "pipe.npy")
    (folder / "device.npy").symlink_to("/dev/zero")
    (folder / "gone.npy").symlink_to("nowhere")
    jobs, wrong = find_files(["d"])
    assert [path.name for path, _ in jobs] == ["a.npy", "b.npy", "c.txt"]
    assert not wrong
    jobs, wrong = find_files(["d/pipe.npy", "d/device.npy", "d/gone.npy"])
    assert not jobs
    assert [argument for argument, _ in wrong] == ["d/pipe.npy", "d/device.npy", "d/gone.npy"]
    assert {reason for _, reason in wrong} == {"expected a regular file, but got a device, a pipe or a broken link"}


def test_linked_folders_are_followed(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "scans").symlink_to(folder.resolve())
    jobs, _ = find_files(["data"])
    assert [str(below) for _, below in jobs] == ["scans/a.npy", "scans/sub/b.npy", "scans/sub/c.txt"]


def test_caches_hold_no_clouds(folder: Path) -> None:
    (folder / "frame.bin").write_bytes(bytes(16))
    (folder / "processed").mkdir()
    for name in ("pos.bin", "index.json"):
        (folder / "processed" / name).write_bytes(b"")
    assert "frame.bin" in {path.name for path, _ in find_files(["d"])[0]}
    assert "pos.bin" not in {path.name for path, _ in find_files(["d"])[0]}


def test_what_is_not_there(folder: Path) -> None:
    Path("empty").mkdir()
    jobs, wrong = find_files(["nowhere.ply", "x*.ply", "empty"])
    assert not jobs
    assert [argument for argument, _ in wrong] == ["nowhere.ply", "x*.ply", "empty"]
    assert "but got none" in wrong[2][1]
