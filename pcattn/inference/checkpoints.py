"""Trained networks as files, read without running any code in them.

Three kinds are read: the `.ckpt` of a training, a `.safetensors` written by `save_weights`, and the bundled weights
(`.safetensors` in `pcattn/weights/`), which are known by name.
"""

from __future__ import annotations

import inspect
import json
import os
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

import pcattn
from pcattn.models.pct import is_fused_after_mix
from pcattn.models.pretrained import bundled
from pcattn.tasks import TASKS
from pcattn.tasks.base import FROM_DATA, PointCloudTask
from pcattn.training import run_folder
from pcattn.utils.errors import InputError
from pcattn.utils.files import write_bytes
from pcattn.utils.registry import construct, names_only, resolve
from pcattn.utils.tensors import load_tensors

#: Floating point numbers of the matrices in a `.safetensors` file.
DTYPES = {"float16": torch.float16, "float32": torch.float32}

# The key of our JSON in the metadata of a `.safetensors` file.
_KEY = "pcattn"
_NETWORK = "network."

_MAX_ITEMS = 100_000  # in a description; more come from a few that refer to each other

# Arguments that a checkpoint may hold although its task does not take them.
_OPTIONAL = (*FROM_DATA, "compile")


class Checkpoint(NamedTuple):
    """Weights of a network and what is known about them: tensors and plain data alone."""

    task: str  #: name of the task, like `"Classification"`, or its import path
    hyper_parameters: dict[str, Any]  #: arguments of the task
    data: dict[str, Any]  #: arguments of the data module that it was trained with
    training: dict[str, Any]  #: what is known about the training: epochs, metrics, command
    version: str | None  #: version of this package that wrote the file
    state: dict[str, Tensor]  #: weights of the network


def find(source: str | os.PathLike[str]) -> Path:
    """The file behind the path of a checkpoint, the folder of a run (its best checkpoint) or a name of bundled weights.

    Raises:
        InputError: there is none.
    """
    path = Path(source)
    if path.is_dir():
        for name in ("best", "last"):
            if run_folder.checkpoint_path(path, name).is_file():
                return run_folder.checkpoint_path(path, name)
        raise InputError(f"expected the folder of a run with {run_folder.CHECKPOINTS}/best.ckpt, but got {path}")
    if path.is_file():
        return path
    names = bundled()
    if str(source) in names:
        return names[str(source)]
    known = f"one of the bundled weights ({', '.join(names)})" if names else "bundled weights (there are none)"
    raise InputError(f"expected a .ckpt or .safetensors file, the folder of a run or {known}, but got {str(source)!r}")


def read(path: Path) -> Checkpoint:
    """Read a `.ckpt` or `.safetensors` file.

    Raises:
        InputError: the file is neither, is broken, or holds more than tensors and plain data.
    """
    if path.suffix not in (".ckpt", ".pt", ".pth", ".safetensors"):
        raise InputError(f"expected a .ckpt or .safetensors file, but got {path}")
    checkpoint = _read_safetensors(path) if path.suffix == ".safetensors" else _read_ckpt(path)
    if is_fused_after_mix(checkpoint.state):
        options = checkpoint.hyper_parameters.get("network_kwargs") or {}
        checkpoint.hyper_parameters["network_kwargs"] = {**options, "fuse_after_mix": True}
        state = {name.replace("embedding.mix.", "mix."): tensor for name, tensor in checkpoint.state.items()}
        checkpoint = checkpoint._replace(state=state)
    return checkpoint


