"""Finding runs, and what one may ask about one, over HTTP."""

import json
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx2
import pytest
from tests.gateway.conftest import ECHO_FLOW
from tests.gateway.test_api import events_of, submit

from mentatlab.app import App


async def found(http: httpx2.AsyncClient, **query: Any) -> list[str]:
    answer = await http.get("/api/v1/runs", params=query)
    assert answer.status_code == 200, answer.text
    return [run["run_id"] for run in answer.json()["runs"]]


@pytest.fixture
async def ran(http: httpx2.AsyncClient) -> list[str]:
    """Two runs that have ended, the older first; the second one's flow is another."""
    made = [await submit(http, inputs={"words": "one"})]
    other = ECHO_FLOW.replace("id: t.echo", "id: t.other")
    made.append(await submit(http, flow=other, inputs={"words": "two"}))
    for run in made:
        await events_of(http, run["run_id"])
    return [run["run_id"] for run in made]


async def test_runs_are_found_by_every_filter(http: httpx2.AsyncClient, ran: list[str]):
    old, new = ran
    assert await found(http, state="succeeded") == [new, old]
    assert await found(http, state=["running", "succeeded"]) == [new, old]
    assert await found(http, state=["running", "failed"]) == []
    assert await found(http, flow_id="t.other") == [new]
    assert await found(http, q="OTHER") == [new]
    assert await found(http, q=old) == [old]
    assert await found(http, trigger="schedule") == []
    assert await found(http, origin=old) == []
    created = (await http.get(f"/api/v1/runs/{new}")).json()["created_at"]
    assert new in await found(http, since=created - 0.001)
    assert new not in await found(http, until=created - 0.001)
    assert await found(http, since="2126-11-23T00:00:00Z") == []
    assert await found(http, until="2126-11-23T00:00:00") == [new, old]


async def test_pages_are_linked_with_their_filters(http: httpx2.AsyncClient, ran: list[str]):
    old, new = ran
    first = await http.get("/api/v1/runs", params={"state": "succeeded", "limit": 1})
    assert [run["run_id"] for run in first.json()["runs"]] == [new]
    address = first.headers["link"].removeprefix("<").partition(">")[0]
    assert parse_qs(urlsplit(address).query) == {
        "state": ["succeeded"],
        "limit": ["1"],
        "before": [new],
    }
    second = await http.get(address)
    assert [run["run_id"] for run in second.json()["runs"]] == [old]
    assert second.json()["next"] is None
    assert "link" not in second.headers


@pytest.mark.parametrize(
    ("query", "names"),
    [
        ({"state": "done"}, "/query/state/0"),
        ({"sate": "failed"}, "/query/sate"),
        ({"since": "yesterday"}, "/query/since"),
        ({"limit": "many"}, "/query/limit"),
        ({"trigger": "cron"}, "/query/trigger"),
        ({"origin": "st_1"}, "/query/origin"),
        ({"before": "latest"}, "/query/before"),
    ],
)
async def test_mistyped_filters_are_refused(
    http: httpx2.AsyncClient, query: dict[str, str], names: str
):
    answer = await http.get("/api/v1/runs", params=query)
    assert (answer.status_code, answer.json()["code"]) == (422, "INVALID_REQUEST")
    assert [problem["path"] for problem in answer.json()["problems"]] == [names]


async def test_the_timeline_of_a_run(http: httpx2.AsyncClient, ran: list[str]):
    answer = (await http.get(f"/api/v1/runs/{ran[0]}/timeline")).json()
    assert answer["state"] == "succeeded"
    echo = next(n for n in answer["nodes"] if n["node_id"] == "echo")
    assert (echo["kind"], echo["state"]) == ("agent", "succeeded")
    assert answer["created_at"] <= echo["ready_at"] <= echo["started_at"] <= echo["ended_at"]
    assert echo["ended_at"] <= answer["finished_at"]
    [attempt] = echo["attempts"]
    assert (attempt["attempt"], attempt["outcome"]) == (1, "succeeded")
    assert echo["run_s"] == pytest.approx(echo["ended_at"] - echo["started_at"])
    missing = await http.get("/api/v1/runs/rn_none/timeline")
    assert (missing.status_code, missing.json()["code"]) == (404, "RUN_NOT_FOUND")


