"""The command line, driven as a user would, on small files in the layout of ModelNet40."""

import csv
import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml

from pcattn.cli.lightning import PointCloudCLI
from pcattn.cli.main import main
from pcattn.cli.messages import announce_compilation
from pcattn.inference import checkpoints
from pcattn.tasks import Classification
from pcattn.training import PointCloudDataModule
from tests.datasets.modelnet_files import write_modelnet40
from tests.datasets.shapenet_files import write_text
from tests.tiny import write_tiny_config

CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_modelnet40(tmp_path_factory.mktemp("data") / "modelnet40", train=(400, 400))


@pytest.fixture(scope="module")
def config(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_config(tmp_path_factory.mktemp("configs") / "tiny.yaml", root)


@pytest.fixture(autouse=True)
def _in_tmp_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def error_of(args: list[str], capsys: pytest.CaptureFixture) -> str:
    """The single line on stderr that a failing command ends with."""
    with pytest.raises(SystemExit) as exit_info:
        main(args)
    assert exit_info.value.code == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("pcattn: error: ")]
    assert len(lines) == 1
    return lines[0]


def last_line(out: str, start: str) -> str:
    return [line for line in out.splitlines() if line.startswith(start)][-1]


@pytest.fixture(scope="module")
def run(config: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run."""
    folder = tmp_path_factory.mktemp("fit") / "run"
    main(["fit", "-c", str(config), "--run", str(folder)])
    return folder


class TestFit:
    def test_files(self, run: Path) -> None:
        assert {path.name for path in (run / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt"}
        assert yaml.safe_load((run / "config.yaml").read_text())["model"]["init_args"]["variant"] == "pct"
        assert any((run / "tensorboard").iterdir())
        with (run / "metrics.csv").open() as file:
            rows = list(csv.DictReader(file))
        accuracies = [float(row["val/oa"]) for row in rows if row["val/oa"]]
        assert len(accuracies) == 3
        results = json.loads((run / "results.json").read_text())
        assert results["best"]["val/oa"] == pytest.approx(max(accuracies))
        assert 0 <= results["test"]["test/oa"] <= 1

    @pytest.mark.parametrize(("attention", "proposed"), [("offset", "external"), ("external", "offset")])
    def test_next_steps_work(self, attention: str, proposed: str, config: Path, capsys: pytest.CaptureFixture) -> None:
        short = ["--trainer.max_epochs=1", "--trainer.logger=false", "--final_test=false"]
        main(["fit", "-c", str(config), "--run=short", f"--model.attention={attention}", *short])
        out = capsys.readouterr().out
        assert f"fit -c short/config.yaml --model.attention {proposed}" in out
        assert "validate -c short/config.yaml" in out
        assert "tensorboard" not in out
        assert "metrics.csv" not in out

    def test_checkpoint_is_plain_data(self, run: Path) -> None:
        checkpoint = torch.load(run / "checkpoints" / "best.ckpt", weights_only=True)
        assert checkpoint["hyper_parameters"]["num_classes"] == 40
        assert checkpoint["datamodule_hyper_parameters"]["num_points"] == 32

    def test_test_and_validate_repeat_what_fit_reported(self, run: Path, capsys: pytest.CaptureFixture) -> None:
        results = json.loads((run / "results.json").read_text())
        main(["test", "-c", str(run / "config.yaml")])
        line = last_line(capsys.readouterr().out, "test: overall accuracy")
        assert line.split()[3] == f"{results['test']['test/oa']:.4f}"
        main(["validate", "-c", str(run / "config.yaml"), "--ckpt_path", "best", "--data.batch_size", "7"])
        line = last_line(capsys.readouterr().out, "val: overall accuracy")
        assert line.split()[3] == f"{results['best']['val/oa']:.4f}"

    def test_predict(self, run: Path) -> None:
        main(["predict", "-c", str(run / "config.yaml")])
        with (run / "predictions.csv").open() as file:
            rows = list(csv.DictReader(file))
        assert [int(row["index"]) for row in rows] == list(range(40))
        assert all(row["truth"] == f"class{int(row['index']) % 40:02d}" for row in rows)
        assert all(0 < float(row["probability"]) <= 1 for row in rows)
        results = json.loads((run / "results.json").read_text())
        right = sum(row["prediction"] == row["truth"] for row in rows)
        assert right / 40 == pytest.approx(results["test"]["test/oa"])

    def test_the_checkpoint_wins_and_says_so(self, run: Path, capsys: pytest.CaptureFixture) -> None:
        main(["validate", "-c", str(run / "config.yaml"), "--model.attention", "self"])
        assert "attention: None as in" in capsys.readouterr().out

    def test_loads_in_python(self, run: Path) -> None:
        from pcattn.tasks import Classification

        task = Classification.load_from_checkpoint(run / "checkpoints" / "best.ckpt", weights_only=True)
        assert task(torch.randn(2, 32, 3)).shape == (2, 40)

    def test_without_a_test_split(self, config: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
        root = write_modelnet40(tmp_path / "no_test", test=())
        main(["fit", "-c", str(config), "--data.root", str(root), "--trainer.max_epochs=1"])
        assert "test: left out: the test split of ModelNet40 not found" in capsys.readouterr().out
        assert (tmp_path / "runs" / "tiny" / "checkpoints" / "best.ckpt").is_file()


class TestWeights:
    """Weights alone, as `.safetensors`: evaluated, and the start of another training."""

    @pytest.fixture(scope="class")
    def weights(self, run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
        """Of the best checkpoint, without rounding."""
        checkpoint = checkpoints.read(checkpoints.find(run))
        path = tmp_path_factory.mktemp("weights") / "tiny-weights.safetensors"
        return checkpoints.save_weights(checkpoints.build(checkpoint), path, checkpoint.data, dtype="float32")

    @pytest.mark.parametrize("named", ["by path", "by name"])
    def test_evaluation(
        self,
        named: str,
        run: Path,
        weights: Path,
        root: Path,
        config: Path,
        capsys: pytest.CaptureFixture,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """The command that measures bundled weights; their options win over the configuration, and a line says so."""
        if named == "by name":
            monkeypatch.setattr(checkpoints, "bundled", {weights.stem: weights}.copy)
            weights = Path(weights.stem)
        results = json.loads((run / "results.json").read_text())
        args = ["-c", str(config), "--ckpt_path", str(weights), "--data.root", str(root)]
        main(["test", *args, "--model.network_kwargs.dim=24"])
        out = capsys.readouterr().out
        assert "'dim': 16" in next(line for line in out.splitlines() if line.startswith("network_kwargs: "))
        line = last_line(out, "test: overall accuracy").split()
        assert (line[3], line[-1]) == (f"{results['test']['test/oa']:.4f}", f"{results['test']['test/macc']:.4f}")
        main(["validate", *args])
        line = last_line(capsys.readouterr().out, "val: overall accuracy")
        assert line.split()[3] == f"{results['best']['val/oa']:.4f}"

    def test_start_of_another_training(
        self, weights: Path, tmp_path: Path, config: Path, capsys: pytest.CaptureFixture
    ) -> None:
        """Other classes: the last linear map keeps its start, all else is copied; resumption does not copy again."""
        args = ["-c", str(config), "--data.dataset=shapes", "--data.root", str(tmp_path / "shapes")]
        args += ["--data.dataset_kwargs={num_train: 66, num_test: 22, num_points: 64}", "--final_test=false"]
        first = ["--init_from", str(weights), "--model.lr=1e-12", "--model.min_lr=0"]
        main(["fit", *args, *first, "--trainer.max_epochs=1", "--run=tuned"])
        out = capsys.readouterr().out
        left = [line for line in out.splitlines() if line.startswith("  left out: ")]
        assert [line.split()[2] for line in left] == ["head.4.weight", "head.4.bias"]
        start, tuned = checkpoints.read(weights), checkpoints.read(checkpoints.find("tuned"))
        assert tuned.hyper_parameters["num_classes"] == 22
        for name, value in start.state.items():
            if name not in ("head.4.weight", "head.4.bias") and "running" not in name and "tracked" not in name:
                torch.testing.assert_close(tuned.state[name], value, rtol=0, atol=1e-9)
        saved = ["fit", "-c", "tuned/config.yaml", "--init_from=gone", "--ckpt_path=last", "--trainer.max_epochs=2"]
        main(saved)
        out = capsys.readouterr().out
        assert "left out" not in out
        assert "init_from: not used" in out
        assert checkpoints.read(Path("tuned/checkpoints/last.ckpt")).training["epochs"] == 2

    @pytest.mark.parametrize(
        ("args", "message"),
        [
            (["--init_from=gone"], "--init_from: expected a .ckpt or .safetensors file"),
            (["--init_from", "WEIGHTS", "--model.variant=spct", "--model.network_kwargs.dim=20"], "none fits"),
            (["--ckpt_path", "WEIGHTS"], "only weights: use --init_from"),
        ],
    )
    def test_errors(
        self, args: list[str], message: str, weights: Path, config: Path, capsys: pytest.CaptureFixture
    ) -> None:
        args = [str(weights) if arg == "WEIGHTS" else arg for arg in args]
        assert message in error_of(["fit", "-c", str(config), *args], capsys)
        assert not Path("runs/tiny").exists()


class TestErrors:
    """One readable line that names what is wrong, and exit status 2."""

    @pytest.mark.parametrize(
        ("args", "message"),
        [
            (["--model.attention", "ofset"], "did you mean 'offset'"),
            (["--model.atention", "self"], "'atention' is not "),
            (["--data.batchsize", "4"], "did you mean 'batch_size'"),
            (["--model.lr", "fast"], "Expected a <class 'float'>"),
            (["--data.root", "/nowhere"], "/nowhere, which does not exist"),
            (["--data.dataset", "modelnet04"], "did you mean 'modelnet40'"),
            (["--data.num_points", "65"], "at most 64"),
            (["--data.features", "[normals]"], "expected normals"),
            (["--data.augmentation", "[{scale: {lo: 1}}]"], "low, high"),
            (["--data.augmentation", "[{scale: 0.5}]"], "expected arguments"),
            (["--data.augmentation", "[{scale: {low: a}}]"], "augmentation step 'scale'"),
            (["--data.dataset_kwargs", "{train: false}"], "without train"),
            (["--data.batch_size", "1"], "batch_size >= 2"),
            (["--data.num_points", "6"], "at least 8 points"),
            (["--model.network_kwargs.k", "40"], "at least 80 points"),
            (["--model.network_kwargs.k", "2.5"], "k to be an integer"),
            (["--model.network_kwargs.depth", "-1"], "depth to be an integer >= 0"),
            (["--model.network_kwargs.dim", "0"], "multiple of 4"),
            (["--model.label_smoothing", "0.99"], "label_smoothing <= 0.975"),
            (["--checkpoint.monitor", "val/accuracy"], "val/oa"),
            (["--checkpoint.minutes", "-1"], "v>=0"),
            (["--run", "/dev/null/run"], "/dev/null/run"),
            pytest.param(
                ["--trainer.accelerator", "gpu"],
                "gpu",
                marks=pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU"),
            ),
            (["--run", "."], "a run with a name, but got ."),
            (["--trainer.max_epochs", "-1", "--trainer.max_time", "00:00:01:00"], "max_epochs or max_steps"),
            (["--trainer.limit_train_batches", "0"], "limit_train_batches"),
            (["--trainer.val_check_interval", "1000"], "expected --trainer.val_check_interval of at most 22"),
            (["--trainer.accumulate_grad_batches", "0"], "accumulate_grad_batches"),
            (["--ckpt_path", "last"], "there is none"),
            (["--ckpt_path", "no/such/file.ckpt"], "best, last or a file"),
        ],
    )
    def test_options(self, config: Path, args: list[str], message: str, capsys: pytest.CaptureFixture) -> None:
        assert message in error_of(["fit", "-c", str(config), *args], capsys)
        assert not Path("runs/tiny").exists()  # nothing is left of a run that never was

    def test_config_typo(self, config: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
        typo = tmp_path / "typo.yaml"
        typo.write_text(config.read_text().replace("num_points", "num_point"))
        assert "num_point" in error_of(["fit", "-c", str(typo)], capsys)

    def test_no_such_config(self, capsys: pytest.CaptureFixture) -> None:
        assert "got 'no.yaml'" in error_of(["fit", "-c", "no.yaml"], capsys)
        assert "did you mean 'smoke'" in error_of(["fit", "-c", "smok"], capsys)

    def test_no_config(self, capsys: pytest.CaptureFixture) -> None:
        assert "pcattn fit -c smoke" in error_of(["fit"], capsys)

    def test_not_a_checkpoint(self, config: Path, capsys: pytest.CaptureFixture) -> None:
        Path("fake.ckpt").write_text("not a checkpoint")
        assert "expected fake.ckpt to hold tensors" in error_of(
            ["test", "-c", str(config), "--ckpt_path", "fake.ckpt"], capsys
        )

    def test_checkpoint_of_other_data(self, config: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
        main(["fit", "-c", str(config), "--trainer.max_epochs=1", "--final_test=false"])
        args = ["--data.dataset=shapes", "--data.root", str(tmp_path), "--ckpt_path=runs/tiny/checkpoints/best.ckpt"]
        assert "num_classes 40 as in the checkpoint" in error_of(["validate", "-c", str(config), *args], capsys)

    def test_checkpoint_of_another_task(self, config: Path, run: Path, capsys: pytest.CaptureFixture) -> None:
        args = ["--ckpt_path", str(run), "--model=PartSegmentation", "--data.per_point=true"]
        error = error_of(["test", "-c", str(config), *args], capsys)
        assert "of a network for PartSegmentation" in error
        assert "of one for Classification" in error


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_configs_are_valid(path: Path, root: Path, capsys: pytest.CaptureFixture) -> None:
    """Each builds its model and data: `--print_config` parses, one step runs on stand-in data of the same layout."""
    args = ["fit", "-c", str(path), "--trainer.fast_dev_run=1", "--trainer.accelerator=cpu", "--data.batch_size=2"]
    settings = yaml.safe_load(path.read_text())
    if settings["data"]["dataset"] == "modelnet40":
        args += ["--data.root", str(root), "--data.num_points=64"]
        if settings["model"]["init_args"]["variant"] == "pct":
            args += ["--model.network_kwargs.k=8"]
    elif settings["data"]["dataset"] == "shapenetpart":
        args += ["--data.root", str(write_text(Path("shapenet"))), "--data.num_points=32"]
    else:
        args += ["--data.dataset_kwargs={num_train: 88, num_test: 22, num_points: 256}", "--data.root=shapes"]
    main(args)


def test_speed_and_a_score_of_zero(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock on which a training batch takes a second and a validation batch five: validations do not count."""
    now = 0.0

    def takes(seconds: float, function: Callable) -> Callable:
        def timed(*args: object) -> object:
            nonlocal now
            now += seconds
            return function(*args)

        return timed

    def zeros(self: Classification, split: str) -> dict[str, torch.Tensor]:
        return {f"{split}/{name}": torch.tensor(0.0) for name in self.METRICS}

    monkeypatch.setattr(time, "monotonic", lambda: now)
    monkeypatch.setattr(Classification, "training_step", takes(1.0, Classification.training_step))
    monkeypatch.setattr(Classification, "evaluate", takes(5.0, Classification.evaluate))
    monkeypatch.setattr(Classification, "compute_metrics", zeros)
    monkeypatch.setattr(PointCloudCLI, "_draw", lambda self: [])
    args = ["--final_test=false", "--data.batch_size=40", "--run=run"]
    main(["fit", "-c", str(config), "--trainer.max_epochs=2", *args])
    results = json.loads(Path("run/results.json").read_text())
    assert results == {"clouds_per_second": 40, "best": {"val/oa": 0}}
    main(["fit", "-c", "run/config.yaml", "--trainer.max_epochs=3", "--ckpt_path=last"])
    assert json.loads(Path("run/results.json").read_text()) == results


def test_a_limit_of_time(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock on which a training batch takes a second; the epoch in which it runs out is completed."""
    now = 0.0
    step = Classification.training_step

    def second(*args: object) -> object:
        nonlocal now
        now += 1.0
        return step(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(time, "monotonic", lambda: now)
    monkeypatch.setattr(Classification, "training_step", second)
    monkeypatch.setattr(PointCloudCLI, "_draw", lambda self: [])
    args = ["fit", "-c", str(config), "--run=run", "--final_test=false", "--trainer.max_time=00:00:00:25"]
    main([*args, "--trainer.limit_train_batches=3", "--trainer.max_epochs=20"])
    assert torch.load("run/checkpoints/last.ckpt", weights_only=True)["global_step"] == 27
    assert yaml.safe_load(Path("run/config.yaml").read_text())["trainer"]["max_time"] == "00:00:00:25"


def test_no_steps(config: Path, capsys: pytest.CaptureFixture) -> None:
    main(["fit", "-c", str(config), "--run=run", "--trainer.max_epochs=0"])
    assert "no step was taken" in capsys.readouterr().out
    assert not Path("run").exists()


def test_interrupted_before_the_training(
    config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def interrupt(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(PointCloudDataModule, "setup", interrupt)
    with pytest.raises(SystemExit) as stop:
        main(["fit", "-c", str(config), "--run=run"])
    assert stop.value.code == 130
    assert capsys.readouterr().err.endswith("\ninterrupted\n")
    assert not Path("run").exists()


def test_a_line_an_epoch_without_a_terminal(config: Path, capsys: pytest.CaptureFixture) -> None:
    options = ["--trainer.max_epochs=2", "--trainer.logger=false", "--final_test=false"]
    main(["fit", "-c", str(config), "--trainer.enable_progress_bar=null", "--run=quiet", *options])
    out = capsys.readouterr().out
    lines = [line for line in out.splitlines() if line.startswith("epoch ")]
    assert [line.partition(":")[0] for line in lines] == ["epoch 1 of 2", "epoch 2 of 2"]
    assert all(name in line for line in lines for name in ("train/loss", "val/loss", "val/oa"))
    assert "it/s" not in out


def test_names_of_other_libraries(config: Path, capsys: pytest.CaptureFixture) -> None:
    message = error_of(["fit", "-c", str(config), "--model.learning_rate", "0.1"], capsys)
    assert message.endswith("(did you mean 'lr'?)")


def test_compilation_is_announced(capsys: pytest.CaptureFixture) -> None:
    with announce_compilation(delay=0.0):
        time.sleep(0.2)
    assert "compiling kernels" in capsys.readouterr().err
    with announce_compilation(delay=60.0):
        pass
    assert capsys.readouterr().err == ""
