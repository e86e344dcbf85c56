"""Pictures, pages and a window of point clouds: truth, prediction, error, probability, attention.

`scene` holds what is drawn, `montage` makes pictures of it, `page` a web page, `window` Open3D's window; `evaluated`
makes it from a trained network. Importing this package loads nothing of it.
"""

from typing import Any

__all__ = ["Pictures"]


def __getattr__(name: str) -> Any:
    """The callback needs Lightning."""
    if name in __all__:
        from pcattn.visualize.callback import Pictures

        return Pictures
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """That name too, which an interactive shell completes."""
    return sorted({*globals(), *__all__})
