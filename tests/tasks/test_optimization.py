"""Averaged weights, gradient clipping, precision and compilation, in training runs of a few steps."""

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils._python_dispatch import TorchDispatchMode

from pcattn.attention import ATTENTION
from pcattn.models import PCTClassifier, PCTSegmenter
from pcattn.tasks import Classification, PartSegmentation
from pcattn.tasks.optimization import compile_network
from pcattn.training import PointCloudDataModule
from tests.datasets.modelnet_files import write_modelnet40

DECAY = 0.5


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_modelnet40(tmp_path_factory.mktemp("data") / "modelnet40", train=(160,), num_points=16)


def train(root: Path, folder: Path, *callbacks: Callback, **options) -> tuple[Trainer, Classification]:
    """Two epochs of three steps."""
    torch.manual_seed(0)
    data = PointCloudDataModule(str(root), "modelnet40", num_points=16, batch_size=40)
    network = {"dim": 8, "depth": 1, "out_dim": 16}
    of_trainer = {name: options.pop(name) for name in ("gradient_clip_val", "precision") if name in options}
    task = Classification(40, variant="spct", network_kwargs=network, min_lr=0.0, weight_decay=0.0, **options)
    trainer = Trainer(
        max_epochs=2,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
        default_root_dir=folder,
        **of_trainer,
        callbacks=[*callbacks],
    )
    trainer.fit(task, data)
    return trainer, task


def copy(task: LightningModule) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in task.state_dict().items()}


class Record(Callback):
    """Weights after every step, and those that validation works with."""

    def __init__(self) -> None:
        self.after_step: list[dict[str, Tensor]] = []
        self.validated: list[dict[str, Tensor]] = []

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: object) -> None:
        self.after_step.append(copy(pl_module))

    def on_validation_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: object) -> None:
        self.validated.append(copy(pl_module))


class TestAveragedWeights:
    def test_formula(self, root: Path, tmp_path: Path) -> None:
        """Weights and running statistics are averaged, counters are not; validation and checkpoints see the average."""
        record = Record()
        trainer, task = train(root, tmp_path, record, ema_decay=DECAY)
        assert len(record.after_step) == 6
        average = record.after_step[0]
        averages = []
        for step, weights in enumerate(record.after_step):
            decay = min(DECAY, (1 + step) / (10 + step)) if step else 0.0
            average = {
                name: decay * average[name] + (1 - decay) * value if value.is_floating_point() else value
                for name, value in weights.items()
            }
            averages.append(average)
        assert any("running_var" in name for name in average)
        torch.testing.assert_close(record.validated[0], averages[2])
        torch.testing.assert_close(record.validated[-1], averages[5])
        torch.testing.assert_close(copy(task), averages[5])  # what a training leaves behind
        path = trainer.checkpoint_callback.best_model_path
        checkpoint = torch.load(path, weights_only=True)
        torch.testing.assert_close(checkpoint["state_dict"], averages[5])
        torch.testing.assert_close(checkpoint["current_model_state"], record.after_step[5])
        assert "ema_decay" in checkpoint["hyper_parameters"]
        trainer.validate(task, trainer.datamodule, path, verbose=False, weights_only=True)
        torch.testing.assert_close(copy(task), averages[5])
        torch.testing.assert_close(copy(Classification.load_from_checkpoint(path, weights_only=True)), averages[5])

    def test_training_itself_is_not_changed(self, root: Path, tmp_path: Path) -> None:
        plain, averaged = Record(), Record()
        train(root, tmp_path, plain)
        train(root, tmp_path, averaged, ema_decay=DECAY)
        torch.testing.assert_close(averaged.after_step, plain.after_step, rtol=0, atol=0)

    @pytest.mark.parametrize("decay", [1.0, -0.1])
    def test_range(self, decay: float) -> None:
        with pytest.raises(ValueError, match=f"0 <= ema_decay < 1, but got {decay}"):
            Classification(4, ema_decay=decay)


def test_gradients_are_clipped(root: Path, tmp_path: Path) -> None:
    """A step of SGD is the learning rate times the gradient, whose norm is bounded."""
    record = Record()
    _, task = train(root, tmp_path, record, momentum=0.0, gradient_clip_val=1e-3)
    for before, after in zip(record.after_step, record.after_step[1:], strict=False):
        moved = torch.cat([(after[name] - before[name]).flatten() for name, _ in task.named_parameters()]).norm()
        assert 0 < moved <= 0.01 * 1e-3 * 1.1


