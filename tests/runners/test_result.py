"""The result rules, as tables and with Hypothesis."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mentatlab.protocol import events
from mentatlab.protocol.agent import AgentProgram
from mentatlab.protocol.errors import Code
from mentatlab.protocol.pins import Pin, PinType
from mentatlab.runners.result import Ending, Heard, conclude


def program(*names: str, optional: bool = False, **types: str) -> AgentProgram:
    pins = [Pin(n, PinType.JSON) for n in names] + [Pin(n, PinType(t)) for n, t in types.items()]
    return AgentProgram(
        id="a",
        version="1.0.0",
        command=("x",),
        directory=None,  # type: ignore[arg-type]
        outputs=tuple(pins),
        outputs_optional=optional,
    )


def heard(agent: AgentProgram, *said: events.AgentEvent) -> Heard:
    found = Heard(agent)
    for event in said:
        found.feed(event)
    return found


def bare(**value: Any) -> events.Bare:
    return events.Bare(value=value)


OK = Ending(exit_code=0)


@pytest.mark.parametrize(
    ("pins", "said", "outputs"),
    [
        (("a",), [events.Result(outputs={"a": 1, "unknown": 2})], {"a": 1}),
        (("a",), [bare(a=0), events.Output(key="a", value=1)], {"a": 1}),
        (("a",), [events.Output(key="a", value=1), events.Result(outputs={"a": 2})], {"a": 2}),
        (("a",), [bare(a=1), bare(a=2)], {"a": 2}),
        (("a",), [bare(result={"a": 3})], {"a": 3}),
        (("a",), [bare(result=[1, 2])], {"a": [1, 2]}),
        (("a",), [bare(x=1, y=2)], {"a": {"x": 1, "y": 2}}),
        (("a",), [bare(x=1, mentat_meta={"tokens": 5})], {"a": {"x": 1}}),
        (("result",), [bare(result={"a": 3})], {"result": {"a": 3}}),
        (("a", "error"), [bare(x=1)], None),
        (("a", "b"), [bare(a=1, b=2)], {"a": 1, "b": 2}),
    ],
)
def test_which_word_is_the_result(
    pins: tuple[str, ...], said: list[events.AgentEvent], outputs: dict[str, Any] | None
) -> None:
    outcome = conclude(program(*pins), heard(program(*pins), *said), OK)
    if outputs is None:
        assert outcome.code == Code.OUTPUT_MISSING
    else:
        assert (outcome.status, outcome.outputs) == ("succeeded", outputs)


def test_metrics_come_from_mentat_meta() -> None:
    for said in (
        bare(a=1, mentat_meta={"tokens": 5}),
        bare(result={"a": 1}, mentat_meta={"tokens": 5}),
    ):
        outcome = conclude(program("a"), heard(program("a"), said), OK)
        assert (outcome.outputs, outcome.metrics) == ({"a": 1}, {"tokens": 5})


def test_an_earlier_object_is_a_log_line() -> None:
    found = Heard(program())
    assert found.feed(bare(step=1)) is None
    told = found.feed(bare(step=2))
    assert isinstance(told, events.Log)
    assert told.data == {"step": 1}


@pytest.mark.parametrize(
    ("agent", "said", "code"),
    [
        (program("a"), [], Code.NO_RESULT),
        (program("a", "b"), [bare(a=1)], Code.OUTPUT_MISSING),
        (program("a", s="stream"), [events.Result(outputs={"a": 1})], ""),
        (program(s="stream"), [], ""),
        (program("text", "error", optional=True), [], Code.NO_RESULT),
        (program("text", "error", optional=True), [bare(text=1)], ""),
        (program("text", "error", optional=True), [bare(error="e")], ""),
        (program(), [], ""),
    ],
)
def test_what_may_stay_away(agent: AgentProgram, said: list[events.AgentEvent], code: str) -> None:
    assert conclude(agent, heard(agent, *said), OK).code == code


def test_optional_pins_may_stay_away() -> None:
    agent = program("a")
    optional = Pin("b", PinType.JSON, required=False)
    agent = type(agent)(
        **{f: getattr(agent, f) for f in agent.__struct_fields__}
        | {"outputs": (*agent.outputs, optional)}
    )
    assert conclude(agent, heard(agent, bare(a=1)), OK).status == "succeeded"


@pytest.mark.parametrize(
    ("ending", "class_", "code"),
    [
        (Ending(exit_code=3), "transient", Code.AGENT_TRANSIENT),
        (Ending(exit_code=124), "timeout", Code.AGENT_TIMEOUT),
        (Ending(exit_code=1), "permanent", Code.AGENT_EXIT),
        (Ending(exit_code=-11), "permanent", Code.AGENT_EXIT),
        (Ending(exit_code=-63), "permanent", Code.AGENT_EXIT),
        (Ending(exit_code=-9), "infra", Code.AGENT_KILLED),
        (Ending(exit_code=-9, oom=True), "oom", Code.AGENT_OOM),
        (Ending(exit_code=-9, cause="timeout"), "timeout", Code.AGENT_TIMEOUT),
        (Ending(exit_code=-9, cause="flood"), "permanent", Code.AGENT_FLOOD),
    ],
)
def test_exit_codes(ending: Ending, class_: str, code: str) -> None:
    outcome = conclude(program("a"), heard(program("a"), bare(a=1)), ending)
    assert (outcome.status, outcome.error_class, outcome.code) == ("failed", class_, code)
    assert outcome.message


@pytest.mark.parametrize(
    ("error", "exit_code", "class_"),
    [
        (events.Error(message="m"), 1, "permanent"),
        (events.Error(message="m"), 3, "transient"),
        (events.Error(message="m", retryable=True), 0, "transient"),
        (events.Error(message="m", code="AGENT_OOM"), 1, "oom"),
    ],
)
def test_reported_errors(error: events.Error, exit_code: int, class_: str) -> None:
    outcome = conclude(
        program("a"), heard(program("a"), bare(a=1), error), Ending(exit_code=exit_code)
    )
    assert (outcome.error_class, outcome.code, outcome.message) == (class_, error.code, "m")


def test_cancelled_is_not_failed() -> None:
    outcome = conclude(program("a"), heard(program("a")), Ending(exit_code=-15, cause="cancelled"))
    assert (outcome.status, outcome.error_class) == ("cancelled", None)


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
words = st.one_of(
    st.dictionaries(st.sampled_from(["a", "b", "result", "mentat_meta", "x"]), values).map(
        lambda v: events.Bare(value=v)
    ),
    st.dictionaries(st.sampled_from(["a", "b", "x"]), values).map(
        lambda v: events.Result(outputs=v)
    ),
    st.builds(lambda k, v: events.Output(key=k, value=v), st.sampled_from(["a", "x"]), values),
)


@given(st.lists(words, max_size=5), st.sampled_from([("a",), ("a", "b"), ()]))
def test_any_words_give_an_outcome_with_declared_outputs_only(
    said: list[events.AgentEvent], pins: tuple[str, ...]
) -> None:
    outcome = conclude(program(*pins), heard(program(*pins), *said), OK)
    assert outcome.outputs.keys() <= set(pins)
    if outcome.status == "succeeded":
        assert outcome.outputs.keys() == set(pins)
    else:
        assert outcome.code in (Code.NO_RESULT, Code.OUTPUT_MISSING)


def test_however_much_is_said_only_pins_are_kept() -> None:
    said = [events.Output(key=f"k{n}", value=n) for n in range(100)]
    found = heard(program("a"), *said, events.Output(key="mentat_meta", value={"n": 1}))
    assert found.outputs == {"mentat_meta": {"n": 1}}
    assert conclude(program("a"), found, OK).code == Code.OUTPUT_MISSING