async def test_the_lineage_of_an_output(http: httpx2.AsyncClient, ran: list[str]):
    answer = (await http.get(f"/api/v1/runs/{ran[0]}/lineage", params={"output": "out"})).json()
    assert answer["result"] == "echo.text"
    assert [step["id"] for step in answer["steps"]] == ["echo.text", "words.text", "words"]
    [origin] = answer["origins"]
    assert origin["input"] == "words"


@pytest.mark.parametrize(
    ("query", "status"),
    [
        ({}, 400),
        ({"output": "out", "node": "echo"}, 400),
        ({"output": "nothing"}, 404),
        ({"node": "nobody"}, 404),
        ({"node": "echo", "pin": "nothing"}, 404),
        ({"node": "echo", "pin": "text", "seq": "0"}, 422),
    ],
)
async def test_lineage_of_what_is_not_there(
    http: httpx2.AsyncClient, ran: list[str], query: dict[str, str], status: int
):
    answer = await http.get(f"/api/v1/runs/{ran[0]}/lineage", params=query)
    assert answer.status_code == status, answer.text
    assert answer.json().get("hint") or answer.json()["problems"]


async def test_logs_of_an_attempt_and_followed(http: httpx2.AsyncClient, ran: list[str]):
    path = f"/api/v1/runs/{ran[0]}/nodes/echo/logs"
    said = (await http.get(path)).json()["logs"]
    assert [line["message"] for line in said] == ["heard 3"]
    assert (await http.get(path, params={"attempt": 1})).json()["logs"] == said
    assert (await http.get(path, params={"attempt": 2})).json()["logs"] == []
    assert (await http.get(path, params={"item": 1})).json()["logs"] == []
    followed = (await http.get(path, params={"follow": "true"})).text
    blocks = [block.split("\n") for block in followed.split("\n\n") if block]
    assert [block[0] for block in blocks] == ["event: begin", "event: log", "event: end"]
    assert json.loads(blocks[1][1].removeprefix("data: ")) == said[0]
    nobody = await http.get(f"/api/v1/runs/{ran[0]}/nodes/nobody/logs", params={"follow": "true"})
    assert (nobody.status_code, nobody.json()["code"]) == (404, "NOT_FOUND")


async def test_logs_of_a_node_that_said_nothing(http: httpx2.AsyncClient, ran: list[str]):
    path = f"/api/v1/runs/{ran[0]}/nodes/words/logs"
    assert (await http.get(path)).json() == {"logs": []}
    assert (
        await http.get(path, params={"follow": "true"})
    ).text == "event: begin\ndata: {}\n\nevent: end\ndata: {}\n\n"


async def test_another_workspace_sees_nothing(app: App, admin: httpx2.AsyncClient, ran: list[str]):
    made = await admin.post("/api/v1/keys", json={"workspace": "other"})
    key = {"Authorization": f"Bearer {made.json()['key']}"}
    assert (await admin.get("/api/v1/runs", headers=key)).json()["runs"] == []
    for rest in ("timeline", "lineage?output=out", "nodes/echo/logs", "events"):
        answer = await admin.get(f"/api/v1/runs/{ran[0]}/{rest}", headers=key)
        assert (answer.status_code, answer.json()["code"]) == (404, "RUN_NOT_FOUND"), rest


GATE_FLOW = """\
apiVersion: v1beta1
kind: Flow
meta: {id: t.gate}
graph:
  nodes:
    - {id: words, type: ui.prompt}
    - {id: gate, type: core.gate, params: {message: Ship it?, timeout_s: 600}}
    - {id: out, type: ui.console}
  edges:
    - {from: words.text, to: gate.value}
    - {from: gate.approved, to: out.text}
"""


async def test_who_waits_for_an_approval_says_so(http: httpx2.AsyncClient):
    run_id = (await submit(http, flow=GATE_FLOW, inputs={"words": "x"}))["run_id"]
    gate: Any = None
    while gate is None:  # the in-process transport gives an answer only when it is whole
        nodes = (await http.get(f"/api/v1/runs/{run_id}")).json()["nodes"]
        gate = next(n for n in nodes if n["id"] == "gate")["gate"]
    assert (gate["message"], gate["scope"]) == ("Ship it?", "run")
    assert gate["until"] == pytest.approx(gate["opened_at"] + 600, abs=1)
    told = (await http.get(f"/api/v1/runs/{run_id}/timeline")).json()
    waiting = next(n for n in told["nodes"] if n["node_id"] == "gate")
    assert (waiting["state"], waiting["gate"]["approved"]) == ("waiting_approval", None)
    await http.post(f"/api/v1/runs/{run_id}/cancel")
