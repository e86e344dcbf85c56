"""From a name and plain arguments in a configuration to an object: attentions, data sets and transforms alike."""

import difflib
import importlib
import inspect
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

T = TypeVar("T")


def resolve(kind: str, name: str, registry: Mapping[str, T]) -> T:
    """The entry of a registry, or the object behind an import path (`package.module.Class`).

    Args:
        kind: what is chosen, as messages should call it.
        name: key of the registry, or import path.
        registry: the known entries.

    Raises:
        ValueError: no such entry, or nothing to import under this path. An import path runs the module it names:
            take configurations from people you would take code from.
    """
    if not isinstance(name, str):
        raise ValueError(f"expected {kind} to be one name, but got {name}")
    if name in registry:
        return registry[name]
    module_name, _, attribute = name.rpartition(".")
    if not module_name:
        close = difflib.get_close_matches(name, registry, n=1)
        hint = f" (did you mean {close[0]!r}?)" if close else ""
        raise ValueError(
            f"expected {kind} to be one of {', '.join(registry)} or an import path, but got {name!r}{hint}"
        )
    try:
        return getattr(importlib.import_module(module_name), attribute)
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"{kind} {name!r} cannot be imported: {error}") from error


def construct(kind: str, name: str, factory: Callable[..., T], /, *args: Any, **kwargs: Any) -> T:
    """Call `factory(*args, **kwargs)`, after checking that it takes these arguments.

    Raises:
        ValueError: it does not; the message lists what it takes.
    """
    signature = inspect.signature(factory)
    try:
        signature.bind(*args, **kwargs)
    except TypeError as error:
        accepted = ", ".join(list(signature.parameters)[len(args) :]) or "none"
        raise ValueError(f"{kind} {name!r}: {error}; expected arguments among: {accepted}; but got {kwargs}") from None
    try:
        return factory(*args, **kwargs)
    except TypeError as error:  # a value of a type that the factory cannot compare or compute with
        raise ValueError(f"{kind} {name!r} with {kwargs}: {error}") from error
