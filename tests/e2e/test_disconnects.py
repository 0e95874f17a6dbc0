"""Clients that are gone in the middle of something, and come back: nothing is lost, doubled or
cancelled. Plain clients only.
"""

import contextlib
import json
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from tests.gateway.conftest import ECHO_FLOW, write_agent
from tests.support.api import Api, Json, flow_of, until
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

pytestmark = pytest.mark.usefixtures("well_afterwards")

COUNTER = """\
id: test.counter
version: 1.0.0
runtime: python3.11
inputs: [{name: gate, type: string}]
outputs: [{name: numbers, type: stream, metadata: {items: number}}]
"""
COUNTER_MAIN = """\
import json, os, sys, time
gate = json.load(sys.stdin)["gate"]
def count(numbers):
    for n in numbers:
        print(json.dumps({"type": "chunk", "pin": "numbers", "data": n}), flush=True)
count(range(1, 51))
while not os.path.exists(gate):
    time.sleep(0.01)
count(range(51, 101))
"""
ALL = list(range(1, 101))
Seen = list[tuple[int, int]]
"""Sequence and number of each record of data."""


@pytest.fixture(scope="module")
def agents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("agents")
    write_agent(folder / "echo")
    write_agent(folder / "counter", COUNTER, COUNTER_MAIN)
    return folder


@pytest.fixture
def gate(tmp_path: Path) -> Path:
    """The counter goes on behind 50 when this file is there."""
    return tmp_path / "gate"


@pytest.fixture
def run_id(api: Api, gate: Path) -> str:
    return api.submit(flow_of("test.counter"), **{"it.gate": str(gate)})


def stream_of(api: Api, run_id: str) -> str:
    return api.look(run_id)["streams"][0]["stream_id"]


def note(seen: Seen, record: Json) -> None:
    if record["type"] == "stream_data":
        seen.append((record["sequence"], record["payload"]["data"]))


def watch(api: Api, stream_id: str, from_: str | int, seen: Seen, *, upto: int) -> None:
    """Plain WebSocket: until so much is seen, then the line is cut; or until the server ends it."""
    url = f"{api.server.url}/ws/streams/{stream_id}?from={from_}".replace("http", "ws", 1)
    with connect(url, close_timeout=1) as client, contextlib.suppress(ConnectionClosed):
        while len(seen) < upto:
            note(seen, json.loads(client.recv(timeout=60)))
        client.socket.shutdown(socket.SHUT_RDWR)
    assert client.protocol.close_code == (1006 if len(seen) >= upto else 1000)


def listen(api: Api, path: str, last_id: str | None, events: list[Json], *, upto: int) -> str:
    """SSE: until so many events with data are seen, then the line is cut; the last event's id."""
    headers = {} if last_id is None else {"Last-Event-ID": last_id}
    with api.http.stream("GET", path, headers=headers) as answer:
        assert answer.status_code == 200
        for line in answer.iter_lines():
            if line.startswith("id: "):
                last_id = line.removeprefix("id: ")
            elif line.startswith("data: "):
                events.append(json.loads(line.removeprefix("data: ")))
                if len(events) == upto:
                    break
    assert last_id is not None
    return last_id


def test_a_websocket_that_is_cut_twice(api: Api, run_id: str, gate: Path):
    stream_id, seen = stream_of(api, run_id), Seen()
    watch(api, stream_id, "start", seen, upto=20)
    watch(api, stream_id, seen[-1][0] + 1, seen, upto=45)
    gate.touch()
    watch(api, stream_id, seen[-1][0] + 1, seen, upto=1000)
    assert [number for _, number in seen] == ALL
    again = Seen()
    watch(api, stream_id, "start", again, upto=1000)
    assert again == seen
    assert api.ended(run_id)["state"] == "succeeded"


def test_an_event_source_that_is_cut_twice(api: Api, run_id: str, gate: Path):
    path, events = f"/api/v1/streams/{stream_of(api, run_id)}/sse", list[Json]()
    last = listen(api, path, None, events, upto=20)
    last = listen(api, path, last, events, upto=50)
    gate.touch()
    last = listen(api, path, last, events, upto=1000)
    seen = Seen()
    for event in events:
        if "type" in event:
            note(seen, event)
    assert [number for _, number in seen] == ALL
    assert len({sequence for sequence, _ in seen}) == len(ALL)
    assert api.http.get(path, headers={"Last-Event-ID": last}).status_code == 204


