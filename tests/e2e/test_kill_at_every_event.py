"""A server that is killed after the first event of a run, after the second of another, and so on
until a run has come to its end: every run ends as it should, nothing that was committed runs again,
and who watches over SSE and WebSocket through all of it sees every event once.
"""

import asyncio
import contextlib
import itertools
import json
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from tests.support.server import COMMAND, up
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosedOK, WebSocketException

from mentatlab.sdk.client import AsyncClient
from mentatlab.testing.house import write_agent

DOOMED = (
    sys.executable,
    "-c",
    "from tests.support.kill_events import kill_this_server; kill_this_server();"
    "from mentatlab.cli import main; main()",
)
ROOT = Path(__file__).parents[2]
PATH = f"{ROOT}{os.pathsep}{ROOT / 'src'}"
PATIENCE_S = 60
POLL_S = 0.02  # a foreign process is asked as often
pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

TEXT = {"name": "text", "type": "string"}
LINES = {"name": "lines", "type": "stream", "metadata": {"items": "string"}}
ALL = {"name": "all", "type": "json"}
COUNT = """
    import json, sys
    json.load(sys.stdin)
    for n in range(3):
        print(json.dumps({"type": "chunk", "pin": "lines", "data": str(n)}), flush=True)
    print(json.dumps({"type": "result", "outputs": {}}))
"""
JOIN = """
    import json, sys
    lines = iter(sys.stdin.readline, "")
    next(lines)
    got = [json.loads(line) for line in lines]
    text = "".join(one["data"] for one in got if one["type"] == "chunk")
    print(json.dumps({"text": text}))
"""
LOUD = """
    import json, sys
    print(json.dumps({"text": json.load(sys.stdin)["text"] + "!"}))
"""
GATHER = """
    import json, sys
    print(json.dumps({"text": " ".join(json.load(sys.stdin)["all"])}))
"""
FLAKY = """
    import json, sys
    payload = json.load(sys.stdin)
    if payload["context"]["attempt"] == 1:
        sys.exit(3)
    print(json.dumps({"text": payload["text"] + "?"}))
"""


def flow(nodes: list[dict[str, Any]], *edges: str) -> dict[str, Any]:
    wires = [edge.split(" > ") for edge in edges]
    return {
        "apiVersion": "v1beta1",
        "kind": "Flow",
        "meta": {"id": "t.kills"},
        "graph": {"nodes": nodes, "edges": [{"from": a, "to": b} for a, b in wires]},
    }


CHAIN = flow(
    [
        {"id": "count", "type": "count"},
        {"id": "join", "type": "join"},
        {"id": "loud", "type": "loud"},
    ],
    "count.lines > join.lines",
    "join.text > loud.text",
)
MAP = flow(
    [
        {"id": "count", "type": "count"},
        {"id": "each", "type": "loud", "forEach": "text", "maxParallel": 2},
        {"id": "gather", "type": "gather"},
    ],
    "count.lines > each.text",
    "each.text > gather.all",
)
BRANCH = flow(
    [
        {"id": "flaky", "type": "flaky", "params": {"text": "so"}, "retry": {"base_s": 0.01}},
        {"id": "choose", "type": "core.if", "params": {"condition": "value == 'so?'"}},
        {"id": "gate", "type": "core.gate", "params": {"message": "May it?"}},
        {"id": "good", "type": "loud"},
        {"id": "bad", "type": "loud"},
    ],
    "flaky.text > choose.value",
    "choose.then > gate.value",
    "gate.approved > good.text",
    "choose.else > bad.text",
)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    agents = tmp_path / "home" / "agents"
    write_agent(agents, "count", COUNT, outputs=[LINES])
    write_agent(agents, "join", JOIN, inputs=[LINES], outputs=[TEXT])
    write_agent(agents, "loud", LOUD, inputs=[TEXT], outputs=[TEXT])
    write_agent(agents, "gather", GATHER, inputs=[ALL], outputs=[TEXT])
    write_agent(agents, "flaky", FLAKY, inputs=[TEXT], outputs=[TEXT])
    return tmp_path / "home"


