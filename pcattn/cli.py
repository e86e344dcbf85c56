"""The command line, also as `python -m pcattn` and `python train.py`.

`fit`, `validate`, `test` and `predict` are Lightning's; `OTHER_COMMANDS` lists the others.
"""

from __future__ import annotations

import importlib
import json
import logging
import re
import shutil
import sys
import warnings
from pathlib import Path
from typing import Any, NoReturn

import torch
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import LearningRateMonitor, ModelCheckpoint, Timer
from pytorch_lightning.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger

import pcattn.tasks  # noqa: F401  so that `--model Classification` is found by its short name
from pcattn import runs
from pcattn.datasets import DatasetError, PointCloudDataModule

#: Commands beside Lightning's, and the module whose `main(args)` runs each.
OTHER_COMMANDS = {
    "bench attention": "pcattn.bench.attention",
    "bench ops": "pcattn.bench.ops",
    "compare": "pcattn.compare",
}

#: What the data module knows, for the tasks that have an argument of this name.
FROM_DATA = ("num_classes", "num_features", "class_names", "parts")


class Parser(LightningArgumentParser):
    """Says what is wrong with a command line or a configuration in one line."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Print the message and exit with status 2."""
        fail(concise(message), ex)


def fail(message: str, cause: Exception | None = None) -> NoReturn:
    """Print one line and exit with status 2."""
    print(f"pcattn: error: {message}", file=sys.stderr)
    raise SystemExit(2) from cause


def concise(message: str) -> str:
    """A message of the parser in one line: what it found wrong, without a listing of the types that it tried."""
    where, union, details = message.partition("Does not validate against any of the Union subtypes")
    if union:
        reasons = re.findall(r"^ *- (.*)$", details, flags=re.MULTILINE)
        told = [reason for reason in reasons if "NoneType" not in reason] or reasons
        value = re.search(r"Given value: (.*)", details)
        got = f", but got {value[1]}" if value and "but got" not in told[0] else ""
        message = f"{where}{' or '.join(dict.fromkeys(told))}{got}"
    if "arguments are required" in message:
        message += "; start from a configuration: pcattn fit -c configs/smoke.yaml"
    return " ".join(message.split())


class SaveRunConfig(SaveConfigCallback):
    """Saves the configuration when training starts; evaluation leaves the run's own as it is."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Save `config.yaml` into the run."""
        if stage == "fit":
            super().setup(trainer, pl_module, stage)


