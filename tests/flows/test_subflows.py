from typing import Any

from mentatlab.flows import Lookup, check_flow, compile_plan, load_flow
from mentatlab.flows.check import check_document
from mentatlab.flows.subflows import inline, names
from mentatlab.protocol.errors import Code, Problem


def document(nodes: dict[str, Any], *edges: str, id: str = "test") -> dict[str, Any]:
    listed = [{"id": k, **({"type": v} if isinstance(v, str) else v)} for k, v in nodes.items()]
    wires = [dict(zip(("from", "to"), e.split(" > "), strict=True)) for e in edges]
    graph = {"nodes": listed, "edges": wires}
    return {"apiVersion": "v1beta1", "kind": "Flow", "meta": {"id": id}, "graph": graph}


def sub(flow: Any, **params: Any) -> dict[str, Any]:
    return {"type": "core.flow", "params": {"flow": flow, **params}}


SHOUT = document(
    {"say": "ui.prompt", "one": "t.echo", "two": "t.echo", "heard": "ui.console"},
    "say.text > one.text",
    "one.text > two.text",
    "two.text > heard.text",
    id="shout",
)


def wires(found: dict[str, Any], lookup: Lookup) -> list[str]:
    plan = compile_plan(load_flow(found), lookup)
    return [
        f"{e.source}.{e.source_pin} > {e.target}.{e.target_pin}"
        for n in plan.nodes
        for e in n.inputs
    ]


def problems(found: dict[str, Any], lookup: Lookup) -> list[str]:
    return [f"{p.code} {p.path}" for p in check_flow(load_flow(found), lookup)]


def test_a_sub_flow_becomes_its_nodes(lookup: Lookup) -> None:
    outer = document(
        {"p": "ui.prompt", "s": sub(SHOUT), "c": "ui.console"}, "p.text > s.say", "s.heard > c.x"
    )
    assert wires(outer, lookup) == [
        "p.text > s:one.text",
        "s:one.text > s:two.text",
        "s:two.text > c.x",
    ]
    assert problems(outer, lookup) == []


def test_what_is_not_connected_is_an_input_of_the_run(lookup: Lookup) -> None:
    outer = document({"s": sub(SHOUT), "t": sub(SHOUT, say="hi")}, "s.heard_text > t.say")
    plan = compile_plan(load_flow(outer), lookup)
    assert [(i.name, i.pin.required) for i in plan.inputs] == [("s:say", True)]
    alone = compile_plan(load_flow(document({"t": sub(SHOUT, say="hi")})), lookup)
    assert [(i.name, i.pin.default) for i in alone.inputs] == [("t:say", "hi")]
    assert alone.outputs == (("t:two", "text"),)


def test_pins_without_input_and_output_nodes(lookup: Lookup) -> None:
    inner = document({"j": "t.join", "d": "t.detect"})
    outer = document(
        {"p": "ui.prompt", "s": sub(inner, j_b="x"), "m": "ui.prompt", "r": "t.collectall"},
        "p.text > s.j_a",
        "m.text > s.d_model",
        "s.d_boxes > r.items",
    )
    assert set(wires(outer, lookup)) == {
        "m.text > s:d.model",
        "p.text > s:j.a",
        "s:d.boxes > r.items",
    }
    node = compile_plan(load_flow(outer), lookup).node("s:j")
    assert node.params == {"b": "x"}


def test_sub_flows_in_sub_flows(lookup: Lookup) -> None:
    inner = document(
        {"say": "ui.prompt", "s": sub(SHOUT), "out": "ui.console"},
        "say.text > s.say",
        "s.heard > out.x",
    )
    outer = document(
        {"p": "ui.prompt", "t": sub(inner), "c": "ui.console"}, "p.text > t.say", "t.out > c.x"
    )
    assert wires(outer, lookup) == [
        "p.text > t:s:one.text",
        "t:s:one.text > t:s:two.text",
        "t:s:two.text > c.x",
    ]


def test_through_a_sub_flow_that_does_nothing(lookup: Lookup) -> None:
    through = document({"a": "ui.prompt", "b": "ui.console"}, "a.text > b.x")
    outer = document(
        {"p": "ui.prompt", "s": sub(through), "e": "t.echo"}, "p.text > s.a", "s.b > e.text"
    )
    assert wires(outer, lookup) == ["p.text > e.text"]


def test_branches_inside(lookup: Lookup) -> None:
    inner = document(
        {"say": "ui.prompt", "if": {"type": "core.if", "params": {"condition": "value != ''"}}},
        "say.text > if.value",
    )
    outer = document({"s": sub(inner, say="x"), "e": "t.echo"}, "s.if_then > e.text")
    assert wires(outer, lookup) == ["s:say.text > s:if.value", "s:if.then > e.text"]


