"""`pcattn robustness`: the means by hand, the files, and that an interrupted suite goes on."""

import json
from pathlib import Path

import pytest
import torch

import pcattn
from pcattn.cli.main import main
from pcattn.cli.robustness import summarize
from pcattn.inference.checkpoints import save_weights
from pcattn.inference.evaluate import open_run
from pcattn.training import PointCloudDataModule
from pcattn.training.selection import choose_clouds, read_batches, read_split
from tests.datasets.modelnet_files import write_modelnet40
from tests.tiny import write_tiny_config


def call(args: list[str]) -> int:
    with pytest.raises(SystemExit) as exit_info:
        main(["robustness", *args])
    return exit_info.value.code


class TestSummary:
    errors = {  # noqa: RUF012
        "gaussian": {"1": 0.2, "2": 0.4},
        "uniform": {"1": 0.1, "2": 0.3},
        "shear": {"1": 0.5, "2": 0.5},
    }

    def test_means(self) -> None:
        summary = summarize(self.errors, (1, 2))
        assert summary["by_corruption"] == pytest.approx({"gaussian": 0.3, "uniform": 0.2, "shear": 0.5})
        assert summary["by_family"] == pytest.approx({"noise": 0.25, "transformation": 0.5})
        assert summary["mean"] == pytest.approx(1 / 3)

    def test_mce(self) -> None:
        """0.6 / 1.2, 0.4 / 0.2 and 1 / 1: their mean is (0.5 + 2 + 1) / 3."""
        baseline = {
            "gaussian": {"1": 0.6, "2": 0.6},
            "uniform": {"1": 0.1, "2": 0.1},
            "shear": {"1": 0.7, "2": 0.3},
        }
        summary = summarize(self.errors, (1, 2), baseline)
        assert summary["ce"] == pytest.approx({"gaussian": 0.5, "uniform": 2.0, "shear": 1.0})
        assert summary["mce"] == pytest.approx(3.5 / 3)
        assert summarize(self.errors, (1, 2), self.errors)["mce"] == pytest.approx(1)

    def test_a_baseline_that_cannot_be_compared_with(self) -> None:
        with pytest.raises(ValueError, match="expected results for shear:2"):
            summarize(self.errors, (1, 2), {**self.errors, "shear": {"1": 0.5}})
        with pytest.raises(ValueError, match="none under uniform"):
            summarize(self.errors, (1, 2), {**self.errors, "uniform": {"1": 0.0, "2": 0.0}})


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = write_modelnet40(tmp_path_factory.mktemp("data") / "modelnet40", train=(80, 80))
    folder = tmp_path_factory.mktemp("fit")
    config = write_tiny_config(folder / "tiny.yaml", root)
    main(["fit", "-c", str(config), "--run", str(folder / "run"), "--trainer.max_epochs=1", "--final_test=false"])
    return folder / "run"


