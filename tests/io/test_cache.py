"""The cache appears at once and complete, whatever happens to those who write it."""

import multiprocessing
import os
import time
import warnings
from multiprocessing.queues import Queue
from pathlib import Path

import numpy as np
import pytest

from pcattn.io import cache
from pcattn.io.cache import ArrayWriter, CacheElsewhereWarning, cached


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "a.txt").write_text("1 2 3")
    return folder


class Build:
    """Writes two growing arrays, and counts how often it had to."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, writer: ArrayWriter) -> None:
        self.calls += 1
        for number in range(3):
            writer.append("pos", np.full((number, 3), number, np.float32))
            writer.append("label", np.array([number]))
        writer.info["names"] = ["a", "b"]


def read(root: Path, build: Build, **kwargs) -> cache.Cached:
    return cached("points", root, [root / "a.txt"], build, **kwargs)


def test_is_built_once_and_mapped(root: Path) -> None:
    build = Build()
    for _ in range(2):
        result = read(root, build)
        np.testing.assert_array_equal(result.arrays["pos"], [[1] * 3, [2] * 3, [2] * 3])
        np.testing.assert_array_equal(result.arrays["label"], [0, 1, 2])
        assert result.info == {"names": ["a", "b"]}
        assert isinstance(result.arrays["pos"], np.memmap)
    assert build.calls == 1
    assert result.folder.parent == root / "processed"


def test_what_is_written_to_the_arrays_stays_in_memory(root: Path) -> None:
    read(root, Build()).arrays["pos"][:] = 7
    assert read(root, Build()).arrays["pos"].max() == 2


def test_depends_on_files_and_options(root: Path) -> None:
    build = Build()
    read(root, build)
    read(root, build, options=1)
    assert build.calls == 2
    (root / "a.txt").write_text("1 2 3 4")
    read(root, build)
    assert build.calls == 3
    os.utime(root / "a.txt", ns=(1, 1))
    read(root, build)
    assert build.calls == 4


def test_where_nothing_can_be_written(root: Path, tmp_path: Path) -> None:
    (root / "processed").write_text("in the way")  # as a read-only folder, also for the superuser
    build = Build()
    with pytest.warns(UserWarning, match=r"data cannot be written: its cache goes to .*home/pcattn/points-"):
        assert read(root, build).folder.parent == tmp_path / "home" / "pcattn"
    read(root, build)
    assert build.calls == 1
    (tmp_path / "home").rename(tmp_path / "away")
    (tmp_path / "home").write_text("")
    with pytest.raises(ValueError, match="expected a folder to cache points in"):
        read(root, build)


def test_the_users_cache_tells_data_apart_that_looks_the_same(root: Path, tmp_path: Path) -> None:
    """Names, sizes and times are often equal: in archives, images of containers, copies with a fixed time."""
    other = tmp_path / "more" / "data"
    other.mkdir(parents=True)
    (other / "a.txt").write_text("4 5 6")
    for folder in (root, other):
        os.utime(folder / "a.txt", ns=(1, 1))
        (folder / "processed").write_text("in the way")
    build = Build()
    for _ in range(2):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", CacheElsewhereWarning)
            found = [cached("points", folder, [folder / "a.txt"], build) for folder in (root, other)]
    assert build.calls == 2
    assert found[0].folder != found[1].folder


def test_a_read_only_folder_stays_as_it_is(root: Path, tmp_path: Path) -> None:
    root.chmod(0o555)
    with pytest.warns(UserWarning, match="cannot be written"):
        assert read(root, Build()).folder.parent == tmp_path / "home" / "pcattn"
    assert [path.name for path in root.iterdir()] == ["a.txt"]
    root.chmod(0o755)


def test_one_that_was_cut_short_is_built_again(root: Path) -> None:
    build = Build()
    path = read(root, build).folder / "pos.bin"
    path.write_bytes(path.read_bytes()[:-4])
    assert read(root, build).arrays["pos"].shape == (3, 3)
    assert build.calls == 2
    assert len(list((root / "processed").iterdir())) == 1


def test_an_error_leaves_nothing(root: Path) -> None:
    def fail(writer: ArrayWriter) -> None:
        writer.append("pos", np.zeros((2, 3)))
        writer.append("pos", np.zeros((2, 4)))

    with pytest.raises(ValueError, match="expected rows of pos like"):
        cached("points", root, [], fail)
    assert list((root / "processed").iterdir()) == []


def slow_build(root: Path, pause: float, results: Queue) -> None:
    def build(writer: ArrayWriter) -> None:
        for number in range(20):
            writer.append("pos", np.full((1000, 3), number, np.float32))
            results.put("writing")
            time.sleep(pause)

    results.put(float(cached("points", root, [root / "a.txt"], build).arrays["pos"].sum()))


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="no fork on this system")
def test_two_processes_at_once_and_one_killed(root: Path) -> None:
    context = multiprocessing.get_context("fork")  # importing torch once more takes longer than the test

    def start(pause: float) -> tuple:
        results = context.Queue()
        process = context.Process(target=slow_build, args=(root, pause, results))
        process.start()
        return process, results

    killed, results = start(60)
    assert results.get() == "writing"
    killed.kill()
    killed.join()
    (left,) = (root / "processed").iterdir()
    assert left.suffix == ".tmp"
    for process, results in [start(0.01), start(0.01)]:
        said = results.get()
        while said == "writing":
            said = results.get()
        process.join()
        assert said == 570000.0
    assert sorted(path.suffix for path in (root / "processed").iterdir()) == ["", ".tmp"]
    # What was left is removed by a later build, once no process can be at work on it.
    old = time.time() - 2 * 24 * 3600
    for path in (*left.iterdir(), left):
        os.utime(path, (old, old))
    read(root, Build(), options=1)
    assert not left.exists()
