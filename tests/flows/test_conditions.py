"""Control nodes, conditions, limits: what the check says of them; and whatever is written, it
answers."""

from collections.abc import Callable
from dataclasses import fields
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mentatlab.flows import Flow, Lookup, Plan, check_flow, compile_plan, load_flow

FlowOf = Callable[..., Flow]
IF = {"type": "core.if", "params": {"condition": "value != null"}}
IN = "/graph/nodes/1"


@pytest.fixture
def found(flow_of: FlowOf, lookup: Lookup) -> Callable[..., list[str]]:
    def check(nodes: dict[str, Any], *edges: str, **rest: Any) -> list[str]:
        problems = check_flow(flow_of(nodes, *edges, **rest), lookup)
        return [f"{p.code} {p.path}" for p in problems]

    return check


Found = Callable[..., list[str]]


@pytest.mark.parametrize(
    ("node", "problems"),
    [
        (IF, []),
        ({"type": "core.if"}, [f"BAD_PARAM {IN}/params/condition"]),
        (
            {"type": "core.if", "params": {"condition": "valu == 1", "conditon": "x"}},
            [f"UNKNOWN_FIELD {IN}/params/conditon", f"EXPRESSION_INVALID {IN}/params/condition"],
        ),
        (
            {"type": "core.if", "params": {"condition": "value +"}},
            [f"EXPRESSION_INVALID {IN}/params/condition"],
        ),
        (
            {"type": "core.if", "params": {"condition": "size(value)"}},
            [f"EXPRESSION_INVALID {IN}/params/condition"],
        ),
        (
            {"type": "core.if", "params": {"condition": "value == '" + "x" * 4096 + "'"}},
            [f"FLOW_LIMIT {IN}/params/condition"],
        ),
        ({"type": "core.switch", "params": {"cases": []}}, [f"BAD_PARAM {IN}/params/cases"]),
        (
            {
                "type": "core.switch",
                "params": {
                    "cases": [{"name": "a", "when": "true"}, {"name": "a", "when": "true"}, {}, 7],
                    "default": "a.b",
                },
            },
            [
                f"BAD_PARAM {IN}/params/cases/1/name",
                f"BAD_PARAM {IN}/params/cases/2/name",
                f"BAD_PARAM {IN}/params/cases/3/name",
                f"BAD_PARAM {IN}/params/default",
            ],
        ),
        (
            {"type": "core.gate", "params": {"message": 5, "timeout_s": 0}},
            [f"BAD_PARAM {IN}/params/message", f"BAD_PARAM {IN}/params/timeout_s"],
        ),
        ({"type": "core.validate"}, [f"BAD_PARAM {IN}/params/schema"]),
        (
            {"type": "core.validate", "params": {"schema": {"properties": {"a": {"type": "x"}}}}},
            [f"BAD_PARAM {IN}/params/schema/properties/a/type"],
        ),
        ({**IF, "forEach": "value"}, [f"BAD_PARAM {IN}/forEach"]),
        ({**IF, "needs": 2}, [f"BAD_PARAM {IN}/needs"]),
        ({**IF, "whn": "true"}, [f"UNKNOWN_FIELD {IN}/whn"]),
        ({**IF, "x-colour": "red", "retry": {}}, [f"UNUSED_FIELD {IN}/retry"]),
    ],
)
def test_control_nodes(found: Found, node: dict[str, Any], problems: list[str]) -> None:
    assert found({"p": "ui.prompt", "n": node}, "p.text > n.value") == problems


def test_a_value_goes_through_with_its_type(found: Found) -> None:
    nodes = {"r": "t.record", "b": IF, "l": "t.listen", "e": "t.echo"}
    assert found(nodes, "r.sound > b.value", "b.then > l.sound", "b.else > e.text") == [
        "CONSTRAINT_CONFLICT /graph/edges/1",
        "TYPE_MISMATCH /graph/edges/2",
    ]
    assert found(nodes, "r.raw > b.value") == [
        "TYPE_MISMATCH /graph/edges/0",
        "MISSING_INPUT /graph/nodes/2",
    ]
    lists = {
        "f": "t.frames",
        "c": "core.collect",
        "b": IF,
        "d": {"type": "t.detect", "forEach": "image"},
    }
    assert found(lists, "f.frame > c.in", "c.out > b.value", "b.then > d.image") == []
    assert found({"b": IF}) == ["MISSING_INPUT /graph/nodes/0"]