def test_bfloat16(root: Path, tmp_path: Path) -> None:
    """Weights stay in float32; what they become differs by the rounding."""
    full, half = Record(), Record()
    train(root, tmp_path, full)
    train(root, tmp_path, half, precision="bf16-mixed")
    for name, expected in full.after_step[0].items():
        assert half.after_step[0][name].dtype == expected.dtype
        torch.testing.assert_close(half.after_step[0][name], expected, rtol=0.05, atol=0.02)
    assert not torch.equal(half.after_step[0]["network.head.4.weight"], full.after_step[0]["network.head.4.weight"])


class Searches(TorchDispatchMode):
    """Keeps the types of the positions that neighbor search and sampling are given, and what they find."""

    def __init__(self) -> None:
        super().__init__()
        self.dtypes: set[torch.dtype] = set()
        self.found: list[Tensor] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if func.name().startswith(("pcattn::knn", "pcattn::farthest")):
            self.dtypes |= {x.dtype for x in args if isinstance(x, Tensor) and x.is_floating_point()}
            self.found += [x for x in (result if isinstance(result, tuple) else (result,)) if x.dtype == torch.int64]
        return result


@pytest.mark.parametrize("attention", ["offset", "acmix", "neighborhood"])
def test_searches_and_statistics_stay_exact_in_bfloat16(attention: str) -> None:
    """A step under autocast finds the same neighbors; batch statistics are kept in float32."""
    pos = 0.01 * torch.randn(4, 64, 3) + torch.tensor([1.0, 2.0, 3.0])  # bfloat16 would see a few places
    found, statistics = [], []
    for enabled in (False, True):
        torch.manual_seed(0)
        network = PCTClassifier(4, attention=attention, dim=16, depth=1, k=4, out_dim=16, dropout=0.0)
        with Searches() as searches, torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            loss = nn.functional.cross_entropy(network(pos), torch.arange(4))
        loss.backward()
        assert searches.dtypes == {torch.float32}
        assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in network.parameters())
        found.append(searches.found)
        assert all(b.dtype == torch.float32 for name, b in network.named_buffers() if "running" in name)
        statistics.append(network.backbone.embedding.lbr[0].norm.running_mean)
    assert len(found[0]) >= 4
    assert all(torch.equal(*pair) for pair in zip(*found, strict=True))
    torch.testing.assert_close(statistics[1], statistics[0], rtol=0.01, atol=0.001)


