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
