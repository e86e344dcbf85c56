"""Plain text in pictures."""

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def plain_text() -> Iterator[None]:
    """Stop matplotlib from reading `$` as math: names of classes may contain it. Context manager or decorator."""
    from matplotlib import rc_context

    with rc_context({"text.parse_math": False}):
        yield
