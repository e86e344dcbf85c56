"""Pictures: every cell has its colors, and matplotlib replaces Open3D if that cannot draw."""

import sys
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread

from pcattn.visualize import offscreen
from pcattn.visualize.colors import WRONG, palette
from pcattn.visualize.flat import render
from pcattn.visualize.montage import montage
from pcattn.visualize.offscreen import PACKAGES, Open3DError
from tests.visualize.examples import ball


def near(picture: np.ndarray, color: tuple, tolerance: int = 12) -> int:
    """Number of pixels of nearly this color."""
    return int((np.abs(picture[..., :3].astype(int) - np.array(color)).max(axis=-1) <= tolerance).sum())


class TestMatplotlib:
    def test_a_cell(self) -> None:
        cloud = ball(400)
        (picture,) = render([(cloud.pos, cloud.fields["truth"].colors())], 120, "z")
        assert picture.shape == (120, 120, 3)
        assert (picture[[0, -1]] == 255).all()  # a margin
        left, right = palette(2)
        assert near(picture, left, 40) > 100
        assert near(picture, right, 40) > 100

    def test_near_points_hide_far_ones(self) -> None:
        towards = np.array([np.cos(0.384) * np.cos(0.611), -np.cos(0.384) * np.sin(0.611), np.sin(0.384)])
        right = np.array([np.sin(0.611), np.cos(0.611), 0.0])
        pos = np.stack((-towards, towards, 3 * right, -3 * right))
        colors = np.array([[255, 0, 0], [0, 0, 255], [0, 0, 0], [0, 0, 0]], dtype=np.uint8)
        for order in ([0, 1, 2, 3], [3, 1, 2, 0]):
            (picture,) = render([(pos[order], colors[order])], 400, "z")
            assert picture[200, 200].tolist() == [0, 0, 255]

    def test_montage(self, tmp_path: Path) -> None:
        path = montage([ball(marked=3), ball(1)], f"{tmp_path}/m.png", renderer="matplotlib", heading="<two>")
        assert path == tmp_path / "m.png"
        picture = (imread(path) * 255).astype(int)
        assert near(picture, WRONG) > 50
        empty = (picture[..., :3] == 255).all(axis=-1)
        assert 0.3 < empty.mean() < 0.9

    def test_bad_arguments(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="clouds to draw, but got none"):
            montage([], tmp_path / "m.png")
        with pytest.raises(ValueError, match=r"truth, prediction, error, probability, but got trut"):
            montage([ball()], tmp_path / "m.png", ["trut"])
        with pytest.raises(ValueError, match="renderer to be one of"):
            montage([ball()], tmp_path / "m.png", renderer="opengl")
        assert not list(tmp_path.iterdir())


#: What goes wrong with Open3D, as a program that does the same, and what is said of it.
TROUBLES = {
    "no libusb": (
        "print('ImportError: libusb-1.0.so.0: cannot open shared object file'); raise SystemExit(1)",
        rf"libusb-1.0.so.0.*apt-get install {PACKAGES}",
    ),
    "no vulkan": (
        "print('RuntimeError: Failed to load vulkan library!'); raise SystemExit(1)",
        rf"Failed to load vulkan library.*apt-get install {PACKAGES}",
    ),
    "not installed": ("import no_such_open3d", "No module named 'no_such_open3d'"),
    "crash": ("import os; os.kill(os.getpid(), 11)", r"Open3D crashed \(signal 11, SIGSEGV\)"),
    "hang": ("import time; time.sleep(100)", r"Open3D did not answer within 0\.5 s"),
    "silence": ("pass", "Open3D ended without a picture"),
}


@pytest.mark.parametrize("trouble", TROUBLES)
def test_trouble_with_open3d(trouble: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One line says so, and the picture is written by matplotlib."""
    program, message = TROUBLES[trouble]
    monkeypatch.setattr(offscreen, "_COMMAND", (sys.executable, "-c", program))
    limit = 0.5 if trouble == "hang" else 60.0
    monkeypatch.setattr(offscreen.render, "__defaults__", (limit,))
    said: list[str] = []
    path = montage([ball(50)], tmp_path / "m.png", ["truth"], warn=said.append)
    (line,) = said
    with pytest.raises(Open3DError, match=message):
        montage([ball(50)], tmp_path / "n.png", ["truth"], renderer="open3d")
    assert line.endswith("; drawn with matplotlib instead")
    assert path.is_file()
    assert not (tmp_path / "n.png").exists()


def test_open3d() -> None:
    """The same picture as matplotlib's, but for the shading, where Open3D can draw; no display is needed."""
    cloud = ball(300)
    cell = (cloud.pos, cloud.fields["truth"].colors())
    try:
        first, second = offscreen.render([cell, cell], 100, "z")
    except Open3DError as error:
        pytest.skip(str(error))
    assert np.abs(first.astype(int) - second.astype(int)).mean() < 3
    (flat,) = render([cell], 100, "z")
    shape, expected = (first < 250).any(axis=-1), (flat < 250).any(axis=-1)
    assert (shape == expected).mean() > 0.9
