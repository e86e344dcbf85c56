"""Lightning's commands: `pcattn fit`, `validate`, `test` and `predict`."""

from __future__ import annotations

import inspect
import json
import os
import shutil
import signal
import sys
import threading
from collections.abc import Sequence
from contextlib import ExitStack, redirect_stdout
from pathlib import Path
from typing import Any, Literal

import torch
from jsonargparse import Namespace
from jsonargparse.typing import NonNegativeFloat
from lightning_fabric.utilities.exceptions import MisconfigurationException
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import LearningRateMonitor, ProgressBar, Timer
from pytorch_lightning.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from pytorch_lightning.loggers import TensorBoardLogger

from pcattn.cli.config_files import resolve_args
from pcattn.cli.lightning_parser import Parser, configure_loader
from pcattn.cli.messages import announce_compilation
from pcattn.data import EpochSampler
from pcattn.inference import checkpoints
from pcattn.inference.finetune import initialize
from pcattn.tasks.base import FROM_DATA
from pcattn.training import PointCloudDataModule, run_folder
from pcattn.training.checkpointing import AtomicCheckpointIO, LastCheckpoint, RunCheckpoint
from pcattn.training.logger import ResumableCSVLogger
from pcattn.training.progress import EpochLines
from pcattn.training.timer import ValidationTime
from pcattn.utils.errors import InputError
from pcattn.utils.files import atomic_write, write_text
from pcattn.utils.locks import exclusive_lock
from pcattn.utils.registry import find_import_path
from pcattn.utils.text import escape_unprintable


class SaveRunConfig(SaveConfigCallback):
    """Saves `config.yaml` when a training starts. Evaluation leaves it unchanged.

    It describes the training, not one call of the command line: the checkpoint that a call resumed is left out.
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Save the configuration into the folder of the run."""
        if stage == "fit":
            self.config = self.config.clone()
            self.config.update(Namespace(ckpt_path=None, weights_only=None, run=None))
            self.folder = Path(str(trainer.log_dir))  # a collective call
            super().setup(trainer, pl_module, stage)

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write the file atomically: a killed run needs it to be resumed."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with atomic_write(self.folder / self.config_filename) as temporary:
            self.parser.save(self.config, str(temporary), skip_none=False, multifile=False)


