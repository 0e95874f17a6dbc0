"""Branches, gates, sub-flows, lists, the cache and reruns: a real server, plain HTTP."""

import json
from pathlib import Path
from typing import Any

import pytest
from tests.gateway.conftest import write_agent
from tests.support.api import Api, assert_failed, refused, until

pytestmark = pytest.mark.usefixtures("well_afterwards")

COUNT = """\
id: my.count
version: 0.1.0
inputs: [{name: n, type: json}]
outputs: [{name: numbers, type: stream, metadata: {items: json}}]
"""
COUNT_MAIN = (
    "import json, sys\n"
    "for n in range(json.loads(sys.stdin.readline())['n']):\n"
    "    print(json.dumps({'type': 'chunk', 'pin': 'numbers', 'data': n}), flush=True)\n"
    "print(json.dumps({'type': 'result', 'outputs': {}}))\n"
)
TIMES = """\
id: my.times
version: 0.1.0
inputs: [{name: x, type: json}, {name: by, type: json, required: false, default: 2}]
outputs: [{name: y, type: json}]
"""
TIMES_MAIN = (
    "import json, sys\n"
    "payload = json.loads(sys.stdin.readline())\n"
    "print(json.dumps({'y': payload['x'] * payload['by']}))\n"
)
JOIN = """\
id: my.join
version: 0.1.0
inputs: [{name: left, type: string}, {name: right, type: string}]
outputs: [{name: came, type: json}]
"""
JOIN_MAIN = (
    "import json, sys\n"
    "payload = json.loads(sys.stdin.readline())\n"
    "print(json.dumps({'came': {k: v for k, v in payload.items() if k in ('left', 'right')}}))\n"
)
STAMP = """\
id: my.stamp
version: 0.1.0
inputs: [{name: text, type: string}]
outputs: [{name: text, type: string}]
"""
STAMP_MAIN = (
    "import json, sys, time\n"
    "sys.stdin.readline()\n"
    "print(json.dumps({'text': str(time.time_ns())}))\n"  # never the same again
)


@pytest.fixture(scope="module")
def agents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("agents")
    write_agent(folder / "echo")
    write_agent(folder / "count", COUNT, COUNT_MAIN)
    write_agent(folder / "times", TIMES, TIMES_MAIN)
    write_agent(folder / "join", JOIN, JOIN_MAIN)
    write_agent(folder / "stamp", STAMP, STAMP_MAIN)
    return folder


def flow(nodes: dict[str, Any], *edges: str, id: str = "t.branching") -> dict[str, Any]:
    """Nodes are a type or fields by id, edges `a.pin > b.pin`."""
    listed = [{"id": k, **({"type": v} if isinstance(v, str) else v)} for k, v in nodes.items()]
    wires = [dict(zip(("from", "to"), e.split(" > "), strict=True)) for e in edges]
    graph = {"nodes": listed, "edges": wires}
    return {"apiVersion": "v1beta1", "kind": "Flow", "meta": {"id": id}, "graph": graph}


def states(view: dict[str, Any]) -> dict[str, str]:
    return {node["id"]: node["state"] for node in view["nodes"]}


CASES = [
    {"name": "question", "when": "value.endsWith('?')"},
    {"name": "bye", "when": "value == 'bye'"},
]
WAYS = flow(
    {
        "words": "ui.prompt",
        "long": {"type": "core.if", "params": {"condition": "size(value) > 5"}},
        "kind": {"type": "core.switch", "params": {"cases": CASES}},
        "a": "test.echo",
        "b": "test.echo",
        "join": {"type": "my.join", "needs": "any"},
        "show": "ui.console",
    },
    "words.text > long.value",
    "long.then > a.text",
    "long.else > kind.value",
    "kind.question > b.text",
    "a.text > join.left",
    "b.text > join.right",
    "join.came > show.came",
)


@pytest.mark.parametrize(
    ("words", "came", "skipped"),
    [
        ("a long one", {"left": "a long one"}, {"kind", "b"}),
        ("so?", {"right": "so?"}, {"a"}),
        ("no", None, {"a", "b", "join", "show"}),
    ],
)
def test_one_way_is_taken_and_the_others_are_skipped(
    api: Api, words: str, came: dict[str, str] | None, skipped: set[str]
):
    view = api.run(WAYS, words=words)
    assert view["state"] == "succeeded"
    assert {n for n, state in states(view).items() if state == "skipped"} == skipped
    assert api.outputs(view["run_id"]) == ({"show.came": came} if came else {})


REJECTED = "ok.rejected > stop.text"


def gated(timeout_s: float, *more: str) -> dict[str, Any]:
    ok = {"type": "core.gate", "params": {"message": "sure?", "timeout_s": timeout_s}}
    nodes = {"words": "ui.prompt", "ok": ok, "go": "test.echo"}
    if more:
        nodes["stop"] = "test.echo"
    return flow(nodes, "words.text > ok.value", "ok.approved > go.text", *more)


