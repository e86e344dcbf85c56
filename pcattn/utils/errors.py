"""Errors that a user can cause. Each message names the argument or file, what was expected, and what it got."""

from collections.abc import Sequence
from pathlib import Path

from pcattn.utils.text import escape_unprintable


class InputError(ValueError):
    """An argument, a file, or a configuration from the user cannot be used.

    The message has the form "expected X, but got Y". The command line prints it as one line. Any other exception is a
    bug and shows its traceback.
    """


class DatasetError(InputError):
    """The files of a data set do not hold what was expected. The message escapes unprintable file names."""

    def __init__(self, message: str) -> None:
        super().__init__(escape_unprintable(message))


class DatasetNotFoundError(DatasetError):
    """A data set is not in the folder where it was expected.

    Args:
        name: name of the data set.
        root: the folder that was searched.
        expected: the files that should be there.
        hint: how to get them.
    """

    def __init__(self, name: str, root: Path, expected: str, hint: str) -> None:
        state = "which lacks them" if root.is_dir() else f"which {'is a file' if root.exists() else 'does not exist'}"
        super().__init__(f"{name} not found: expected {expected} in {root.absolute()}, {state}. {hint}")


class DatasetBrokenError(DatasetError):
    """A file of a data set cannot be used.

    Args:
        path: the file.
        reason: what was expected of the file and what it holds instead.
    """

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"broken file {path.absolute()}: {reason}")
        self.path, self.reason = path, reason

    def __reduce__(self) -> tuple[type, tuple[Path, str]]:
        """Pickle the arguments, so that the error can leave a worker process."""
        return type(self), (self.path, self.reason)


class SkippedWarning(UserWarning):
    """A data set skipped files (`on_error: skip`). The message shows the first five.

    Args:
        title: what was skipped, and how many.
        reasons: what is wrong with each file.
    """

    def __init__(self, title: str, reasons: Sequence[str]) -> None:
        super().__init__(f"{title}: {first_few(reasons)}")
        self.title, self.reasons = title, list(reasons)


def first_few(reasons: Sequence[str]) -> str:
    """Join the first five reasons and count the rest."""
    more = f"; and {len(reasons) - 5} more: `pcattn data` names them all" if len(reasons) > 5 else ""
    return "; ".join(reasons[:5]) + more
