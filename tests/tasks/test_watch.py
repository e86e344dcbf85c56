"""Numbers that are not finite stop a training with the right batch, also where they are noticed one step late."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor
from torch.utils.data import DataLoader

from pcattn.data import PointBatch
from pcattn.tasks import Classification, PartSegmentation
from pcattn.tasks import watch as module
from pcattn.tasks.watch import FiniteWatch, NonFiniteError

NETWORK = {"dim": 8, "depth": 1, "out_dim": 16}


class Flag:
    """What a GPU has computed: not on the CPU, and known later."""

    device = torch.device("cuda")

    def __init__(self, value: bool) -> None:
        self.value = value


@pytest.fixture
def late(monkeypatch: pytest.MonkeyPatch) -> None:
    """Flags as on a GPU: each is read when the next is seen."""
    see = FiniteWatch.see
    monkeypatch.setattr(module, "read_later", lambda flag: lambda: flag.value)
    monkeypatch.setattr(FiniteWatch, "see", lambda self, flag, explain: see(self, Flag(bool(flag)), explain))


def batches(spoiled: int) -> list[PointBatch]:
    """Three batches of four clouds, one of which leads to a loss that is NaN."""
    made = []
    for seed in range(3):
        index = torch.arange(4)
        pos = torch.randn(4, 16, 3)
        if seed == spoiled:
            pos[2] = torch.nan
        made.append(PointBatch(pos, None, index, None, index + 10 * seed, seed))
    return made


class Unchecked(torch.nn.Module):
    """A network that ignores its input."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(3, 4)

    def forward(self, pos: Tensor, features: Tensor | None = None) -> Tensor:
        return self.linear(pos).mean(dim=1)


def fit(folder: Path, spoiled: int, callbacks: list[Callback] | None = None) -> Classification:
    task = Classification(4, "spct", network_kwargs=NETWORK, optimizer="adamw")
    task.network = Unchecked()
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=1,
        default_root_dir=folder,
        enable_checkpointing=False,
        callbacks=callbacks,
        **quiet,
    )
    trainer.fit(task, DataLoader(batches(spoiled), batch_size=None))
    return task


class Steps(Callback):
    """Counts steps that were begun, and saves a checkpoint after the last."""

    def __init__(self) -> None:
        self.begun = 0

    def on_train_batch_start(self, *args: object) -> None:
        self.begun += 1


class TestWatch:
    def test_on_the_cpu_at_once(self) -> None:
        watch = FiniteWatch()
        watch.see(torch.tensor(True), lambda late: "never")
        with pytest.raises(NonFiniteError, match="step 1, late False"):
            watch.see(torch.tensor(False), lambda late: f"step 1, late {late}")
        watch.flush()  # told once

    def test_elsewhere_with_the_next_one(self, late: None) -> None:
        watch = FiniteWatch()
        watch.see(torch.tensor(True), lambda late: "never")
        watch.see(torch.tensor(False), lambda late: f"step 1, late {late}")
        with pytest.raises(NonFiniteError, match="step 1, late True"):
            watch.see(torch.tensor(True), lambda late: "step 2")
        watch.see(torch.tensor(False), lambda late: "step 3")
        with pytest.raises(NonFiniteError, match="step 3"):
            watch.flush()
        watch.flush()

    def test_a_flag_is_read_as_it_is(self) -> None:
        assert module.read_later(torch.tensor(True))() is True


class TestTraining:
    @pytest.mark.parametrize("spoiled", [0, 1, 2])
    def test_late_and_still_the_right_batch(self, spoiled: int, late: None, tmp_path: Path) -> None:
        """One step later, or at the end; the message does not blame the weights that the step has spoiled."""
        steps = Steps()
        with pytest.raises(NonFiniteError, match=rf"step {spoiled} .*pos of clouds {10 * spoiled + 2} of the data set"):
            fit(tmp_path, spoiled, [steps])
        assert steps.begun == min(spoiled + 2, 3)
        saved = torch.load(tmp_path / f"nonfinite-epoch0-step{spoiled}.pt", weights_only=True)
        assert saved["indices"].tolist() == [10 * spoiled + i for i in range(4)]
        assert (saved["step"], saved["seed"]) == (spoiled, spoiled)

    def test_no_checkpoint_of_spoiled_weights(self, late: None, tmp_path: Path) -> None:
        class Save(Callback):
            def on_train_batch_end(self, trainer: Trainer, task: LightningModule, *args: object) -> None:
                trainer.save_checkpoint(tmp_path / f"step{trainer.global_step}.ckpt")

        with pytest.raises(NonFiniteError, match="step 1 "):
            fit(tmp_path, 1, [Save()])
        assert [path.name for path in tmp_path.glob("*.ckpt")] == ["step1.ckpt"]  # after step 0

    def test_every_process_saves_its_own(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(Trainer, "world_size", 2)
        monkeypatch.setattr(Trainer, "global_rank", 1)
        with pytest.raises(NonFiniteError, match=r"saved in .*nonfinite-epoch0-step2-rank1\.pt$"):
            fit(tmp_path, 2)
        assert [path.name for path in tmp_path.iterdir()] == ["nonfinite-epoch0-step2-rank1.pt"]

    def test_nothing_to_say(self, late: None, tmp_path: Path) -> None:
        assert all(parameter.isfinite().all() for parameter in fit(tmp_path, spoiled=-1).parameters())


def spoil_weights(task: Classification | PartSegmentation) -> None:
    with torch.no_grad():
        next(task.network.parameters()).fill_(torch.nan)


@pytest.mark.parametrize("step", ["evaluate", "predict_step"])
@pytest.mark.parametrize("spoil", [spoil_weights, None])
def test_evaluation_of_spoiled_weights(step: str, spoil: Callable | None) -> None:
    """Their logits would count as some class, and torchmetrics would leave the loss out."""
    index = torch.arange(4)
    label = torch.randint(3, (4, 16))
    for task, batch in (
        (
            Classification(4, "spct", network_kwargs=NETWORK),
            PointBatch(torch.randn(4, 16, 3), None, index, None, index, 0),
        ),
        (
            PartSegmentation([[0, 1, 2]], "spct", network_kwargs=NETWORK),
            PointBatch(torch.randn(4, 16, 3), None, label, None, index, 0),
        ),
    ):
        run = getattr(task.eval(), step)
        arguments = (batch,) if step == "evaluate" else (batch, 0)
        if spoil is None:
            run(*arguments)
            continue
        spoil(task)
        with pytest.raises(
            NonFiniteError, match=r"finite logits, but .* for clouds 0, 1, 2, 3: the weights are not finite"
        ):
            run(*arguments)
