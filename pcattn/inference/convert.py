"""Weights of the networks that PCT's authors and ports released, as checkpoints of this package.

Two code bases have released networks: the Jittor original (https://github.com/MenghaoGuo/PCT) and the PyTorch port
(https://github.com/Strawberry-Eat-Mango/PCT_Pytorch). They name their layers alike, so the network follows from the
names and shapes of the weights; only the activation of the head does not. No network was released for NPCT, for part
segmentation with neighbor embedding, or for external attention (EAT).
"""

from __future__ import annotations

import hashlib
import io
import os
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pcattn.inference.checkpoints import Checkpoint
from pcattn.models import build_classifier, build_segmenter
from pcattn.utils.errors import InputError
from pcattn.utils.tensors import load_tensors

#: Activation of the classification head in each code base.
ARCHITECTURES = {"pct_pytorch": "leaky_relu", "pct_jittor": "relu"}

#: Number of parts of each ShapeNetPart category; parts are numbered consecutively.
_SHAPENET_PARTS = (4, 2, 2, 4, 4, 3, 3, 2, 4, 2, 6, 2, 3, 3, 3, 3)

#: Names of classes in the order of the labels, separated by spaces.
CLASSES = {
    "modelnet40": (
        "airplane bathtub bed bench bookshelf bottle bowl car chair cone cup curtain desk door dresser flower_pot "
        "glass_box guitar keyboard lamp laptop mantel monitor night_stand person piano plant radio range_hood sink "
        "sofa stairs stool table tent toilet tv_stand vase wardrobe xbox"
    ),
    "shapenetpart": (
        "Airplane Bag Cap Car Chair Earphone Guitar Knife Lamp Laptop Motorbike Mug Pistol Rocket Skateboard Table"
    ),
}

# Keys under which training scripts store a state dict.
_NESTED = ("state_dict", "model_state_dict", "model")
# Jittor appends a SHA-1 checksum of 20 bytes and this word to a pickle.
_JITTOR_END = b"HCAJSLHD"


def convert(
    path: str | os.PathLike[str], architecture: str = "pct_pytorch", class_names: list[str] | None = None
) -> Checkpoint:
    """Read the state dict of a released PCT network, without running code from the file.

    Args:
        path: a file of `torch.save` (`.t7`, `.pth`, ...) or a `.pkl` of Jittor. Names may start with `module.`, and the
            state dict may be stored under `state_dict`.
        architecture: the code base, a key of `ARCHITECTURES`: `"pct_pytorch"` or `"pct_jittor"`.
        class_names: names of the classes, or of the categories of a part segmenter; None numbers the classes.

    Returns:
        A checkpoint, as `pcattn.inference.checkpoints.read` returns it.

    Raises:
        InputError: the file holds anything but tensors and plain data, or its weights are not those of a released
            network; the message names missing and unexpected keys.
    """
    if architecture not in ARCHITECTURES:
        raise InputError(f"expected architecture to be one of {', '.join(ARCHITECTURES)}, but got {architecture!r}")
    path = Path(path)
    found = _read_state(path)
    segments, grouped = "convs3.weight" in found, any(name.startswith("pt_last.") for name in found)
    modules = _modules("pct" if grouped else "spct", segments)
    state: dict[str, Tensor] = {}
    sources: dict[str, str] = {}
    unexpected: list[str] = []
    for name, tensor in found.items():
        module, _, kind = name.rpartition(".")
        if module not in modules:
            unexpected.append(name)
            continue
        ours = f"{modules[module]}.{kind}"
        if ours in state and not torch.equal(state[ours], tensor):
            raise InputError(f"expected {sources[ours]} and {name} of {path} to be equal (tied), but they differ")
        state[ours], sources[ours] = tensor, name
    sizing = ("backbone.layers.0.core.v", "backbone.fuse.linear", "head.last" if segments else "head.4")
    if absent := [name for name in sizing if f"{name}.weight" not in state]:
        theirs = ", ".join(released for released, ours in modules.items() if ours in absent)
        raise InputError(f"expected {path} to hold a released PCT network, but it lacks {theirs}")
    dim, out_dim, num_outputs = (len(state[f"{name}.weight"]) for name in sizing)
    network: dict[str, Any] = {"variant": "pct" if grouped else "spct", "attention": "offset"}
    options: dict[str, Any] = {"dim": dim, "out_dim": out_dim}
    if grouped:
        options["fps_rule"] = "pointnet2"
    if "backbone.position.weight" in state:
        options["position_embedding"] = True
    if segments:
        expected = build_segmenter(num_outputs, len(_SHAPENET_PARTS), **network, **options)
        names = class_names or CLASSES["shapenetpart"].split()
        hyper_parameters = {"parts": _parts(num_outputs, path), "class_names": names}
    else:
        options["head_activation"] = ARCHITECTURES[architecture]
        expected = build_classifier(num_outputs, **network, **options)
        hyper_parameters = {"num_classes": num_outputs, "class_names": class_names}
    _check(state, expected.state_dict(), modules, unexpected, path)
    if grouped:  # there, the embedding is the last input of the fusion; here, it is the first
        fuse = "backbone.fuse.linear.weight"
        state[fuse] = state[fuse].roll(dim, dims=1)
    return Checkpoint(
        task="PartSegmentation" if segments else "Classification",
        hyper_parameters={**network, "network_kwargs": options, **hyper_parameters},
        data={
            "num_points": 2048 if segments else 1024,
            "preprocessing": {"features": [], "normalize": "sphere", "up_axis": "y"},
        },
        training={"converted_from": path.name, "architecture": architecture},
        version=None,
        state=state,
    )


