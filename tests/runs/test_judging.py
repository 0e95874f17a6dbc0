"""Rulings in a process of their own: the same answer, and an end when they take too long."""

from mentatlab.runs import control
from mentatlab.runs.control import Case
from mentatlab.runs.judging import judge

LOOP = Case(
    type="core.if",
    params={"condition": "value.exists(x, value.exists(y, x == y + 2))"},
    values={"value": [1, 2, 3]},
    variables=("value",),
)


async def test_what_may_be_slow_is_ruled_in_another_process() -> None:
    assert not control.is_quick(LOOP)
    assert await judge(LOOP) == control.rule(LOOP)
    assert (await judge(LOOP)).taken == ("then",)


async def test_what_takes_too_long_fails() -> None:
    ruling = await judge(LOOP, limit_s=0)
    assert ruling.error is not None
    assert (ruling.verdict, ruling.error.code) == ("fail", "EXPRESSION_ERROR")
