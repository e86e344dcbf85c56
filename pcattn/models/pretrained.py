"""Weights that come with the package, in `pcattn/weights/`."""

import json
from importlib.resources import files
from pathlib import Path
from typing import Any

from torch import nn

from pcattn.models.pct import is_fused_after_mix
from pcattn.utils.errors import InputError

#: Suffix of a variant in the name of a model, by task.
_SUFFIX = {"Classification": "", "PartSegmentation": "_partseg"}


def bundled() -> dict[str, Path]:
    """Bundled files by name."""
    folder = Path(str(files("pcattn"))) / "weights"
    return {path.stem: path for path in sorted(folder.glob("*.safetensors"))}


def list_weights() -> dict[str, tuple[Path, dict[str, Any]]]:
    """The file and the arguments of the network for each name `<model>.<weights>`."""
    from safetensors import safe_open

    found = {}
    for tag, path in bundled().items():
        with safe_open(path, framework="pt") as file:
            about = json.loads(file.metadata()["pcattn"])
            fused_after_mix = is_fused_after_mix(file.keys())
        stored = about["hyper_parameters"]
        arguments = {
            name: stored.get(name) for name in ("attention", "attention_kwargs", "num_features", "num_classes")
        }
        if "parts" in stored:
            categories = len(stored["parts"])
            arguments["num_parts"] = 1 + max(map(max, stored["parts"]))
            arguments["num_categories"] = categories if stored.get("conditioned", True) and categories > 1 else 0
        arguments |= stored.get("network_kwargs") or {}
        if fused_after_mix:
            arguments["fuse_after_mix"] = True
        given = {name: value for name, value in arguments.items() if value is not None}
        found[f"{stored['variant']}{_SUFFIX[about['task']]}.{tag}"] = path, given
    return found


def load_weights(network: nn.Module, path: Path) -> None:
    """Load weights from a file; layers of the head with another number of outputs keep their initial values.

    Raises:
        InputError: any other layer differs.
    """
    from safetensors.torch import load_file

    state = {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in load_file(path).items()}
    expected = network.state_dict()
    state = {
        name: tensor
        for name, tensor in state.items()
        if not (name.startswith("head.") and name in expected and expected[name].shape != tensor.shape)
    }
    try:
        missing, unexpected = network.load_state_dict(state, strict=False)
    except RuntimeError as error:
        raise InputError(f"expected a network that fits {path.stem}, but got another one: {error}") from error
    wrong = [name for name in missing if not name.startswith("head.")] + unexpected
    if wrong:
        raise InputError(f"expected a network that fits {path.stem}, but these weights differ: {', '.join(wrong)}")
