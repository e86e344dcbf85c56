"""Coverage of chosen modules alone: atheris' import hook takes whole packages, and misses what is imported later."""

from collections.abc import Iterator, Mapping
from inspect import isclass, isfunction, unwrap
from types import FunctionType, ModuleType
from typing import Any

import atheris


def instrument(*modules: ModuleType) -> None:
    """Let the guide see into every function and method that these imported modules define."""
    for module in modules:
        for function in set(_functions(module.__name__, vars(module))):
            atheris.instrument_func(function)


def _functions(module: str, names: Mapping[str, Any]) -> Iterator[FunctionType]:
    for value in names.values():
        value = value.fget if isinstance(value, property) else getattr(value, "__func__", value)  # static, of the class
        if isclass(value):
            if value.__module__ == module:
                yield from _functions(module, vars(value))
            continue
        function = unwrap(value, stop=lambda wrapper: hasattr(wrapper, "py_func"))  # numba compiles no calls of a guide
        if isfunction(function) and function.__module__ == module:
            yield function
