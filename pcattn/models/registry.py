"""Networks by name: the registry behind `pcattn.create_model`, and the networks of the tasks."""

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

#: What selects a network: a variant's name, an import path (`my_package.my_module.MyNet`), or a class.
ModelName = str | type[nn.Module]
Factory = Callable[..., nn.Module]

#: Networks of each task by variant. They are called with the numbers of outputs and further keyword arguments.
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

#: What is appended to a variant in `create_model`, and the networks that it stands for.
SUFFIXES = {"_partseg": SEGMENTERS, "_normals": NORMALS, "": CLASSIFIERS}


def create_model(name: ModelName, pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """A network by name.

    Args:
        name: a name of `list_models()`: a variant for classification (`"pct"`), with `_partseg` for part segmentation
            (`"pct_partseg"`), with `_normals` for normal estimation; or an import path or a class. A name of
            `list_models(pretrained=True)`, such as `"pct.modelnet40-cpu"`, selects these weights.
        pretrained: load the first bundled weights of this name. The network gets the arguments that it was trained
            with; `kwargs` override them, and with another `num_classes` the last layer starts at random.
        **kwargs: arguments of the network: `num_classes=40` of a classifier, `num_parts=50, num_categories=16` of a
            part segmenter, `attention`, `attention_kwargs`, `num_features`, and those of `PCTBackbone` or
            `HierarchicalBackbone`.

    Returns:
        A module in training mode: `network(pos, features)` of a classifier, `network(pos, category, features)` of a
        part segmenter; see the classes for shapes.

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
    """Names for `create_model` that match a pattern of the shell.

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

    The end of the name tells the task: `"mynet"` is a classifier, `"mynet_partseg"` a part segmenter, `"mynet_normals"`
    estimates normals. In the configuration of each task, `variant: mynet` selects it. `pcattn/models/README.md` lists
    the arguments that it must accept.

    Raises:
        InputError: the name exists.
    """
    suffix = next(suffix for suffix in SUFFIXES if name.endswith(suffix))
    return SUFFIXES[suffix].register(name.removesuffix(suffix))


def build_classifier(num_classes: int, variant: ModelName = "pct", **kwargs: Any) -> nn.Module:
    """The classifier of a variant; (pos, features) -> (B, num_classes).

    Raises:
        InputError: no such variant, or an argument is out of range.
    """
    return _build(CLASSIFIERS, variant, num_classes, **kwargs)


def build_segmenter(num_parts: int, num_categories: int | None, variant: ModelName = "pct", **kwargs: Any) -> nn.Module:
    """The part segmenter of a variant; (pos, category, features) -> (B, N, num_parts).

    Raises:
        InputError: no such variant, or an argument is out of range.
    """
    return _build(SEGMENTERS, variant, num_parts, num_categories, **kwargs)


def _build(registry: Registry[Factory], variant: ModelName, *outputs: int | None, **kwargs: Any) -> nn.Module:
    """A network with the arguments that are given: a user's class needs no parameters for the others."""
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