def build(checkpoint: Checkpoint, source: str = "the checkpoint", trust: bool = False) -> PointCloudTask:
    """The task with its weights, in evaluation mode.

    Args:
        checkpoint: as `read` returns it.
        source: where it comes from, for messages.
        trust: import the code that it names, like your own attention or task; refused otherwise.

    Raises:
        InputError: it names code, its arguments make no task, or its weights do not fit them.
    """
    with names_only(None if trust else source):
        try:
            factory = resolve("task", checkpoint.task, TASKS)
            arguments = _accepted(factory, {**checkpoint.hyper_parameters, "compile": False})
            task = construct("task", checkpoint.task, factory, **arguments)
        except ValueError:
            raise
        except Exception as error:  # anything that arguments of a wrong type make a constructor raise
            raise InputError(f"the arguments in {source} make no task: {_reason(error)}") from error
    if complex_names := [name for name, tensor in checkpoint.state.items() if tensor.is_complex()]:
        raise InputError(f"expected real weights in {source}, but got complex ones in {complex_names[0]}")
    try:
        task.network.load_state_dict(checkpoint.state)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        raise InputError(f"the weights of {source} do not fit the network that it describes: {reason}") from error
    return task.eval()


def save_weights(
    task: PointCloudTask,
    path: str | os.PathLike[str],
    data: dict[str, Any] | None = None,
    training: dict[str, Any] | None = None,
    dtype: str = "float16",
) -> Path:
    """Write the network of a task as `.safetensors`, with all metadata that `pcattn.load` needs.

    The file holds no optimizer and no code. Its metadata has one JSON object under `pcattn`: `task`,
    `hyper_parameters`, `data`, `training` and `version`, see `Checkpoint`. The folder of the data set is left out.

    Args:
        task: the trained task.
        path: the file, written atomically; an existing file is replaced.
        data: arguments of the data module: number of points, normalization, features. None takes them from the task's
            trainer, if it has one.
        training: facts about the training, as plain data: command, seed, metrics.
        dtype: `"float16"` or `"float32"`. In float16 only matrices are rounded: vectors (biases, batch statistics)
            are few and need the range.

    Raises:
        InputError: another dtype, a path that does not end in `.safetensors`, or weights beyond the range of float16.
    """
    from safetensors.torch import save

    path = Path(path)
    if dtype not in DTYPES:
        raise InputError(f"expected dtype to be one of {', '.join(DTYPES)}, but got {dtype!r}")
    if path.suffix != ".safetensors":
        raise InputError(f"expected a file name that ends in .safetensors, but got {path}")
    if data is None:
        datamodule = getattr(task._trainer, "datamodule", None)
        data = dict(datamodule.hparams) if datamodule is not None else {}
    state = {}
    for name, tensor in task.network.state_dict().items():
        stored = tensor.detach().cpu().contiguous().clone()  # safetensors takes no tensors that share memory
        if stored.is_floating_point():
            stored = stored.to(DTYPES[dtype] if stored.dim() > 1 else torch.float32)
            if not bool(stored.isfinite().all()):
                raise InputError(f"expected finite weights within the range of {dtype}, but got others in {name}")
        state[name] = stored
    about = {
        "version": pcattn.__version__,
        "task": task_name(f"{type(task).__module__}.{type(task).__qualname__}"),
        "hyper_parameters": _accepted(type(task), _arguments(dict(task.hparams))),
        "data": {name: value for name, value in _arguments(data).items() if name != "root"},
        "training": training or {},
    }
    write_bytes(path, save(state, {"format": "pt", _KEY: json.dumps(about)}))
    return path


def _read_ckpt(path: Path) -> Checkpoint:
    try:
        stored = load_tensors(path)
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL ([\w.]+)", str(error))
        what = f" ({named[1]})" if named else ""
        raise InputError(
            f"expected {path} to hold tensors and plain data alone, but it holds other objects{what}, which could run "
            "code: refused"
        ) from error
    except Exception as error:  # anything that torch raises for a file that is no checkpoint
        raise InputError(f"expected {path} to be a checkpoint, but reading it failed: {_reason(error)}") from error
    if not isinstance(stored, dict) or not {"hyper_parameters", "state_dict"} <= stored.keys():
        raise InputError(f"expected {path} to be a checkpoint of pcattn, but it lacks hyper_parameters or state_dict")
    hyper_parameters = _table(path, stored, "hyper_parameters")
    task = task_name(str(hyper_parameters.get("_class_path", stored.get("task") or _guess_task(hyper_parameters))))
    arguments = _arguments(hyper_parameters)
    state = _table(path, stored, "state_dict", Tensor)
    return Checkpoint(
        task,
        _accepted(TASKS[task], arguments) if task in TASKS else arguments,
        _arguments(_table(path, stored, "datamodule_hyper_parameters")),
        _course(path, stored),
        None,
        {name.removeprefix(_NETWORK): tensor for name, tensor in state.items() if name.startswith(_NETWORK)},
    )


