from collections.abc import Mapping
from typing import Any

import pytest

from mentatlab.flows.expressions import variables
from mentatlab.flows.plan import PlanNode
from mentatlab.protocol.pins import Pin, PinType
from mentatlab.runs.control import case_of, is_quick, prepare
from mentatlab.runs.signals import Prepared


def control(type_: str, *names: str, **params: Any) -> PlanNode:
    pins = tuple(Pin(name, PinType.JSON) for name in ("value", *names))
    known = variables(["params", *(pin.name for pin in pins)])
    return PlanNode(
        id="n", kind="control", type=type_, params=params, input_pins=pins, variables=known
    )


def told(node: PlanNode, **inputs: Any) -> Prepared:
    return prepare(node, inputs, at=10.0, attempt=1)


@pytest.mark.parametrize(
    ("condition", "value", "branch"),
    [
        ("value > 3", 4, "then"),
        ("value > 3", 3, "else"),
        ("value > 3", 3.5, "then"),
        ("value.label == 'cat' && value.score >= 0.5", {"label": "cat", "score": 1}, "then"),
        ("has(value.score)", {"label": "cat"}, "else"),
        ("value == null", None, "then"),
        ("value.exists(v, v.label == 'dog')", [{"label": "cat"}, {"label": "dog"}], "then"),
        ("value.all(v, v % 2 == 0) && size(value) > 0", [2, 3], "else"),
        ("value.filter(v, v > 1).map(v, v * 2) == [4, 6]", [1, 2, 3], "then"),
        ("value.matches('^a+$') && value.startsWith('a')", "aaa", "then"),
        ("timestamp(value) < timestamp('2026-11-24T00:00:00Z')", "2026-11-23T10:00:00Z", "then"),
        ("duration('90s') > duration(value)", "1m", "then"),
        ("size(value) == 7", "Grüße 🙂", "then"),
        ("params.limit < value", 6, "then"),
    ],
)
def test_an_if_takes_a_branch(condition: str, value: Any, branch: str) -> None:
    found = told(control("core.if", condition=condition, limit=5), value=value)
    assert (found.verdict, found.taken, found.attempt) == ("take", (branch,), 1)


@pytest.mark.parametrize(
    ("condition", "value", "said"),
    [
        ("value.score > 1", {}, "Key not found"),
        ("1 / value == 1", 0, "divide by zero"),
        ("value > 3", "text", "No matching overload"),
        ("value * 2 > 1", 0.5, "No matching overload"),
        ("value", "yes", "gives 'yes'"),
        ("value.all(x, value.all(y, x + y >= 0))", list(range(200)), "Iteration budget"),
        ("value == 'x'", "x" * (1 << 20), "more than 1048576 bytes"),
        ("value == 1", 1 << 70, "out of range"),
    ],
)
def test_what_cannot_be_evaluated_fails_the_node(condition: str, value: Any, said: str) -> None:
    found = told(control("core.if", condition=condition), value=value)
    assert found.verdict == "fail"
    assert found.error is not None
    assert (found.error.code, found.error.kind) == ("EXPRESSION_ERROR", "permanent")
    assert said in found.error.message
    assert found.error.hint


@pytest.mark.parametrize(
    ("value", "other", "default", "taken"),
    [
        (1, None, None, ("small",)),
        (50, 7, None, ("big",)),
        (50, None, "rest", ("rest",)),
        (50, None, None, ()),
    ],
)
def test_a_switch_takes_the_first_true_case(
    value: int, other: object, default: str | None, taken: tuple[str, ...]
) -> None:
    cases = [{"name": "small", "when": "value < 10"}, {"name": "big", "when": "other == 7"}]
    node = control("core.switch", "other", cases=cases, default=default)
    assert told(node, value=value, other=other).taken == taken


def test_a_gate_asks() -> None:
    found = told(control("core.gate", message="Publish?", timeout_s=60), value="x")
    assert (found.verdict, found.message, found.until) == ("ask", "Publish?", 70.0)
    assert told(control("core.gate"), value="x").until == 0.0


