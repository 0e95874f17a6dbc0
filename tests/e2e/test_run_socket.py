"""A run id is a stream id: all that the run's nodes stream and what happens to it, in one order."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.gateway.conftest import write_agent
from tests.support.api import Api, Json, flow_of
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect
from websockets.typing import Subprotocol

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
for n in range(1, 31):
    while n > 10 and not os.path.exists(gate):
        time.sleep(0.01)
    print(json.dumps({"type": "chunk", "pin": "numbers", "data": n}), flush=True)
"""


@pytest.fixture(scope="module")
def agents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("agents")
    write_agent(folder / "counter", COUNTER, COUNTER_MAIN)
    return folder


@pytest.fixture
def gate(tmp_path: Path) -> Path:
    """The counter goes on behind 10 when this file is there."""
    return tmp_path / "gate"


@pytest.fixture
def run_id(api: Api, gate: Path) -> str:
    return api.submit(flow_of("test.counter"), **{"it.gate": str(gate)})


def follow(api: Api, id_: str, from_: str = "start", **more: Any) -> ClientConnection:
    url = f"{api.server.url}/ws/streams/{id_}?from={from_}".replace("http", "ws", 1)
    return connect(url, **more)


def records(client: ClientConnection) -> Iterator[Json]:
    """Until the server closes."""
    while True:
        try:
            yield json.loads(client.recv(timeout=60))
        except ConnectionClosed:
            return


def numbers(told: list[Json]) -> list[int]:
    return [
        r["payload"]["data"] for r in told if r["node_id"] == "it" and r["type"] == "stream_data"
    ]


def test_a_live_run_is_followed_to_its_end(api: Api, run_id: str, gate: Path):
    with follow(api, run_id) as client:
        told: list[Json] = []
        for record in records(client):
            told.append(record)
            if record["payload"].get("data") == 10:
                gate.touch()  # so the first ten came while the agent was at work
    assert client.protocol.close_code == 1000
    assert [r["rseq"] for r in told] == list(range(1, len(told) + 1))
    assert numbers(told) == list(range(1, 31))
    events = [
        r["payload"]["data"]["type"]
        for r in told
        if r["node_id"] == "_run" and r["type"] == "stream_data"
    ]
    assert events[-1] == "run_finished"
    assert api.look(run_id)["state"] == "succeeded"
    ends = {r["stream_id"] for r in told if r["type"] == "stream_end"}
    assert ends == {r["stream_id"] for r in told}  # each lane has its end

    with follow(api, run_id) as late:
        assert list(records(late)) == told
    assert late.protocol.close_code == 1000
    with follow(api, run_id, from_=str(told[7]["rseq"])) as resumed:
        assert list(records(resumed)) == told[7:]


def test_it_is_one_of_many_streams_on_a_connection(api: Api, run_id: str, gate: Path):
    gate.touch()
    with follow(api, run_id, subprotocols=[Subprotocol("msp.v1+json")]) as client:
        assert json.loads(client.recv(timeout=60))["type"] == "welcome"
        client.send(json.dumps({"type": "subscribe", "id": run_id, "from": "start"}))
        told: list[Json] = []
        while not (told and told[-1].get("state") == "ended"):
            told += map(json.loads, str(client.recv(timeout=60)).split("\n"))
    assert (told[0]["type"], told[-1]["type"]) == ("subscribed", "mark")
    assert [r["rseq"] for r in told[1:-1]] == list(range(1, len(told) - 1))
    assert numbers(told[1:-1]) == list(range(1, 31))


def test_a_cancelled_run_ends_for_its_readers(api: Api, run_id: str):
    with follow(api, run_id) as client:
        told: list[Json] = []
        for record in records(client):
            told.append(record)
            if record["payload"].get("data") == 10:
                api.post(f"runs/{run_id}/cancel", {}).raise_for_status()
    assert client.protocol.close_code == 1000
    assert [r["rseq"] for r in told] == list(range(1, len(told) + 1))
    ends = {r["node_id"]: r["payload"]["reason"] for r in told if r["type"] == "stream_end"}
    assert ends["it"] == "cancelled"
    assert api.look(run_id)["state"] == "cancelled"


def test_a_guest_publishes_into_the_order_of_a_run(api: Api, run_id: str, gate: Path):
    """And does not keep it from ending; the run's own lanes take nothing from outside."""
    opened = api.post(
        "streams/init", {"agent_id": "me", "pin_name": "notes", "run_id": run_id}
    ).json()
    path = f"streams/{opened['stream_id']}/records"
    api.post(path, {"data": "hello"}).raise_for_status()
    own = api.look(run_id)["streams"][0]["stream_id"]
    assert api.post(f"streams/{own}/records", {"data": 0}).status_code == 403
    gate.touch()
    with follow(api, run_id) as client:
        told = list(records(client))
    assert client.protocol.close_code == 1000
    assert [r["rseq"] for r in told] == list(range(1, len(told) + 1))
    assert [r["payload"] for r in told if r["stream_id"] == opened["stream_id"]][1]["data"] == (
        "hello"
    )
    assert api.post(path, {"data": "late"}).status_code == 200
