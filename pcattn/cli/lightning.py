"""Lightning's commands `fit`, `validate`, `test` and `predict`; `pcattn/commands.py` calls them and all others."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import threading
from contextlib import ExitStack, redirect_stdout
from pathlib import Path
from typing import Any, Literal

import torch
from jsonargparse import Namespace
from jsonargparse.typing import NonNegativeFloat
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import LearningRateMonitor, Timer
from pytorch_lightning.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from pytorch_lightning.loggers import TensorBoardLogger
from pytorch_lightning.utilities.exceptions import MisconfigurationException

from pcattn.cli.config_files import class_paths, with_files
from pcattn.cli.messages import fail, is_told
from pcattn.cli.parser import Parser
from pcattn.inference import checkpoints
from pcattn.inference.finetune import initialize
from pcattn.tasks.base import NonFiniteError  # all tasks, so that `--model Classification` is found by its short name
from pcattn.training import PointCloudDataModule, runs
from pcattn.training.checkpointing import AtomicCheckpointIO, LastCheckpoint, RunCheckpoint
from pcattn.training.logger import MetricsLog
from pcattn.training.timer import ValidationTime
from pcattn.utils.errors import DatasetError
from pcattn.utils.files import replacing, write_text
from pcattn.utils.registry import find_import_path, look_here
from pcattn.utils.text import printable

#: What the data module knows, for the tasks that have an argument of this name.
FROM_DATA = ("num_classes", "num_features", "class_names", "parts", "part_names")


class SaveRunConfig(SaveConfigCallback):
    """Saves the configuration when training starts; evaluation leaves the run's own as it is.

    It is that of the training and not of one call: where a call went on from is left out.
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Save `config.yaml` into the run."""
        if stage == "fit":
            self.config = self.config.clone()
            self.config.update(Namespace(ckpt_path=None, weights_only=None, run=None))
            self.folder = Path(str(trainer.log_dir))  # for which all processes are asked
            super().setup(trainer, pl_module, stage)

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Save it at once and complete: the configuration of a killed run is needed."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with replacing(self.folder / self.config_filename) as temporary:
            self.parser.save(self.config, str(temporary), skip_none=False, multifile=False)


class PointCloudCLI(LightningCLI):
    """Lightning's command line with runs that lie in `runs/<name>/`, and results that a person can read."""

    def __init__(self, args: list[str]) -> None:
        self.reserved: Path | None = None
        self._held = ExitStack()
        self.checkpoint: Path | None = None  # whose weights are evaluated, or trained further
        # Weights that Lightning does not load: of a `.safetensors` file, and those that a training starts from.
        self.weights: dict[str, torch.Tensor] | None = None
        self.initial: dict[str, torch.Tensor] | None = None
        try:
            self._run(args)
        except SystemExit as stop:
            # Lightning ends an interrupted training with no word on how to go on.
            if getattr(getattr(self, "trainer", None), "interrupted", False):
                self._say_interrupted()
                asked = signal.SIGTERM if self.trainer.received_sigterm else self.last.requested or signal.SIGINT
                raise SystemExit(128 + asked) from stop
            raise
        except OSError as error:
            if error.errno is None or error.filename is not None or not hasattr(self, "run"):
                raise
            # Of a full disk the system tells no file.
            raise OSError(f"expected to write to {self.run}, but {error.strerror}") from error
        finally:
            self._discard_unused()
            self._held.close()

    def _run(self, args: list[str]) -> None:
        try:
            words = with_files(args)
        except ValueError as error:
            fail(str(error), error)
        for path in class_paths(words):
            look_here(path)
        super().__init__(
            datamodule_class=PointCloudDataModule,
            save_config_callback=SaveRunConfig,
            save_config_kwargs={"save_to_log_dir": False},
            parser_class=Parser,
            parser_kwargs={"prog": "pcattn"},
            seed_everything_default=0,
            auto_configure_optimizers=False,
            # The data module shards by itself. Its sampler is a function of seed and epoch.
            trainer_defaults={"use_distributed_sampler": False, "num_sanity_val_steps": 0, "log_every_n_steps": 1},
            args=words,
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """The run folder, its checkpoints, and what the model takes from the data."""
        parser.add_argument(
            "--run",
            type=str | None,
            default=None,
            help="Folder of the run. Default: runs/<name of the configuration>; an existing run is never overwritten, "
            "a number is appended instead. `--ckpt_path last` continues the latest one.",
        )
        parser.add_argument(
            "--init_from",
            type=str | None,
            default=None,
            help="Start a training from the weights of another: a checkpoint, the folder of a run, or the name of "
            "bundled weights. Copies what has the same name and shape, and says what it leaves out. A run that is "
            "resumed (--ckpt_path) has its own weights.",
        )
        parser.add_argument("--final_test", type=bool, default=True, help="Read the test split once, after training.")
        parser.add_argument(
            "--checkpoint.monitor", type=str | None, default=None, help="Metric of best.ckpt. Default: the task's own."
        )
        parser.add_argument("--checkpoint.mode", type=Literal["max", "min"] | None, default=None)
        parser.add_argument(
            "--checkpoint.minutes",
            type=NonNegativeFloat,
            default=10.0,
            help="How often last.ckpt is saved within an epoch: what a killed training loses at most. At the end of "
            "every epoch it is saved anyway.",
        )
        parser.link_arguments("seed_everything", "data.seed", compute_fn=int)
        for name in FROM_DATA:
            parser.link_arguments(f"data.{name}", f"model.init_args.{name}", apply_on="instantiate")

    def _parse_ckpt_path(self) -> None:
        """Find the run and its checkpoint, and take what belongs to the weights from it, aloud.

        Lightning does the last silently; a configuration that says something else would be ignored without a word.
        """
        subcommand = self.config["subcommand"]
        config = self.config[subcommand]
        self.stored: dict[str, Any] = {}
        file = _config_file(config)
        own = None if config.run else runs.run_of_config(file)
        named = own or Path(config.run or Path("runs") / file.stem)
        which = config.ckpt_path or (None if subcommand == "fit" else "best")
        if which is None:
            if config.init_from:
                self.initial = _read_checkpoint("--init_from", config.init_from).state
            self._reserve(named)
            return
        if which in ("best", "last"):
            # The configuration of a run speaks of that run; another one of the latest run that was made with it.
            found = own or runs.latest(named, which)
            if found is None or not runs.checkpoint_path(found, which).is_file():
                fail(f"expected --ckpt_path FILE, or a {which} checkpoint in {named}, but there is none")
            self.run = found
            config.ckpt_path = str(runs.checkpoint_path(found, which))
            if own is None:
                print(f"{which} checkpoint of {found}, the latest run of {named}*")
        else:
            try:
                path = checkpoints.find(which)
            except ValueError as error:
                fail(f"expected --ckpt_path to be best, last or a file: {error}", error)
            config.ckpt_path = str(path)
            home = runs.run_of_checkpoint(path)
            if config.run is None and home is not None:
                self.run = home
            elif subcommand != "fit" or (home is not None and home.absolute() == named.absolute()):
                self.run = named
            else:
                self._reserve(named)
        if subcommand == "fit" and config.init_from:
            print(f"init_from: not used, because a resumed training goes on with the weights of {config.ckpt_path}")
        self._take_hyper_parameters(config, resume=subcommand == "fit")
        config.weights_only = True  # a checkpoint is data, never code

    def _reserve(self, named: Path) -> None:
        try:
            self.run = self.reserved = runs.reserve(named)
        except ValueError as error:
            fail(f"--run: {error}", error)

    def _take_hyper_parameters(self, config: Any, resume: bool) -> None:
        source = config.ckpt_path
        self.checkpoint = Path(source)
        checkpoint = _read_checkpoint("--ckpt_path", source)
        task = checkpoints.task_name(config.model.class_path)
        if "." not in task and checkpoint.task != task:  # one's own may be a task that checkpoints do not know by name
            fail(f"expected --ckpt_path of a network for {task}, but {source} is of one for {checkpoint.task}")
        if Path(source).suffix == ".safetensors":
            if resume:
                fail(f"expected --ckpt_path of fit to be a .ckpt, but got weights alone: --init_from {source}")
            self.weights, config.ckpt_path = checkpoint.state, None
        # How to run and judge the network is no property of its weights; what the data says is compared later.
        stored = checkpoint.hyper_parameters
        leave = ("compile", "votes", "all_points", *FROM_DATA)
        take(stored, config.model.init_args, source, leave)
        self.stored = {name: stored[name] for name in FROM_DATA if stored.get(name) is not None}
        if resume:
            take(checkpoint.data, config.data, source, leave=("root", "eval_batch_size", "resident"))
            config.seed_everything = checkpoint.data.get("seed", config.seed_everything)
        else:
            # Another split would call training clouds validation clouds.
            split = {name: value for name, value in checkpoint.data.items() if name in ("val_fraction", "split_seed")}
            take(split, config.data, source)

    def before_instantiate_classes(self) -> None:
        """Evaluation prints its own table; of two trainings in one run, one would write over what the other has."""
        if self.subcommand == "fit" and runs.is_first_process() and self.run.is_dir():
            try:
                self._held.enter_context(runs.alone(self.run))
            except ValueError as error:
                fail(str(error), error)
        config = self.config[self.subcommand]
        if "verbose" in config:
            config.verbose = False

    def instantiate_classes(self) -> None:
        """A wrong value in a configuration is one line, not a traceback."""
        try:
            super().instantiate_classes()
        except (TypeError, ValueError) as error:
            self.parser.error(str(error), error)
        if self.datamodule.dataset_name == "shapenetpart":
            # They follow from `parts`, and checkpoints of old have them counted from 1 in every category.
            self.stored.pop("part_names", None)
        for name, value in self.stored.items():
            got = self.model.hparams.get(name)
            if got != value:
                fail(f"expected data with {name} {value} as in the checkpoint, but got {got}")
        self._load_weights()

    def _load_weights(self) -> None:
        """Put weights into the network that Lightning does not load."""
        try:
            if self.weights is not None:
                self.model.network.load_state_dict(self.weights)
            if self.initial is not None:
                left = initialize(self.model.network, self.initial)
                source = self.config[self.subcommand].init_from
                print(f"weights from {source}" + "".join(f"\n  left out: {line}" for line in left))
        except (RuntimeError, ValueError) as error:
            self.parser.error(str(error), error)

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Loggers and checkpoints inside the run folder."""
        config = self.config_init[self.subcommand]
        # Lightning would ignore max_time, because there is a timer already. At the end of an epoch, because one that is
        # cut would count as complete, and a resumed training would leave out the rest of it.
        self.timer = Timer(config["trainer"]["max_time"], interval="epoch")
        self.validation_time = ValidationTime()
        kwargs["max_time"] = None
        # In this order: what the last checkpoint holds includes which one was the best.
        options = config["checkpoint"]
        monitor = options["monitor"] or f"val/{self.model.PRIMARY}"
        info = self.model.METRICS.get(monitor.partition("/")[2])
        mode = options["mode"] or (info.mode if info else "max")
        self.best = RunCheckpoint(self.run, "best", monitor, mode)
        self.last = LastCheckpoint(self.run, options["minutes"])
        callbacks = [self.timer, self.validation_time, self.best, self.last]
        kwargs["default_root_dir"] = config["trainer"]["default_root_dir"] or str(self.run)
        if self.subcommand != "fit":
            kwargs["logger"] = False
        elif config["trainer"]["logger"] is None:
            kwargs["logger"] = [
                MetricsLog(self.run),
                TensorBoardLogger(str(self.run), name="tensorboard", version=""),
            ]
            callbacks.append(LearningRateMonitor("epoch"))
        plugins = config["trainer"]["plugins"] or []
        kwargs["plugins"] = [AtomicCheckpointIO(), *(plugins if isinstance(plugins, list) else [plugins])]
        return self._instantiate_trainer({**config["trainer"], **kwargs}, callbacks)

    def before_fit(self) -> None:
        """Find out now what would fail at the end of the first epoch."""
        names = [f"val/{name}" for name in getattr(self.model, "METRICS", ())]
        if names and self.best.monitor not in names:
            fail(f"expected --checkpoint.monitor to be one of {', '.join(names)}, but got {self.best.monitor}")
        for name in ("accumulate_grad_batches", "limit_train_batches"):
            if getattr(self.trainer, name) == 0:
                fail(f"expected --trainer.{name} above 0, but got 0")
        if self.trainer.max_epochs == self.trainer.max_steps == -1:
            fail("expected --trainer.max_epochs or max_steps, over which the learning rate falls, but got neither")
        try:
            self.datamodule.setup("fit")
            with torch.no_grad():  # and not yet compiled: a batch of this size does not come again
                self.model.eval().evaluate(self.datamodule.example())
        except ValueError as error:
            fail(str(error), error)
        self.model.compute_metrics("val")  # and forgets the example
        self.model.train()

    def after_fit(self) -> None:
        """Test the best checkpoint by validation, once, and say where everything lies."""
        config = self.config_init["fit"]
        if config["trainer"]["fast_dev_run"] or self.trainer.interrupted or self.trainer.received_sigterm:
            return
        if self.trainer.global_step == 0:
            print("\nno step was taken: nothing to test or to keep")
            return
        seconds = self.timer.time_elapsed("train") - self.validation_time.seconds
        clouds = self.trainer.global_step * self.trainer.accumulate_grad_batches * self.datamodule.batch_size
        results: dict[str, Any] = {"clouds_per_second": clouds * self.trainer.world_size / seconds}
        if self.trainer.strategy.root_device.type == "cuda":
            results["peak_mib"] = torch.cuda.max_memory_allocated(self.trainer.strategy.root_device) / 2**20
        tables: list[Path] = []
        evaluate = "validate"
        if self.best.best_model_score is None:
            print("\nno validation, hence no best checkpoint and no test")
        else:
            score = float(self.best.best_model_score)
            results["best"] = {self.best.monitor: score}
            print(f"\nbest checkpoint by {self.best.monitor}: {score:.4f}")
            try:
                if config["final_test"]:
                    self.datamodule.setup("test")
                    (results["test"],) = self.trainer.test(
                        self.model, self.datamodule, self.best.best_model_path, verbose=False, weights_only=True
                    )
                    evaluate, tables = "test", self._report("test")
            except ValueError as error:  # the training is worth more than its test
                print(f"test: left out: {error}")
        if self.trainer.is_global_zero:
            write_text(self.run / "results.json", json.dumps(results, indent=2) + "\n")
        pictures = self._draw()
        saved = self.run / "config.yaml"
        print(
            f"\nThe run lies in {self.run}/\n"
            f"  checkpoints/best.ckpt, last.ckpt   weights, hyper-parameters, state of the optimizer\n"
            f"  config.yaml                        every option, as it was used\n"
            f"  metrics.csv, tensorboard/          curves\n"
            f"  results.json                       the figures above\n"
            + "".join(f"  {path.name:33}  the table above\n" for path in tables)
            + "".join(f"  {path.name:33}  validation clouds: truth, prediction, error\n" for path in pictures)
            + f"Next:\n"
            f"  {_command('pcattn')} {evaluate} -c {saved}\n"
            f"  {_command('pcattn')} fit -c {saved} --model.attention external\n"
            f"  {_command('pcattn')} report {self.run}\n"
            f"  {_command('tensorboard')} --logdir {self.run.parent}"
        )

    def _draw(self) -> list[Path]:
        """A picture and a page of validation clouds, as the best checkpoint sees them."""
        from pcattn.inference.evaluate import draw_run

        if not self.best.best_model_path or not self.trainer.is_global_zero:
            return []
        try:
            return draw_run(Path(self.best.best_model_path), self.datamodule, self.run)
        except (OSError, ValueError) as error:  # the training is worth more than its pictures
            print(f"pictures: left out: {error}")
            return []

    def _say_interrupted(self) -> None:
        there = runs.checkpoint_path(self.run, "last").is_file()
        if self.subcommand == "fit" and there and runs.is_first_process():
            command = f"{_command('pcattn')} fit -c {self.run / 'config.yaml'} --ckpt_path last"
            print(f"\ninterrupted; this goes on from the last checkpoint:\n  {command}", file=sys.stderr)

    def _discard_unused(self) -> None:
        """Leave no folder behind for a training that never came to its first checkpoint, nor to anything to look at."""
        # Of several processes the first made it.
        if self.reserved is None or not runs.is_first_process() or any(self.reserved.glob("nonfinite-*.pt")):
            return
        if not (self.reserved / runs.CHECKPOINTS).is_dir():
            shutil.rmtree(self.reserved, ignore_errors=True)

    def after_test(self) -> None:
        """Print the metrics and those of each class."""
        self._report("test")

    def after_validate(self) -> None:
        """Print the metrics and those of each class."""
        self._report("val")

    def _report(self, split: str) -> list[Path]:
        """Print the last evaluation, and keep it in the run where the task has more to keep than `results.json`."""
        print("\n" + "\n".join(map(printable, self.model.report(split).split("\n"))))
        return self.model.save_report(split, self.run) if self.trainer.is_global_zero else []

    def predict(self, model: Any, **kwargs: Any) -> None:
        """Write the predictions for the test split into the run."""
        if self.trainer.world_size > 1:
            fail(f"expected one process for predict (--trainer.devices 1), but got {self.trainer.world_size}")
        batches: Any = self.trainer.predict(model, **kwargs)
        print(f"\npredictions: {model.save_predictions(batches, self.run)}")


def take(stored: dict[str, Any], options: Any, source: str, leave: tuple[str, ...] = ()) -> None:
    """Replace options by those stored in a checkpoint, and say which.

    A checkpoint from a stranger may name code; what is imported is for the configuration alone to say.
    """
    for name, value in stored.items():
        if name in options and name not in leave and options[name] != value:
            if (code := find_import_path(value)) is not None:
                fail(f"expected {name} as in {source}, but it names {code!r}: configure it if you trust it")
            print(f"{name}: {value} as in {source} (the configuration says {options[name]})")
            options[name] = value


def _read_checkpoint(option: str, source: str) -> checkpoints.Checkpoint:
    """What a file, a run or a name of bundled weights holds; one line if it cannot be read."""
    try:
        return checkpoints.read(checkpoints.find(source))
    except ValueError as error:
        fail(f"{option}: {error}", error)


def _config_file(config: Any) -> Path:
    """The last configuration file of a command line; `pcattn.yaml`, which need not exist, if there is none."""
    files = config.get("config") or []
    return Path(str(files[-1])) if files else Path("pcattn.yaml")


def _command(name: str) -> str:
    """How to call a program of this environment from the present folder."""
    program = Path(sys.executable).with_name(name)
    if shutil.which(name) == str(program):
        return name
    return str(program.relative_to(Path.cwd())) if program.is_relative_to(Path.cwd()) else str(program)


def _thread_failed(args: threading.ExceptHookArgs) -> None:
    """Errors of the system in a thread that writes logs are raised again by who hands it the next one."""
    if not isinstance(args.exc_value, OSError):
        threading.__excepthook__(args)


def main(args: list[str]) -> None:
    """Run one of Lightning's commands."""
    threading.excepthook = _thread_failed
    try:
        # Of the processes of one training the first speaks; errors are everyone's.
        with open(os.devnull, "w") as nowhere, redirect_stdout(sys.stdout if runs.is_first_process() else nowhere):
            PointCloudCLI(args)
    except (DatasetError, NonFiniteError, OSError) as error:
        fail(str(error), error)
    except MisconfigurationException as error:  # Lightning's: no such device, fewer epochs than the checkpoint has, ...
        fail(" ".join(str(error).split()), error)
    except ValueError as error:
        if not is_told(error):
            raise
        fail(" ".join(str(error).split()), error)
