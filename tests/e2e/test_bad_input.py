"""Flows and inputs that are wrong, given to a real server: each is told clearly, and the
server goes on as if nothing had been.
"""

from pathlib import Path
from typing import Any

import pytest
from tests.gateway.conftest import write_agent
from tests.support.api import Api, Json, assert_failed, flow_of, refused
from tests.support.media import picture, sound

pytestmark = pytest.mark.usefixtures("well_afterwards")

TOUCH = """\
id: test.touch
version: 1.0.0
runtime: python3.11
inputs:
  - {name: small, type: image, required: false, metadata: {maxSize: 1kB}}
  - {name: png, type: image, required: false, metadata: {mimeType: image/png}}
  - {name: short, type: audio, required: false, metadata: {duration: 1}}
  - {name: mono, type: audio, required: false, metadata: {channels: 1}}
  - {name: text, type: string, required: false, metadata: {maxSize: 1kB}}
outputs: [{name: said, type: string}]
"""
TOUCH_MAIN = """\
import json, pathlib, sys
pathlib.Path(__file__).with_name("started").touch()
json.load(sys.stdin)
print(json.dumps({"said": "done"}))
"""
TALLY = """\
id: test.tally
version: 1.0.0
runtime: python3.11
inputs: [{name: number, type: number}, {name: image, type: image, metadata: {mimeType: image/*}}]
outputs: [{name: total, type: number}]
"""


@pytest.fixture(scope="module")
def agents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("agents")
    write_agent(folder / "echo")
    write_agent(folder / "touch", TOUCH, TOUCH_MAIN)
    write_agent(folder / "tally", TALLY)
    return folder


# --- flows


def graph(nodes: list[Json], *edges: str) -> Json:
    listed = [dict(zip(("from", "to"), edge.split(" -> "), strict=True)) for edge in edges]
    return {
        "apiVersion": "v1beta1",
        "kind": "Flow",
        "meta": {"id": "t.wrong"},
        "graph": {"nodes": nodes, "edges": listed},
    }


def node(id_: str, type_: str, **fields: Any) -> Json:
    return {"id": id_, "type": type_, **fields}


CYCLE = graph(
    [node("a", "test.echo"), node("b", "test.echo")], "a.text -> b.text", "b.text -> a.text"
)
WRONG_TYPE = graph([node("a", "test.echo"), node("b", "test.tally")], "a.text -> b.number")
UNKNOWN = graph([node("a", "test.nobody")])
MANY = graph(
    [
        node("a", "test.echo"),
        node("b", "test.echo"),
        node("n", "test.tally"),
        node("x", "test.nobody"),
        node("each", "test.echo", forEach="text"),
    ],
    "a.text -> b.text",
    "b.text -> a.text",
    "a.text -> n.number",
    "a.text -> n.nothing",
    "ghost.text -> n.image",
    "a.text -> each.text",
)


@pytest.mark.parametrize(
    ("flow", "codes"),
    [
        (CYCLE, {"CYCLE"}),
        (WRONG_TYPE, {"TYPE_MISMATCH"}),
        (UNKNOWN, {"UNKNOWN_AGENT"}),
        (
            MANY,
            {
                *("CYCLE", "TYPE_MISMATCH", "UNKNOWN_AGENT", "UNKNOWN_PIN", "UNKNOWN_NODE"),
                "FOREACH_NOT_A_LIST",
            },
        ),
    ],
    ids=["cycle", "wrong type", "unknown agent", "all at once"],
)
def test_a_wrong_flow_is_refused_with_every_fault(api: Api, flow: Json, codes: set[str]):
    problem = refused(api.post("runs", {"flow": flow}), 422, "FLOW_INVALID")
    found = problem["problems"]
    assert {p["code"] for p in found if p.get("severity", "error") == "error"} == codes
    for one in found:
        at(flow, one["path"])
    assert refused(api.post("flows", {"flow": flow}), 422, "FLOW_INVALID")["problems"] == found
    assert refused(api.post("flows/plan", {"flow": flow}), 422, "FLOW_INVALID")
    checked = api.post("flows/validate", {"flow": flow}).raise_for_status().json()
    assert checked["valid"] is False
    assert [(p["code"], p["path"]) for p in checked["problems"]] == [
        (p["code"], p["path"]) for p in found
    ]


def at(document: Any, pointer: str) -> Any:
    """What an RFC 6901 pointer names; KeyError when it names nothing."""
    for part in pointer.split("/")[1:]:
        key = part.replace("~1", "/").replace("~0", "~")
        document = document[int(key)] if isinstance(document, list) else document[key]
    return document


def test_a_flow_of_the_wrong_shape_is_told_with_all_its_faults(api: Api):
    flow = {"apiVersion": "v9", "kind": "Flow", "meta": {}, "graph": {"nodes": [{"id": "a b"}]}}
    problem = refused(api.post("runs", {"flow": flow}), 422, "FLOW_INVALID")
    paths = {p["path"] for p in problem["problems"]}
    assert {"/apiVersion", "/meta/id", "/graph/nodes/0/id", "/graph/nodes/0/type"} <= paths


