"""Every public function on degenerate clouds: a finite result, or a `ValueError` that names the argument."""

import re

import pytest

from tests.degenerate.cases import HARD, NOT_FINITE, REFUSED, Function, functions, make, tensors

FUNCTIONS = functions()


@pytest.fixture(params=FUNCTIONS)
def function(request: pytest.FixtureRequest) -> Function:
    return FUNCTIONS[request.param]


@pytest.mark.parametrize("case", REFUSED)
def test_refused(function: Function, case: str) -> None:
    if case in function.accepts:
        return
    with pytest.raises(ValueError, match=rf"expected .*({function.argument}).* but got"):
        function.call(make(case))


@pytest.mark.parametrize("case", NOT_FINITE)
def test_not_finite(function: Function, case: str) -> None:
    """Refused with where it is; where features are not looked at, there is a result."""
    if case in function.not_finite:
        with pytest.raises(ValueError, match=r"(to be|expected) finite.* (point|cloud)|without NaN, but got NaN"):
            function.call(make(case))
    else:
        function.call(make(case))


@pytest.mark.parametrize("case", HARD)
def test_finite_result(function: Function, case: str) -> None:
    refusal = ""
    try:
        result = tensors(function.call(make(case)))
    except ValueError as error:
        refusal, result = str(error), []
    assert all(tensor.isfinite().all() for tensor in result)
    # Too few points, too few clouds to normalize over, or numbers whose products leave float32.
    allowed = {"one point": "points|k=3|more than 1 value", "three points": "points", "huge": r"at most 1e\+12"}
    assert not refusal or re.search(allowed.get(case, "more than 1 value" if case == "batch of one" else "$^"), refusal)
