"""`pcattn compare`: the table, and that an interrupted comparison goes on."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from pcattn.bench.attention import count_multiply_adds
from pcattn.cli import compare as comparison
from pcattn.cli.compare import _inspect, compare, format_table, summarize
from pcattn.cli.main import main
from pcattn.tasks import Classification, NormalEstimation, PartSegmentation
from pcattn.utils.errors import InputError
from pcattn.utils.locks import exclusive_lock
from tests.cli.test_parts import write_config
from tests.datasets.modelnet_files import write_modelnet40
from tests.tiny import write_tiny_config


def run(args: list[str]) -> int:
    with pytest.raises(SystemExit) as exit_info:
        main(["compare", *args])
    return exit_info.value.code


def result(accuracy: float, **more: Any) -> dict:
    costs = {"task": Classification, "parameters": 1000, "multiply_adds": 2_000_000, "clouds_per_second": 10.0}
    costs |= {"peak_mib": 500.0, "peak_of": "process"}
    return {"best": {"val/oa": 0.5}, "test": {"test/oa": accuracy}, **costs, **more}


class TestSummary:
    def test_mean_and_standard_deviation(self) -> None:
        row = summarize("self", [result(0.8, peak_mib=600.0), result(0.9, clouds_per_second=12.0), result(0.7)])
        assert row["metrics"]["oa"]["mean"] == pytest.approx(0.8)
        assert row["metrics"]["oa"]["std"] == pytest.approx(0.1)
        assert (row["split"], row["clouds_per_second"], row["peak_mib"]) == ("test", 10.0, 600.0)

    def test_validation_where_there_is_no_test(self) -> None:
        without = result(0.8)
        del without["test"]
        assert summarize("self", [without])["metrics"]["oa"]["mean"] == 0.5
        assert "validation accuracy" in format_table([summarize("self", [without])])

    def test_table_is_ordered_by_accuracy(self) -> None:
        rows = [summarize("self", [result(0.8)]), summarize("offset", [result(0.9), result(0.92)])]
        lines = format_table(rows).splitlines()
        assert lines[2].startswith("| offset | 91.0 ± 1.4 | 2 | 1,000 | 2 |")
        assert lines[3].startswith("| self | 80.0 | 1 |")  # one run has no spread

    def test_peak_says_whose_it_is(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        about = {"task": Classification, "parameters": 1000, "multiply_adds": 2_000_000}
        monkeypatch.setattr(comparison, "_inspect", lambda checkpoint: about)
        (tmp_path / "costs.json").write_text('{"peak_mib": 700.0}')
        for peak, heading, value in (({}, "process", "700"), ({"peak_mib": 90.0}, "GPU", "90")):
            (tmp_path / "results.json").write_text(
                json.dumps({"best": {"val/oa": 0.5}, "clouds_per_second": 10.0, **peak})
            )
            table = format_table([summarize("self", [comparison._read(tmp_path)])])
            assert f"| peak MiB, {heading} |" in table
            assert table.endswith(f"| 10 | {value} |")

    def test_part_segmentation(self) -> None:
        metrics = {"test/loss": 1.0, "test/class_miou": 0.5, "test/instance_miou": 0.75}
        rows = [summarize("self", [result(0, task=PartSegmentation, test=metrics)])]
        assert list(rows[0]["metrics"]) == ["instance_miou", "class_miou"]
        assert "| network | test instance mIoU, % | test class mIoU, % | runs |" in format_table(rows)
        assert "| self | 75.0 | 50.0 | 1 |" in format_table(rows)

    def test_lower_is_better(self) -> None:
        better, worse = ([result(0, task=NormalEstimation, test={"test/angle": angle})] for angle in (12.5, 30.0))
        table = format_table([summarize("worse", worse), summarize("better", better)])
        assert "| network | test angle error, ° | runs |" in table
        assert [line.split(" | ")[:2] for line in table.splitlines()[2:]] == [
            ["| better", "12.50"],
            ["| worse", "30.00"],
        ]

    def test_the_loss_if_there_is_nothing_else(self) -> None:
        row = summarize("self", [result(0, test={"test/loss": 1.0})])
        assert list(row["metrics"]) == ["loss"]

    def test_nothing_to_compare_by(self) -> None:
        with pytest.raises(InputError, match="one of loss, oa, macc, but got mine"):
            summarize("self", [result(0, test={"test/mine": 1.0})])


@torch.no_grad()
def test_all_points_are_those_of_the_data(tmp_path: Path) -> None:
    """Where a training takes all points of a cloud, a forward pass is counted with as many."""
    network = {"dim": 8, "depth": 1, "k": 2, "out_dim": 8}
    task = Classification(22, "spct", network_kwargs=network).eval()
    kwargs = {"num_train": 44, "num_test": 22, "num_points": 40}
    data = {"dataset": "shapes", "root": str(tmp_path / "shapes"), "dataset_kwargs": kwargs, "val_fraction": 0.25}
    stored = {
        "hyper_parameters": {**task.hparams, "_class_path": "pcattn.tasks.Classification"},
        "state_dict": task.state_dict(),
    }
    for num_points, expected in ((None, 40), (32, 32)):
        stored["datamodule_hyper_parameters"] = {**data, "num_points": num_points}
        torch.save(stored, tmp_path / "best.ckpt")
        multiply_adds = count_multiply_adds(lambda: task(torch.rand(1, expected, 3)))  # noqa: B023
        parameters = sum(parameter.numel() for parameter in task.network.parameters())
        assert _inspect(tmp_path / "best.ckpt") == {
            "task": Classification,
            "parameters": parameters,
            "multiply_adds": multiply_adds,
        }


class TestOptions:
    """What was trained is used again only by networks of the same options; no training is run here."""

    @pytest.fixture
    def trained(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
        """The options of every training; one of a network that is `wrong` fails."""
        began: list[list[str]] = []

        def train(config: str, seed: int, run: Path, options: list[str], lock: int | None) -> bool:
            began.append(options)
            if "wrong" in options:
                return False
            run.mkdir()
            (run / "results.json").write_text("{}")
            return True

        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(comparison, "_train", train)
        monkeypatch.setattr(comparison, "_read", lambda run: result(0.5))
        Path("some.yaml").write_text("{}")
        return began

    def test_a_name_keeps_its_options(self, trained: list[list[str]]) -> None:
        compare("some.yaml", {"mine": ["--depth", "0"]}, [0], Path("out"))
        with pytest.raises(ValueError, match=r"mine was trained there with --depth 0, but got --depth 4"):
            compare("some.yaml", {"mine": ["--depth", "4"]}, [1], Path("out"))
        assert compare("some.yaml", {"new": ["--depth", "4"]}, [0], Path("out"))[0]["network"] == "new"
        with pytest.raises(ValueError, match="mine was trained there"):  # also after a call without it
            compare("some.yaml", {"mine": ["--depth", "4"]}, [0], Path("out"))
        assert len(compare("some.yaml", {"mine": ["--depth", "0"], "new": ["--depth", "4"]}, [0], Path("out"))) == 2
        assert trained == [["--depth", "0"], ["--depth", "4"]]

    def test_one_that_never_trained_may_be_corrected(self, trained: list[list[str]]) -> None:
        assert compare("some.yaml", {"mine": ["wrong"]}, [0], Path("out")) == []
        assert len(compare("some.yaml", {"mine": ["right"]}, [0], Path("out"))) == 1

    def test_folder_of_an_earlier_version(self, trained: list[list[str]]) -> None:
        Path("out/mine-seed0").mkdir(parents=True)
        Path("out/mine-seed0/results.json").write_text("{}")
        Path("out/setting.json").write_text(json.dumps({"config": "{}", "options": []}))
        assert len(compare("some.yaml", {"mine": []}, [0], Path("out"))) == 1
        assert trained == []

    def test_one_at_a_time(self, trained: list[list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
        """A second comparison would take the trainings of the first for killed ones, and clear their folders."""
        monkeypatch.setattr(comparison, "exclusive_lock", partial(exclusive_lock, timeout=0.0))
        Path("out").mkdir()
        with exclusive_lock(Path("out")), pytest.raises(ValueError, match="out to be unused, but another process"):
            compare("some.yaml", {"mine": []}, [0], Path("out"))
        assert trained == []
        assert len(compare("some.yaml", {"mine": []}, [0], Path("out"))) == 1

    def test_repeated_seeds(self, trained: list[list[str]]) -> None:
        with pytest.raises(ValueError, match="expected seeds that differ, but got 0, 1, 0"):
            compare("some.yaml", {"mine": []}, [0, 1, 0], Path("out"))
        assert trained == []


class TestCommand:
    @pytest.mark.slow
    def test_trains_once_and_goes_on(self, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
        root = write_modelnet40(tmp_path / "data", train=(80,))
        config = write_tiny_config(tmp_path / "tiny.yaml", root)
        out = tmp_path / "out"
        args = ["-c", str(config), "--seeds", "0", "--out", str(out), "--trainer.max_epochs=1", "--attentions"]
        assert run([*args, "self"]) == 0
        finished = out / "self-seed0" / "results.json"
        before = finished.stat().st_mtime_ns
        assert run([*args, "self", "external"]) == 0
        assert finished.stat().st_mtime_ns == before
        rows = json.loads((out / "compare.json").read_text())
        assert [row["network"] for row in rows] == ["self", "external"]
        assert all(row["peak_mib"] > 50 and row["multiply_adds"] > 0 for row in rows)
        printed = capsys.readouterr().out
        assert (out / "compare.md").read_text().strip() in printed
        assert (out / "compare.png").read_bytes().startswith(b"\x89PNG")
        # Another budget does not mix with this one.
        assert run([*args, "self", "--model.lr=0.1"]) == 2
        assert "setting.json differs" in capsys.readouterr().err

    @pytest.mark.slow
    def test_parts_and_another_network(self, tmp_path: Path) -> None:
        """Part segmentation by the same code; the network beside the attentions is made by the options it is given."""
        kwargs = {"num_train": 44, "num_test": 22, "num_points": 64}
        data = {"dataset": "shapes", "root": str(tmp_path / "shapes"), "dataset_kwargs": kwargs, "num_points": 32}
        config, out = write_config(tmp_path / "parts.yaml", **data), tmp_path / "out"
        args = ["-c", str(config), "--seeds", "0", "--out", str(out), "--trainer.max_epochs=1", "--attentions", "self"]
        assert run([*args, "--also", "pointnet", "--model.variant spct --model.network_kwargs.depth 0"]) == 0
        rows = {row["network"]: row for row in json.loads((out / "compare.json").read_text())}
        assert list(rows) == ["self", "pointnet"]
        assert all(set(row["metrics"]) == {"instance_miou", "class_miou", "point_accuracy"} for row in rows.values())
        settings = yaml.safe_load((out / "pointnet-seed0" / "config.yaml").read_text())["model"]["init_args"]
        assert settings["variant"] == "spct"
        assert settings["network_kwargs"]["depth"] == 0

    def test_reports_a_failed_training(self, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
        root = write_modelnet40(tmp_path / "data", train=(80,))
        config = write_tiny_config(tmp_path / "tiny.yaml", root)
        out = tmp_path / "out"
        args = ["-c", str(config), "--seeds", "0", "--out", str(out), "--attentions"]
        assert run([*args, "--also", "nonsense", "--model.attention nonsense"]) == 1
        assert "nonsense, seed 0 failed" in capsys.readouterr().err
        assert "expected attention to be one of" in (out / "nonsense-seed0.log").read_text()

    def test_no_config(self, capsys: pytest.CaptureFixture) -> None:
        assert run(["-c", "no.yaml"]) == 2
        assert "no.yaml" in capsys.readouterr().err

    def test_no_network(self, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
        config = write_tiny_config(tmp_path / "tiny.yaml", tmp_path)
        assert run(["-c", str(config), "--attentions"]) == 2
        assert "expected at least one network" in capsys.readouterr().err