class TestCompilation:
    @pytest.mark.parametrize("attention", ATTENTION)
    def test_one_graph(self, attention: str) -> None:
        """Without a break, whatever the attention."""
        torch.compiler.reset()
        network = PCTClassifier(4, "spct", attention, dim=16, depth=1, out_dim=16)
        compiled = torch.compile(network, fullgraph=True, backend="eager", dynamic=False)
        assert compiled(torch.randn(4, 32, 3)).requires_grad

    def test_one_graph_of_pct(self) -> None:
        """Local aggregation included; in evaluation, where the last batch is smaller, as well."""
        torch.compiler.reset()
        network = PCTClassifier(4, dim=16, depth=1, k=4, out_dim=16)
        compiled = torch.compile(network, fullgraph=True, backend="eager", dynamic=False)
        compiled(torch.randn(4, 64, 3)).sum().backward()
        with torch.no_grad():
            torch.testing.assert_close(compiled.eval()(pos := torch.randn(3, 64, 3)), network.eval()(pos))

    def test_one_graph_of_a_segmenter(self) -> None:
        torch.compiler.reset()
        network = PCTSegmenter(5, 2, "pct_sampled", dim=16, depth=1, out_dim=16, k=4)
        compiled = torch.compile(network, fullgraph=True, backend="eager", dynamic=False)
        compiled(torch.randn(2, 64, 3), torch.tensor([0, 1])).sum().backward()

    def test_same_gradients(self) -> None:
        torch.compiler.reset()
        network = PCTClassifier(4, dim=8, depth=1, k=4, out_dim=16, dropout=0.0).double()
        pos = torch.randn(4, 16, 3, dtype=torch.float64)
        gradients = []
        for run in (network, torch.compile(network, fullgraph=True, backend="aot_eager")):
            gradients.append(torch.autograd.grad(run(pos).square().sum(), list(network.parameters())))
        torch.testing.assert_close(*gradients, rtol=1e-6, atol=1e-8)

    def test_without_a_compiler(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setenv("PATH", str(tmp_path))
        monkeypatch.delenv("CXX", raising=False)
        network = PCTClassifier(4, "spct", dim=8, depth=1, out_dim=16)
        with pytest.warns(
            UserWarning, match=r"needs a C\+\+ compiler, but .* is not found: running uncompiled"
        ) as told:
            compile_network(network, True, "cpu")
        assert len(told) == 1
        assert network(torch.randn(2, 16, 3)).shape == (2, 4)

    @pytest.mark.parametrize(("mode", "expected"), [(True, "default"), ("reduce-overhead", "reduce-overhead")])
    @pytest.mark.parametrize(
        ("variant", "device", "there_is_a_gpu", "pays"),
        [
            ("pct", "cuda", True, True),
            ("pct", "cpu", True, False),  # trainer.accelerator: cpu
            ("pct", "cpu", False, False),
            ("spct", "cpu", False, True),
        ],
    )
    def test_where_it_pays(
        self,
        variant: str,
        device: str,
        there_is_a_gpu: bool,
        pays: bool,
        mode: bool | str,
        expected: str,
        monkeypatch: pytest.MonkeyPatch,
        recwarn: pytest.WarningsRecorder,
    ) -> None:
        """Once, on the device of the trainer, and with the compiler that `CXX` names, arguments and all."""
        asked: list[dict] = []
        monkeypatch.setenv("CXX", f"{sys.executable} -some -arguments")
        monkeypatch.setattr(torch.cuda, "is_available", lambda: there_is_a_gpu)
        monkeypatch.setattr(nn.Module, "compile", lambda module, **options: asked.append(options))
        task = PartSegmentation([[0, 1]], variant=variant, compile=mode)
        assert asked == []
        task._trainer = SimpleNamespace(strategy=SimpleNamespace(root_device=torch.device(device)))  # type: ignore[assignment]
        for stage in ("fit", "test"):
            task.setup(stage)
        assert asked == [{"mode": expected, "dynamic": False}] * pays
        why = f"compile: {str(mode).lower()} is for GPUs if a network has local aggregation"
        assert [str(warning.message).startswith(why) for warning in recwarn] == [True] * (not pays)

    def test_mode(self) -> None:
        with pytest.raises(ValueError, match=r"expected compile to be .* default, reduce-overhead, .* but got 'fast'"):
            Classification(4, variant="spct", compile="fast")


class TestWarmUp:
    """Lasts as many epochs as it says, however the training is limited."""

    @pytest.mark.parametrize(
        "limits",
        [{"max_epochs": 9}, {"max_epochs": 9, "max_steps": 10}, {"max_epochs": -1, "max_steps": 10}],
    )
    @pytest.mark.parametrize("accumulated", [1, 2])
    def test_in_epochs(self, root: Path, limits: dict[str, int], accumulated: int) -> None:
        epoch = 3 if accumulated == 1 else 2  # of 120 clouds in batches of 40
        factors = schedule(root, warmup_epochs=2.0, accumulate_grad_batches=accumulated, **limits).lr_lambdas[0]
        assert [factors(step) for step in range(2 * epoch + 1)] == [
            *((step + 1) / (2 * epoch) for step in range(2 * epoch)),
            1.0,
        ]

    def test_a_training_without_an_end(self, root: Path) -> None:
        with pytest.raises(ValueError, match="expected max_epochs or max_steps of the trainer"):
            schedule(root, max_epochs=-1)


def schedule(root: Path, warmup_epochs: float = 0.0, **limits: int) -> LambdaLR:
    """That of a training of 120 clouds, which stops before its first step."""
    data = PointCloudDataModule(str(root), "modelnet40", num_points=16, batch_size=40)
    task = Classification(40, variant="spct", network_kwargs={"dim": 8}, warmup_epochs=warmup_epochs)
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    trainer = Trainer(accelerator="cpu", logger=False, use_distributed_sampler=False, **quiet, **limits)
    found = []

    class Stop(Callback):
        def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
            found.append(trainer.lr_scheduler_configs[0].scheduler)
            raise KeyboardInterrupt

    trainer.callbacks.append(Stop())
    with pytest.raises(SystemExit):
        trainer.fit(task, data)
    return found[0]