class PointCloudCLI(LightningCLI):
    """Lightning's command line, with run folders `runs/<name>/` and readable results."""

    def __init__(self, args: list[str]) -> None:
        self.reserved: Path | None = None
        self._locks = ExitStack()
        self.checkpoint: Path | None = None  # evaluated or resumed
        # Weights that Lightning does not load: from a `.safetensors` file, and from --init_from.
        self.weights: dict[str, torch.Tensor] | None = None
        self.initial: dict[str, torch.Tensor] | None = None
        configure_loader(Path.cwd())
        try:
            super().__init__(
                datamodule_class=PointCloudDataModule,
                save_config_callback=SaveRunConfig,
                save_config_kwargs={"save_to_log_dir": False},
                parser_class=Parser,
                parser_kwargs={"prog": "pcattn"},
                seed_everything_default=0,
                auto_configure_optimizers=False,
                # The data module shards the data itself, with a sampler that depends only on seed and epoch.
                trainer_defaults={"use_distributed_sampler": False, "num_sanity_val_steps": 0, "log_every_n_steps": 1},
                args=resolve_args(args),
            )
        except MisconfigurationException as error:  # such as a device that does not exist
            raise InputError(" ".join(str(error).split())) from error
        except SystemExit as stop:
            # Lightning ends an interrupted training without a word on how to resume it.
            if getattr(getattr(self, "trainer", None), "interrupted", False):
                self._print_resume_command()
                received = signal.SIGTERM if self.trainer.received_sigterm else self.last.requested or signal.SIGINT
                raise SystemExit(128 + received) from stop
            raise
        except OSError as error:
            if error.errno is None or error.filename is not None or not hasattr(self, "run"):
                raise
            # The system does not name the file when a disk is full.
            raise OSError(f"expected to write to {self.run}, but {error.strerror}") from error
        finally:
            self._discard_unused()
            self._locks.close()

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the options for runs and checkpoints, and link the arguments of the task to the data module."""
        parser.add_argument(
            "--run",
            type=str | None,
            default=None,
            help="Folder of the run. Default: runs/<name of the configuration>. An existing run is never overwritten: "
            "a number is appended instead. `--ckpt_path last` resumes the latest run.",
        )
        parser.add_argument(
            "--init_from",
            type=str | None,
            default=None,
            help="Initialize the weights of a training: a checkpoint, the folder of a run, or bundled weights. "
            "Copies weights of the same name and shape and lists the others. Ignored if --ckpt_path resumes a run.",
        )
        parser.add_argument(
            "--final_test", type=bool, default=True, help="Evaluate the test split once, after training."
        )
        parser.add_argument(
            "--checkpoint.monitor", type=str | None, default=None, help="Metric of best.ckpt. Default: the task's own."
        )
        parser.add_argument("--checkpoint.mode", type=Literal["max", "min"] | None, default=None)
        parser.add_argument(
            "--checkpoint.minutes",
            type=NonNegativeFloat,
            default=10.0,
            help="Minutes between two saves of last.ckpt within an epoch: the most that a killed training loses. It is "
            "also saved at the end of every epoch.",
        )
        parser.link_arguments("seed_everything", "data.seed", compute_fn=int)
        for name in FROM_DATA:
            parser.link_arguments(f"data.{name}", f"model.init_args.{name}", apply_on="instantiate")

    def _parse_ckpt_path(self) -> None:
        """Find the run and its checkpoint, and take the hyper-parameters from the checkpoint.

        Lightning takes them silently, and so ignores a configuration that says something else. Here every difference is
        printed.
        """
        subcommand = self.config["subcommand"]
        config = self.config[subcommand]
        self.stored: dict[str, Any] = {}
        file = _config_file(config)
        own = None if config.run else run_folder.run_of_config(file)
        named = own or Path(config.run or Path("runs") / file.stem)
        which = config.ckpt_path or (None if subcommand == "fit" else "best")
        if which is None:
            if config.init_from:
                self.initial = _read_checkpoint("--init_from", config.init_from).state
            self._reserve(named)
            return
        if which in ("best", "last"):
            # A run's own config.yaml means that run; any other configuration means the latest run made with it.
            found = own or run_folder.latest(named, which)
            if found is None or not run_folder.checkpoint_path(found, which).is_file():
                raise InputError(f"expected --ckpt_path FILE, or a {which} checkpoint in {named}, but there is none")
            self.run = found
            config.ckpt_path = str(run_folder.checkpoint_path(found, which))
            if own is None:
                print(f"{which} checkpoint of {found}, the latest run of {named}*")
        else:
            try:
                path = checkpoints.find(which)
            except InputError as error:
                raise InputError(f"expected --ckpt_path to be best, last or a file: {error}") from error
            config.ckpt_path = str(path)
            home = run_folder.run_of_checkpoint(path)
            if config.run is None and home is not None:
                self.run = home
            elif subcommand != "fit" or (home is not None and home.absolute() == named.absolute()):
                self.run = named
            else:
                self._reserve(named)
        if subcommand == "fit" and config.init_from:
            print(f"init_from: not used, because the training resumes from {config.ckpt_path}")
        self._take_hyper_parameters(config, resume=subcommand == "fit")
        config.weights_only = True  # never run code from a checkpoint

    def _reserve(self, named: Path) -> None:
        try:
            self.run = self.reserved = run_folder.reserve(named)
        except InputError as error:
            raise InputError(f"--run: {error}") from error

    def _take_hyper_parameters(self, config: Any, resume: bool) -> None:
        source = config.ckpt_path
        self.checkpoint = Path(source)
        checkpoint = _read_checkpoint("--ckpt_path", source)
        task = checkpoints.task_name(config.model.class_path)
        if "." not in task and checkpoint.task != task:  # checkpoints do not store the name of a user's task
            raise InputError(
                f"expected --ckpt_path of a network for {task}, but {source} is of one for {checkpoint.task}"
            )
        if Path(source).suffix == ".safetensors":
            if resume:
                raise InputError(
                    f"expected --ckpt_path of fit to be a .ckpt, but got only weights: use --init_from {source}"
                )
            self.weights, config.ckpt_path = checkpoint.state, None
        # These options do not belong to the weights, or are compared with the data later.
        stored = checkpoint.hyper_parameters
        leave = ("compile", "votes", "all_points", *FROM_DATA)
        take(stored, config.model.init_args, source, leave)
        self.stored = {name: stored[name] for name in FROM_DATA if stored.get(name) is not None}
        if resume:
            take(checkpoint.data, config.data, source, leave=("root", "eval_batch_size", "resident"))
            config.seed_everything = checkpoint.data.get("seed", config.seed_everything)
        else:
            # With another split, training clouds would become validation clouds.
            split = {name: value for name, value in checkpoint.data.items() if name in ("val_fraction", "split_seed")}
            take(split, config.data, source)

    def before_instantiate_classes(self) -> None:
        """Lock the run, which two trainings would overwrite, and turn off Lightning's table of results."""
        if self.subcommand == "fit" and run_folder.is_first_process() and self.run.is_dir():
            self._locks.enter_context(exclusive_lock(self.run))
        config = self.config[self.subcommand]
        if "verbose" in config:
            config.verbose = False

    def instantiate_classes(self) -> None:
        """Report a wrong value in a configuration as one line."""
        try:
            super().instantiate_classes()
        except (TypeError, ValueError) as error:
            self.parser.error(str(error), error)
        if self.datamodule.dataset_class.numbers_parts:  # old checkpoints number them differently
            self.stored.pop("part_names", None)
        for name, value in self.stored.items():
            got = self.model.hparams.get(name)
            if got != value:
                raise InputError(f"expected data with {name} {value} as in the checkpoint, but got {got}")
        self._load_weights()

    def _load_weights(self) -> None:
        """Load the weights that Lightning does not load."""
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
        """Build the trainer with loggers and checkpoints in the folder of the run."""
        config = self.config_init[self.subcommand]
        # Lightning ignores max_time if there is a timer. It stops the training only between epochs: an epoch that is
        # cut short counts as complete, and a resumed training would skip the rest of it.
        self.timer = Timer(config["trainer"]["max_time"], interval="epoch")
        self.validation_time = ValidationTime()
        kwargs["max_time"] = None
        # In this order: the last checkpoint stores which one was the best.
        options = config["checkpoint"]
        monitor = options["monitor"] or f"val/{self.model.PRIMARY}"
        info = self.model.METRICS.get(monitor.partition("/")[2])
        mode = options["mode"] or (info.mode if info else "max")
        self.best = RunCheckpoint(self.run, "best", monitor, mode)
        self.last = LastCheckpoint(self.run, options["minutes"])
        callbacks = [self.timer, self.validation_time, self.best, self.last]
        if self.subcommand == "fit" and config["trainer"]["enable_progress_bar"] is None and not sys.stdout.isatty():
            own = config["trainer"]["callbacks"] or []
            if not any(isinstance(each, ProgressBar) for each in (own if isinstance(own, list) else [own])):
                callbacks.append(EpochLines())
        kwargs["default_root_dir"] = config["trainer"]["default_root_dir"] or str(self.run)
        if self.subcommand != "fit":
            kwargs["logger"] = False
        elif config["trainer"]["logger"] is None:
            kwargs["logger"] = [
                ResumableCSVLogger(self.run),
                TensorBoardLogger(str(self.run), name="tensorboard", version=""),
            ]
            callbacks.append(LearningRateMonitor("epoch"))
        plugins = config["trainer"]["plugins"] or []
        kwargs["plugins"] = [AtomicCheckpointIO(), *(plugins if isinstance(plugins, list) else [plugins])]
        return self._instantiate_trainer({**config["trainer"], **kwargs}, callbacks)

    def before_fit(self) -> None:
        """Find mistakes that would otherwise show only after the first epoch."""
        names = [f"val/{name}" for name in getattr(self.model, "METRICS", ())]
        if names and self.best.monitor not in names:
            raise InputError(
                f"expected --checkpoint.monitor to be one of {', '.join(names)}, but got {self.best.monitor}"
            )
        for name in ("accumulate_grad_batches", "limit_train_batches"):
            if getattr(self.trainer, name) == 0:
                raise InputError(f"expected --trainer.{name} above 0, but got 0")
        self.datamodule.setup("fit")
        self._check_val_check_interval()
        if self.trainer.max_epochs == self.trainer.max_steps == -1:
            raise InputError(
                "expected --trainer.max_epochs or max_steps, over which the learning rate falls, but got neither"
            )
        example = self.datamodule.example()
        with torch.no_grad(), announce_compilation():  # `compile` waits: no other batch has this size
            self.model.eval().evaluate(example)
        self.model.compute_metrics("val")  # resets the metrics
        if not self.model.hparams.get("compile"):  # one cloud, for the FLOPs in Lightning's summary
            self.model.example_input_array = {name: value[:1] for name, value in self.model.inputs(example).items()}
        self.model.train()

    def _check_val_check_interval(self) -> None:
        """Lightning raises a plain ValueError for it, once the training begins."""
        trainer, interval = self.trainer, self.trainer.val_check_interval
        if not isinstance(interval, int) or trainer.check_val_every_n_epoch is None or not trainer.limit_val_batches:
            return
        data, limit = self.datamodule, trainer.limit_train_batches
        batches = len(EpochSampler(data.train_indices, data.batch_size, 0, True, world_size=trainer.world_size))
        batches = min(batches, limit) if isinstance(limit, int) else int(batches * limit)
        if interval > batches:
            raise InputError(
                f"expected --trainer.val_check_interval of at most {batches}, the batches of an epoch, "
                f"but got {interval}"
            )

    def after_fit(self) -> None:
        """Test the best checkpoint, write `results.json` and pictures, and print where everything is."""
        config = self.config_init["fit"]
        if config["trainer"]["fast_dev_run"] or self.trainer.interrupted or self.trainer.received_sigterm:
            return
        if self.trainer.global_step == 0:
            print("\nno step was taken: nothing to test or to keep")
            return
        results = self._training_results()
        tables: list[Path] | None = None
        if self.best.best_model_score is None:
            print("\nno validation, hence no best checkpoint and no test")
        else:
            score = float(self.best.best_model_score)
            results["best"] = {self.best.monitor: score}
            print(f"\nbest checkpoint by {self.best.monitor}: {score:.4f}")
            if config["final_test"]:
                tables = self._final_test(results)
        if self.trainer.is_global_zero:
            write_text(self.run / "results.json", json.dumps(results, indent=2) + "\n")
        self._print_summary("validate" if tables is None else "test", tables or [], self._draw())

    def _training_results(self) -> dict[str, Any]:
        """Speed of the training without its validations, and its peak memory on a GPU."""
        seconds = self.timer.time_elapsed("train") - self.validation_time.seconds
        clouds = self.trainer.global_step * self.trainer.accumulate_grad_batches * self.datamodule.batch_size
        results: dict[str, Any] = {"clouds_per_second": clouds * self.trainer.world_size / seconds}
        device = self.trainer.strategy.root_device
        if device.type == "cuda":
            results["peak_mib"] = torch.cuda.max_memory_allocated(device) / 2**20
        return results

    def _final_test(self, results: dict[str, Any]) -> list[Path] | None:
        """Test the best checkpoint and add its metrics to `results`; None if the test split cannot be used."""
        try:
            self.datamodule.setup("test")
            (results["test"],) = self.trainer.test(
                self.model, self.datamodule, self.best.best_model_path, verbose=False, weights_only=True
            )
            return self._report("test")
        except InputError as error:  # the training keeps its other results
            print(f"test: left out: {error}")
            return None

    def _print_summary(self, evaluate: str, tables: list[Path], pictures: list[Path]) -> None:
        """Print the files of the run and commands that a user may want next; only those that exist and work."""
        config = self.run / "config.yaml"
        files = {
            "checkpoints/best.ckpt": "weights, hyper-parameters, optimizer state; the best by validation",
            "checkpoints/last.ckpt": "the same, at the end of the training",
            "config.yaml": "every option, as it was used",
            "metrics.csv": "curves",
            "tensorboard/": "curves",
            "results.json": "the figures above",
            **{path.name: "the table above" for path in tables},
            **{path.name: "validation clouds: truth, prediction, error" for path in pictures},
        }
        pcattn = _command("pcattn")
        commands = []
        if config.is_file():
            if run_folder.checkpoint_path(self.run, "best").is_file():
                commands.append(f"{pcattn} {evaluate} -c {config}")
            if (attention := self._other_attention()) is not None:
                commands.append(f"{pcattn} fit -c {config} --model.attention {attention}")
        commands.append(f"{pcattn} report {self.run}")
        if (self.run / "tensorboard").is_dir():
            commands.append(f"{_command('tensorboard')} --logdir {self.run.parent}")
        lines = [f"  {name:21}  {content}" for name, content in files.items() if (self.run / name).exists()]
        print("\n".join([f"\nThe run is in {self.run}/", *lines, "Next:", *(f"  {command}" for command in commands)]))

    def _other_attention(self) -> str | None:
        """An attention that the same configuration can train with; None if no other fits, or none is to be expected."""
        takes = inspect.signature(type(self.model)).parameters
        arguments = {name: value for name, value in self.model.hparams.items() if name in takes}
        if "attention" not in arguments or arguments.get("attention_kwargs"):  # these belong to the present attention
            return None
        for attention in ("external", "offset", "self"):
            if attention != arguments["attention"]:
                try:
                    type(self.model)(**{**arguments, "attention": attention})
                except (TypeError, ValueError):  # a network of the user, or one that does not take it
                    continue
                return attention
        return None

    def _draw(self) -> list[Path]:
        """Draw a picture and a page of validation clouds with the predictions of the best checkpoint."""
        from pcattn.inference.evaluate import draw_run

        if not self.best.best_model_path or not self.trainer.is_global_zero:
            return []
        try:
            return draw_run(Path(self.best.best_model_path), self.datamodule, self.run)
        except (OSError, ValueError) as error:  # the training keeps its results
            print(f"pictures: left out: {error}")
            return []

    def _print_resume_command(self) -> None:
        saved = run_folder.checkpoint_path(self.run, "last").is_file()
        if self.subcommand == "fit" and saved and run_folder.is_first_process():
            command = f"{_command('pcattn')} fit -c {self.run / 'config.yaml'} --ckpt_path last"
            print(f"\ninterrupted; resume from the last checkpoint with:\n  {command}", file=sys.stderr)

    def _discard_unused(self) -> None:
        """Remove the new folder of a training that left neither a checkpoint nor a stored batch."""
        # In a distributed training, rank 0 made it.
        if self.reserved is None or not run_folder.is_first_process() or any(self.reserved.glob("nonfinite-*.pt")):
            return
        if not (self.reserved / run_folder.CHECKPOINTS).is_dir():
            shutil.rmtree(self.reserved, ignore_errors=True)

    def after_test(self) -> None:
        """Print the metrics, overall and per class."""
        self._report("test")

    def after_validate(self) -> None:
        """Print the metrics, overall and per class."""
        self._report("val")

    def _report(self, split: str) -> list[Path]:
        """Print the last evaluation, and write the tables of the task into the run."""
        print("\n" + "\n".join(map(escape_unprintable, self.model.report(split).split("\n"))))
        return self.model.save_report(split, self.run) if self.trainer.is_global_zero else []

    def predict(self, model: Any, **kwargs: Any) -> None:
        """Write the predictions for the test split into the run."""
        if self.trainer.world_size > 1:
            raise InputError(
                f"expected one process for predict (--trainer.devices 1), but got {self.trainer.world_size}"
            )
        batches: Any = self.trainer.predict(model, **kwargs)
        path = model.save_predictions(batches, self.run, self.datamodule.cloud_names("test"))
        print(f"\npredictions: {path}")