SCHEMA = {
    "type": "object",
    "required": ["at", "boxes"],
    "properties": {
        "at": {"type": "string", "format": "date-time"},
        "link": {"type": "string", "format": "uri"},
        "boxes": {"type": "array", "items": {"$ref": "#/$defs/box"}},
    },
    "$defs": {"box": {"type": "object", "required": ["label"]}},
}


@pytest.mark.parametrize(
    ("value", "misfits"),
    [
        ({"at": "2026-11-23T10:00:00Z", "boxes": [{"label": 1}]}, []),
        ({"at": "2026-11-23T10:00:00", "boxes": []}, ["/at"]),
        ({"at": "soon", "boxes": [{}], "link": "no link"}, ["/at", "/boxes/0", "/link"]),
        ([], ["/"]),
    ],
)
def test_a_schema_names_everything_that_does_not_fit(value: Any, misfits: list[str]) -> None:
    found = told(control("core.validate", schema=SCHEMA), value=value)
    if not misfits:
        assert (found.verdict, found.taken) == ("take", ("value",))
        return
    assert found.error is not None
    assert found.error.code == "SCHEMA_MISMATCH"
    places = found.error.message.removeprefix("the value does not fit the schema: ").split("; ")
    assert [place.partition(":")[0] for place in places] == misfits


@pytest.mark.parametrize(
    ("schema", "said"),
    [
        ({"$ref": "https://example.org/elsewhere.json"}, "which it does not hold"),
        ({"$ref": "#/$defs/gone"}, "which it does not hold"),
        ({"$ref": "#"}, "without end"),
        ({"items": {"type": "string"}}, "and 30 more"),
    ],
)
def test_schemas_that_lead_nowhere(schema: Mapping[str, Any], said: str) -> None:
    found = told(control("core.validate", schema=schema), value=list(range(50)))
    assert found.error is not None
    assert said in found.error.message


def agent(when: str, *, for_each: str | None = None) -> PlanNode:
    pins = (Pin("text", PinType.STRING), Pin("limit", PinType.NUMBER, required=False))
    known = variables(["params", "item", *(p.name for p in pins)])
    params = {"limit": 3}
    return PlanNode(
        id="a", kind="agent", type="t.a", when=when, for_each=for_each,
        params=params, input_pins=pins, variables=known,
    )  # fmt: skip


def test_when() -> None:
    assert told(agent("size(text) > limit"), text="four").verdict == "run"
    assert told(agent("size(text) > limit"), text="fou").verdict == "skip"
    assert told(agent("size(text) > limit"), text="fou", limit=2).verdict == "run"
    assert told(agent("text == null")).verdict == "run"
    assert told(agent("params.limit == 3"), text="").verdict == "run"
    each = agent("item == text && item != 'b'", for_each="text")
    assert prepare(each, {"text": "a"}, at=0.0, item=1).verdict == "run"
    assert prepare(each, {"text": "b"}, at=0.0, item=2) == Prepared(
        at=0.0, node="a", item=2, verdict="skip"
    )


@pytest.mark.parametrize(
    ("node", "value", "quick"),
    [
        (control("core.if", condition="value == 1"), 1, True),
        (control("core.if", condition="value.exists(v, v > 1)"), [1], True),
        (control("core.if", condition="value.exists(v, v > 1)"), list(range(1000)), False),
        (control("core.if", condition="value.all(v, value.all(w, v > w))"), [1], False),
        (control("core.if", condition="value == 1"), "x" * 5000, False),
        (control("core.switch", cases=[{"name": "a", "when": "x" * 300}]), 1, False),
        (control("core.gate"), "x" * 5000, True),
        (control("core.validate", schema={"type": "string"}), "x", True),
        (control("core.validate", schema={"pattern": "(a+)+$"}), "x", False),
        (control("core.validate", schema={"$ref": "#/$defs/a"}), "x", False),
    ],
)
def test_what_may_take_long_is_not_judged_in_place(node: PlanNode, value: Any, quick: bool) -> None:
    assert is_quick(case_of(node, {"value": value})) is quick
