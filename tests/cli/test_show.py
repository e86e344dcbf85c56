"""`pcattn show`, driven as a user would."""

import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest

from pcattn.cli import show as command
from pcattn.cli.main import main
from pcattn.inference.model import Model
from pcattn.io.cloud import Cloud, read_cloud, write_ply
from pcattn.tasks import Classification, PartSegmentation
from pcattn.tasks.voting import draw_views
from pcattn.visualize import window
from pcattn.visualize.offscreen import Open3DError
from pcattn.visualize.scene import shown_fields
from pcattn.visualize.window import open_window
from tests.visualize.examples import ball


@pytest.fixture(autouse=True)
def _in_tmp_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def ply(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    attributes = {"label": np.arange(90) % 3, "probability": rng.random(90).astype(np.float32)}
    write_ply(tmp_path / "cloud.ply", Cloud(rng.random((90, 3)).astype(np.float32), attributes))
    return tmp_path / "cloud.ply"


def show(*args: str) -> int:
    with pytest.raises(SystemExit) as exit_info:
        main(["show", *map(str, args)])
    return int(exit_info.value.code or 0)


def content(path: Path | str) -> dict:
    """What a page holds."""
    return json.loads(re.search(r'id="data">(.*?)</script>', Path(path).read_text(), flags=re.S)[1])  # type: ignore[index]


class TestRun:
    def test_parts(self, parts_run: Path) -> None:
        assert show(parts_run, "--out", "x.html", "--number", "6") == 0
        page = content("x.html")
        assert page["names"] == ["truth", "prediction", "error", "probability", "category"]
        assert page["shown"] == ["truth", "prediction", "error"]
        titles = [cloud["title"].split()[0] for cloud in page["clouds"]]
        assert titles == ["airplane", "bench", "bottle", "bucket", "car", "chair"]  # one of each category
        parts = [name for name, _ in page["clouds"][0]["fields"][0]["entries"]]
        assert parts == ["fuselage", "wing", "tail", "engine"]

    def test_worst(self, parts_run: Path) -> None:
        assert show(parts_run, "--out", "x.html", "--split", "test", "--worst", "--number", "22") == 0
        notes = [float(cloud["note"].split()[1]) for cloud in content("x.html")["clouds"]]
        assert len(notes) == 22
        assert notes == sorted(notes)
        # The mean over the whole test split is what fit reported.
        results = json.loads((parts_run / "results.json").read_text())["test"]
        assert np.mean(notes) == pytest.approx(results["test/instance_miou"], abs=1e-3)

    def test_classes(self, class_run: Path) -> None:
        assert show(class_run, "--out", "x.html", "--category", "mug", "car", "--number", "4") == 0
        page = content("x.html")
        assert [cloud["title"].split()[0] for cloud in page["clouds"]] == ["car", "mug"]
        for cloud in page["clouds"]:
            assert cloud["good"] == cloud["note"].startswith(cloud["title"].split()[0])

    @pytest.mark.parametrize("run", ["parts_run", "class_run"])
    def test_attention(self, run: str, request: pytest.FixtureRequest) -> None:
        """Also where the layers work on fewer tokens than points."""
        path = request.getfixturevalue(run)
        assert show(path, "--out", "x.html", "--number", "2", "--attention", "1", "--point", "5") == 0
        page = content("x.html")
        assert page["shown"] == ["prediction", "layer 1, head 0"]
        assert page["clouds"][1]["marked"] == 5

    def test_picture(self, class_run: Path, capsys: pytest.CaptureFixture) -> None:
        assert show(class_run, "--out", "sub/x.png", "--number", "2", "--renderer", "matplotlib") == 0
        assert "written: sub/x.png" in capsys.readouterr().out
        assert show(class_run, "--out", "sub/x.png", "--number", "2", "--renderer", "matplotlib") == 0
        assert "replaced: sub/x.png" in capsys.readouterr().out
        assert Path("sub/x.png").read_bytes().startswith(b"\x89PNG")


class TestFiles:
    def test_labels_and_probability(self, ply: Path) -> None:
        assert show(ply, "--out", "x.html", "--fields", "label") == 0
        page = content("x.html")
        assert page["names"] == ["label", "probability"]
        assert [name for name, _ in page["clouds"][0]["fields"][0]["entries"]] == ["label 0", "label 1", "label 2"]

    def test_bare_points(self) -> None:
        np.savetxt("cloud.xyz", np.random.default_rng(0).random((20, 3)))
        assert show("cloud.xyz", "--out", "x.html") == 0
        assert content("x.html")["names"] == ["height"]

    def test_colors_are_drawn(self, tmp_path: Path) -> None:
        rgb = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255]])
        pos = np.eye(3)
        for name, colors in (("a", rgb.astype(np.uint8)), ("b", rgb.astype(np.uint16) * 257)):
            write_ply(tmp_path / f"{name}.ply", Cloud(pos, {"colors": colors}))
            cloud = command.cloud_of_file(tmp_path / f"{name}.ply", "z")
            assert shown_fields([cloud], command.FILE_FIELDS) == ["rgb"]
            np.testing.assert_array_equal(cloud.fields["rgb"].colors(), rgb)

    def test_three_points(self) -> None:
        np.savetxt("cloud.xyz", np.eye(3))
        assert show("cloud.xyz", "--out", "x.png", "--renderer", "matplotlib") == 0

    def test_with_a_network(self, ply: Path, parts_run: Path, class_run: Path) -> None:
        args = ["--ckpt_path", parts_run, "--category", "mug", "--attention", "0", "--point", "1"]
        assert show(ply, "--out", "x.html", *args) == 0
        (cloud,) = content("x.html")["clouds"]
        assert {name for name, _ in cloud["fields"][0]["entries"]} == {"body", "handle", "saucer"}
        assert show(ply, "--out", "y.html", "--ckpt_path", class_run) == 0
        assert content("y.html")["clouds"][0]["note"].endswith("%")

    @pytest.mark.parametrize("num_points", [20, 128])
    def test_a_network_sees_what_it_sees_in_use(
        self, num_points: int, ply: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Placement and estimated normals are those of the whole cloud; so is what attention is shown of."""
        network = {"dim": 8, "depth": 1, "k": 2, "out_dim": 8}
        steps = {"features": ["estimated_normals"], "normalize": "sphere", "up_axis": "z"}
        data = {"num_points": num_points, "preprocessing": steps}
        kwargs = {"variant": "spct", "network_kwargs": network, "num_features": 3}
        segmenter = Model(PartSegmentation([[0, 1, 2]], **kwargs), data)
        cloud, keep = read_cloud(ply), draw_views(90, num_points, 1, 0)[0].numpy()
        fields = command.predict_file(segmenter, ply, None, "z").fields
        expected = segmenter.segment(cloud)
        np.testing.assert_array_equal(fields["prediction"].values, expected.labels[keep])
        np.testing.assert_array_equal(fields["probability"].values, expected.probabilities[keep].astype(float))
        classifier = Model(Classification(2, **kwargs), data)
        shown = []
        monkeypatch.setattr(command, "show_attention", lambda cloud, network, forward, *rest: shown.append(forward()))
        command.predict_file(classifier, ply, None, "z", 0, 0)
        best = classifier.classify(cloud).probabilities
        np.testing.assert_array_equal(np.sort(shown[0].softmax(dim=1).detach().numpy()[0])[::-1], best)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["nowhere.ply"], "there is no nowhere.ply"),
        (["runs/nowhere"], "there is no runs/nowhere"),
        (["RUN", "--out", "x.gif"], "--out to end in .html or .png"),
        (["RUN", "--out", "x.html", "--attention", "0"], "--attention LAYER and --point I together"),
        (["RUN", "--out", "x.html", "--attention", "9", "--point", "0"], "layer in [0, 2), but got 9"),
        (["RUN", "--out", "x.html", "--attention", "0", "--point", "99"], "point in [0, 48), but got 99"),
        (["RUN", "--out", "x.html", "--attention", "0", "--point", "0", "--head", "1"], "head in [0, 1), but got 1"),
        (["RUN", "--out", "x.html", "--category", "mugg"], "did you mean 'mug'"),
        (["RUN", "--out", "x.html", "--index", "9999"], "indices of the val split, but got 9999"),
        (["RUN", "--out", "x.html", "--fields", "trut"], "--fields among prediction, truth"),
        (["RUN", "--out", "x.html", "--number", "0"], "--number >= 1"),
        ([".", "--out", "x.html"], "folder of a run"),
    ],
)
def test_errors(args: list[str], message: str, class_run: Path, capsys: pytest.CaptureFixture) -> None:
    assert show(*(str(class_run) if arg == "RUN" else arg for arg in args)) == 2
    assert message in capsys.readouterr().err
    assert not Path("x.html").exists()


class TestWindow:
    """If no window can be opened, one line says so, and a page is written instead."""

    def test_no_display(self, ply: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
        for name in ("DISPLAY", "WAYLAND_DISPLAY"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setattr(sys, "platform", "linux")
        assert show(ply) == 0
        assert show(ply) == 0
        out = capsys.readouterr().out
        assert "there is no display (neither DISPLAY nor WAYLAND_DISPLAY is set); a page" in out
        assert "instead: show.html" in out
        assert "instead: show.2.html" in out  # nothing is overwritten

    @pytest.mark.parametrize(
        ("program", "message"),
        [
            ("import time; time.sleep(100)", r"no window of Open3D appeared within 0\.5 s"),
            ("import os; os.kill(os.getpid(), 11)", r"Open3D crashed \(signal 11"),
            ("raise SystemExit('no window could be created')", r"cannot draw \(no window could be created\)"),
        ],
        ids=["hang", "crash", "no window"],
    )
    def test_broken(self, program: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("DISPLAY", ":1")
        monkeypatch.setattr(window, "_COMMAND", (sys.executable, "-c", program))
        with pytest.raises(Open3DError, match=message):
            open_window([ball(20)], ["truth"], time_limit=0.5 if "sleep" in program else 60)

    def test_says_what_the_window_says(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("DISPLAY", ":1")
        program = f"print({window._READY!r}); print('1 of 1: ball')"
        monkeypatch.setattr(window, "_COMMAND", (sys.executable, "-c", program))
        said: list[str] = []
        open_window([ball(20)], ["truth"], show=said.append)
        assert said == ["1 of 1: ball"]
