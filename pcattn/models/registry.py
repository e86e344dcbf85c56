"""Networks by name, behind `pcattn.create_model` and the tasks."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from pcattn.models.hierarchical import SIZES, HierarchicalClassifier
from pcattn.models.hierarchical_segmenter import HierarchicalSegmenter
from pcattn.models.pct import PCTBackbone, PCTClassifier
from pcattn.models.pretrained import list_weights, load_weights
from pcattn.models.segmenter import PCTNormals, PCTSegmenter
from pcattn.utils.errors import InputError
from pcattn.utils.registry import Registry, construct

#: What selects a network: the name of a variant, an import path (`my_package.my_module.MyNet`), or a class.
ModelName = str | type[nn.Module]
Factory = Callable[..., nn.Module]

#: Networks of each task by variant, called with the numbers of outputs and further keyword arguments.
CLASSIFIERS: Registry[Factory] = Registry(
    "variant",
    {name: partial(PCTClassifier, variant=name) for name in PCTBackbone.VARIANTS}
    | {name: partial(HierarchicalClassifier, variant=name) for name in SIZES},
)
SEGMENTERS: Registry[Factory] = Registry(
    "variant",
    {name: partial(PCTSegmenter, variant=name) for name in PCTSegmenter.VARIANTS}
    | {name: partial(HierarchicalSegmenter, variant=name) for name in SIZES},
)
NORMALS: Registry[Factory] = Registry(
    "variant", {name: partial(PCTNormals, variant=name) for name in PCTSegmenter.VARIANTS}
)

#: Suffix of a variant in `create_model` -> networks of the task that it selects.
SUFFIXES = {"_partseg": SEGMENTERS, "_normals": NORMALS, "": CLASSIFIERS}


def create_model(name: ModelName, pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """A network by name.

    Args:
        name: a name in `list_models()`, an import path, or a class. A variant without suffix (`"pct"`) is a classifier,
            the suffix `_partseg` selects part segmentation (`"pct_partseg"`), and `_normals` normal estimation. A name
            in `list_models(pretrained=True)`, such as `"pct.modelnet40-cpu"`, also selects the weights.
        pretrained: load the first bundled weights for this name. The network has the arguments that it was trained
            with, unless `kwargs` override them. With another `num_classes`, the last layer is initialized at random.
        **kwargs: arguments of the network: `num_classes=40` for a classifier, `num_parts=50, num_categories=16` for a
            part segmenter, `attention`, `attention_kwargs`, `num_features`, and those of `PCTBackbone` or
            `HierarchicalBackbone`.

    Returns:
        A module in training mode, called as `network(pos, features)`, or as `network(pos, category, features)` for part
        segmentation. The docstrings of the classes state the shapes.

    Raises:
        InputError: no such network or weights, or an argument is out of range.

    Example:
        >>> create_model("pct", num_classes=10, attention="external", dim=64).backbone.layers[0].core
        ExternalAttention()
    """
    models = _models()
    if isinstance(name, str):
        base = name.partition(".")[0]
        if pretrained or (base in models and base != name):
            weights = _pretrained()
            tagged = next((each for each in weights if each.partition(".")[0] == name), name)
            path, arguments = weights.find(tagged)
            network = create_model(tagged.partition(".")[0], **{**arguments, **kwargs})
            load_weights(network, path)
            return network
    elif pretrained:
        raise InputError(f"expected pretrained=False, since {name} has no bundled weights, but got True")
    return construct("model", name, models.find(name), **kwargs)


def list_models(pattern: str = "*", pretrained: bool = False) -> list[str]:
    """Names for `create_model` that match a shell pattern.

    Args:
        pattern: `"pct*"`, `"*_partseg"`, ...
        pretrained: list bundled weights, `<model>.<weights>`.

    Example:
        >>> list_models("*pct")
        ['npct', 'spct', 'pct']
    """
    return (_pretrained() if pretrained else _models()).names(pattern)


def register_model(name: str) -> Callable[[Factory], Factory]:
    """Decorator that adds a network class or function by name.

    The suffix of the name selects the task: `"mynet"` is a classifier, `"mynet_partseg"` segments parts, and
    `"mynet_normals"` estimates normals. In the configuration of the task, `variant: mynet` selects the network.
    `pcattn/models/README.md` lists the arguments that it must accept.

    Raises:
        InputError: the name exists.
    """
    suffix = next(suffix for suffix in SUFFIXES if name.endswith(suffix))
    return SUFFIXES[suffix].register(name.removesuffix(suffix))


def build_classifier(num_classes: int, variant: ModelName = "pct", **kwargs: Any) -> nn.Module:
    """A classifier: (pos, features) -> logits (B, num_classes).

    Raises:
        InputError: no such variant, or an argument is out of range.
    """
    return _build(CLASSIFIERS, variant, num_classes, **kwargs)


def build_segmenter(num_parts: int, num_categories: int | None, variant: ModelName = "pct", **kwargs: Any) -> nn.Module:
    """A part segmenter: (pos, category, features) -> logits (B, N, num_parts).

    Raises:
        InputError: no such variant, or an argument is out of range.
    """
    return _build(SEGMENTERS, variant, num_parts, num_categories, **kwargs)


def _build(registry: Registry[Factory], variant: ModelName, *outputs: int | None, **kwargs: Any) -> nn.Module:
    """Build a network without passing arguments that are None, so that users' classes need no parameters for them."""
    given = {name: value for name, value in kwargs.items() if value is not None}
    if given.get("num_features") == 0:
        del given["num_features"]
    return construct("variant", variant, registry.find(variant), *outputs, **given)


def _pretrained() -> Registry[tuple[Path, dict[str, Any]]]:
    return Registry("pretrained model", list_weights())


def _models() -> Registry[Factory]:
    return Registry(
        "model",
        {f"{name}{suffix}": factory for suffix in reversed(SUFFIXES) for name, factory in SUFFIXES[suffix].items()},
    )
