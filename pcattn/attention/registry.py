"""Attentions by name."""

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
from pcattn.utils.registry import Registry, construct

#: What selects an attention: a name in `ATTENTION`, an import path (`my_package.my_module.MyAttention`), or a class.
AttentionName = str | type[nn.Module]

#: Every attention by name. A built-in attention is a class in a file of this folder and a line here.
ATTENTION: Registry[type[nn.Module]] = Registry(
    "attention",
    {
        "self": SelfAttention,
        "offset": OffsetAttention,
        "external": ExternalAttention,
        "multihead_external": MultiheadExternalAttention,
        "axial": AxialAttention,
        "acmix": ACmixAttention,
        "polarized": PolarizedAttention,
        "neighborhood": NeighborhoodAttention,
    },
)

#: Decorator that adds an attention by name: `@register_attention("mean")`.
register_attention = ATTENTION.register


def build_attention(name: AttentionName, dim: int, **kwargs: Any) -> nn.Module:
    """An attention: a module that maps features (B, N, C) and a `Geometry` to features (B, N, C).

    Args:
        name: a key of `ATTENTION`, the import path of a class (`my_package.my_module.MyAttention`), or a class.
        dim: channels C, the first argument of the class.
        **kwargs: further arguments of the class.

    Raises:
        InputError: no such attention, or it does not accept these arguments. Calling the module raises the same error
            for features that do not fit `dim` or the positions. The values of the features are not checked: NaN gives
            NaN, and so do features so large that their products overflow (1e19 in float32).
    """
    core = construct("attention", name, ATTENTION.find(name), dim, **kwargs)
    # Checked here, so that the checks hold for users' classes as well. Kernels index without bounds checks.
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
    for weight in core.parameters():  # all have one type; an attention may have no parameters
        check_dtype("x", x, weight, "the weights")
        break


def supported_kwargs(name: AttentionName, offered: dict[str, Any]) -> dict[str, Any]:
    """Those of the offered arguments that an attention has parameters for.

    Raises:
        InputError: no such attention.
    """
    parameters = inspect.signature(ATTENTION.find(name)).parameters
    return {key: value for key, value in offered.items() if key in parameters}


def layer_kwargs(attention_kwargs: dict[str, Any] | None, depth: int) -> list[dict[str, Any]]:
    """The arguments of each of `depth` layers: a list of that length gives every layer its own value.

    None in such a list selects the default of the attention for that layer.

    Raises:
        InputError: a list has another length.
    """
    layers: list[dict[str, Any]] = [{} for _ in range(depth)]
    for key, value in (attention_kwargs or {}).items():
        values = value if isinstance(value, list) else [value] * depth
        if len(values) != depth:
            raise InputError(
                f"expected attention_kwargs[{key!r}] to be one value or a list of {depth} (one per layer), "
                f"but got {len(values)}: {value}"
            )
        for layer, item in zip(layers, values, strict=True):
            if item is not None or values is not value:
                layer[key] = item
    return layers
