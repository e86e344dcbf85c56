"""From a name and plain arguments in a configuration to an object: attentions, data sets and transforms alike."""

import difflib
import importlib
import inspect
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from importlib.machinery import PathFinder
from importlib.util import find_spec
from typing import Any, TypeVar

from pcattn.utils.errors import InputError

T = TypeVar("T")

_IMPORT_PATH = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)+")
_untrusted: ContextVar[str | None] = ContextVar("untrusted", default=None)


@contextmanager
def names_only(source: str | None) -> Iterator[None]:
    """Within it, `resolve` refuses import paths: names come from the file `source`, which nobody vouched for.

    None changes nothing.
    """
    token = _untrusted.set(source or _untrusted.get())
    try:
        yield
    finally:
        _untrusted.reset(token)


def find_import_path(value: Any) -> str | None:
    """The first text in plain data, keys included, that could be an import path; None if there is none."""
    if isinstance(value, str):
        return value if _IMPORT_PATH.fullmatch(value) else None
    if isinstance(value, Mapping):
        value = [*value, *value.values()]
    items = value if isinstance(value, (list, tuple)) else ()
    return next((found for item in items if (found := find_import_path(item)) is not None), None)


def resolve(kind: str, name: str, registry: Mapping[str, T]) -> T:
    """The entry of a registry, or the object behind an import path (`package.module.Class`).

    Args:
        kind: what is chosen, as messages should call it.
        name: key of the registry, or import path.
        registry: the known entries.

    Raises:
        InputError: no such entry, or nothing to import under this path. An import path runs the module it names:
            take configurations from people you would take code from. Within `names_only` it is refused.
    """
    if not isinstance(name, str):
        hint = f": its import path is '{name.__module__}.{name.__qualname__}'" if isinstance(name, type) else ""
        raise InputError(f"expected {kind} to be one name, but got {name}{hint}")
    if name in registry:
        return registry[name]
    module_name, _, attribute = name.rpartition(".")
    if not module_name:
        close = difflib.get_close_matches(name, registry, n=1)
        hint = f" (did you mean {close[0]!r}?)" if close else ""
        raise InputError(
            f"expected {kind} to be one of {', '.join(registry)} or an import path, but got {name!r}{hint}"
        )
    if (source := _untrusted.get()) is not None:
        raise InputError(
            f"expected {kind} to be one of {', '.join(registry)}, but {source} names {name!r}, which is code to be "
            "imported and run: pass trust=True (--trust) if you trust where the file comes from"
        )
    try:
        look_here(module_name)
        return getattr(importlib.import_module(module_name), attribute)
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise InputError(f"{kind} {name!r} cannot be imported: {error}") from error


def look_here(import_path: str) -> None:
    """Let the module of an import path be found in the current folder, as `python -m` finds it: one's own.

    Only what is found nowhere else is looked for there, and only where the name is trusted: a folder of files from
    strangers may hold modules as well.
    """
    name, here = import_path.partition(".")[0], os.getcwd()
    if name not in sys.modules and find_spec(name) is None and PathFinder.find_spec(name, [here]) is not None:
        sys.path.append(here)


def construct(kind: str, name: str, factory: Callable[..., T], /, *args: Any, **kwargs: Any) -> T:
    """Call `factory(*args, **kwargs)`, after checking that it takes these arguments.

    Raises:
        InputError: it does not; the message lists what it takes.
    """
    signature = inspect.signature(factory)
    try:
        signature.bind(*args, **kwargs)
    except TypeError as error:
        accepted = ", ".join(list(signature.parameters)[len(args) :]) or "none"
        raise InputError(f"{kind} {name!r}: {error}; expected arguments among: {accepted}; but got {kwargs}") from None
    try:
        return factory(*args, **kwargs)
    except TypeError as error:  # a value of a type that the factory cannot compare or compute with
        raise InputError(f"{kind} {name!r} with {kwargs}: {error}") from error
