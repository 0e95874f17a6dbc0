"""What an expression may need is bounded: it can neither hold the loop nor eat the memory."""

import pytest

from mentatlab.runs.control import Case
from mentatlab.runs.judging import judge

TEXT = "x" * 60_000
NUMBERS = list(range(9_000))


def case(condition: str) -> Case:
    return Case(
        type="core.if",
        params={"condition": condition},
        values={"value": NUMBERS, "text": TEXT},
        variables=("text", "value"),
    )


async def test_one_that_loops_over_much_is_answered() -> None:
    found = await judge(case("value.all(v, v >= 0) && size(text) == 60000"))
    assert found.taken == ("then",)


@pytest.mark.slow
@pytest.mark.parametrize(
    "condition",
    [
        "size(value.map(v, text + text + text + text + text + text)) > 0",
        "size(value.map(v, value + value)) > 0",
    ],
)
async def test_one_that_needs_too_much_fails(condition: str) -> None:
    found = await judge(case(condition), limit_s=5.0)
    assert found.error is not None
    assert found.error.code == "EXPRESSION_ERROR"
