"""Text of pictures as it is."""

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def plain_text() -> Iterator[None]:
    """Within it matplotlib takes no text for a formula: the name of a class may hold dollars. Also a decorator."""
    from matplotlib import rc_context

    with rc_context({"text.parse_math": False}):
        yield
