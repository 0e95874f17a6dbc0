"""A schedule over HTTP makes real runs of a stored flow."""

import asyncio

import httpx2
import pytest
from tests.gateway.conftest import ECHO_FLOW

from mentatlab.app import App
from mentatlab.protocol.errors import Code, ValidationFailed


async def test_a_schedule_runs_a_stored_flow(app: App, http: httpx2.AsyncClient):
    stored = await http.put("/api/v1/flows/t.echo", json={"flow": ECHO_FLOW})
    assert stored.is_success, stored.text
    made = await http.post(
        "/api/v1/schedules",
        json={"flow_id": "t.echo", "cron": "* * * * * *", "inputs": {"words": "tick"}},
    )
    assert made.status_code == 201, made.text
    path = f"/api/v1/schedules/{made.json()['id']}"
    async with asyncio.timeout(30):
        while not (run := await _made(http, path)):
            await asyncio.sleep(0.1)
    assert (await app.services.engine.wait(run)).outputs == {"out.text": "tick"}
    assert (await http.patch(path, json={"paused": True})).json()["paused"]
    listed = (await http.get("/api/v1/schedules")).json()["schedules"]
    assert [s["flow_id"] for s in listed] == ["t.echo"]
    found = (await http.get("/api/v1/runs", params={"trigger": "schedule"})).json()["runs"]
    assert run in [r["run_id"] for r in found]
    assert (await http.delete(path)).status_code == 204
    assert (await http.get(path)).json()["code"] == "NOT_FOUND"


async def _made(http: httpx2.AsyncClient, path: str) -> str:
    ticks = (await http.get(path)).json()["ticks"]
    return next((t["run_id"] for t in ticks if t["state"] == "made"), "")


async def test_what_is_refused(http: httpx2.AsyncClient):
    body = {"flow_id": "none", "cron": "* * * * *"}
    assert (await http.post("/api/v1/schedules", json=body)).json()["code"] == "NOT_FOUND"
    await http.put("/api/v1/flows/t.echo", json={"flow": ECHO_FLOW})
    for cron, zone in (("often", "UTC"), ("* * * * *", "Mars/Base")):
        body = {"flow_id": "t.echo", "cron": cron, "timezone": zone, "inputs": {"words": "x"}}
        answer = await http.post("/api/v1/schedules", json=body)
        assert (answer.status_code, answer.json()["code"]) == (400, "SCHEDULE_INVALID")


async def test_inputs_are_those_of_the_flow_when_it_is_made(http: httpx2.AsyncClient):
    await http.put("/api/v1/flows/t.echo", json={"flow": ECHO_FLOW})
    body = {"flow_id": "t.echo", "cron": "* * * * *"}
    for inputs, found in (
        ({}, [("RUN_INPUT_MISSING", "/inputs/words")]),
        ({"words": 5}, [("RUN_INPUT_TYPE", "/inputs/words")]),
        (
            {"word": "x"},
            [("RUN_INPUT_UNKNOWN", "/inputs/word"), ("RUN_INPUT_MISSING", "/inputs/words")],
        ),
    ):
        answer = await http.post("/api/v1/schedules", json={**body, "inputs": inputs})
        assert answer.status_code == 422
        assert [(p["code"], p["path"]) for p in answer.json()["problems"]] == found
    assert answer.json()["hint"] == "its inputs are: words"
    assert (await http.get("/api/v1/schedules")).json()["schedules"] == []


async def test_a_tick_says_that_the_flow_has_changed(app: App, http: httpx2.AsyncClient):
    await http.put("/api/v1/flows/t.echo", json={"flow": ECHO_FLOW})
    body = {"flow_id": "t.echo", "cron": "* * * * *", "inputs": {"words": "x"}}
    made = (await http.post("/api/v1/schedules", json=body)).json()
    schedule = await app.services.schedules.get(made["id"])
    run_id = await app.services.triggers.submit(schedule, "first")
    await app.services.engine.wait(run_id)
    renamed = ECHO_FLOW.replace("words", "text")
    assert (await http.put("/api/v1/flows/t.echo", json={"flow": renamed})).is_success
    with pytest.raises(ValidationFailed, match=r"t\.echo has changed since this schedule") as told:
        await app.services.triggers.submit(schedule, "second")
    assert [p.code for p in told.value.problems] == [
        Code.RUN_INPUT_UNKNOWN,
        Code.RUN_INPUT_MISSING,
    ]