def _read_safetensors(path: Path) -> Checkpoint:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            about = json.loads((file.metadata() or {}).get(_KEY, "null"))
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  no mapping
    except (SafetensorError, OSError, ValueError, RecursionError) as error:
        raise InputError(
            f"expected {path} to be a .safetensors file, but reading it failed: {_reason(error)}"
        ) from error
    if not isinstance(about, dict) or not {"task", "hyper_parameters"} <= about.keys():
        raise InputError(f"expected {path} to have metadata {_KEY!r}, as pcattn export writes it, but it has none")
    return Checkpoint(
        str(about["task"]),
        _table(path, about, "hyper_parameters"),
        _table(path, about, "data"),
        _table(path, about, "training"),
        about.get("version"),
        {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in state.items()},
    )


def _arguments(stored: dict[str, Any]) -> dict[str, Any]:
    """Without Lightning's own entries: how its command line imports the class."""
    return {name: value for name, value in stored.items() if not name.startswith("_")}


def _accepted(task: Callable[..., Any], arguments: dict[str, Any]) -> dict[str, Any]:
    """Arguments without those that the command line stores from the data for every task, if this one lacks them."""
    parameters = inspect.signature(task).parameters
    return {name: value for name, value in arguments.items() if name not in _OPTIONAL or name in parameters}


def _guess_task(arguments: dict[str, Any]) -> str:
    """The task of an old checkpoint that was saved from Python: the one that takes most of its arguments."""
    return max(TASKS, key=lambda name: len(arguments.keys() & inspect.signature(TASKS[name]).parameters.keys()))


def task_name(class_path: str) -> str:
    """The short name of a task of this package; the import path of any other."""
    return class_path.rpartition(".")[2] if class_path.startswith("pcattn.tasks.") else class_path


def _course(path: Path, stored: dict[str, Any]) -> dict[str, Any]:
    """Epochs and steps of the training, and the score of the checkpoint if there is one."""
    try:
        course: dict[str, Any] = {"epochs": stored.get("epoch", -1) + 1, "steps": stored.get("global_step", 0)}
        for callback in (stored.get("callbacks") or {}).values():
            # The score belongs to the checkpoint that was saved for it; last.ckpt stores it as well.
            own = os.path.basename(str(callback.get("best_model_path"))) == path.name
            if own and callback.get("monitor") and callback.get("current_score") is not None:
                course["metrics"] = {callback["monitor"]: float(callback["current_score"])}
    except (TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise InputError(f"expected {path} to tell its epoch and scores, but reading them failed: {error}") from error
    return course


def _table(path: Path, stored: dict[str, Any], key: str, kind: type | None = None) -> dict[str, Any]:
    """A dictionary in a file: of plain data, or of objects of one kind.

    Raises:
        InputError: it is something else, or refers to itself.
    """
    table = stored.get(key) or {}
    if not isinstance(table, dict) or not all(isinstance(name, str) for name in table):
        raise InputError(f"expected {path} to hold a dictionary {key}, but got {type(table).__name__}")
    waiting, seen = list(table.values()), 0
    while waiting:
        value = waiting.pop()
        seen += 1
        if kind is not None and not isinstance(value, kind):
            raise InputError(f"expected {kind.__name__} in {key} of {path}, but got {type(value).__name__}")
        if isinstance(value, (dict, list, tuple)):
            waiting += [*value, *value.values()] if isinstance(value, dict) else value
        if seen > _MAX_ITEMS or len(waiting) > _MAX_ITEMS:
            raise InputError(f"expected {path} to hold at most {_MAX_ITEMS} values in {key}, but it holds more")
    return table


def _reason(error: Exception) -> str:
    """The first sentence of an error message, or the type of an error without one."""
    return str(error).partition(". ")[0].strip() or type(error).__name__