def test_streams_are_no_variables(flow_of: FlowOf, lookup: Lookup) -> None:
    nodes = {"r": "t.record", "l": {"type": "t.listen", "when": "sound != null"}}
    (problem,) = check_flow(flow_of(nodes, "r.raw > l.sound"), lookup)
    assert problem.code == "EXPRESSION_INVALID"
    assert problem.hint == "variables are params; sound: a stream is no value"


def test_when_needs_and_cache(found: Found) -> None:
    echo = {"type": "t.echo", "when": "text != 'x' && params.n == 1", "needs": "any", "cache": True}
    assert found({"p": "ui.prompt", "e": echo}, "p.text > e.text") == []
    assert found({"p": {"type": "ui.prompt", "when": "true", "needs": "any"}}) == [
        "BAD_PARAM /graph/nodes/0/when",
        "BAD_PARAM /graph/nodes/0/needs",
    ]
    assert found({"f": {"type": "t.frames", "cache": "content"}}) == [
        "UNUSED_FIELD /graph/nodes/0/cache"
    ]


def test_limits_are_told_at_once(found: Found) -> None:
    big = {"type": "t.echo", "maxParallel": 1001, "forEach": "text", "params": {"x": "y" * 300_000}}
    late = {"type": "t.echo", "timeouts": {"total_s": 1e9}}
    problems = found({"a": big, "b": late}, runConfig={"timeoutSeconds": 2_592_001})
    assert [p for p in problems if p.startswith("FLOW_LIMIT")] == [
        "FLOW_LIMIT /runConfig/timeoutSeconds",
        "FLOW_LIMIT /graph/nodes/0/maxParallel",
        "FLOW_LIMIT /graph/nodes/0/params",
        "FLOW_LIMIT /graph/nodes/1/timeouts/total_s",
    ]
    many = {f"n{i}": "t.echo" for i in range(1001)}
    assert found(many, *["n0.text > n1.text"] * 10_001) == [
        "FLOW_LIMIT /graph/nodes",
        "FLOW_LIMIT /graph/edges",
    ]


TYPES = ["t.echo", "t.join", "t.frames", "t.detect", "t.listen", "t.record", "ui.prompt"]
TYPES += ["ui.console", "core.once", "core.collect", "core.if", "core.switch", "core.gate"]
TYPES += ["core.validate", "core.flow", "nobody"]
PINS = ["text", "value", "a", "frame", "image", "raw", "sound", "then", "else", "boxes", "case"]
EXPRESSIONS = ["true", "value != null", "text == 'x'", "1 +", "nope", "item == 1", "size(value)"]
PARAMS = st.fixed_dictionaries(
    {},
    optional={
        "condition": st.sampled_from(EXPRESSIONS),
        "cases": st.just([{"name": "case", "when": "true"}]) | st.none(),
        "schema": st.booleans() | st.just({"type": "string"}) | st.just(3),
        "text": st.text(max_size=3) | st.integers(),
        "flow": st.just("stored") | st.none(),
    },
)
NODES = st.fixed_dictionaries(
    {"type": st.sampled_from(TYPES), "params": PARAMS},
    optional={
        "when": st.sampled_from(EXPRESSIONS),
        "needs": st.sampled_from(["any", "all", 1, 2]),
        "forEach": st.sampled_from(PINS),
        "cache": st.sampled_from(["content", "none", True, None]),
    },
)


def shown(plan: Plan) -> dict[str, Any]:
    return {f.name: getattr(plan, f.name) for f in fields(plan) if f.init}


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(NODES, min_size=1, max_size=6), st.data())
def test_whatever_is_written_is_answered(
    lookup: Lookup, nodes: list[dict[str, Any]], data: st.DataObject
) -> None:
    ends = st.builds(
        lambda i, pin: f"n{i}.{pin}", st.integers(0, len(nodes)), st.sampled_from(PINS)
    )
    edges = data.draw(st.lists(st.fixed_dictionaries({"from": ends, "to": ends}), max_size=8))
    flow = load_flow(
        {
            "apiVersion": "v1beta1",
            "kind": "Flow",
            "meta": {"id": "any"},
            "graph": {"nodes": [{"id": f"n{i}", **n} for i, n in enumerate(nodes)], "edges": edges},
        }
    )
    if any(p.severity == "error" for p in check_flow(flow, lookup)):
        return
    plan = compile_plan(flow, lookup)
    again = compile_plan(load_flow(flow.document()), lookup)
    assert shown(plan) == shown(again)
