"""`pcattn export`: a trained network as weights (safetensors), for torch alone (pt2) or for other runtimes (ONNX)."""

from __future__ import annotations

import argparse
import copy
import io
import json
import logging
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import pcattn
from pcattn.cli.messages import fail
from pcattn.cli.options import add_ckpt_path
from pcattn.data.preprocessing import ESTIMATED_NORMALS, name_channels
from pcattn.inference import checkpoints
from pcattn.inference.model import Model
from pcattn.tasks import PartSegmentation
from pcattn.utils.errors import InputError
from pcattn.utils.files import atomic_write

FORMATS = ("safetensors", "pt2", "onnx")

_NORMALIZATIONS = {
    "sphere": "subtract the centroid, divide by the largest distance from it",
    "box": "subtract the center of the bounding box, divide by half its longest side",
    "none": "positions as they are",
}


class _Network(nn.Module):
    """A network with its inputs in the order of the exported file: positions, then category, then features."""

    def __init__(self, network: nn.Module, segments: bool, categories: bool, features: bool) -> None:
        super().__init__()
        self.network = network
        self.segments, self.categories, self.features = segments, categories, features

    def forward(self, *inputs: Tensor) -> Tensor:
        """Logits (B, K) of clouds, or (B, N, P) of their points."""
        pos, *rest = inputs
        category = rest.pop(0) if self.categories else None
        features = rest.pop(0) if self.features else None
        return self.network(pos, category, features) if self.segments else self.network(pos, features)


