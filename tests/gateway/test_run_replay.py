"""An ended run told once more, from its record alone."""

import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx2
import msgspec
import pytest
from tests.gateway.conftest import ECHO_FLOW, client_of, write_agent

from mentatlab.app import App, Settings, build
from mentatlab.streams.sealing import Limits
from mentatlab.streams.sqlite import open_sqlite

COUNT = """\
id: test.count
version: 1.0.0
runtime: python3.11
inputs: [{name: text, type: string}]
outputs: [{name: words, type: stream, metadata: {items: string}}]
"""
COUNT_MAIN = """\
import json, sys
for word in json.load(sys.stdin)["text"].split():
    print(json.dumps({"type": "chunk", "pin": "words", "data": word}), flush=True)
print(json.dumps({"type": "result", "outputs": {}}))
"""
COUNT_FLOW = (
    ECHO_FLOW.replace("test.echo", "test.count").replace("echo.text, to", "echo.words, to")
).replace("id: t.echo", "id: t.count")
Record = dict[str, Any]


@pytest.fixture
def settings(settings: Settings) -> Settings:
    write_agent(settings.agent_dirs[0] / "count", COUNT, COUNT_MAIN)
    return settings


async def made(app: App, http: httpx2.AsyncClient, flow: str = COUNT_FLOW) -> str:
    sent = {"flow": flow, "inputs": {"words": "one two three"}}
    run_id = (await http.post("/api/v1/runs", json=sent)).json()["run_id"]
    await app.services.engine.wait(run_id)
    return run_id


async def told(
    http: httpx2.AsyncClient, url: str, last_id: str = ""
) -> AsyncIterator[tuple[str, Record]]:
    """(cursor, record) of everything that an address tells, behind `last_id`."""
    headers = {"Last-Event-ID": last_id} if last_id else {}
    answer = await http.get(url, headers=headers)
    assert answer.status_code == 200, answer.text
    for block in answer.text.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines() if ": " in line)
        if fields.get("event", "").startswith("stream_"):
            yield fields["id"], msgspec.json.decode(fields["data"])


async def test_the_record_is_told_as_it_was(app: App, http: httpx2.AsyncClient):
    run_id = await made(app, http)
    live = [r async for r in told(http, f"/api/v1/streams/{run_id}/sse")]
    before = (await http.get("/api/v1/runs")).json()
    answer = await http.post(f"/api/v1/runs/{run_id}/replay", json={"speed": 500})
    assert answer.status_code == 200, answer.text
    replay = answer.json()
    assert replay["sse_url"].endswith(f"/{run_id}/sse?from=start&rate=500")
    assert replay["recorded_s"] == pytest.approx(500 * replay["replay_s"])
    again = [r async for r in told(http, replay["sse_url"])]
    assert again == live
    events = [r["payload"]["data"]["type"] for _, r in again if r["node_id"] == "_run" and _data(r)]
    assert (events[0], events[-1]) == ("run_created", "run_finished")
    assert [r["payload"]["data"] for _, r in again if r["node_id"] == "echo" and _data(r)] == [
        *("one", "two", "three")
    ]
    assert (await http.get("/api/v1/runs")).json() == before, "nothing has run"

    middle = len(again) // 2
    rest = [r async for r in told(http, replay["sse_url"], again[middle][0])]
    assert rest == again[middle + 1 :], "cut off, it goes on behind the last record"
    headers = {"Last-Event-ID": again[-1][0]}
    assert (await http.get(replay["sse_url"], headers=headers)).status_code == 204
    (stream,) = replay["streams"]
    assert (stream["node_id"], stream["state"], stream["reused"]) == ("echo", "ended", False)
    alone = [r async for _, r in told(http, stream["sse_url"]) if _data(r)]
    assert [r["payload"]["data"] for r in alone] == ["one", "two", "three"]


def _data(record: Record) -> bool:
    return record["type"] == "stream_data"


def segments(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


async def test_a_sealed_run(settings: Settings):
    async with build(settings) as app, client_of(app) as http:
        run_id = await made(app, http)
        before = [r async for r in told(http, f"/api/v1/streams/{run_id}/sse")]
    log = await open_sqlite(settings.home / "streams.db", limits=Limits(age_s=0, min_bytes=0))
    await log.tidy(time.time() + 60)
    await log.aclose()
    assert segments(settings.home / "streams-sealed")
    async with build(settings) as app, client_of(app) as http:
        replay = (await http.post(f"/api/v1/runs/{run_id}/replay", json={"speed": 1000})).json()
        assert [r async for r in told(http, replay["sse_url"])] == before


async def test_a_reused_nodes_stream_is_replayed_by_itself(app: App, http: httpx2.AsyncClient):
    run_id = await made(app, http)
    rerun = await http.post(f"/api/v1/runs/{run_id}/rerun", json={"from_node": "out"})
    again = rerun.json()["run_id"]
    await app.services.engine.wait(again)
    replay = (await http.post(f"/api/v1/runs/{again}/replay")).json()
    assert replay["speed"] == 1.0
    (stream,) = replay["streams"]
    assert stream["reused"]
    whole = [r async for _, r in told(http, replay["sse_url"].replace("rate=1", "rate=1000"))]
    assert {r["node_id"] for r in whole} == {"_run"}
    url = stream["sse_url"].replace("rate=1", "rate=1000")
    alone = [r["payload"]["data"] async for _, r in told(http, url) if _data(r)]
    assert alone == ["one", "two", "three"]


async def test_what_cannot_be_replayed(app: App, http: httpx2.AsyncClient):
    waiting = ECHO_FLOW.replace("test.echo", "test.wait")
    sent = {"flow": waiting, "inputs": {"words": "x"}}
    active = (await http.post("/api/v1/runs", json=sent)).json()["run_id"]
    refused = await http.post(f"/api/v1/runs/{active}/replay", json={})
    assert (refused.status_code, refused.json()["code"]) == (409, "RUN_ACTIVE")
    await http.post(f"/api/v1/runs/{active}/cancel")
    await app.services.engine.wait(active)
    for speed in (0, -1, 1001, "fast"):
        answer = await http.post(f"/api/v1/runs/{active}/replay", json={"speed": speed})
        assert (answer.status_code, answer.json()["code"]) == (422, "INVALID_REQUEST")
    await app.services.hub.delete_run(active)
    gone = await http.post(f"/api/v1/runs/{active}/replay")
    assert (gone.status_code, gone.json()["code"]) == (410, "STREAM_EXPIRED")
    unknown = await http.post("/api/v1/runs/rn_none/replay")
    assert (unknown.status_code, unknown.json()["code"]) == (404, "RUN_NOT_FOUND")


async def test_without_streaming_there_is_nothing_to_follow(tmp_path: Path):
    async with (
        build(Settings(home=tmp_path / "home", agent_dirs=(), streaming=False)) as app,
        client_of(app) as http,
    ):
        answer = await http.post("/api/v1/runs/rn_none/replay")
        assert (answer.status_code, answer.json()["code"]) == (403, "FEATURE_DISABLED")