class PointCloudCLI(LightningCLI):
    """Lightning's command line with runs that lie in `runs/<name>/`, and results that a person can read."""

    def __init__(self, args: list[str] | None) -> None:
        super().__init__(
            datamodule_class=PointCloudDataModule,
            save_config_callback=SaveRunConfig,
            save_config_kwargs={"overwrite": True},
            parser_class=Parser,
            parser_kwargs={"description": f"Attention on point clouds. Further commands: {', '.join(OTHER_COMMANDS)}."},
            seed_everything_default=0,
            auto_configure_optimizers=False,
            # The data module shards by itself. Its sampler is a function of seed and epoch.
            trainer_defaults={"use_distributed_sampler": False, "num_sanity_val_steps": 0, "log_every_n_steps": 1},
            args=args,
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
        parser.add_argument("--final_test", type=bool, default=True, help="Read the test split once, after training.")
        parser.add_lightning_class_args(ModelCheckpoint, "checkpoint")
        parser.set_defaults(
            {
                "checkpoint.monitor": "val/oa",
                "checkpoint.mode": "max",
                "checkpoint.filename": "best",
                "checkpoint.save_last": True,
                "checkpoint.enable_version_counter": False,
            }
        )
        parser.link_arguments("seed_everything", "data.seed")
        for name in FROM_DATA:
            parser.link_arguments(f"data.{name}", f"model.init_args.{name}", apply_on="instantiate")

    def _parse_ckpt_path(self) -> None:
        """Find the run and its checkpoint, and take the network's hyper-parameters from it, aloud.

        Lightning does the last silently; a configuration that says something else would be ignored without a word.
        """
        subcommand = self.config["subcommand"]
        config = self.config[subcommand]
        named = Path(config.run) if config.run else runs.config_run(_config_file(config))
        self.stored: dict[str, Any] = {}
        which = config.ckpt_path
        if which is None and subcommand != "fit":
            which = "best"
        if which in ("best", "last"):
            found = runs.latest_run(named, which)
            if found is None:
                fail(f"expected --ckpt_path FILE, or a {which} checkpoint in {named}, but there is none")
            config.ckpt_path = str(runs.checkpoint_path(found, which))
        elif which is not None and not Path(which).is_file():
            fail(f"expected --ckpt_path to be best, last or a file, but got {which}")
        if config.ckpt_path is None:
            self.run = runs.new_run(named)
        else:
            self.run = runs.run_of_checkpoint(Path(config.ckpt_path)) or named
            self._take_hyper_parameters(config)
            config.weights_only = True  # a checkpoint is data, never code

    def _take_hyper_parameters(self, config: Any) -> None:
        try:
            checkpoint = torch.load(config.ckpt_path, weights_only=True, map_location="cpu")
            stored = checkpoint["hyper_parameters"]
        except Exception as error:  # whatever a file that is no checkpoint makes torch raise
            fail(
                f"expected {config.ckpt_path} to be a checkpoint of pcattn, tensors and plain data alone, "
                f"but reading it failed ({type(error).__name__})",
                error,
            )
        init_args = config.model.init_args
        for name, value in stored.items():
            # How to run the network is not a property of its weights; what the data says is compared later.
            if name in init_args and name not in ("compile", *FROM_DATA) and init_args[name] != value:
                print(f"{name}: {value} as in {config.ckpt_path} (the configuration says {init_args[name]})")
                init_args[name] = value
        self.stored = {name: stored[name] for name in FROM_DATA if name in stored}

    def before_instantiate_classes(self) -> None:
        """Evaluation prints its own table."""
        config = self.config[self.subcommand]
        if "verbose" in config:
            config.verbose = False

    def instantiate_classes(self) -> None:
        """A wrong value in a configuration is one line, not a traceback."""
        try:
            super().instantiate_classes()
        except ValueError as error:
            self.parser.error(str(error), error)
        for name, value in self.stored.items():
            got = self.model.hparams.get(name)
            if got != value:
                fail(f"expected data with {name} {value} as in the checkpoint, but got {got}")
        self._check_monitor()

    def _check_monitor(self) -> None:
        """Lightning would look for the metric only when the first epoch is over."""
        monitor = self.config_init[self.subcommand]["checkpoint"].monitor or ""
        names = [f"val/{name}" for name in getattr(self.model, "METRICS", ())]
        if self.subcommand == "fit" and names and monitor.startswith("val/") and monitor not in names:
            fail(f"expected --checkpoint.monitor to be one of {', '.join(names)}, but got {monitor}")

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Loggers and checkpoints inside the run folder."""
        trainer_config = self.config_init[self.subcommand]["trainer"]
        self.timer = Timer()
        callbacks = [self.config_init[self.subcommand]["checkpoint"], self.timer]
        kwargs["default_root_dir"] = trainer_config["default_root_dir"] or str(self.run)
        if self.subcommand != "fit":
            kwargs["logger"] = False
        elif trainer_config["logger"] is None:
            kwargs["logger"] = [
                CSVLogger(str(self.run), name="", version="", flush_logs_every_n_steps=1),
                TensorBoardLogger(str(self.run), name="tensorboard", version=""),
            ]
            callbacks.append(LearningRateMonitor("epoch"))
        if callbacks[0].dirpath is None:
            callbacks[0].dirpath = str(self.run / runs.CHECKPOINTS)
        return self._instantiate_trainer({**trainer_config, **kwargs}, callbacks)

    def before_fit(self) -> None:
        """Keep the logs of the run that is resumed."""
        if self.config_init["fit"]["ckpt_path"]:
            runs.keep_metrics(self.run)

    def after_fit(self) -> None:
        """Test the best checkpoint by validation, once, and say where everything lies."""
        config = self.config_init["fit"]
        checkpoint = config["checkpoint"]
        if config["trainer"]["fast_dev_run"] or self.trainer.interrupted or not checkpoint.best_model_path:
            return
        score = float(checkpoint.best_model_score)
        tables: list[Path] = []
        results: dict[str, Any] = {"best": {checkpoint.monitor: score}}
        seconds = self.timer.time_elapsed("train") - self.timer.time_elapsed("validate")
        clouds = self.trainer.global_step * self.trainer.accumulate_grad_batches * self.datamodule.batch_size
        results["clouds_per_second"] = clouds * self.trainer.world_size / seconds
        evaluate = "validate"
        print(f"\nbest checkpoint by {checkpoint.monitor}: {score:.4f}")
        if not config["final_test"]:
            print("test: left out (final_test: false)")
        elif not self.datamodule.has_test_split():
            print(f"test: left out, there is no test split in {self.datamodule.root}")
        else:
            evaluate, best = "test", checkpoint.best_model_path
            (results["test"],) = self.trainer.test(self.model, self.datamodule, best, verbose=False, weights_only=True)
            tables = self._report("test")
        (self.run / "results.json").write_text(json.dumps(results, indent=2) + "\n")
        saved = self.run / "config.yaml"
        print(
            f"\nThe run lies in {self.run}/\n"
            f"  checkpoints/best.ckpt, last.ckpt   weights, hyper-parameters, state of the optimiser\n"
            f"  config.yaml                        every option, as it was used\n"
            f"  metrics.csv, tensorboard/          curves\n"
            f"  results.json                       the figures above\n"
            + "".join(f"  {path.name:33}  the table above\n" for path in tables)
            + f"Next:\n"
            f"  {_command('pcattn')} {evaluate} -c {saved}\n"
            f"  {_command('pcattn')} fit -c {saved} --model.attention external\n"
            f"  {_command('tensorboard')} --logdir {self.run.parent}"
        )

    def after_test(self) -> None:
        """Print the metrics and those of each class."""
        self._report("test")

    def after_validate(self) -> None:
        """Print the metrics and those of each class."""
        self._report("val")

    def _report(self, split: str) -> list[Path]:
        """Print the last evaluation, and keep it in the run where the task has more to keep than `results.json`."""
        print(f"\n{self.model.report(split)}")
        return self.model.save_report(split, self.run)

    def predict(self, model: Any, **kwargs: Any) -> None:
        """Write the predictions for the test split into the run."""
        batches: Any = self.trainer.predict(model, **kwargs)
        print(f"\npredictions: {model.save_predictions(batches, self.run)}")


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


def main(args: list[str] | None = None) -> None:
    """Run the command line `args` (default: that of the process)."""
    words = sys.argv[1:] if args is None else args
    for command, module in OTHER_COMMANDS.items():
        length = len(command.split())
        if words[:length] == command.split():
            raise SystemExit(importlib.import_module(module).main(words[length:]))
    if words[:1] == ["bench"]:
        fail(f"expected one of {', '.join(OTHER_COMMANDS)}, but got {' '.join(words)!r}")
    for message in (
        ".*treespec, LeafSpec.*",  # Lightning's own business with torch
        ".*does not have many workers.*",  # batches are read from memory by index: workers would only copy them
        "LightningCLI's args parameter.*",
        ".*directory .* exists and is not empty.*",  # a resumed run's own; the logs before are kept (runs.keep_metrics)
    ):
        warnings.filterwarnings("ignore", message=message)
    logging.getLogger("pytorch_lightning.utilities.rank_zero").addFilter(
        lambda record: "Tip:" not in record.getMessage()
    )
    try:
        PointCloudCLI(args)
    except DatasetError as error:
        fail(str(error), error)
