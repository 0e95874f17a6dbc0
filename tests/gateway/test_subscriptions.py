"""Who is told of runs' ends, over HTTP."""

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import httpx2
import pytest
from tests.gateway.conftest import ECHO_FLOW, client_of
from tests.support.scripted_server import Said, Scripted, scripted

from mentatlab.app import App, Settings, build

Json = dict[str, Any]
HERE = "http://127.0.0.1:9/hook"


@pytest.fixture
async def receiver() -> AsyncIterator[Scripted]:
    async with scripted(Said(200)) as server:
        yield server


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return replace(settings, webhook_private=True)


def own_webhook(receiver: Scripted) -> str:
    return f"runConfig: {{webhooks: [{{url: '{receiver.url}/own', secret: HOOK_SECRET}}]}}\n"


async def run_echo(app: App, http: httpx2.AsyncClient, flow: Any = ECHO_FLOW) -> str:
    answer = await http.post("/api/v1/runs", json={"flow": flow, "inputs": {"words": "hi"}})
    assert answer.status_code == 201, answer.text
    return (await app.services.engine.wait(answer.json()["run_id"])).id


async def delivered(http: httpx2.AsyncClient, **wanted: str) -> list[Json]:
    """When nothing waits any more."""
    while True:
        found = (await http.get("/api/v1/deliveries", params=wanted)).json()["deliveries"]
        if found and all(d["state"] != "waiting" for d in found):
            return found
        await asyncio.sleep(0.02)


async def test_a_subscription_from_its_making_to_its_end(
    app: App, http: httpx2.AsyncClient, receiver: Scripted
) -> None:
    url = f"{receiver.url}/hook"
    made = await http.post("/api/v1/subscriptions", json={"url": url, "events": ["run_succeeded"]})
    assert made.status_code == 201, made.text
    listed = await http.get("/api/v1/subscriptions")
    assert made.json()["secret"] not in listed.text
    assert [s["id"] for s in listed.json()["subscriptions"]] == [made.json()["id"]]
    run_id = await run_echo(app, http)
    (found,) = await delivered(http, run_id=run_id)
    assert (found["state"], found["status"], found["attempts"]) == ("delivered", 200, 1)
    assert json.loads(receiver.bodies[0])["run"]["run_id"] == run_id
    again = await http.post(f"/api/v1/deliveries/{found['id']}/redeliver")
    assert again.json()["state"] == "waiting"
    await delivered(http, subscription_id=made.json()["id"])
    assert len(receiver.bodies) == 2
    assert receiver.bodies[0] == receiver.bodies[1]
    path = f"/api/v1/subscriptions/{made.json()['id']}"
    assert [(await http.delete(path)).status_code for _ in range(2)] == [204, 404]
    again = await http.post(f"/api/v1/deliveries/{found['id']}/redeliver")
    assert again.json()["code"] == "NOT_FOUND"


async def test_a_flow_that_names_its_receivers(
    app: App, http: httpx2.AsyncClient, admin: httpx2.AsyncClient, receiver: Scripted
) -> None:
    body = {"flow": ECHO_FLOW + own_webhook(receiver), "inputs": {"words": "hi"}}
    refused = await http.post("/api/v1/runs", json=body)
    assert refused.json()["code"] == "SECRET_MISSING"
    await admin.put("/api/v1/secrets/HOOK_SECRET", json={"value": "not to be guessed"})
    run_id = await run_echo(app, http, body["flow"])
    (found,) = await delivered(http, run_id=run_id)
    assert (found["state"], found["event"]) == ("delivered", "run_finished")
    assert receiver.requests == [b"POST /own HTTP/1.1"]
    assert (await http.get("/api/v1/subscriptions")).json() == {"subscriptions": []}


async def test_pages(app: App, http: httpx2.AsyncClient, receiver: Scripted) -> None:
    await http.post("/api/v1/subscriptions", json={"url": receiver.url})
    runs = [await run_echo(app, http) for _ in range(3)]
    first = (await http.get("/api/v1/deliveries", params={"limit": 2})).json()
    assert [d["run_id"] for d in first["deliveries"]] == [runs[2], runs[1]]
    query = {"limit": 2, "before": first["next"]}
    rest = (await http.get("/api/v1/deliveries", params=query)).json()
    assert ([d["run_id"] for d in rest["deliveries"]], rest["next"]) == ([runs[0]], None)


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({"url": "receiver"}, "WEBHOOK_INVALID"),
        ({"url": HERE, "events": ["run_ended"]}, "WEBHOOK_INVALID"),
        ({"url": HERE, "flow_id": "nowhere"}, "NOT_FOUND"),
        ({"url": HERE, "secret": "short"}, "INVALID_REQUEST"),
        ({"url": HERE, "event": "run_failed"}, "INVALID_REQUEST"),
        ({}, "INVALID_REQUEST"),
    ],
)
async def test_what_cannot_be_subscribed_to(
    http: httpx2.AsyncClient, body: Json, code: str
) -> None:
    answer = await http.post("/api/v1/subscriptions", json=body)
    assert answer.json()["code"] == code, answer.text
    assert answer.json()["hint"]


async def test_addresses_inside_are_refused_unless_it_is_said(
    settings: Settings, receiver: Scripted
) -> None:
    async with build(replace(settings, webhook_private=False)) as app, client_of(app) as http:
        for url in ("http://127.0.0.1:9/x", "http://localhost/x", "http://169.254.169.254/"):
            answer = await http.post("/api/v1/subscriptions", json={"url": url})
            refused = (answer.status_code, answer.json()["code"])
            assert refused == (400, "WEBHOOK_ADDRESS_REFUSED"), answer.text
        assert "MENTATLAB_WEBHOOK_PRIVATE" in answer.json()["hint"]
        await app.services.secrets.put("HOOK_SECRET", "guess", workspace="default", now=1.0)
        run_id = await run_echo(app, http, ECHO_FLOW + own_webhook(receiver))
        (found,) = await delivered(http, run_id=run_id)
    assert (found["state"], found["attempts"]) == ("failed", 1)
    assert "WEBHOOK_ADDRESS_REFUSED" in found["error"]
    assert receiver.requests == []


async def test_another_workspace_sees_nothing(
    app: App, http: httpx2.AsyncClient, admin: httpx2.AsyncClient, receiver: Scripted
) -> None:
    made = (await http.post("/api/v1/subscriptions", json={"url": receiver.url})).json()
    run_id = await run_echo(app, http)
    (found,) = await delivered(http, run_id=run_id)
    asked = {"workspace": "other", "scopes": ["read", "run"], "name": "theirs"}
    key = (await admin.post("/api/v1/keys", json=asked)).json()["key"]
    async with client_of(app, key) as theirs:
        assert (await theirs.get("/api/v1/subscriptions")).json() == {"subscriptions": []}
        assert (await theirs.get("/api/v1/deliveries")).json()["deliveries"] == []
        for method, path in (
            ("DELETE", f"/api/v1/subscriptions/{made['id']}"),
            ("POST", f"/api/v1/deliveries/{found['id']}/redeliver"),
        ):
            assert (await theirs.request(method, path)).status_code == 404
