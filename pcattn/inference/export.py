"""Trained networks as files for other programs: weights (safetensors), torch programs (pt2) or ONNX."""

from __future__ import annotations

import copy
import io
import json
import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import pcattn
from pcattn.data.preprocessing import ESTIMATED_NORMALS, name_channels
from pcattn.inference import checkpoints
from pcattn.inference.model import Model
from pcattn.tasks.base import PointCloudTask
from pcattn.utils.errors import InputError
from pcattn.utils.files import atomic_write

FORMATS = ("safetensors", "pt2", "onnx")

# How inputs are described.
_INPUTS = {
    "pos": "(B, N, 3) float32, normalized",
    "category": "(B,) int64, index into class_names",
    "features": "(B, N, F) float32, in the order of preprocessing.channels",
}

_NORMALIZATIONS = {
    "sphere": "subtract the centroid, divide by the largest distance from it",
    "box": "subtract the center of the bounding box, divide by half its longest side",
    "none": "positions as they are",
}


class _Network(nn.Module):
    """A network that takes its inputs by position, in the order of `names`."""

    def __init__(self, network: nn.Module, names: list[str]) -> None:
        super().__init__()
        self.network, self.names = network, names

    def forward(self, *inputs: Tensor) -> Tensor:
        """The outputs of the network."""
        outputs: Tensor = self.network(**dict(zip(self.names, inputs, strict=True)))
        return outputs


def export(model: Model, path: str | os.PathLike[str], format: str, dtype: str = "float16") -> str:
    """Write a network to a file. The file is tested before it replaces one of the same name.

    The file takes positions `pos` (B, N, 3), `category` (B,) if the network is conditioned on it, and `features`
    (B, N, F) if the network takes them; it returns `logits` (B, K) of clouds or (B, N, K) of points. The number of
    clouds B is free. The metadata say how to prepare a cloud, see `describe`.

    Args:
        model: as `pcattn.load` returns it.
        path: the file; an existing one is replaced.
        format: `"safetensors"`: the weights, for `pcattn.load`. `"pt2"`: `torch.export`, with N fixed. It contains
            operations of this package, so `import pcattn.models` before `torch.export.load`; metadata is the extra file
            `pcattn.json`. `"onnx"`: needs neither torch nor this package; N is free as well, down to the least that the
            network takes; metadata is the property `pcattn`.
        dtype: of the matrices in safetensors, `"float16"` or `"float32"`.

    Returns:
        A line that says what was written.

    Raises:
        InputError: an unknown format, a network that the format cannot hold, a file that gives other results, or no
            packages for ONNX.
    """
    path = Path(path)
    if format not in FORMATS:
        raise InputError(f"expected format to be one of {', '.join(FORMATS)}, but got {format!r}")
    if not path.parent.is_dir():
        raise InputError(f"expected a file in a folder that exists, but got {path}")
    if format == "safetensors":
        checkpoints.save_weights(model.task, path, model.data, model.training, dtype)
        return f"{path}: weights in {dtype}, for pcattn.load"
    with atomic_write(path) as temporary:
        summary = _export_onnx(model, temporary) if format == "onnx" else _export_pt2(model, temporary)
    return f"{path}: {summary}"


def describe(model: Model) -> dict[str, Any]:
    """What a user of an exported network needs to know, as plain data: inputs, outputs, names, preprocessing."""
    features = model.preprocessing["features"]
    estimated = ["estimate normals: pcattn.datasets.estimate_normals"] if ESTIMATED_NORMALS in features else []
    return {
        "version": pcattn.__version__,
        "task": type(model.task).__name__,
        "inputs": {name: _INPUTS[name] for name in model.task.inputs(model.task.example(1, model.num_points))},
        "outputs": {"logits": _describe_outputs(model.task)},
        "class_names": model.class_names,
        "part_names": model.part_names,
        "parts": getattr(model.task, "parts", None),
        "preprocessing": {
            **model.preprocessing,
            "channels": name_channels(features),
            "num_points": model.num_points,
            "steps": [
                *estimated,
                _NORMALIZATIONS[model.preprocessing["normalize"]],
                f"draw {model.num_points} points at random; repeat points where there are fewer",
            ],
        },
    }


def _describe_outputs(task: PointCloudTask) -> str:
    if not task.PER_POINT:
        return "(B, K) float32"
    return "(B, N, P) float32, index into part_names" if task.part_names else "(B, N, K) float32"


