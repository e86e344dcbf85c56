"""`pcattn predict-files`: what it prints and writes, what it refuses, and what it leaves alone."""

import csv
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import pcattn
from pcattn.cli import predict_files
from pcattn.cli.main import main
from pcattn.cli.predict_files import add_attributes, find_files, name_outputs
from pcattn.inference import checkpoints
from pcattn.inference.model import Model
from pcattn.io.cloud import Cloud, CloudFile, read_cloud, write_ply
from pcattn.tasks import Classification, PartSegmentation
from pcattn.visualize.colors import palette

NETWORK = {"dim": 16, "depth": 1, "k": 4, "out_dim": 32}
OFF = "OFF\n4 2 0\n0 0 0\n1 0 0\n1 1 0\n0 1 1\n3 0 1 2\n3 0 2 3\n"


@pytest.fixture(autouse=True)
def _in_tmp_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Files of a classifier and a segmenter."""
    folder = tmp_path_factory.mktemp("weights")
    torch.manual_seed(0)
    classifier = Classification(3, network_kwargs=NETWORK, class_names=["bed", "chair", "lamp"])
    segmenter = PartSegmentation(
        [[0, 1], [2, 3, 4]],
        variant="spct",
        network_kwargs={"dim": 16, "depth": 1, "out_dim": 32},
        class_names=["mug", "chair"],
        part_names=["mug/body", "mug/handle", "chair/leg", "chair/seat", "chair/back"],
    )
    tasks = {"classifier": classifier, "segmenter": segmenter}
    return {
        name: str(checkpoints.save_weights(task, folder / f"{name}.safetensors", {"num_points": 32}))
        for name, task in tasks.items()
    }


def write_cloud(path: str, num_points: int = 50, **attributes: np.ndarray) -> Cloud:
    rng = np.random.default_rng(len(path))
    cloud = Cloud(rng.random((num_points, 3)) + 100.0, attributes)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    if path.endswith(".ply"):
        write_ply(path, cloud)
    else:
        np.savetxt(path, cloud.pos)
    return cloud


def run(*arguments: Any) -> int:
    with pytest.raises(SystemExit) as stop:
        main(["predict-files", "--device", "cpu", *map(str, arguments)])
    return int(stop.value.code or 0)


class TestClassify:
    def test_table_and_files(self, weights: dict[str, str], capsys: pytest.CaptureFixture) -> None:
        write_cloud("b.ply")
        write_cloud("folder/deep/a.xyz", 7)
        Path("folder/mesh.off").write_text(OFF)
        Path("folder/notes.md").write_text("no cloud")
        arguments = ["--ckpt_path", weights["classifier"], "--json", "out.json", "--csv", "out.csv"]
        assert run("b.ply", "folder", *arguments, "--top_k", "2") == 0
        names = ["b.ply", "folder/deep/a.xyz", "folder/mesh.off"]
        lines = capsys.readouterr().out.splitlines()
        assert [line.split()[0] for line in lines] == ["file", *names]
        rows = json.loads(Path("out.json").read_text())
        assert [(row["file"], row["points"]) for row in rows] == [(names[0], 50), (names[1], 7), (names[2], 10_000)]
        model = pcattn.load(weights["classifier"], device="cpu")
        for row, line in zip(rows, lines[1:], strict=True):
            expected = model.classify(read_cloud(row["file"]), top_k=2)
            assert [entry["class"] for entry in row["classes"]] == expected.names
            found = [entry["probability"] for entry in row["classes"]]
            np.testing.assert_allclose(found, expected.probabilities, atol=1e-6)
            first = row["classes"][0]
            assert f"{first['class']} {first['probability']:.3f}" in line
        with open("out.csv") as file:
            table = list(csv.DictReader(file))
        assert [(line["file"], line["rank"]) for line in table] == [(name, rank) for name in names for rank in "12"]
        assert float(table[0]["probability"]) == rows[0]["classes"][0]["probability"]
        assert not Path("predictions").exists()
        assert run("b.ply", "--ckpt_path", weights["classifier"], "--out", "folder") == 2
        assert "expected --csv or --json in place of --out" in capsys.readouterr().err

    def test_broken_files_do_not_stop_the_others(self, weights: dict[str, str], capsys: pytest.CaptureFixture) -> None:
        write_cloud("good.ply")
        Path("empty.ply").write_bytes(b"")
        Path("nan.xyz").write_text("0 0 0\n1 nan 2\n3 3 3\n")
        Path("cut.ply").write_bytes(Path("good.ply").read_bytes()[:-10])
        Path("three.xyz").write_text("0 0 0\n1 0 0\n0 1 0\n")
        Path("folder").mkdir()
        files = ["empty.ply", "nan.xyz", "cut.ply", "gone.ply", "*.pcd", "folder", "three.xyz", "good.ply"]
        assert run(*files, "--ckpt_path", weights["classifier"], "--json", "out.json") == 1
        out, err = capsys.readouterr()
        assert [line.split()[0] for line in out.splitlines()] == ["file", "three.xyz", "good.ply"]
        told = err.splitlines()
        assert told[-1] == "2 files predicted, 6 failed"
        assert len(told) == 7
        assert all(any(name in line for line in told) for name in files[:6])
        rows = json.loads(Path("out.json").read_text())
        assert [row["file"] for row in rows if "error" in row] == ["gone.ply", "*.pcd", "folder", *files[:3]]

    def test_points_with_nan_on_demand(self, weights: dict[str, str], capsys: pytest.CaptureFixture) -> None:
        Path("nan.xyz").write_text("0 0 0\n1 nan 2\n3 3 3\n")
        assert run("nan.xyz", "--ckpt_path", weights["classifier"], "--drop_invalid") == 0
        assert capsys.readouterr().out.splitlines()[1].split()[:2] == ["nan.xyz", "2"]


class TestSegment:
    def test_ply_keeps_everything(self, weights: dict[str, str], capsys: pytest.CaptureFixture) -> None:
        attributes = {
            "normals": np.ones((50, 3), dtype=np.float32),
            "colors": np.full((50, 3), 7, dtype=np.uint8),
            "intensity": np.arange(50, dtype=np.uint16),
            "label": np.arange(50, dtype=np.int16),
        }
        cloud = write_cloud("a.ply", **attributes)
        arguments = [
            "--ckpt_path",
            weights["segmenter"],
            "--category",
            "chair",
            "--json",
            "out.json",
            "--csv",
            "out.csv",
        ]
        assert run("a.ply", *arguments, "--out", "found") == 0
        written = read_cloud("found/a.ply")
        assert np.array_equal(written.pos, cloud.pos)
        assert np.array_equal(written.attributes["normals"], attributes["normals"])
        assert np.array_equal(written.attributes["intensity"], attributes["intensity"])
        assert np.array_equal(written.attributes["original_label"], attributes["label"])
        expected = pcattn.load(weights["segmenter"], device="cpu").segment(cloud.pos, "chair")
        assert np.array_equal(written.attributes["label"], expected.labels)
        assert np.array_equal(written.attributes["probability"], expected.probabilities)
        assert np.array_equal(written.attributes["colors"], palette(3)[expected.labels - 2])
        assert (np.stack([written.attributes[f"original_colors_{c}"] for c in range(3)], axis=1) == 7).all()
        (row,) = json.loads(Path("out.json").read_text())
        assert (row["points"], row["category"], row["output"]) == (50, "chair", "found/a.ply")
        counts = {part["part"]: part["points"] for part in row["parts"]}
        assert counts == {expected.names[i]: int((expected.labels == i).sum()) for i in (2, 3, 4)}
        assert [part["color"] for part in row["parts"]] == palette(3).tolist()
        with open("out.csv") as file:
            assert [int(line["points"]) for line in csv.DictReader(file)] == list(counts.values())
        largest = max(counts, key=counts.__getitem__)
        assert f"{largest} {100 * counts[largest] / 50:.1f} %" in capsys.readouterr().out

    def test_nothing_is_overwritten(self, weights: dict[str, str], capsys: pytest.CaptureFixture) -> None:
        write_cloud("a.ply")
        write_cloud("b.ply", 20)
        arguments = ["--ckpt_path", weights["segmenter"], "--category", "0"]
        assert run("a.ply", *arguments) == 0
        before = os.stat("predictions/a.ply").st_mtime_ns
        assert run("a.ply", "b.ply", *arguments) == 1
        assert "predictions/a.ply exists already: --overwrite replaces it" in capsys.readouterr().err
        assert os.stat("predictions/a.ply").st_mtime_ns == before
        assert Path("predictions/b.ply").exists()
        assert run("a.ply", *arguments, "--overwrite") == 0
        assert os.stat("predictions/a.ply").st_mtime_ns > before

    def test_inputs_are_not_replaced(self, weights: dict[str, str], capsys: pytest.CaptureFixture) -> None:
        write_cloud("a.ply")
        before = Path("a.ply").read_bytes()
        assert run("a.ply", "--ckpt_path", weights["segmenter"], "--category", "mug", "--out", ".", "--overwrite") == 1
        assert "but a.ply is the input" in capsys.readouterr().err
        assert Path("a.ply").read_bytes() == before

    @pytest.mark.parametrize("suffix", [".ply", ".npy", ".pcd", ".xyz"])
    def test_block_by_block(
        self, suffix: str, weights: dict[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
    ) -> None:
        """As a whole, and points that are left out have no part in it."""
        rng = np.random.default_rng(0)
        pos, height = rng.random((100, 3), np.float32), rng.random(100, np.float32)
        table = np.column_stack((pos, height))
        table[[0, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 55], 1] = np.nan  # one block of ten has none left
        path = Path(f"a{suffix}")
        if suffix == ".ply":
            names = "".join(f"property float {name}\n" for name in ("x", "y", "z", "h"))
            head = f"ply\nformat binary_little_endian 1.0\nelement vertex 100\n{names}end_header\n"
            path.write_bytes(head.encode() + table.tobytes())
        elif suffix == ".npy":
            np.save(path, table)
        elif suffix == ".pcd":
            head = "FIELDS x y z h\nSIZE 4 4 4 4\nTYPE F F F F\nWIDTH 100\nHEIGHT 1\nDATA binary\n"
            path.write_bytes(head.encode() + table.tobytes())
        else:
            np.savetxt(path, table)
        written, told = [], []
        arguments = ["--ckpt_path", weights["segmenter"], "--category", "chair", "--drop_invalid", "--votes", "2"]
        for block in (predict_files.BLOCK, 10):
            monkeypatch.setattr(predict_files, "BLOCK", block)
            assert run(path, *arguments, "--out", f"by{block}") == 0
            written.append(read_cloud(f"by{block}/a.ply"))
            told.append(capsys.readouterr().out.replace(f"by{block}", ""))
            assert run(path, "--ckpt_path", weights["classifier"], "--drop_invalid") == 0
            told.append(capsys.readouterr().out)
        assert told[0].split() == told[2].split()
        assert told[1] == told[3]
        assert len(written[0].pos) == 88
        assert np.array_equal(written[0].pos, written[1].pos)
        for name, values in written[0].attributes.items():
            np.testing.assert_allclose(written[1].attributes[name], values, 1e-5, err_msg=name)
        table[:20] = 0
        np.save("b.npy", table)
        assert run("b.npy", "--ckpt_path", weights["classifier"]) == 1
        assert "finite coordinates, but point 55 has NaN or inf" in capsys.readouterr().err

    def test_a_result_that_appears_meanwhile(
        self, weights: dict[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
    ) -> None:
        write_cloud("a.ply")
        predict = Model.predict_blocks

        def slow(self: Model, *args: Any) -> Iterator[dict[str, np.ndarray]]:
            yield from predict(self, *args)
            Path("predictions/a.ply").write_text("precious")

        monkeypatch.setattr(Model, "predict_blocks", slow)
        assert run("a.ply", "--ckpt_path", weights["segmenter"], "--category", "mug") == 1
        assert "expected to write predictions/a.ply, but it exists already" in capsys.readouterr().err
        assert Path("predictions/a.ply").read_text() == "precious"

    def test_category_is_asked_for(self, weights: dict[str, str], capsys: pytest.CaptureFixture) -> None:
        write_cloud("a.ply")
        assert run("a.ply", "--ckpt_path", weights["segmenter"]) == 2
        assert "category to be one of mug, chair, or an index, but got None" in capsys.readouterr().err
        assert not Path("predictions").exists()

    def test_interrupted(self, weights: dict[str, str], monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
        """Reports the files that are finished."""
        write_cloud("a.ply")
        write_cloud("b.ply")

        class Interrupted(CloudFile):
            def __iter__(self) -> Iterator[Cloud]:
                if self.path.name == "b.ply":
                    raise KeyboardInterrupt
                return super().__iter__()

        monkeypatch.setattr(predict_files, "CloudFile", Interrupted)
        arguments = ["--ckpt_path", weights["segmenter"], "--category", "mug", "--json", "out.json"]
        assert run("a.ply", "b.ply", *arguments) == 130
        assert [row["file"] for row in json.loads(Path("out.json").read_text())] == ["a.ply"]
        assert "1 files predicted, interrupted" in capsys.readouterr().err
        assert os.listdir("predictions") == ["a.ply"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--ckpt_path", "gone"], "but got 'gone'"),
        (
            ["--ckpt_path", "CLASSIFIER", "--category", "chair"],
            "expected no --category, because Classification does not use one",
        ),
        (["--ckpt_path", "CLASSIFIER", "--top_k", "0"], "expected --top_k >= 1, but got 0"),
        (["--ckpt_path", "CLASSIFIER", "--mesh_points", "0"], "expected --mesh_points >= 1, but got 0"),
        (["--ckpt_path", "CLASSIFIER", "--json", "a.ply"], "a.ply exists already"),
        (["--ckpt_path", "CLASSIFIER", "--device", "toaster"], "toaster"),
    ],
)
def test_wrong_calls(arguments: list[str], message: str, weights: dict[str, str], capsys: Any) -> None:
    write_cloud("a.ply")
    assert run("a.ply", *(word.replace("CLASSIFIER", weights["classifier"]) for word in arguments)) == 2
    err = capsys.readouterr().err
    assert message in err
    assert len(err.splitlines()) == 1


class TestFindFiles:
    def test_each_once_and_no_results(self) -> None:
        for path in ("in/b.ply", "in/a/c.xyz", "in/predictions/b.ply"):
            write_cloud(path, 3)
        jobs, wrong = find_files(["in/*.ply", "in"], Path("in/predictions"))
        assert [str(path) for path, _ in jobs] == ["in/b.ply", "in/a/c.xyz"]
        assert [str(below) for _, below in jobs] == ["b.ply", "a/c.xyz"]
        assert not wrong

    def test_names_of_results(self) -> None:
        files = ["x/a.ply", "b.pcd", "b.OFF", "a.ply", "c.xyz"]
        names = name_outputs([(Path(str(i)), Path(file)) for i, file in enumerate(files)])
        assert [str(name) for name in names] == ["x/a.ply", "b-pcd.ply", "b-off.ply", "a.ply", "c.ply"]
        same = name_outputs([(Path("1/a.ply"), Path("a.ply")), (Path("2/a.ply"), Path("a.ply"))])
        assert [str(name) for name in same] == ["a-ply.ply", "a-ply-2.ply"]


def test_names_that_ply_cannot_hold() -> None:
    cloud = Cloud(np.zeros((1, 3)), {"my column": np.ones(1), "label": np.ones(1), "original_label": np.ones(1)})
    attributes = add_attributes(cloud, {"label": np.zeros(1), "colors": np.zeros((1, 3))}).attributes
    assert list(attributes) == ["my_column", "original_label", "original_original_label", "label", "colors"]
    assert attributes["label"] == 0


def test_columns_and_up_axis_as_in_training(tmp_path: Path) -> None:
    """Columns that the training named are read by these names; another order is given with --columns."""
    torch.manual_seed(0)
    task = Classification(3, network_kwargs=NETWORK, num_features=1)
    data = {
        "num_points": 32,
        "dataset_kwargs": {"columns": ["intensity", "z", "y", "x"]},
        "preprocessing": {"features": ["intensity"], "normalize": "sphere", "up_axis": "z"},
    }
    weights = checkpoints.save_weights(task, tmp_path / "model.safetensors", data)
    model = pcattn.load(weights, device="cpu")
    table = np.random.default_rng(0).random((32, 4))
    np.savetxt("a.txt", table)
    np.savetxt("b.txt", table[:, [3, 2, 1, 0]])

    def probability(file: str, *options: str) -> list[float]:
        assert run(file, "--ckpt_path", weights, "--json", "out.json", "--overwrite", *options) == 0
        (row,) = json.loads(Path("out.json").read_text())
        return [entry["probability"] for entry in row["classes"]]

    cloud = torch.from_numpy(table[:, [3, 2, 1, 0]])
    expected = model.classify(cloud).probabilities
    np.testing.assert_allclose(probability("a.txt"), expected, atol=1e-5)
    np.testing.assert_allclose(probability("b.txt", "--columns", "x", "y", "z", "intensity"), expected, atol=1e-5)
    turned = np.sort(model.predict(cloud, up_axis="y")["probabilities"])[::-1]
    np.testing.assert_allclose(probability("a.txt", "--up", "y"), turned, atol=1e-5)


def test_labeled_clouds_get_scores(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """By the values of the labels in the files, which name the parts."""
    torch.manual_seed(0)
    task = PartSegmentation([[0, 1]], network_kwargs=NETWORK, class_names=["all"], part_names=["all/3", "all/7"])
    data = {"num_points": 32, "dataset_kwargs": {"label": "part"}}
    weights = checkpoints.save_weights(task, tmp_path / "model.safetensors", data)
    cloud = write_cloud("plain.ply")
    label = pcattn.load(weights, device="cpu").segment(cloud.pos).labels
    truth = np.array([3, 7])[label]
    truth[:10] = 10 - truth[:10]  # 10 of 50 are the other part
    write_ply("labeled.ply", Cloud(cloud.pos, {"part": truth.astype(np.int16)}))
    assert run("plain.ply", "labeled.ply", "--ckpt_path", weights, "--json", "out.json") == 0
    plain, labeled = json.loads(Path("out.json").read_text())
    assert "accuracy" not in plain
    assert labeled["accuracy"] == 0.8
    both = np.array([np.searchsorted([3, 7], truth), label])
    ious = [
        (both == part).all(axis=0).sum() / (both == part).any(axis=0).sum() for part in (0, 1) if (both == part).any()
    ]
    assert labeled["mean IoU"] == pytest.approx(np.mean(ious), abs=1e-5)
    header, first, second = capsys.readouterr().out.splitlines()
    assert "accuracy  mean IoU" in header
    assert "0.800" in second
    assert "0.800" not in first
