"""Registries, and the construction of objects from names and arguments in a configuration."""

import difflib
import importlib
import inspect
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from fnmatch import fnmatchcase
from functools import partial
from importlib.machinery import PathFinder
from importlib.util import find_spec
from typing import Any, TypeVar, cast, overload

from pcattn.utils.errors import InputError

T = TypeVar("T")
E = TypeVar("E")

_IMPORT_PATH = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)+")
_untrusted: ContextVar[str | None] = ContextVar("untrusted", default=None)


@contextmanager
def names_only(source: str | None) -> Iterator[None]:
    """Within this context, `resolve` refuses import paths, because the names come from `source`, an untrusted file.

    None changes nothing.
    """
    token = _untrusted.set(source or _untrusted.get())
    try:
        yield
    finally:
        _untrusted.reset(token)


def find_import_path(value: Any) -> str | None:
    """The first string in plain data, including keys, that could be an import path, or None."""
    if isinstance(value, str):
        return value if _IMPORT_PATH.fullmatch(value) else None
    if isinstance(value, Mapping):
        value = [*value, *value.values()]
    items = value if isinstance(value, (list, tuple)) else ()
    return next((found for item in items if (found := find_import_path(item)) is not None), None)


class Registry(dict[str, T]):
    """Classes or functions by name, with a decorator that adds more.

    Args:
        kind: what the entries are, for messages: `"attention"`.
        entries: the first entries.

    Example:
        >>> shapes = Registry("shape", {"cube": dict})
        >>> @shapes.register("ball")
        ... class Ball: ...
        >>> shapes.names("b*"), shapes.find("ball") is Ball
        (['ball'], True)
    """

    def __init__(self, kind: str, entries: Mapping[str, T] | None = None) -> None:
        super().__init__(entries or {})
        self.kind = kind

    @overload
    def register(self, target: str) -> Callable[[E], E]: ...
    @overload
    def register(self, target: E) -> E: ...
    def register(self, target: Any) -> Any:
        """Add an entry: `@register("name")`, or `@register`, which takes the name of the class or function.

        Raises:
            InputError: the name belongs to another entry. Defining the same class again replaces it.
        """
        if isinstance(target, str):
            return partial(self._add, target)
        return self._add(target.__name__, target)

    def _add(self, name: str, entry: T) -> T:
        if name in self and _path_of(self[name]) != _path_of(entry):
            raise InputError(f"expected a new name for {self.kind} {_path_of(entry)}, but {name!r} exists")
        self[name] = entry
        return entry

    def find(self, name: str | T) -> T:
        """The entry of a name, the object of an import path, or a class itself; see `resolve`."""
        return resolve(self.kind, name, self)

    def names(self, pattern: str = "*") -> list[str]:
        """The names that match a shell pattern (`fnmatch`), in the order of registration."""
        return [name for name in self if fnmatchcase(name, pattern)]


def _path_of(entry: Any) -> str:
    return f"{getattr(entry, '__module__', '')}.{getattr(entry, '__qualname__', repr(entry))}"


def import_path(value: Any) -> Any:
    """A class as its import path, for configurations and checkpoints, which hold plain data; anything else unchanged.

    Raises:
        InputError: the class is defined inside a function, so that no import finds it.
    """
    if isinstance(value, list):
        return [import_path(item) for item in value]
    if not isinstance(value, type):
        return value
    if "<locals>" in value.__qualname__:
        raise InputError(f"expected a class at the top level of a module, but got {_path_of(value)}")
    return _path_of(value)


def resolve(kind: str, name: str | T, registry: Mapping[str, T]) -> T:
    """The entry of a registry, the object behind an import path (`package.module.Class`), or a class itself.

    Args:
        kind: what is selected, for messages.
        name: key of the registry, import path, or class.
        registry: the known entries.

    Raises:
        InputError: no such entry, or nothing to import under this path. Importing runs the module: use configurations
            only from people whose code you would run. Within `names_only`, import paths are refused.
    """
    if isinstance(name, type):
        return name
    if not isinstance(name, str):
        raise InputError(f"expected {kind} to be one name, but got {name}")
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
        return cast("T", getattr(importlib.import_module(module_name), attribute))
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise InputError(f"{kind} {name!r} cannot be imported: {error}") from error


def look_here(import_path: str) -> None:
    """Add the current folder to `sys.path` if it has the module of an import path, as `python -m` does.

    It is added only for modules that are found nowhere else, and only for trusted names, because a folder of downloaded
    files may contain modules.
    """
    name, here = import_path.partition(".")[0], os.getcwd()
    if name not in sys.modules and find_spec(name) is None and PathFinder.find_spec(name, [here]) is not None:
        sys.path.append(here)


def construct(kind: str, name: str | type, factory: Callable[..., T], /, *args: Any, **kwargs: Any) -> T:
    """Call `factory(*args, **kwargs)`, after checking that it accepts these arguments.

    Raises:
        InputError: it does not; the message lists the arguments that it accepts.
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
