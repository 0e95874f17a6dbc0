"""Publishers that fall silent, vanish and come back, through real sockets and over a restart."""

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
from tests.support.streams_server import SseReader, stream_server
from websockets.asyncio.client import ClientConnection, connect
from websockets.typing import Subprotocol

from mentatlab.gateway.server import Transport
from mentatlab.streams import StreamingConnectionManager, open_hub
from support import streams_server

MSP = [Subprotocol("msp.v1+json")]
Message = dict[str, Any]


@pytest.fixture
async def hub(tmp_path: Path) -> AsyncIterator[StreamingConnectionManager]:
    hub = await open_hub(tmp_path / "streams.db")
    yield hub
    await hub.aclose()


@pytest.fixture(params=["picows", "portable"])
def transport(request: pytest.FixtureRequest) -> Transport:
    return request.param


async def heard(socket: ClientConnection, type_: str, **fields: Any) -> Message:
    """The next message of that type with these fields."""
    async with asyncio.timeout(15):
        while True:
            for line in str(await socket.recv()).split("\n"):
                message = json.loads(line)
                if message["type"] == type_ and fields.items() <= message.items():
                    return message


@asynccontextmanager
async def publishing(port: int, stream_id: str) -> AsyncIterator[ClientConnection]:
    url = f"ws://127.0.0.1:{port}/ws/streams/{stream_id}"
    async with connect(url, subprotocols=MSP, ping_interval=None) as socket:
        publish = {"type": "publish", "id": stream_id, "producer": {"id": "me", "epoch": 0}}
        await socket.send(json.dumps(publish))
        await heard(socket, "publishing")
        yield socket


@asynccontextmanager
async def following(port: int, stream_id: str) -> AsyncIterator[ClientConnection]:
    url = f"ws://127.0.0.1:{port}/ws/streams/{stream_id}"
    async with connect(url, subprotocols=MSP) as socket:
        await socket.send(json.dumps({"type": "subscribe", "id": stream_id, "from": "start"}))
        await heard(socket, "subscribed")
        yield socket


async def test_one_that_vanishes_and_comes_back(
    hub: StreamingConnectionManager, transport: Transport
) -> None:
    stream_id = (await hub.create_stream("me", "out")).stream_id
    async with stream_server(hub, transport=transport, silent_s=0.3) as port:
        events = await SseReader.open(port, f"/api/v1/streams/{stream_id}/sse")
        async with following(port, stream_id) as reader:
            async with publishing(port, stream_id) as socket:
                socket.transport.abort()
            await heard(reader, "mark", state="stalled")
            async with publishing(port, stream_id) as socket:
                await heard(reader, "mark", state="open")
                await socket.send(json.dumps({"type": "stream_data", "data": 1, "producer_seq": 1}))
                await heard(reader, "stream_data")
        names = list[str]()
        while "open" not in names:
            event = await events.event()
            assert event is not None
            if event[0] == "mark":
                names.append(json.loads(event[2])["state"])
        assert names == ["stalled", "open"]
        await events.aclose()


async def test_one_that_is_idle_but_there(
    hub: StreamingConnectionManager, transport: Transport
) -> None:
    """Its answers to pings are enough; a client without a connection is never watched."""
    stream_id = (await hub.create_stream("me", "out")).stream_id
    async with (
        stream_server(hub, transport=transport, silent_s=1.5, lost_s=2.5, mark_s=0.6) as port,
        following(port, stream_id) as reader,
        publishing(port, stream_id),
    ):
        for _ in range(5):
            mark = await heard(reader, "mark")
            assert mark["state"] == "open"
    assert (await hub.lane(stream_id)).state == "open"


async def test_one_that_does_not_come_back(
    hub: StreamingConnectionManager, transport: Transport
) -> None:
    stream_id = (await hub.create_stream("me", "out")).stream_id
    async with (
        stream_server(hub, transport=transport, silent_s=0.2, lost_s=0.5) as port,
        httpx2.AsyncClient(base_url=f"http://127.0.0.1:{port}") as http,
        following(port, stream_id) as reader,
    ):
        async with publishing(port, stream_id) as socket:
            await socket.send(json.dumps({"type": "stream_data", "data": 1, "producer_seq": 1}))
            await heard(socket, "published")
            socket.transport.abort()
        error = (await heard(reader, "stream_error"))["payload"]["error"]
        assert (error["code"], error["retryable"]) == ("publisher_lost", True)
        await heard(reader, "mark", state="errored")
        late = {"data": 2, "producer": {"id": "me", "epoch": 0, "seq": 2}}
        answer = await http.post(f"/api/v1/streams/{stream_id}/records", json=late)
        assert answer.status_code in (403, 409)
    assert (await hub.lane(stream_id)).chunks == 1


def _written(path: Path) -> str:
    return path.read_text() if path.exists() else ""


async def _started(database: Path, port_file: Path) -> tuple[asyncio.subprocess.Process, int]:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        streams_server.__file__,
        *(str(database), str(port_file), "silent_s=0.3", "lost_s=1.2"),
    )
    async with asyncio.timeout(30):
        while not _written(port_file):
            assert process.returncode is None
            await asyncio.sleep(0.02)
    return process, int(_written(port_file))


async def test_a_restart_does_not_leave_readers_waiting(tmp_path: Path) -> None:
    database = tmp_path / "streams.db"
    process, port = await _started(database, tmp_path / "first.port")
    async with httpx2.AsyncClient(base_url=f"http://127.0.0.1:{port}") as http:
        body = {"agent_id": "a", "pin_name": "p"}
        opened = (await http.post("/api/v1/streams/init", json=body)).json()
        quiet = (await http.post("/api/v1/streams/init", json=body)).json()
    async with publishing(port, opened["stream_id"]) as socket:
        await socket.send(json.dumps({"type": "stream_data", "data": 1, "producer_seq": 1}))
        await heard(socket, "published")
        process.kill()
        await process.wait()
    process, port = await _started(database, tmp_path / "second.port")
    try:
        async with following(port, opened["stream_id"]) as reader:
            error = (await heard(reader, "stream_error"))["payload"]["error"]
            assert error["code"] == "publisher_lost"
        async with httpx2.AsyncClient(base_url=f"http://127.0.0.1:{port}") as http:
            look = await http.get(f"/api/v1/streams/{quiet['stream_id']}")
            assert look.json()["state"] == "open"  # nobody has begun to publish to it
    finally:
        process.terminate()
        await process.wait()
