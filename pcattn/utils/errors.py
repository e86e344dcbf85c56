"""Errors that a user can cause: each names the argument or file, what was expected and what came."""

from collections.abc import Sequence
from pathlib import Path

from pcattn.utils.text import printable


class InputError(ValueError):
    """An argument, a file or a configuration that the user gave cannot be used.

    The message says what was expected and what came. The command line prints it as one line; any other exception is a
    bug and keeps its traceback.
    """


class DatasetError(InputError):
    """The files of a data set do not hold what was asked for. What they are called is told in printable characters."""

    def __init__(self, message: str) -> None:
        super().__init__(printable(message))


class DatasetNotFoundError(DatasetError):
    """A data set is not where it was looked for.

    Args:
        name: name of the data set.
        root: the folder that was searched.
        expected: the files that should be there.
        hint: where they can be had.
    """

    def __init__(self, name: str, root: Path, expected: str, hint: str) -> None:
        state = "which lacks them" if root.is_dir() else f"which {'is a file' if root.exists() else 'does not exist'}"
        super().__init__(f"{name} not found: expected {expected} in {root.absolute()}, {state}. {hint}")


class DatasetBrokenError(DatasetError):
    """A file of a data set cannot be used.

    Args:
        path: the file.
        reason: what was expected of it and what it holds instead.
    """

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"broken file {path.absolute()}: {reason}")
        self.path, self.reason = path, reason

    def __reduce__(self) -> tuple:
        """How it comes out of a process that reads files."""
        return type(self), (self.path, self.reason)


class SkippedWarning(UserWarning):
    """What a data set passed over (`on_error: skip`): the first few in its text.

    Args:
        title: what they are, and how many.
        reasons: what is wrong with each.
    """

    def __init__(self, title: str, reasons: Sequence[str]) -> None:
        super().__init__(f"{title}: {first_few(reasons)}")
        self.title, self.reasons = title, list(reasons)


def first_few(reasons: Sequence[str]) -> str:
    """The first five, and how many more there are."""
    more = f"; and {len(reasons) - 5} more: `pcattn data` names them all" if len(reasons) > 5 else ""
    return "; ".join(reasons[:5]) + more
