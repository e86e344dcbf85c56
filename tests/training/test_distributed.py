"""Training in two processes (gloo, on the CPU), as the command line starts them."""

import csv
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from pytorch_lightning import Trainer
from torch import Tensor, nn

from pcattn.data.loader import EpochSampler
from pcattn.models import PCTClassifier
from pcattn.tasks import Classification
from pcattn.training import PointCloudDataModule
from pcattn.utils.errors import DatasetError
from tests.datasets.modelnet_files import write_modelnet40
from tests.tiny import write_tiny_config

# Two processes with the clouds on the device: each selects its own. One process reads them.
TWO = ["--trainer.devices=2", "--trainer.strategy=ddp", "--data.resident=true"]

OPTIONS = ["--model.optimizer=sgd", "--data.batch_size=20", "--data.eval_batch_size=15", "--final_test=false"]
OPTIONS += ["--trainer.max_epochs=1"]

#: A training whose process of a rank gets SIGTERM in its third step; they talk about it after every second.
STOPPED = """
import os, signal, sys
from pcattn.cli.main import main
from pcattn.training import checkpointing
from pcattn.tasks.base import PointCloudTask

rank = int(sys.argv[1])
checkpointing._SYNC_EVERY_N_STEPS = 2
original = PointCloudTask.on_train_batch_start

def start(self, batch, batch_idx):
    if batch_idx == 2 and self.global_rank == rank:
        os.kill(os.getpid(), signal.SIGTERM)
    original(self, batch, batch_idx)

PointCloudTask.on_train_batch_start = start
main(sys.argv[2:])
"""


def fit(folder: Path, *args: str) -> str:
    """Train in another process; what it said."""
    command = [sys.executable, "-m", "pcattn", "fit", "-c", "tiny.yaml", *OPTIONS, *args]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("distributed")
    write_tiny_config(folder / "tiny.yaml", write_modelnet40(folder / "data", train=(400,), test=()))
    return folder


@pytest.fixture(scope="module")
def said(folder: Path) -> str:
    return fit(folder, *TWO)


def parameters(run: Path) -> dict[str, Tensor]:
    path = run / "checkpoints" / "last.ckpt"
    return dict(Classification.load_from_checkpoint(path, weights_only=True).named_parameters())


@pytest.mark.slow
def test_the_first_process_speaks_and_writes(folder: Path, said: str) -> None:
    assert said.count("The run is in runs/tiny/") == 1
    assert [path.name for path in (folder / "runs").iterdir()] == ["tiny"]
    assert {path.name for path in (folder / "runs/tiny/checkpoints").iterdir()} == {"best.ckpt", "last.ckpt"}


@pytest.mark.slow
def test_same_steps_as_one_process(folder: Path, said: str) -> None:
    """That takes the batches of both one after the other: 18 batches, 9 steps."""
    fit(folder, "--trainer.accumulate_grad_batches=2", "--run=one")
    checkpoint = torch.load(folder / "runs/tiny/checkpoints/last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 9
    expected = parameters(folder / "one")
    for name, value in parameters(folder / "runs/tiny").items():
        torch.testing.assert_close(value, expected[name], rtol=1e-3, atol=1e-4, msg=name)


@pytest.mark.slow
def test_exact_metrics(folder: Path, said: str) -> None:
    """Of 40 clouds in batches of 15, one process has 25 and the other 15; one alone finds the same."""
    with (folder / "runs/tiny/metrics.csv").open() as file:
        (row,) = [row for row in csv.DictReader(file) if row["val/loss"]]
    task = Classification.load_from_checkpoint(folder / "runs/tiny/checkpoints/last.ckpt", weights_only=True)
    settings = yaml.safe_load((folder / "runs/tiny/config.yaml").read_text())
    data = PointCloudDataModule(**settings["data"])
    trainer = Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, use_distributed_sampler=False)
    (metrics,) = trainer.validate(task, data, verbose=False)
    assert int(task.last_confusion.sum()) == 40
    for name in ("val/loss", "val/oa", "val/macc"):
        assert metrics[name] == pytest.approx(float(row[name]), rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_stopped(rank: int, folder: Path, said: str) -> None:
    """By a signal to one of the processes: they save together, stop, and go on to the same weights."""
    (folder / "stopped.py").write_text(STOPPED)
    run = f"stopped-{rank}"
    options = ["fit", "-c", "tiny.yaml", *OPTIONS, *TWO, f"--run={run}"]
    command = [sys.executable, "stopped.py", str(rank), *options]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == (143 if rank == 0 else 130), done.stderr
    assert done.stderr.count("resume from the last checkpoint with") == 1
    assert "Traceback" not in done.stderr
    last = folder / run / "checkpoints" / "last.ckpt"
    assert torch.load(last, weights_only=True)["global_step"] == 4
    fit(folder, *TWO, f"--run={run}", "--ckpt_path=last")
    expected = parameters(folder / "runs/tiny")
    assert all(torch.equal(value, expected[name]) for name, value in parameters(folder / run).items())


@pytest.mark.parametrize(("num_clouds", "batch_size", "world_size"), [(7, 3, 2), (5, 8, 4), (9, 4, 3), (8, 8, 1)])
def test_every_process_evaluates_and_every_cloud_once(num_clouds: int, batch_size: int, world_size: int) -> None:
    seen = []
    for rank in range(world_size):
        sampler = EpochSampler(torch.arange(num_clouds), batch_size, 0, False, rank, world_size)
        batches = [indices for _, indices in sampler]
        assert len(batches) == len(sampler) > 0
        seen += torch.cat(batches).tolist()
    assert sorted(seen) == list(range(num_clouds))


@pytest.mark.parametrize(
    ("stage", "batch_size", "world_size", "message"),
    [
        ("train", 200, 2, "a train batch for each of 2 processes, but 360 clouds of modelnet40 make 1 of 200"),
        ("val", 200, 41, "a val batch for each of 41 processes, but 40 clouds of modelnet40 make 40 of 1"),
    ],
)
def test_fewer_batches_than_processes(stage: str, batch_size: int, world_size: int, message: str, folder: Path) -> None:
    """Are refused by each of them: those with a batch would wait for the others."""
    data = PointCloudDataModule(str(folder / "data"), "modelnet40", num_points=16, batch_size=batch_size)
    data.setup("fit")
    for rank in (0, world_size - 1):
        strategy = SimpleNamespace(root_device=torch.device("cpu"))
        data.trainer = SimpleNamespace(global_rank=rank, world_size=world_size, strategy=strategy)
        with pytest.raises(DatasetError, match=message):
            getattr(data, f"{stage}_dataloader")()


@pytest.mark.parametrize("attention", ["offset", "axial"])
def test_batch_normalization_can_be_synchronized(attention: str) -> None:
    """Lightning exchanges the modules (`sync_batchnorm`). The exchange of statistics itself needs GPUs."""
    network = PCTClassifier(4, "spct", attention, dim=16, depth=1, out_dim=16)
    pos = torch.randn(3, 32, 3)
    expected = network.eval()(pos)
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(network)
    assert any(isinstance(module, nn.SyncBatchNorm) for module in converted.modules())
    assert torch.equal(converted(pos), expected)
