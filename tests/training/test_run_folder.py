"""Run folders: which run a command speaks of, that none is overwritten, and that an interrupted one goes on."""

import csv
import json
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from pytorch_lightning import Callback, LightningModule, Trainer

from pcattn.cli import lightning
from pcattn.cli.main import main
from pcattn.training import run_folder
from pcattn.utils.locks import exclusive_lock
from tests.datasets.modelnet_files import write_modelnet40
from tests.tiny import write_tiny_config
from tests.waiting import wait_until

BATCHES = 22  # of an epoch: 720 training clouds by 32


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("files")
    return str(write_tiny_config(folder / "tiny.yaml", write_modelnet40(folder / "data", train=(400, 400))))


@pytest.fixture(autouse=True)
def _in_tmp_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def checkpoint(run: str, name: str = "last") -> dict[str, Any]:
    return torch.load(run_folder.checkpoint_path(Path(run), name), weights_only=True)


def results(run: str) -> dict[str, Any]:
    return json.loads(Path(run, "results.json").read_text())


def same_weights(first: str, second: str, key: str = "state_dict") -> bool:
    states = [checkpoint(run)[key] for run in (first, second)]
    return all(torch.equal(value, states[1][name]) for name, value in states[0].items())


def test_reserve_is_exclusive(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        taken = list(pool.map(lambda _: run_folder.reserve(tmp_path / "a"), range(16)))
    assert len(set(taken)) == 16
    assert {path.name for path in taken} == {"a", *(f"a.{number}" for number in range(2, 17))}


def test_latest_knows_its_own_siblings_only(tmp_path: Path) -> None:
    for age, name in enumerate(["pct", "pct.2", "pct-2048", "pct.x", "apct"]):
        file = run_folder.checkpoint_path(tmp_path / name, "best")
        file.parent.mkdir(parents=True)
        file.touch()
        os.utime(file, (age, age))
    assert run_folder.latest(tmp_path / "pct", "best") == tmp_path / "pct.2"
    assert run_folder.latest(tmp_path / "pct", "last") is None


class TestTwoRunsOfOneConfiguration:
    @pytest.fixture(autouse=True)
    def _two_runs(self, config: str) -> None:
        main(["fit", "-c", config, "--trainer.max_epochs=1"])
        main(["fit", "-c", config, "--trainer.max_epochs=1", "--model.attention=external"])

    def evaluated(self, args: list[str], capsys: pytest.CaptureFixture) -> str:
        capsys.readouterr()
        main(args)
        return next(line for line in capsys.readouterr().out.splitlines() if "overall accuracy" in line)

    @pytest.mark.slow
    def test_which_is_meant(self, config: str, capsys: pytest.CaptureFixture) -> None:
        assert {path.name for path in Path("runs").iterdir()} == {"tiny", "tiny.2"}
        main(["validate", "-c", config])
        assert "best checkpoint of runs/tiny.2, the latest run of runs/tiny*" in capsys.readouterr().out
        for run in ("runs/tiny", "runs/tiny.2"):
            line = self.evaluated(["test", "-c", f"{run}/config.yaml"], capsys)
            assert f"accuracy {results(run)['test']['test/oa']:.4f}" in line
        main(["fit", "-c", "runs/tiny/config.yaml", "--ckpt_path=last", "--trainer.max_epochs=2"])
        assert checkpoint("runs/tiny")["epoch"] == 1
        assert checkpoint("runs/tiny.2")["epoch"] == 0
        # What the saved configuration says is a training and not how one was resumed: it starts a new run.
        saved = yaml.safe_load(Path("runs/tiny/config.yaml").read_text())
        assert saved["ckpt_path"] is None
        before = run_folder.checkpoint_path(Path("runs/tiny"), "last").read_bytes()
        main(["fit", "-c", "runs/tiny/config.yaml", "--model.attention=self", "--trainer.max_epochs=1"])
        assert run_folder.checkpoint_path(Path("runs/tiny"), "last").read_bytes() == before
        assert checkpoint("runs/tiny.3")["hyper_parameters"]["attention"] == "self"
        # A run that was moved is still itself.
        Path("runs/tiny").rename("moved")
        line = self.evaluated(["test", "-c", "moved/config.yaml"], capsys)
        assert f"accuracy {results('moved')['test']['test/oa']:.4f}" in line

    @pytest.mark.slow
    def test_weights_from_elsewhere_start_a_new_run(self, config: str) -> None:
        weights = Path("weights.ckpt")
        weights.write_bytes(run_folder.checkpoint_path(Path("runs/tiny"), "last").read_bytes())
        before = {path: path.read_bytes() for path in Path("runs/tiny").rglob("*") if path.is_file()}
        main(["fit", "-c", config, "--ckpt_path", str(weights), "--trainer.max_epochs=2"])
        assert {path: path.read_bytes() for path in Path("runs/tiny").rglob("*") if path.is_file()} == before
        assert checkpoint("runs/tiny.3")["epoch"] == 1


class TestResumption:
    def test_last_is_the_last_epoch_and_best_the_best(self, config: str) -> None:
        """Also when validation gets no better: here the best is the lowest accuracy."""
        main(["fit", "-c", config, "--checkpoint.mode=min", "--run=run"])
        assert checkpoint("run")["global_step"] == 3 * BATCHES
        with open("run/metrics.csv") as file:
            accuracies = [float(row["val/oa"]) for row in csv.DictReader(file) if row["val/oa"]]
        assert results("run")["best"]["val/oa"] == pytest.approx(min(accuracies))

    @pytest.mark.slow
    def test_in_the_middle_of_a_schedule(self, config: str) -> None:
        """Options of the first call are those of the second, whatever path leads to the run; data and seed too."""
        options = ["--seed_everything=7", "--data.batch_size=48", "--data.split_seed=5"]
        main(["fit", "-c", config, "--run=whole", *options])
        main(
            [
                "fit",
                "-c",
                config,
                "--run=part",
                *options,
                "--trainer.callbacks+=tests.training.test_run_folder.StopAfterTwo",
            ]
        )
        main(["fit", "-c", config, "--run", str(Path("part").absolute()), "--ckpt_path=last"])
        assert same_weights("whole", "part")
        for name in ("best", "test"):
            assert results("whole")[name] == results("part")[name]

    def test_one_that_still_goes_on_is_left_alone(
        self, config: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
    ) -> None:
        monkeypatch.setattr(lightning, "exclusive_lock", partial(exclusive_lock, timeout=0.0))
        main(["fit", "-c", config, "--run=run", "--trainer.max_epochs=1", "--final_test=false"])
        before = {path: path.read_bytes() for path in Path("run").rglob("*") if path.is_file()}
        with exclusive_lock(Path("run")), pytest.raises(SystemExit) as stop:
            main(["fit", "-c", config, "--run=run", "--ckpt_path=last", "--trainer.max_epochs=2"])
        assert stop.value.code == 2
        assert "pcattn: error: expected run to be unused" in capsys.readouterr().err
        assert {path: path.read_bytes() for path in Path("run").rglob("*") if path.is_file()} == before

    @pytest.mark.slow
    def test_of_a_killed_run_is_bit_identical(self, config: str) -> None:
        args = ["fit", "-c", config, "--trainer.max_epochs=6", "--model.ema_decay=0.99"]
        main([*args, "--run=whole"])
        with start([*args, "--run=killed"]) as process:
            wait_for_epochs(Path("killed"), 3, process)
            process.send_signal(signal.SIGKILL)
        assert process.returncode == -signal.SIGKILL
        assert not Path("killed/results.json").exists()
        main([*args, "--run=killed", "--ckpt_path=last"])
        assert checkpoint("killed")["global_step"] == 6 * BATCHES
        assert same_weights("whole", "killed")
        assert same_weights("whole", "killed", "current_model_state")
        for name in ("best", "test"):
            assert results("whole")[name] == results("killed")[name]
        assert Path("killed/metrics.csv").read_text() == Path("whole/metrics.csv").read_text()

    @pytest.mark.parametrize(
        ("sent", "status"), [(signal.SIGINT, 130), pytest.param(signal.SIGTERM, 143, marks=pytest.mark.slow)]
    )
    def test_signals(self, config: str, sent: signal.Signals, status: int) -> None:
        with start(["fit", "-c", config, "--trainer.max_epochs=200", "--run=run"]) as process:
            wait_for_epochs(Path("run"), 2, process)
            process.send_signal(sent)
            _, err = process.communicate()
        assert process.returncode == status
        assert "fit -c run/config.yaml --ckpt_path last" in err


class StopAfterTwo(Callback):
    """Ends a training of three epochs after two, as a time limit would."""

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        trainer.should_stop = trainer.current_epoch == 1


def start(args: list[str]) -> subprocess.Popen:
    command = [sys.executable, "-m", "pcattn", *args]
    # A shell's background jobs ignore Ctrl-C, and so would this one.
    listen = partial(signal.signal, signal.SIGINT, signal.default_int_handler)
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, preexec_fn=listen)


def wait_for_epochs(run: Path, epochs: int, process: subprocess.Popen) -> None:
    """Until the log has that many validations. The checkpoints of all of them but the last are complete then."""

    def validated() -> bool:
        if not (run / "metrics.csv").is_file():
            return False
        with (run / "metrics.csv").open() as file:
            return sum(bool(row.get("val/oa")) for row in csv.DictReader(file)) >= epochs

    wait_until(validated, process)
