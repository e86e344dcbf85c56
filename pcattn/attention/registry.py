"""From a name in a configuration to an attention core."""

import inspect
from functools import partial
from typing import Any

from torch import Tensor, nn

from pcattn.attention.acmix import ACmixAttention
from pcattn.attention.axial import AxialAttention
from pcattn.attention.external import ExternalAttention
from pcattn.attention.multihead_external import MultiheadExternalAttention
from pcattn.attention.neighborhood import NeighborhoodAttention
from pcattn.attention.offset import OffsetAttention
from pcattn.attention.polarized import PolarizedAttention
from pcattn.attention.self_attention import SelfAttention
from pcattn.utils.checks import check_device, check_dtype
from pcattn.utils.errors import InputError
from pcattn.utils.registry import construct, resolve

#: What selects an attention: a name in `ATTENTION`, an import path (`my_package.my_module.MyAttention`), or a class.
AttentionName = str | type[nn.Module]

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
        InputError: no such mechanism, or it does not take these arguments. Its call raises the same for features that
            do not fit to `dim` or to the positions. The values of the features are not looked at: NaN gives NaN, and so
            do features so large that their products leave the range of their type (1e19 in float32).
    """
    core = construct("attention", name, resolve("attention", name, ATTENTION), dim, **kwargs)
    # Not in every mechanism, one's own included. Kernels read by index: sizes that differ would not end in an error.
    core.register_forward_pre_hook(partial(_check_input, dim), with_kwargs=True)
    return core


def _check_input(dim: int, core: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    x, geometry = (*args, *(kwargs[name] for name in ("x", "geometry") if name in kwargs))
    if isinstance(geometry, Tensor):
        raise InputError(f"expected geometry to be Geometry(pos), but got a tensor of shape {tuple(geometry.shape)}")
    expected = (*geometry.pos.shape[:2], dim)
    if x.shape != expected:
        raise InputError(
            f"expected features x (B, N, C) = {expected} for positions {tuple(geometry.pos.shape)}, "
            f"but got shape {tuple(x.shape)}"
        )
    check_device(x=x, pos=geometry.pos)
    for weight in core.parameters():  # of which they all have the type; a mechanism may have none
        check_dtype("x", x, weight, "the weights")
        break


def accepted(name: str, offered: dict[str, Any]) -> dict[str, Any]:
    """Those of the offered arguments that a mechanism takes by name.

    Raises:
        InputError: no such mechanism.
    """
    parameters = inspect.signature(resolve("attention", name, ATTENTION)).parameters
    return {key: value for key, value in offered.items() if key in parameters}


def layer_kwargs(attention_kwargs: dict[str, Any] | None, depth: int) -> list[dict[str, Any]]:
    """The arguments of each of `depth` layers: a list of that length gives every layer its own value.

    A None in such a list is no value: that layer has the mechanism's own.

    Raises:
        InputError: a list has another length.
    """
    layers: list[dict[str, Any]] = [{} for _ in range(depth)]
    for key, value in (attention_kwargs or {}).items():
        values = value if isinstance(value, list) else [value] * depth
        if len(values) != depth:
            raise InputError(
                f"expected attention_kwargs[{key!r}] to be one value or a list of {depth} (one a layer), "
                f"but got {len(values)}: {value}"
            )
        for layer, item in zip(layers, values, strict=True):
            if item is not None or values is not value:
                layer[key] = item
    return layers