def _export_pt2(model: Model, path: Path) -> str:
    network, inputs = _network(model), _inputs(model, batch=3)
    program = _capture(network, inputs, free_points=False)
    content = io.BytesIO()
    torch.export.save(program, content, extra_files={"pcattn.json": json.dumps(describe(model))})
    path.write_bytes(content.getbuffer())  # not by torch, which aborts the process if the disk is full
    loaded = torch.export.load(path).module()
    for batch in (1, 2):
        others = _inputs(model, batch)
        _compare(loaded(*others), network(*others))
    return f"torch.export, any number of clouds of {model.num_points} points; import pcattn.models before loading it"


def _export_onnx(model: Model, path: Path) -> str:
    missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if find_spec(name) is None]
    if missing:
        raise InputError(f"ONNX needs {', '.join(missing)}: pip install 'pcattn[export]'")
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    import onnxruntime

    from pcattn.inference.onnx_ops import TRANSLATIONS, obstacles

    network, inputs = _network(model), _inputs(model, batch=3)
    try:
        program, sizes = _capture(network, inputs, free_points=True), [model.num_points, model.num_points + 8]
    except ValueError:  # the network depends on N
        program, sizes = _capture(network, inputs, free_points=False), [model.num_points]
    if found := obstacles(program.graph.nodes):
        raise InputError(
            f"expected a network that ONNX can hold, but {'; '.join(found)} "
            "(attention self, offset, external and neighborhood have been seen to work)"
        )
    names = list(describe(model)["inputs"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in ("torch.onnx", "onnxscript", "onnx_ir"):  # their notes are of no use to a user
            logging.getLogger(logger).setLevel(logging.ERROR)
        with _refusals("ONNX"):
            onnx_program: Any = torch.onnx.export(
                program,
                inputs,
                dynamo=True,
                custom_translation_table=TRANSLATIONS,
                input_names=names,
                output_names=["logits"],
                optimize=False,  # would drop the 1e-9 of offset-attention and leave 0 / 0
                verbose=False,
            )
    onnx_program.model.metadata_props["pcattn"] = json.dumps(describe(model))
    onnx_program.save(path)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # missed optimizations do not change the result
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    for batch, num_points in zip((1, 2), sizes, strict=False):
        others = _inputs(model, batch, num_points)
        (logits,) = session.run(None, {name: value.numpy() for name, value in zip(names, others, strict=True)})
        _compare(torch.from_numpy(logits), network(*others))
    free = "of any number of points" if len(sizes) > 1 else f"of {model.num_points} points"
    return f"ONNX, any number of clouds {free}; checked in onnxruntime {onnxruntime.__version__}"


def _network(model: Model) -> nn.Module:
    """A copy of the network on the CPU."""
    network = copy.deepcopy(model.network).cpu().eval().requires_grad_(False)
    return _Network(network, list(model.task.inputs(model.task.example(1, model.num_points))))


def _inputs(model: Model, batch: int, num_points: int | None = None) -> tuple[Tensor, ...]:
    """Random inputs of the network."""
    return tuple(model.task.inputs(model.task.example(batch, num_points or model.num_points)).values())


def _capture(network: nn.Module, inputs: tuple[Tensor, ...], free_points: bool) -> torch.export.ExportedProgram:
    """The graph of a network, for any number of clouds and optionally of points."""
    free = torch.export.Dim.DYNAMIC
    shapes = [{0: free, 1: free} if free_points and value.dim() > 1 else {0: free} for value in inputs]
    with _refusals("torch.export"):
        return torch.export.export(network, inputs, dynamic_shapes=(tuple(shapes),))


@contextmanager
def _refusals(what: str) -> Iterator[None]:
    """Turn any error of an exporter into an InputError with the first line of its innermost cause."""
    try:
        yield
    except Exception as error:
        reason: BaseException = error
        while reason.__cause__ is not None:
            reason = reason.__cause__
        first = next(iter(str(reason).strip().splitlines()), type(reason).__name__)
        raise InputError(f"expected a network that {what} can hold, but it failed: {first}") from error


def _compare(got: Tensor, expected: Tensor) -> None:
    if not torch.allclose(got, expected, rtol=1e-3, atol=1e-3):
        error = float((got - expected).abs().max())
        raise InputError(f"expected the exported file to give the network's results, but they differ by {error:.3g}")