class TestCommand:
    def test_files_and_going_on(self, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
        args = ["-c", str(run / "config.yaml"), "--out", str(tmp_path / "r.json"), "--severities", "1", "5"]
        assert call([*args, "--corruptions", "gaussian"]) == 0
        first = json.loads((tmp_path / "r.json").read_text())
        assert set(first["errors"]) == {"gaussian"}
        # What is there is taken as it is; a second call adds what is missing.
        first["errors"]["gaussian"]["5"] = 0.123
        (tmp_path / "r.json").write_text(json.dumps(first))
        capsys.readouterr()
        assert call([*args, "--corruptions", "gaussian", "background", "--baseline", str(tmp_path / "r.json")]) == 2
        assert "gaussian" not in capsys.readouterr().err.split("expected results for")[1].split(" in the baseline")[0]
        baseline = json.loads((tmp_path / "r.json").read_text())
        assert baseline["errors"]["gaussian"] == first["errors"]["gaussian"]
        assert set(baseline["errors"]["background"]) == {"1", "5"}
        assert baseline["clean"] == first["clean"]

        (tmp_path / "base.json").write_text(json.dumps(baseline))
        capsys.readouterr()
        names = ["--corruptions", "gaussian", "background"]
        assert call([*args, *names, "--baseline", str(tmp_path / "base.json")]) == 0
        out = capsys.readouterr().out
        assert "mCE 100.0 against" in out
        table = (tmp_path / "r.md").read_text()
        assert table.strip() in out
        assert [line.split("|")[1].strip() for line in table.splitlines()[2:4]] == names[1:]

    def test_one_option_of_test(self, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
        """`pcattn test --data.corruption` reports what the suite has."""
        out = tmp_path / "r.json"
        suite = ["--out", str(out), "--corruptions", "occlusion", "--severities", "4"]
        assert call(["-c", str(run / "config.yaml"), *suite]) == 0
        error = json.loads(out.read_text())["errors"]["occlusion"]["4"]
        capsys.readouterr()
        main(["test", "-c", str(run / "config.yaml"), "--data.corruption", "occlusion:4"])
        line = [line for line in capsys.readouterr().out.splitlines() if line.startswith("test: overall")][-1]
        assert float(line.split()[3]) == pytest.approx(1 - error, abs=1e-4)

    def test_weights_alone(self, run: Path, tmp_path: Path) -> None:
        weights = save_weights(
            pcattn.load(run).task, tmp_path / "w.safetensors", pcattn.load(run).data, dtype="float32"
        )
        errors = []
        for options in ([], ["--ckpt_path", str(weights)]):
            out = tmp_path / f"{len(options)}.json"
            suite = ["--out", str(out), "--corruptions", "gaussian", "--severities", "5"]
            assert call(["-c", str(run / "config.yaml"), *suite, *options]) == 0
            errors.append(json.loads(out.read_text())["errors"])
        assert errors[0] == errors[1]

    def test_no_votes(self, run: Path, capsys: pytest.CaptureFixture) -> None:
        """Further looks are at clouds that are not corrupted: their figures would be taken for what they are not."""
        options = ["--data.corruption", "gaussian:1", "--model.votes", "2"]
        with pytest.raises(SystemExit) as stop:
            main(["test", "-c", str(run / "config.yaml"), *options])
        assert stop.value.code == 2
        assert "expected no corruption with votes" in capsys.readouterr().err

    def test_a_run_that_was_validated_under_a_corruption_is_shown_so(self, run: Path) -> None:
        opened = open_run(run)
        data = PointCloudDataModule(
            root=opened.data.root, dataset="modelnet40", num_points=opened.data.num_points, corruption="gaussian:5"
        )
        (clean, indices), (corrupted, _) = read_split(opened.data, "val"), read_split(data, "val")
        chosen = choose_clouds(corrupted, indices, 2)
        assert torch.equal(chosen, choose_clouds(clean, indices, 2))
        batch = next(iter(read_batches(corrupted, chosen)))
        assert len(opened.task.evaluated_clouds(batch)) == 2
        assert not torch.equal(batch.pos, clean[0, chosen].pos)

    @pytest.mark.parametrize(
        ("args", "message"),
        [
            (["--corruptions", "gausian"], "did you mean 'gaussian'"),
            (["--severities", "6"], "1 to 5, but got 6"),
            (["--baseline", "none.json"], "none.json"),
            (["--data.features", "[normals]"], "num_features 0 as in the checkpoint"),
        ],
    )
    def test_bad_options(self, args: list[str], message: str, run: Path, capsys: pytest.CaptureFixture) -> None:
        assert call(["-c", str(run / "config.yaml"), "--out", str(run / "other.json"), *args]) == 2
        assert message in capsys.readouterr().err

    def test_a_report_of_another_checkpoint(self, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
        report = {"setting": {"metric": "test/oa", "checkpoint_sha256": "0"}, "errors": {}}
        (tmp_path / "r.json").write_text(json.dumps(report))
        assert call(["-c", str(run / "config.yaml"), "--out", str(tmp_path / "r.json")]) == 2
        assert "differs in checkpoint_sha256, " in capsys.readouterr().err

    def test_a_report_under_other_options(self, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
        """Other points of the clouds, or clouds normalized in another way, are another measurement."""
        suite = ["-c", str(run / "config.yaml"), "--out", str(tmp_path / "r.json")]
        suite += ["--corruptions", "gaussian", "--severities", "1"]
        assert call(suite) == 0
        capsys.readouterr()
        for option, value in (("sampling", "fps"), ("normalize", "box"), ("up_axis", "x")):
            assert call([*suite, f"--data.{option}", value]) == 2
            assert f"it differs in {option}: remove it" in capsys.readouterr().err

    def test_no_report(self, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
        (tmp_path / "r.json").write_text("{")
        assert call(["-c", str(run / "config.yaml"), "--out", str(tmp_path / "r.json")]) == 2
        assert "to be the robustness.json of a run" in capsys.readouterr().err
