"""Stopping at the first number that is not finite, without making a GPU wait for the question."""

from collections.abc import Callable

import torch
from torch import Tensor

from pcattn.utils.errors import InputError


class NonFiniteError(InputError):
    """A batch holds NaN or infinity, or leads to a loss that is one."""


class FiniteWatch:
    """Raises `NonFiniteError` once something turns out not to be finite.

    What lies on the CPU is looked at as soon as it is seen. What lies on a GPU has not been computed by then: its flag
    is copied to the host behind it, and read when the next one is seen, by when it has arrived. The error is one step
    late there and still tells of its own step; `flush` reads what is left, before anything is saved.
    """

    def __init__(self) -> None:
        self._pending: tuple[Callable[[], bool], Callable[[bool], str]] | None = None

    def see(self, finite: Tensor, explain: Callable[[bool], str]) -> None:
        """Take notice of whether a step went well.

        Args:
            finite: (), true or false.
            explain: what to say where it is false; called with whether that is noticed late, after further steps.

        Raises:
            NonFiniteError: it is false, or on a GPU what was seen before it is.
        """
        self.flush()
        if finite.device.type == "cpu":
            if not bool(finite):
                raise NonFiniteError(explain(False))
        else:
            self._pending = read_later(finite), explain

    def flush(self) -> None:
        """Raise for what was seen last.

        Raises:
            NonFiniteError: it is false.
        """
        pending, self._pending = self._pending, None
        if pending is not None and not pending[0]():
            raise NonFiniteError(pending[1](True))


def read_later(flag: Tensor) -> Callable[[], bool]:
    """A function that returns the value of a flag, and waits for nothing that is put to work after this call."""
    if flag.device.type != "cuda":
        return lambda: bool(flag)
    copy = flag.to("cpu", non_blocking=True)
    arrived = torch.cuda.Event()
    arrived.record()

    def read() -> bool:
        arrived.synchronize()
        return bool(copy)

    return read
