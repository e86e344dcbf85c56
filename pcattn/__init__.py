"""Attention on point clouds: PCT-style transformers whose attention is a one-word choice.

Importing this package needs torch alone; `pcattn.tasks`, `pcattn.datasets` and the command line load Lightning,
torch-geometric and h5py when they are imported. `pcattn.load` is `pcattn.inference.model.load`.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pcattn.inference.model import Model, load

__all__ = ["Model", "load"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """What needs Lightning, imported when it is first asked for."""
    if name in __all__:
        from pcattn.inference import model as inference

        return getattr(inference, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """Those names too, which an interactive shell completes."""
    return sorted({*globals(), *__all__})
