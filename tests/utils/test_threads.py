"""Work in threads: results are in order, and an error stops the remaining calls."""

import pytest

from pcattn.utils.threads import in_threads


def test_keeps_the_order() -> None:
    assert list(in_threads(lambda number: number**2, range(100))) == [number**2 for number in range(100)]


def test_an_error_arrives_and_stops_the_rest() -> None:
    begun = []

    def work(number: int) -> int:
        begun.append(number)
        return 1 // (5 - number)

    with pytest.raises(ZeroDivisionError):
        list(in_threads(work, range(10_000)))
    assert len(begun) < 1000