def _modules(variant: str, segments: bool) -> dict[str, str]:
    """The released name of each module, and its name here."""
    attention = "pt_last." if variant == "pct" else ""
    modules = {"conv_fuse.0": "backbone.fuse.linear", "conv_fuse.1": "backbone.fuse.norm"}
    for i in range(2):
        modules |= _lbr(f"conv{i + 1}", f"bn{i + 1}", f"backbone.embedding.lbr.{i}")
        if variant == "pct":
            group = f"gather_local_{i}."
            modules |= _lbr(f"{group}conv1", f"{group}bn1", f"backbone.embedding.groups.{i}")
            modules |= _lbr(f"{group}conv2", f"{group}bn2", f"backbone.embedding.groups.{i}.second")
            modules |= _lbr(f"pt_last.conv{i + 1}", f"pt_last.bn{i + 1}", f"backbone.mix.{i}")
            modules["pt_last.pos_xyz"] = "backbone.position"
    for i in range(4):
        theirs, ours = f"{attention}sa{i + 1}.", f"backbone.layers.{i}."
        modules |= {f"{theirs}q_conv": f"{ours}core.qk", f"{theirs}k_conv": f"{ours}core.qk"}
        modules |= {f"{theirs}v_conv": f"{ours}core.v"}
        modules |= _lbr(f"{theirs}trans_conv", f"{theirs}after_norm", f"{ours}lbr")
    if segments:
        modules |= _lbr("label_conv.0", "label_conv.1", "category")
        modules |= _lbr("convs1", "bns1", "head.first") | _lbr("convs2", "bns2", "head.second")
        return modules | {"convs3": "head.last"}
    return modules | _lbr("linear1", "bn6", "head.0") | _lbr("linear2", "bn7", "head.2") | {"linear3": "head.4"}


def _lbr(linear: str, norm: str, ours: str) -> dict[str, str]:
    return {linear: f"{ours}.linear", norm: f"{ours}.norm"}