def take(stored: dict[str, Any], options: Any, source: str, leave: tuple[str, ...] = ()) -> None:
    """Replace options by the values stored in a checkpoint, and print every difference.

    Raises:
        InputError: a stored value is an import path. A checkpoint from a stranger must not choose code to run; only the
            configuration may.
    """
    for name, value in stored.items():
        if name in options and name not in leave and options[name] != value:
            if (code := find_import_path(value)) is not None:
                raise InputError(f"expected {name} as in {source}, but it names {code!r}: configure it if you trust it")
            print(f"{name}: {value} as in {source} (the configuration says {options[name]})")
            options[name] = value


def _read_checkpoint(option: str, source: str) -> checkpoints.Checkpoint:
    """Read a checkpoint file, the checkpoint of a run, or bundled weights."""
    try:
        return checkpoints.read(checkpoints.find(source))
    except InputError as error:
        raise InputError(f"{option}: {error}") from error


def _config_file(config: Any) -> Path:
    """The last configuration file of a command line; `pcattn.yaml`, which need not exist, if there is none."""
    files = config.get("config") or []
    return Path(str(files[-1])) if files else Path("pcattn.yaml")


def _command(name: str) -> str:
    """How to call a program of this environment from the current folder."""
    program = Path(sys.executable).with_name(name)
    if shutil.which(name) == str(program):
        return name
    return str(program.relative_to(Path.cwd())) if program.is_relative_to(Path.cwd()) else str(program)


def _ignore_os_errors(args: threading.ExceptHookArgs) -> None:
    """Print no traceback for TensorBoard's writer thread: its OSError is raised again in the main thread."""
    if not isinstance(args.exc_value, OSError):
        threading.__excepthook__(args)


def main(args: Sequence[str]) -> None:
    """Run one of Lightning's commands. In a distributed training only rank 0 writes to standard output."""
    threading.excepthook = _ignore_os_errors
    with open(os.devnull, "w") as null, redirect_stdout(sys.stdout if run_folder.is_first_process() else null):
        PointCloudCLI(list(args))
