"""From a name in a configuration to an attention core."""

import inspect
from typing import Any

from torch import nn

from pcattn.attention.acmix import ACmixAttention
from pcattn.attention.axial import AxialAttention
from pcattn.attention.external import ExternalAttention
from pcattn.attention.multihead_external import MultiheadExternalAttention
from pcattn.attention.neighborhood import NeighborhoodAttention
from pcattn.attention.offset import OffsetAttention
from pcattn.attention.polarized import PolarizedAttention
from pcattn.attention.self_attention import SelfAttention
from pcattn.registry import construct, resolve

#: Every mechanism by its name. A new one is a class in a file of its own and a line here.
ATTENTION: dict[str, type[nn.Module]] = {
    "self": SelfAttention,
    "offset": OffsetAttention,
    "external": ExternalAttention,
    "multihead_external": MultiheadExternalAttention,
    "axial": AxialAttention,
    "acmix": ACmixAttention,
    "polarized": PolarizedAttention,
    "neighborhood": NeighborhoodAttention,
}


def build_attention(name: str, dim: int, **kwargs: Any) -> nn.Module:
    """An attention core: called with features (B, N, C) and a `Geometry`, it returns (B, N, C).

    Args:
        name: a key of `ATTENTION`, or the import path of a class of one's own (`my_package.my_module.MyAttention`).
        dim: channels C.
        **kwargs: further arguments of that mechanism.

    Raises:
        ValueError: no such mechanism, or it does not take these arguments.
    """
    return construct("attention", name, resolve("attention", name, ATTENTION), dim, **kwargs)


def accepted(name: str, offered: dict[str, Any]) -> dict[str, Any]:
    """Those of the offered arguments that a mechanism takes by name.

    Raises:
        ValueError: no such mechanism.
    """
    parameters = inspect.signature(resolve("attention", name, ATTENTION)).parameters
    return {key: value for key, value in offered.items() if key in parameters}


def layer_kwargs(attention_kwargs: dict[str, Any] | None, depth: int) -> list[dict[str, Any]]:
    """The arguments of each of `depth` layers: a list of that length gives every layer its own value.

    A None in such a list is no value: that layer has the mechanism's own.

    Raises:
        ValueError: a list has another length.
    """
    layers: list[dict[str, Any]] = [{} for _ in range(depth)]
    for key, value in (attention_kwargs or {}).items():
        values = value if isinstance(value, list) else [value] * depth
        if len(values) != depth:
            raise ValueError(
                f"expected attention_kwargs[{key!r}] to be one value or a list of {depth} (one a layer), "
                f"but got {len(values)}: {value}"
            )
        for layer, item in zip(layers, values, strict=True):
            if item is not None or values is not value:
                layer[key] = item
    return layers