def _check(
    state: dict[str, Tensor],
    expected: Mapping[str, Tensor],
    modules: dict[str, str],
    unexpected: list[str],
    path: Path,
) -> None:
    """Compare converted weights with the network, and fill in the counts of batches, which Jittor does not store."""
    theirs = {ours: name for name, ours in modules.items()}
    missing = []
    for name, tensor in expected.items():
        module, _, kind = name.rpartition(".")
        if name not in state and kind == "num_batches_tracked":
            state[name] = torch.zeros_like(tensor)
        elif name not in state:
            missing.append(f"{theirs[module]}.{kind}")
        elif state[name].numel() == tensor.numel():
            state[name] = state[name].reshape(tensor.shape)  # convolutions of width one are linear maps
        else:
            shapes = f"{tuple(tensor.shape)}, but got {tuple(state[name].shape)}"
            raise InputError(f"expected {theirs[module]}.{kind} of {path} to have the shape {shapes}")
    unexpected += [f"{theirs[name.rpartition('.')[0]]}.{name.rpartition('.')[2]}" for name in state.keys() - expected]
    if missing or unexpected:
        wrong = [
            f"{what} {', '.join(names)}" for what, names in (("missing", missing), ("unexpected", unexpected)) if names
        ]
        raise InputError(
            f"expected {path} to hold exactly the weights of a released network, but got {'; '.join(wrong)}"
        )


def _parts(num_parts: int, path: Path) -> list[list[int]]:
    if num_parts != sum(_SHAPENET_PARTS):
        raise InputError(
            f"expected {path} to segment the {sum(_SHAPENET_PARTS)} parts of ShapeNetPart, but got {num_parts}"
        )
    ids = iter(range(num_parts))
    return [[next(ids) for _ in range(count)] for count in _SHAPENET_PARTS]


def _read_state(path: Path) -> dict[str, Tensor]:
    """The tensors of a file, with the names that a plain `model.state_dict()` has."""
    try:
        stored = _read_jittor(path) if path.suffix == ".pkl" else load_tensors(path)
    except Exception as error:  # whatever a file of another kind makes its reader raise
        reason = str(error).partition(". ")[0].strip() or type(error).__name__
        raise InputError(
            f"expected {path} to hold tensors and plain data alone, but reading it failed: {reason}"
        ) from error
    for key in _NESTED:
        if isinstance(stored, dict) and isinstance(stored.get(key), dict):
            stored = stored[key]
    if not isinstance(stored, dict) or not stored or not all(isinstance(value, Tensor) for value in stored.values()):
        raise InputError(f"expected {path} to hold a state dict (tensors by name), but it holds something else")
    state = {}
    for name, tensor in stored.items():
        # A Conv1d of older Jittor versions holds a convolution `conv`.
        name = str(name).removeprefix("module.").replace(".conv.weight", ".weight").replace(".conv.bias", ".bias")
        state[name] = tensor.float() if tensor.is_floating_point() else tensor
    return state


class _ArrayUnpickler(pickle.Unpickler):
    """Builds NumPy arrays and plain data, and refuses to look up anything else."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("numpy", "ndarray"):
            return np.ndarray
        if (module, name) == ("numpy", "dtype"):
            return np.dtype
        if (module, name) in {("numpy.core.multiarray", "_reconstruct"), ("numpy._core.multiarray", "_reconstruct")}:
            return _empty_array
        if (module, name) == ("collections", "OrderedDict"):
            return dict
        raise pickle.UnpicklingError(f"it names {module}.{name}, which could run code")


def _empty_array(*_: Any) -> np.ndarray:
    """The array whose content the pickle sets next; its shape, type and bytes come with the content."""
    return np.empty(0)


def _read_jittor(path: Path) -> Any:
    """A pickle of arrays by name, as Jittor writes it."""
    content = path.read_bytes()
    if content.endswith(_JITTOR_END):
        content, checksum = content[:-28], content[-28:-8]
        if hashlib.sha1(content, usedforsecurity=False).digest() != checksum:
            raise InputError("its checksum does not match: the file is damaged")
    stored = _ArrayUnpickler(io.BytesIO(content)).load()
    if not isinstance(stored, dict):
        return stored
    numbers = {name: array for name, array in stored.items() if isinstance(array, np.ndarray) and array.dtype != object}
    return (
        {name: torch.from_numpy(np.array(array)) for name, array in numbers.items()}
        if len(numbers) == len(stored)
        else stored
    )