def export(model: Model, path: str | os.PathLike[str], format: str, dtype: str = "float16") -> str:
    """Write a network to a file, and try the file before it gets its name.

    The file takes positions `pos` (B, N, 3), where the network knows categories `category` (B,), and where it takes
    features `features` (B, N, F); it returns `logits` (B, K), or (B, N, P) of part segmentation. The number of clouds B
    is free. What has to be done to a cloud before is described in the metadata, see `describe`.

    Args:
        model: as `pcattn.load` returns it.
        path: the file; one of this name is replaced.
        format: `"safetensors"`: the weights, for `pcattn.load`. `"pt2"`: `torch.export`, with N fixed; operations of
            this package stay what they are, so `import pcattn.models` comes before `torch.export.load`; metadata is the
            extra file `pcattn.json`. `"onnx"`: no torch and nothing of this package needed; N is free as well, down to
            the least that the network takes; metadata is the property `pcattn`.
        dtype: of the matrices in safetensors, `"float16"` or `"float32"`.

    Returns:
        What was written, in words.

    Raises:
        InputError: an unknown format, a network that it cannot hold, or a file that gives other results.
        ModuleNotFoundError: ONNX is asked for without its packages.
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
        words = _export_onnx(model, temporary) if format == "onnx" else _export_pt2(model, temporary)
    return f"{path}: {words}"


def describe(model: Model) -> dict[str, Any]:
    """What a user of an exported network has to know, as plain data: inputs, outputs, names, preprocessing."""
    segments = isinstance(model.task, PartSegmentation)
    inputs = {"pos": "(B, N, 3) float32, normalized"}
    if _num_categories(model):
        inputs["category"] = "(B,) int64, index into class_names"
    features = model.preprocessing["features"]
    if features:
        inputs["features"] = "(B, N, F) float32, in the order of preprocessing.channels"
    estimated = ["estimate normals: pcattn.datasets.estimate_normals"] if ESTIMATED_NORMALS in features else []
    return {
        "version": pcattn.__version__,
        "task": type(model.task).__name__,
        "inputs": inputs,
        "outputs": {"logits": "(B, N, P) float32, index into part_names" if segments else "(B, K) float32"},
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


def _export_pt2(model: Model, path: Path) -> str:
    network, inputs = _network(model), _inputs(model, batch=3)
    program = _capture(network, inputs, free_points=False)
    content = io.BytesIO()
    torch.export.save(program, content, extra_files={"pcattn.json": json.dumps(describe(model))})
    path.write_bytes(content.getbuffer())  # in one piece: torch ends the process where it finds the disk full twice
    loaded = torch.export.load(path).module()
    for batch in (1, 2):
        others = _inputs(model, batch)
        _compare(loaded(*others), network(*others))
    return f"torch.export, any number of clouds of {model.num_points} points; import pcattn.models before loading it"


def _export_onnx(model: Model, path: Path) -> str:
    missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if find_spec(name) is None]
    if missing:
        raise ModuleNotFoundError(f"ONNX needs {', '.join(missing)}: pip install 'pcattn[export]'")
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # or it tells its makers of this
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
        for logger in ("torch.onnx", "onnxscript", "onnx_ir"):  # what they skip is none of the user's business
            logging.getLogger(logger).setLevel(logging.ERROR)
        with _refusals("ONNX"):
            onnx_program: Any = torch.onnx.export(
                program,
                inputs,
                dynamo=True,
                custom_translation_table=TRANSLATIONS,
                input_names=names,
                output_names=["logits"],
                optimize=False,  # takes the 1e-9 of offset-attention for nothing, and leaves 0 / 0
                verbose=False,
            )
    onnx_program.model.metadata_props["pcattn"] = json.dumps(describe(model))
    onnx_program.save(path)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # what it could not fold makes no difference to the result
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    for batch, num_points in zip((1, 2), sizes, strict=False):
        others = _inputs(model, batch, num_points)
        (logits,) = session.run(None, {name: value.numpy() for name, value in zip(names, others, strict=True)})
        _compare(torch.from_numpy(logits), network(*others))
    free = "of any number of points" if len(sizes) > 1 else f"of {model.num_points} points"
    return f"ONNX, any number of clouds {free}; checked in onnxruntime {onnxruntime.__version__}"


def _network(model: Model) -> nn.Module:
    """A copy of the network on the CPU."""
    network = copy.deepcopy(model.task.network).cpu().eval().requires_grad_(False)
    segments = isinstance(model.task, PartSegmentation)
    return _Network(network, segments, _num_categories(model) > 0, _num_features(model) > 0)


def _inputs(model: Model, batch: int, num_points: int | None = None) -> tuple[Tensor, ...]:
    """Random inputs of the network: clouds in the unit sphere."""
    num_points = num_points or model.num_points
    generator = torch.Generator().manual_seed(batch)
    direction = torch.nn.functional.normalize(torch.randn(batch, num_points, 3, generator=generator), dim=2)
    inputs = [direction * torch.rand(batch, num_points, 1, generator=generator)]
    if num_categories := _num_categories(model):
        inputs.append(torch.arange(batch) % num_categories)
    if num_features := _num_features(model):
        inputs.append(torch.randn(batch, num_points, num_features, generator=generator))
    return tuple(inputs)


def _num_features(model: Model) -> int:
    return int(dict(model.task.hparams).get("num_features", 0))


def _num_categories(model: Model) -> int:
    return getattr(model.task, "num_categories", None) or 0


def _capture(network: nn.Module, inputs: tuple[Tensor, ...], free_points: bool) -> torch.export.ExportedProgram:
    """The graph of a network, for any number of clouds and, if asked for, of points."""
    free = torch.export.Dim.DYNAMIC
    shapes = [{0: free, 1: free} if free_points and value.dim() > 1 else {0: free} for value in inputs]
    with _refusals("torch.export"):
        return torch.export.export(network, inputs, dynamic_shapes=(tuple(shapes),))


@contextmanager
def _refusals(what: str) -> Iterator[None]:
    """Whatever a foreign exporter raises, as one line with the first line of its innermost reason."""
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


def main(args: Sequence[str]) -> int:
    """The command line; status 2 if nothing was written."""
    parser = argparse.ArgumentParser(prog="pcattn export", description="Write a trained network in another format.")
    add_ckpt_path(
        parser, required=True, help="a .ckpt or .safetensors, the folder of a run, or a name of bundled weights"
    )
    parser.add_argument("--out", type=Path, required=True, help="the file to write")
    parser.add_argument("--format", choices=FORMATS, help="default: by the suffix of --out")
    parser.add_argument("--dtype", choices=tuple(checkpoints.DTYPES), default="float16", help="of safetensors")
    parser.add_argument("--overwrite", action="store_true", help="replace a file that is there already")
    parser.add_argument("--trust", action="store_true", help="import code of one's own that the checkpoint names")
    options = parser.parse_args(args)
    format = options.format or options.out.suffix.removeprefix(".")
    try:
        if format not in FORMATS:
            raise InputError(
                f"expected --format, or --out with a suffix of {', '.join(FORMATS)}, but got {options.out}"
            )
        if options.out.exists() and not options.overwrite:
            raise InputError(f"expected a new file, but {options.out} exists already: --overwrite replaces it")
        model = pcattn.load(options.ckpt_path, trust=options.trust, device="cpu")
        print(export(model, options.out, format, options.dtype))
    except (ModuleNotFoundError, OSError, ValueError) as error:
        fail(str(error), error)
    return 0