def bomb(levels: int = 30) -> str:
    """A YAML text of a few hundred bytes that stands for 2^levels values."""
    lines = ["a0: &a0 [x, x]"]
    lines += [f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]" for n in range(1, levels)]
    return "\n".join(lines)


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "- a list",
        "a: [",
        bomb(),
        "[" * 50_000,
        '{"a":' * 50_000,
        "\x00",
        "!!python/object:x {}",
    ],
    ids=["brace", "list", "open", "bomb", "deep", "deep json", "nul", "tag"],
)
def test_a_text_that_is_no_flow_names_the_fault(api: Api, text: str):
    before = api.memory()
    status, code = (422, "INVALID_TEXT") if "\0" in text else (400, "FLOW_SYNTAX")
    refused(api.post("runs", {"flow": text}), status, code)
    raw = api.http.post("/api/v1/flows/validate", content=text.encode())
    refused(raw, 400, "FLOW_SYNTAX")
    assert api.memory() < before + (100 << 20)


# --- inputs


def touch_flow(pin: str, source: Json) -> Json:
    """One input node into one pin of the witness."""
    given = {"ui.prompt": "text", "ui.file-upload": "file"}[source["type"]]
    return graph([source, node("it", "test.touch")], f"in.{given} -> it.{pin}")


def file_into(pin: str, accept: str = "image/*") -> Json:
    return touch_flow(pin, node("in", "ui.file-upload", params={"accept": accept}))


def test_wrong_inputs_are_told_at_once(api: Api):
    flow = flow_of("test.tally")
    inputs = {"it.number": "seven", "it.nothing": 1}
    problem = refused(api.post("runs", {"flow": flow, "inputs": inputs}), 422, "RUN_INPUT_UNKNOWN")
    assert {(p["code"], p["path"]) for p in problem["problems"]} == {
        ("RUN_INPUT_UNKNOWN", "/inputs/it.nothing"),
        ("RUN_INPUT_MISSING", "/inputs/it.image"),
        ("RUN_INPUT_TYPE", "/inputs/it.number"),
    }


@pytest.mark.parametrize(
    ("value", "status", "code"),
    [
        ("blob_01ARZ3NDEKTSV4RRFFQ69G5FAV", 404, "REFERENCE_NOT_FOUND"),
        ("mentat://other/blob_01ARZ3NDEKTSV4RRFFQ69G5FAV", 404, "REFERENCE_NOT_FOUND"),
        ({"type": "image", "ref": {"url": "file:///etc/passwd"}}, 422, "RUN_INPUT_TYPE"),
        ({"path": "/etc/passwd"}, 422, "RUN_INPUT_TYPE"),
    ],
    ids=["unknown", "foreign", "file url", "path"],
)
def test_a_reference_to_nothing_is_refused(api: Api, value: Any, status: int, code: str):
    answer = api.post("runs", {"flow": file_into("png"), "inputs": {"in": value}})
    refused(answer, status, code)


@pytest.mark.parametrize(
    ("pin", "data", "code"),
    [
        ("small", picture("PNG"), "MEDIA_TOO_LARGE"),
        ("png", picture("JPEG"), "MEDIA_TYPE_MISMATCH"),
        ("short", sound(2), "MEDIA_TOO_LONG"),
        ("mono", sound(0.5, channels=2), "MEDIA_CONSTRAINT"),
    ],
    ids=["maxSize", "mimeType", "duration", "channels"],
)
def test_an_input_over_its_constraint_never_reaches_the_agent(
    api: Api, agents: Path, pin: str, data: bytes, code: str
):
    started = agents / "touch" / "src" / "started"
    flow = file_into(pin, "image/*" if pin in ("small", "png") else "audio/*")
    view = api.run(flow, **{"in": api.upload(data)})
    failed = assert_failed(view, "it", code)
    assert f"it.{pin}" in failed["error"]["message"]
    assert not started.exists()
    good = {
        "small": picture("PNG", 4),
        "png": picture("PNG"),
        "short": sound(0.5),
        "mono": sound(2),
    }
    fine = api.run(flow, **{"in": api.upload(good[pin])})
    assert fine["state"] == "succeeded"
    started.unlink()  # the witness works: a good input has started the agent


@pytest.mark.parametrize("size", [1_500, 200_000], ids=["in the message", "by reference"])
def test_a_text_over_its_constraint_never_reaches_the_agent(api: Api, agents: Path, size: int):
    flow = touch_flow("text", node("in", "ui.prompt"))
    view = api.run(flow, **{"in": "x" * size})
    assert_failed(view, "it", "MEDIA_TOO_LARGE")
    assert not (agents / "touch" / "src" / "started").exists()
