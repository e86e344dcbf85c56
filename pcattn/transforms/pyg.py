"""Transforms of torch-geometric by their names in a configuration."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch_geometric.transforms
from torch_geometric.transforms import Compose

from pcattn.utils.errors import InputError
from pcattn.utils.registry import Registry, construct, resolve

#: Every transform of torch-geometric by the name of its class.
PYG_TRANSFORMS: Registry[Callable[..., Any]] = Registry(
    "transform", {name: getattr(torch_geometric.transforms, name) for name in torch_geometric.transforms.__all__}
)


def build_pyg_transforms(kwargs: dict[str, Any]) -> dict[str, Any]:
    """Arguments of a data set, with `transform`, `pre_transform` and `pre_filter` built from their names.

    A transform is written as the name of a class of `torch_geometric.transforms` or an import path, as
    `{name: arguments}`, or as a list of these, which run in order. A filter is the import path of a function. Callables
    are passed on.

    .. code-block:: yaml

        dataset_kwargs:
          pre_transform: NormalizeScale
          transform:
            - RandomJitter: {translate: 0.01}
            - mytransforms.Crop: {size: 0.5}

    Raises:
        InputError: no such transform, or it does not take these arguments.
    """
    built = dict(kwargs)
    for key in ("transform", "pre_transform"):
        if built.get(key) is not None:
            built[key] = _build(key, built[key])
    if isinstance(built.get("pre_filter"), str):
        built["pre_filter"] = resolve("pre_filter", built["pre_filter"], {})
    return built


def _build(key: str, value: Any) -> Callable[[Any], Any]:
    if callable(value):
        return value
    if isinstance(value, list):
        return Compose([_build(key, step) for step in value])
    step = {value: {}} if isinstance(value, str) else value
    if not isinstance(step, dict) or len(step) != 1:
        raise InputError(
            f"expected {key} to be a transform, its name, {{name: arguments}} or a list, but got {value!r}"
        )
    ((name, arguments),) = step.items()
    if not isinstance(arguments, dict | None):
        raise InputError(f"expected arguments {{name: value}} of {key} {name!r}, but got {arguments!r}")
    return construct(key, name, PYG_TRANSFORMS.find(name), **(arguments or {}))
