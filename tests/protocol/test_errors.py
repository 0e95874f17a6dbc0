import inspect
import pickle

import pytest

from mentatlab.protocol import errors
from mentatlab.protocol.errors import Code, MentatError, Problem, RateLimited, ValidationFailed

EVERY_KIND = [
    kind
    for _, kind in inspect.getmembers(errors, inspect.isclass)
    if issubclass(kind, MentatError)
    and kind not in (ValidationFailed, errors.RangeUnsatisfiable, RateLimited)
]


@pytest.mark.parametrize("kind", EVERY_KIND)
def test_every_error_survives_the_way_between_processes(kind: type[MentatError]) -> None:
    error = kind(Code.CONFLICT, "taken", hint="wait", details={"by": "x"})
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is kind
    assert (again.code, again.message, again.hint, again.details) == (
        Code.CONFLICT,
        "taken",
        "wait",
        {"by": "x"},
    )
    assert str(again) == "CONFLICT: taken"


def test_errors_with_their_own_arguments_survive_as_well() -> None:
    limited = pickle.loads(pickle.dumps(RateLimited(2.4)))
    assert (limited.retry_after_s, limited.retryable) == (2.4, True)
    assert "in 3 s" in str(limited)
    outside = pickle.loads(pickle.dumps(errors.RangeUnsatisfiable(7)))
    assert (outside.size, outside.code) == (7, Code.RANGE_NOT_SATISFIABLE)


def test_a_failed_validation_tells_every_problem() -> None:
    problems = [
        Problem(Code.MISSING_INPUT, "/graph/nodes/0", "no text", "connect it"),
        Problem(Code.CYCLE, "", "a circle"),
    ]
    failed = ValidationFailed(Code.FLOW_INVALID, "cannot run", problems)
    assert failed.hint == "connect it"
    assert str(failed).splitlines() == [
        "FLOW_INVALID: cannot run",
        "  /graph/nodes/0: MISSING_INPUT: no text",
        "  /: CYCLE: a circle",
    ]
    assert pickle.loads(pickle.dumps(failed)).problems == problems
    assert ValidationFailed(Code.FLOW_INVALID, "cannot run", []).hint == ""


def test_a_code_is_its_own_name() -> None:
    assert all(code.name == code.value for code in Code)