def test_a_runs_events_cut_after_each_one(api: Api, run_id: str, gate: Path):
    path, events = f"/api/v1/runs/{run_id}/events", list[Json]()
    last = listen(api, path, None, events, upto=1)
    gate.touch()
    while events[-1]["type"] != "run_finished":
        last = listen(api, path, last, events, upto=len(events) + 1)
    assert [event["seq"] for event in events] == list(range(1, len(events) + 1))
    whole = list[Json]()
    listen(api, path, None, whole, upto=1000)
    assert whole == events


def test_nobody_watching_cancels_nothing(api: Api, run_id: str, gate: Path):
    watch(api, stream_of(api, run_id), "start", Seen(), upto=1)
    gate.touch()
    assert api.ended(run_id)["state"] == "succeeded"


def cut_request(
    api: Api, head: str, body: bytes, *, when: Callable[[], object] = lambda: True
) -> None:
    """Send this much of a request, then reset the connection, as a process that is killed does."""
    where = urlsplit(api.server.url)
    with socket.create_connection((where.hostname, where.port)) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, bytes([1] + [0] * 7))
        connection.sendall(f"{head}\r\nHost: 127.0.0.1\r\n".encode() + body)
        until(when, "the server has begun")


def test_an_upload_that_is_cut_leaves_nothing_and_can_be_sent_again(api: Api):
    before = api.http.get("/api/v1/storage").json()["items"]
    data = os.urandom(12 << 20)
    head = f"POST /api/v1/storage/upload HTTP/1.1\r\nContent-Length: {len(data)}"
    staging = api.server.home / "blobs" / ".staging"
    cut_request(api, head, b"\r\n" + data[: 8 << 20], when=lambda: any(staging.iterdir()))
    until(lambda: not any(staging.iterdir()), "what was half sent is removed")
    assert api.http.get("/api/v1/storage").json()["items"] == before
    ref = api.upload(data)
    assert api.http.get(f"/api/v1/storage/{ref}").content == data


def test_a_download_that_is_cut_goes_on(api: Api):
    data = os.urandom(3 << 20)
    path, got = f"/api/v1/storage/{api.upload(data)}", bytearray()
    with api.http.stream("GET", path) as answer:
        etag = answer.headers["etag"]
        for block in answer.iter_bytes():
            got += block
            if len(got) > 1 << 20:
                break
    headers = {"Range": f"bytes={len(got)}-", "If-Range": etag}
    rest = api.http.get(path, headers=headers)
    assert rest.status_code == 206
    assert bytes(got) + rest.content == data


def test_a_submission_without_its_answer_is_sent_again(api: Api):
    body = {"flow": ECHO_FLOW, "inputs": {"words": "once"}, "idempotency_key": "k-1"}
    sent = json.dumps(body).encode()
    before = runs(api)
    head = "POST /api/v1/runs HTTP/1.1\r\nContent-Type: application/json"
    cut_request(api, head, f"Content-Length: {len(sent)}\r\n\r\n".encode() + sent)
    first, second = (api.post("runs", body).raise_for_status().json() for _ in range(2))
    assert first["run_id"] == second["run_id"]
    assert api.ended(first["run_id"])["state"] == "succeeded"
    assert runs(api) - before == {first["run_id"]}


def runs(api: Api) -> set[str]:
    return {run["run_id"] for run in api.http.get("/api/v1/runs?limit=200").json()["runs"]}


def test_records_whose_answer_was_lost_are_sent_again(api: Api):
    stream = api.post("streams/init", {"agent_id": "me", "pin_name": "n"}).json()
    path = f"/api/v1/streams/{stream['stream_id']}/records"
    batch: dict[str, Any] = {
        "records": [{"type": "stream_data", "payload": {"data": n}} for n in ALL],
        "producer": {"id": "me", "epoch": 0, "seq": 1},
    }
    sent = json.dumps(batch).encode()
    head = f"POST {path} HTTP/1.1\r\nContent-Type: application/json\r\nContent-Length: {len(sent)}"
    cut_request(api, head, b"\r\n" + sent)
    for _ in range(2):
        assert api.http.post(path, json=batch).status_code == 200
    assert api.http.post(path, json={"type": "stream_end"}).status_code == 200
    seen = Seen()
    watch(api, stream["stream_id"], "start", seen, upto=1000)
    assert [number for _, number in seen] == ALL