@pytest.mark.parametrize(("approve", "taken"), [(True, "go"), (False, "stop")])
def test_a_gate_waits_until_somebody_decides_once(api: Api, approve: bool, taken: str):
    run_id = api.submit(gated(3600, REJECTED), words="hi")
    until(lambda: states(api.look(run_id))["ok"] == "waiting_approval", "an open gate")
    refused(api.post(f"runs/{run_id}/gates/go", {"approve": True}), 409, "GATE_NOT_OPEN")
    refused(api.post(f"runs/{run_id}/gates/nope", {"approve": True}), 404, "UNKNOWN_NODE")
    decided = api.post(f"runs/{run_id}/gates/ok", {"approve": approve})
    assert decided.is_success, decided.text
    assert api.ended(run_id)["state"] == "succeeded"
    assert api.outputs(run_id) == {f"{taken}.text": "hi"}


def test_a_gate_that_nobody_decides_is_rejected_in_time(api: Api):
    view = api.run(gated(0.05, REJECTED), words="hi")
    assert api.outputs(view["run_id"]) == {"stop.text": "hi"}
    assert_failed(api.run(gated(0.05), words="hi"), "ok", "GATE_REJECTED")


def test_sub_flows_and_a_cached_node_in_one(api: Api):
    said = flow(
        {"said": "ui.prompt", "echo": "test.echo", "heard": "ui.console"},
        "said.text > echo.text",
        "echo.text > heard.text",
        id="t.inner",
    )
    stamp = {"type": "my.stamp", "cache": "content"}
    inline = flow(
        {"said": "ui.prompt", "stamp": stamp, "heard": "ui.console"},
        "said.text > stamp.text",
        "stamp.text > heard.text",
    )
    whole = flow(
        {
            "words": "ui.prompt",
            "one": {"type": "core.flow", "params": {"flow": "t.inner"}},
            "two": {"type": "core.flow", "params": {"flow": inline}},
            "show": "ui.console",
        },
        "words.text > one.said",
        "one.heard > two.said",
        "two.heard > show.text",
    )
    refused(api.post("runs", {"flow": whole}), 422, "FLOW_INVALID")
    assert api.http.put("/api/v1/flows/t.inner", json=said).is_success
    first, again, other = (api.run(whole, words=words) for words in ("hi", "hi", "ho"))
    assert [states(v)["two:stamp"] for v in (first, again, other)] == [
        "succeeded",
        "cached",
        "succeeded",
    ]
    assert states(again)["one:echo"] == "succeeded"
    shown = [json.dumps(api.outputs(v["run_id"])) for v in (first, again, other)]
    assert shown[0] == shown[1] != shown[2]


def test_a_list_is_mapped_checked_and_done_again_from_a_node_on(api: Api):
    schema = {"type": "array", "items": {"type": "integer"}}
    whole = flow(
        {
            "count": {"type": "my.count", "params": {"n": 5}},
            "all": "core.collect",
            "times": {"type": "my.times", "forEach": "x", "when": "x % 2 == 0", "maxParallel": 2},
            "valid": {"type": "core.validate", "params": {"schema": schema}},
            "show": "ui.console",
        },
        "count.numbers > all.stream",
        "all.list > times.x",
        "times.y > valid.value",
        "valid.value > show.numbers",
    )
    view = api.run(whole)
    assert api.outputs(view["run_id"]) == {"show.numbers": [0, 4, 8]}

    def again(by: Any) -> dict[str, Any]:
        body = {"from_node": "times", "params": {"times": {"by": by}}}
        answer = api.post(f"runs/{view['run_id']}/rerun", body)
        assert answer.status_code == 201, answer.text
        return api.ended(answer.json()["run_id"])

    changed = again(5)
    assert states(changed)["count"] == "cached"
    assert api.outputs(changed["run_id"]) == {"show.numbers": [0, 10, 20]}
    assert_failed(again(0.3), "valid", "SCHEMA_MISMATCH")
    rerun = f"runs/{view['run_id']}/rerun"
    refused(api.post(rerun, {"from_node": "nope"}), 404, "UNKNOWN_NODE")


def test_an_unknown_sub_flow_hides_no_other_problem(api: Api):
    known = flow({"say": "ui.prompt", "echo": "test.echo"}, "say.text > echo.text", id="t.known")
    assert api.http.put("/api/v1/flows/t.known", json=known).is_success
    broken = flow(
        {
            "a": {"type": "core.flow", "params": {"flow": "t.known"}},
            "b": {"type": "core.flow", "params": {"flow": "t.unknown"}},
            "c": {"type": "core.if", "params": {"condition": "size(", "value": 1}},
            "d": "no.such",
        }
    )
    checked = api.post("flows/validate", broken).raise_for_status().json()
    assert not checked["valid"]
    assert {(p["code"], p["path"]) for p in checked["problems"]} == {
        ("UNKNOWN_FLOW", "/graph/nodes/1/params/flow"),
        ("EXPRESSION_INVALID", "/graph/nodes/2/params/condition"),
        ("UNKNOWN_AGENT", "/graph/nodes/3/type"),
    }
