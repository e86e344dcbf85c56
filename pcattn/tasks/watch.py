"""Stop a training at the first NaN or infinity, without synchronizing a GPU in every step."""

from collections.abc import Callable

import torch
from torch import Tensor

from pcattn.utils.errors import InputError


class NonFiniteError(InputError):
    """A batch, its logits or its loss hold NaN or infinity."""


class FiniteWatch:
    """Raises `NonFiniteError` for the first step that is not finite.

    On the CPU a flag is checked at once. On a GPU its value has not been computed yet: the flag is copied to the host
    asynchronously and read with the next step, when it has arrived. The error comes one step late there, but its
    message is about the right step. `flush` checks the last flag before anything is saved.
    """

    def __init__(self) -> None:
        self._pending: tuple[Callable[[], bool], Callable[[bool], str]] | None = None

    def see(self, finite: Tensor, explain: Callable[[bool], str]) -> None:
        """Check the flag of a step.

        Args:
            finite: (), bool.
            explain: returns the message if the flag is false; its argument says whether later steps were taken since.

        Raises:
            NonFiniteError: the flag is false; on a GPU, the flag before it is.
        """
        self.flush()
        if finite.device.type == "cpu":
            if not bool(finite):
                raise NonFiniteError(explain(False))
        else:
            self._pending = read_later(finite), explain

    def flush(self) -> None:
        """Check the last flag.

        Raises:
            NonFiniteError: it is false.
        """
        pending, self._pending = self._pending, None
        if pending is not None and not pending[0]():
            raise NonFiniteError(pending[1](True))


def read_later(flag: Tensor) -> Callable[[], bool]:
    """A function that returns the value of a flag. It does not wait for GPU work that is queued after this call."""
    if flag.device.type != "cuda":
        return lambda: bool(flag)
    copy = flag.to("cpu", non_blocking=True)
    arrived = torch.cuda.Event()
    arrived.record()

    def read() -> bool:
        arrived.synchronize()
        return bool(copy)

    return read
