"""The page: one file without requests, and what it does in a real browser."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from pcattn.visualize.page import page
from tests.visualize.browser import visit
from tests.visualize.examples import ball


def test_self_contained(tmp_path: Path) -> None:
    path = page([ball(title="</script><b>")], tmp_path / "p.html", heading="a < b")
    text = path.read_text()
    assert "http" not in re.sub(r"xmlns\S*", "", text)
    assert not re.search(r"(src|href)=", text)
    assert text.count("</script>") == 2
    assert "<title>a &lt; b</title>" in text
    content = json.loads(re.search(r'id="data">(.*?)</script>', text, flags=re.S)[1])  # type: ignore[index]
    assert content["clouds"][0]["title"] == "</script><b>"


def test_size(tmp_path: Path) -> None:
    assert page([ball(2048)] * 16, f"{tmp_path}/p.html").stat().st_size < 1_000_000


def test_bad_arguments(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="clouds to show, but got none"):
        page([], tmp_path / "p.html")
    with pytest.raises(ValueError, match="up to be one of x, y, z"):
        page([ball()], tmp_path / "p.html", up="w")
    with pytest.raises(ValueError, match=r"truth, prediction, error, probability, but got trut"):
        page([ball()], tmp_path / "p.html", ["truth", "trut"])


@pytest.mark.parametrize("flat", [False, True], ids=["webgl", "no-webgl"])
def test_in_a_browser(flat: bool, tmp_path: Path) -> None:
    clouds = [ball(300, marked=7), ball(300, "second 4", seed=1)]
    path = page(clouds, tmp_path / "p.html", ["truth", "prediction", "error"], heading="balls", flat=flat)

    async def actions(browser) -> None:
        await browser.evaluate("document.getElementById('turn').click()")  # stand still, and where it began:
        await browser.evaluate(
            "Object.assign(camera, FIRST); redraw = true;"
        )  # it has turned for as long as loading took
        await browser.settle()
        assert await browser.evaluate("gl === null") is flat
        box = await browser.evaluate(
            "(({ x, y, width, height }) => [x, y, width, height])"
            "(document.querySelector('canvas').getBoundingClientRect())"
        )
        x, y, width, height = (round(value) for value in box)

        async def panel() -> np.ndarray:
            return (await browser.picture())[y : y + height, x : x + width]

        # It draws: both parts in their colors, on white.
        first = await panel()
        blue, orange = first[..., 2] - first[..., 0] > 0.3, first[..., 0] - first[..., 2] > 0.3
        assert blue.mean() > 0.05
        assert orange.mean() > 0.05
        assert (first.min(axis=-1) > 0.99).mean() > 0.2
        # Hover tells part and probability of the point; well inside its disc, whose rim may belong to the next.
        inside = np.lib.stride_tricks.sliding_window_view(np.pad(orange, 2), (5, 5)).all(axis=(-1, -2))
        rows, columns = np.nonzero(inside)
        place = len(rows) // 2
        await browser.move(x + int(columns[place]), y + int(rows[place]))
        await browser.settle()
        tip = await browser.evaluate("document.getElementById('tip').textContent")
        assert re.search(r"point \d+\ntruth: tail\nprediction: (tail|wing)\nerror: \w+\nprobability: [\d.e-]+", tip)
        await browser.move(x + 2, y + 2)
        assert await browser.evaluate("document.getElementById('tip').style.display") == "none"
        # A click on a name of the legend hides its points, another one shows them.
        press = "[...document.querySelectorAll('.legend button')].find((b) => b.textContent === 'tail').click()"
        await browser.evaluate(press)
        await browser.settle()
        hidden = await panel()
        assert (hidden[..., 0] - hidden[..., 2] > 0.3).mean() < 0.005
        assert (hidden[..., 2] - hidden[..., 0] > 0.3).mean() > 0.05
        await browser.evaluate(press)
        await browser.settle()
        assert np.abs(await panel() - first).mean() < 0.01
        # It turns, and further fields can be switched on.
        await browser.evaluate("camera.azimuth += 1; redraw = true;")
        await browser.settle()
        assert np.abs(await panel() - first).mean() > 0.02
        count = "[...document.querySelectorAll('figure')].filter((f) => f.offsetParent).length"
        assert await browser.evaluate(count) == 6
        await browser.evaluate("[...document.querySelectorAll('#fields input')].at(-1).click()")
        assert await browser.evaluate(count) == 8
        assert browser.problems == []
        assert [url for url in browser.requests if not url.startswith("file:")] == []

    visit(path.as_uri(), tmp_path / "profile", actions)
