"""Signed calls that start runs."""

import json
import time
from typing import Any

import httpx2
import pytest
from tests.gateway.conftest import ECHO_FLOW

from mentatlab.app import App
from mentatlab.runs.signatures import HEADER, WINDOW_S, sign

Json = dict[str, Any]


async def hook(http: httpx2.AsyncClient, **more: Any) -> Json:
    await http.put("/api/v1/flows/t.echo", json={"flow": ECHO_FLOW})
    made = await http.post("/api/v1/webhooks", json={"flow_id": "t.echo", **more})
    assert made.status_code == 201, made.text
    return made.json()


async def call(
    http: httpx2.AsyncClient, made: Json, body: bytes, *, late: int = 0, key: str = ""
) -> httpx2.Response:
    signature = sign(made["secret"], body, at=int(time.time()) - late)
    path = f"/api/v1/hooks/{made['id']}"
    return await http.post(
        path, content=body, headers={HEADER: signature, **({"Idempotency-Key": key} if key else {})}
    )


@pytest.mark.parametrize(("named", "body"), [("words", "hello"), ("", {"words": "hello"})])
async def test_a_signed_call_starts_a_run(
    app: App, http: httpx2.AsyncClient, named: str, body: Any
):
    made = await hook(http, input=named)
    answer = await call(http, made, json.dumps(body).encode())
    assert answer.status_code == 202, answer.text
    run = await app.services.engine.wait(answer.json()["run_id"])
    assert run.outputs == {"out.text": "hello"}
    found = (await http.get("/api/v1/runs", params={"trigger": f"webhook:{made['id']}"})).json()
    assert [r["run_id"] for r in found["runs"]] == [run.id]
    assert made["secret"] not in (await http.get("/api/v1/webhooks")).text


async def test_what_is_not_signed_as_it_should_be(http: httpx2.AsyncClient):
    made = await hook(http, input="words")
    path, body = f"/api/v1/hooks/{made['id']}", b'"hello"'
    good = sign(made["secret"], body, at=int(time.time()))
    for signature, sent in (
        ("", body),
        ("v1=00", body),
        (good, b'"other"'),
        (sign("another secret", body, at=int(time.time())), body),
        (sign(made["secret"], body, at=int(time.time()) - WINDOW_S - 5), body),
        (sign(made["secret"], body, at=int(time.time()) + WINDOW_S + 5), body),
    ):
        answer = await http.post(path, content=sent, headers={HEADER: signature})
        assert (answer.status_code, answer.json()["code"]) == (401, "WEBHOOK_SIGNATURE")
    unknown = await http.post("/api/v1/hooks/wh_none", content=body, headers={HEADER: good})
    assert unknown.json()["code"] == "NOT_FOUND"
    assert (await http.get("/api/v1/runs")).json()["runs"] == []


async def test_a_call_counts_once(app: App, http: httpx2.AsyncClient):
    made = await hook(http, input="words")
    first = await call(http, made, b'"hello"', key="k")
    again = await call(http, made, b'"hello"', late=1, key="k")
    assert first.json() == again.json()
    path = f"/api/v1/hooks/{made['id']}"
    replayed = await http.post(path, content=b'"hello"', headers=first.request.headers)
    assert (replayed.status_code, replayed.json()["code"]) == (409, "WEBHOOK_REPLAYED")
    await app.services.engine.wait(first.json()["run_id"])


async def test_bodies_that_are_no_inputs_and_an_ended_webhook(http: httpx2.AsyncClient):
    made = await hook(http)
    for body, code in ((b"{", "INVALID_REQUEST"), (b"[]", "INVALID_REQUEST"), (b"", "")):
        answer = await call(http, made, body)
        assert not answer.is_success
        assert code in answer.json()["code"]
    assert (await http.delete(f"/api/v1/webhooks/{made['id']}")).status_code == 204
    assert (await call(http, made, b"{}")).json()["code"] == "NOT_FOUND"
    assert (await http.delete(f"/api/v1/webhooks/{made['id']}")).status_code == 404


async def test_its_input_is_one_of_the_flow(http: httpx2.AsyncClient):
    two = ECHO_FLOW.replace("nodes:\n", "nodes:\n    - {id: more, type: ui.prompt}\n")
    two = two.replace("edges:\n", "edges:\n    - {from: more.text, to: out.more}\n")
    await http.put("/api/v1/flows/t.echo", json={"flow": two})
    for name, codes in (
        ("none", ["RUN_INPUT_UNKNOWN", "RUN_INPUT_MISSING", "RUN_INPUT_MISSING"]),
        ("words", ["RUN_INPUT_MISSING"]),
        ("words.text", ["RUN_INPUT_MISSING"]),
    ):
        answer = await http.post("/api/v1/webhooks", json={"flow_id": "t.echo", "input": name})
        assert answer.status_code == 422
        assert [p["code"] for p in answer.json()["problems"]] == codes
    assert "the flow needs more too" in answer.json()["problems"][0]["message"]
    assert answer.json()["hint"].startswith("leave `input` out")
    whole = await http.post("/api/v1/webhooks", json={"flow_id": "t.echo"})
    assert whole.status_code == 201
    unknown = await http.post("/api/v1/webhooks", json={"flow_id": "t.none"})
    assert unknown.json()["code"] == "NOT_FOUND"


async def test_a_call_says_that_the_flow_has_changed(http: httpx2.AsyncClient):
    made = await hook(http, input="words")
    wrong = await call(http, made, b"5")
    assert (wrong.status_code, wrong.json()["code"]) == (422, "RUN_INPUT_TYPE")
    assert "changed" not in wrong.json()["detail"], "the caller's own fault"
    renamed = ECHO_FLOW.replace("words", "text")
    await http.put("/api/v1/flows/t.echo", json={"flow": renamed})
    answer = await call(http, made, b'"hello"')
    assert (answer.status_code, answer.json()["code"]) == (422, "RUN_INPUT_UNKNOWN")
    assert "t.echo has changed since this webhook was made" in answer.json()["detail"]
    sub = ECHO_FLOW.replace(
        "edges:", "  - {id: s, type: core.flow, params: {flow: t.b.echo}}\n  edges:"
    )
    await http.put(
        "/api/v1/flows/t.b.echo", json={"flow": ECHO_FLOW.replace("id: t.e", "id: t.b.e")}
    )
    assert (await http.put("/api/v1/flows/t.echo", json={"flow": sub})).is_success
    await http.delete("/api/v1/flows/t.b.echo")
    lost = await call(http, made, b'"again"')
    assert (lost.status_code, lost.json()["code"]) == (422, "FLOW_INVALID")
    assert "changed since" in lost.json()["detail"]
