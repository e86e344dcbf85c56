"""Attention on point clouds: PCT-style transformers whose attention is a one-word choice.

Importing this package loads nothing else. The names below are imported when they are first used: networks need torch
alone, `load` and `Model` need Lightning and torch-geometric, too.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pcattn.attention import register_attention
    from pcattn.inference.model import Model, load
    from pcattn.io import read_cloud
    from pcattn.models import create_model, list_models, register_model

__all__ = ["Model", "create_model", "list_models", "load", "read_cloud", "register_attention", "register_model"]
__version__ = "0.1.0"

_MODULES = {
    "Model": "pcattn.inference.model",
    "create_model": "pcattn.models",
    "list_models": "pcattn.models",
    "load": "pcattn.inference.model",
    "read_cloud": "pcattn.io",
    "register_attention": "pcattn.attention",
    "register_model": "pcattn.models",
}


def __getattr__(name: str) -> Any:
    """Import a name when it is first used."""
    if name in _MODULES:
        return getattr(importlib.import_module(_MODULES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """Include these names, so that interactive shells complete them."""
    return sorted({*globals(), *__all__})