def test_problems_inside_have_their_place(lookup: Lookup) -> None:
    inside = "/graph/nodes/0/params/flow"
    broken = document({"e": {"type": "t.echo", "params": {"text": 1}}, "x": "nobody"})
    assert problems(document({"s": sub(broken)}), lookup) == [
        f"UNKNOWN_AGENT {inside}/graph/nodes/1/type",
        f"BAD_PARAM {inside}/graph/nodes/0/params/text",
    ]
    assert problems(document({"s": sub({"kind": "Flow"})}), lookup)[0].startswith(
        f"FLOW_INVALID {inside}/"
    )
    assert problems(document({"s": sub("stored")}), lookup) == [f"UNKNOWN_FLOW {inside}"]
    assert problems(document({"s": "core.flow"}), lookup) == [f"BAD_PARAM {inside}"]
    assert problems(document({"s": {**sub(SHOUT), "when": "true"}}), lookup) == [
        "BAD_PARAM /graph/nodes/0/when"
    ]
    outer = document(
        {"s": sub(SHOUT, nope=1), "e": "t.echo"}, "s.nope > e.text", "e.text > s.heard"
    )
    assert problems(outer, lookup) == [
        "UNKNOWN_PIN /graph/nodes/0/params/nope",
        "UNKNOWN_PIN /graph/edges/0/from",
        "UNKNOWN_PIN /graph/edges/1/to",
    ]
    twice = document({"p": "ui.prompt", "s": sub(SHOUT)}, "p.text > s.say", "p.text > s.say_text")
    assert problems(twice, lookup) == ["DUPLICATE_INPUT /graph/edges/1/to"]


def nested(depth: int) -> dict[str, Any]:
    flow = document({"e": "t.echo"})
    for _ in range(depth):
        flow = document({"s": sub(flow)})
    return flow


def test_at_most_eight_deep(lookup: Lookup) -> None:
    assert problems(nested(8), lookup) == []
    (problem,) = problems(nested(9), lookup)
    assert problem.startswith("FLOW_LIMIT ")


def test_stored_flows_are_put_in(lookup: Lookup) -> None:
    stored = {"shout": SHOUT, "twice": document({"s": sub("shout"), "t": sub("shout")})}
    outer = document({"x": sub("twice"), "y": sub(document({"z": sub("shout")})), "e": "t.echo"})
    assert names(outer) == {"twice", "shout"}
    whole, lacking = inline(outer, stored.get)
    assert lacking == []
    assert names(whole) == frozenset()
    assert problems(whole, lookup) == []
    assert names(outer) == {"twice", "shout"}, "the document itself is not changed"
    assert inline(whole, stored.get) == (whole, [])


def test_every_stored_flow_that_cannot_be_put_in_is_told() -> None:
    stored = {"a": document({"b": sub("b")}), "b": document({"a": sub("a")})}
    outer = document({"x": sub("a"), "y": sub("nowhere"), "z": sub(5)})
    _, lacking = inline(outer, stored.get)
    inside = "/graph/nodes/0/params/flow"
    assert [(p.code, p.path) for p in lacking] == [
        (Code.CYCLE, f"{inside}{inside}{inside}"),
        (Code.UNKNOWN_FLOW, "/graph/nodes/1/params/flow"),
    ]
    assert "a → b → a" in lacking[0].message
    chain = {f"f{i}": document({"s": sub(f"f{i + 1}")}) for i in range(10)}
    assert codes(inline(document({"s": sub("f0")}), chain.get)) == [Code.FLOW_LIMIT]


def codes(inlined: tuple[dict[str, Any], list[Problem]]) -> list[str]:
    return [problem.code for problem in inlined[1]]


def test_a_flow_that_names_itself_goes_round_in_circles(lookup: Lookup) -> None:
    alone = document({"x": sub("me"), "e": "nobody"}, id="me")
    for stored in ({}, {"me": alone}):
        found = check_document(alone, stored.get, lookup)
        assert [(p.code, p.path) for p in found] == [
            (Code.CYCLE, "/graph/nodes/0/params/flow"),
            (Code.UNKNOWN_AGENT, "/graph/nodes/1/type"),
        ]
        assert "me → me" in found[0].message
    around = {"other": document({"x": sub("me")})}
    found = check_document(document({"x": sub("other")}, id="me"), around.get, lookup)
    assert [p.code for p in found] == [Code.CYCLE]
    assert "me → other → me" in found[0].message


def test_what_has_no_shape_is_told_with_the_flows_that_are_not_there(lookup: Lookup) -> None:
    broken = {**document({"x": sub("nowhere")}), "kind": "Flaw"}
    found = check_document(broken, dict[str, Any]().get, lookup)
    assert [(p.code, p.path) for p in found] == [
        (Code.UNKNOWN_FLOW, "/graph/nodes/0/params/flow"),
        (Code.FLOW_INVALID, "/kind"),
    ]
    assert check_document({"graph": 3, "meta": 4}, dict[str, Any]().get, lookup) != []


def test_stored_flows_that_multiply_are_refused() -> None:
    rows = {f"f{i}": document({f"n{j}": sub(f"f{i + 1}") for j in range(50)}) for i in range(6)}
    inlined = inline(document({"s": sub("f0")}), {**rows, "f6": SHOUT}.get)
    assert codes(inlined) == [Code.FLOW_LIMIT]