@pytest.mark.parametrize(
    ("document", "outputs"),
    [
        pytest.param(CHAIN, {"loud.text": "012!"}, id="chain with a stream edge"),
        pytest.param(MAP, {"gather.text": "0! 1! 2!"}, id="forEach over a stream"),
        pytest.param(BRANCH, {"good.text": "so?!"}, id="branch, gate and retry"),
    ],
)
async def test_killed_after_every_event(
    home: Path, document: dict[str, Any], outputs: dict[str, Any]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    watches: list[asyncio.Task[str]] = []
    async with asyncio.timeout(PATIENCE_S * 3), asyncio.TaskGroup() as group:
        for boundary in itertools.count(1):
            env = {"KILL_AFTER": str(boundary), "PYTHONPATH": PATH, "MENTATLAB_RATE": "0"}
            with up(home, "--port", str(port), env=env, command=DOOMED) as server:
                watch = Watch(server.url, document, f"run {boundary}", outputs)
                watches.append(group.create_task(watch.run()))
                while server.process.poll() is None and not watches[-1].done():
                    await asyncio.sleep(POLL_S)
                if server.process.poll() is None:
                    break
                assert server.process.returncode == -signal.SIGKILL, server.log()
        with up(home, "--port", str(port), env={"MENTATLAB_RATE": "0"}, command=COMMAND):
            ids = await asyncio.gather(*watches)
    assert len(set(ids)) == boundary > 6


class Watch:
    """One run and its viewers, over however many servers it takes."""

    def __init__(self, url: str, document: Any, key: str, outputs: dict[str, Any]) -> None:
        self._url, self._outputs = url, outputs
        self._request = {"flow": document, "inputs": {}, "idempotency_key": key}

    async def run(self) -> str:
        """Its id, when all have seen its end."""
        async with (
            httpx2.AsyncClient(base_url=f"{self._url}/api/v1") as http,
            AsyncClient(self._url, give_up_s=PATIENCE_S) as client,
        ):
            run_id = (await self._ask(http, "POST", "runs", self._request))["run_id"]
            events, records, _ = await asyncio.gather(
                _listed(client.events(run_id)), self._records(run_id), self._approve(http, run_id)
            )
            found = await self._ask(http, "GET", f"runs/{run_id}/outputs")
        assert (found["state"], found["outputs"]) == ("succeeded", self._outputs)
        assert [e["seq"] for e in events] == list(range(1, len(events) + 1))
        assert [r["rseq"] for r in records] == list(range(1, len(records) + 1))
        told = [
            r["payload"]["data"]
            for r in records
            if r["node_id"] == "_run" and r["type"] == "stream_data"
        ]
        assert [e["seq"] for e in told] == [e["seq"] for e in events]
        _runs_nothing_twice(events)
        return run_id

    async def _ask(self, http: httpx2.AsyncClient, method: str, path: str, body: Any = None) -> Any:
        """As often as it takes."""
        while True:
            with contextlib.suppress(httpx2.TransportError):
                answer = await http.request(method, f"/{path}", json=body)
                if answer.status_code != 503:
                    return answer.raise_for_status().json()
            await asyncio.sleep(POLL_S)

    async def _records(self, run_id: str) -> list[Any]:
        """Of the run's own stream, by a WebSocket that goes on where it was cut."""
        url = f"{self._url}/ws/streams/{run_id}".replace("http", "ws", 1)
        told: list[Any] = []
        while True:
            from_ = str(told[-1]["rseq"] + 1) if told else "start"
            try:
                async with connect(f"{url}?from={from_}") as socket_:
                    while True:
                        message = str(await socket_.recv())
                        told += map(json.loads, message.split("\n"))
            except ConnectionClosedOK:
                return told
            except (OSError, WebSocketException, EOFError):
                await asyncio.sleep(POLL_S)

    async def _approve(self, http: httpx2.AsyncClient, run_id: str) -> None:
        """Whatever asks for it, until the run has ended."""
        while True:
            view = await self._ask(http, "GET", f"runs/{run_id}")
            if view["state"] in ("succeeded", "partial", "failed", "cancelled"):
                return
            for node in view["nodes"]:
                if node["state"] == "waiting_approval":
                    with contextlib.suppress(httpx2.TransportError):
                        path = f"/runs/{run_id}/gates/{node['id']}"
                        await http.post(path, json={"approve": True})
            await asyncio.sleep(POLL_S)


async def _listed(found: AsyncIterator[Any]) -> list[Any]:
    return [one async for one in found]


def _runs_nothing_twice(events: list[Any]) -> None:
    """What has succeeded is not started again, nor does it succeed again."""
    done: set[tuple[str, int | None]] = set()
    for event in events:
        unit = (event.get("node_id", ""), event.get("item"))
        if event["type"] in ("node_started", "node_succeeded"):
            assert unit not in done, (unit, events)
        if event["type"] == "node_succeeded":
            done.add(unit)
    assert done
