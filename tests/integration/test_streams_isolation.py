"""Isolation: who takes nothing, grants nothing, or sends garbage costs nobody else anything."""

import asyncio
import itertools
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx2
import pytest
from tests.support.streams_server import make_streams, stream_server

from mentatlab.conformance.clients import WebSocket
from mentatlab.conformance.frames import BINARY, TEXT, websocket_frame
from mentatlab.gateway.server import Transport
from mentatlab.gateway.streams import Streams
from mentatlab.streams import StreamingConnectionManager, open_hub

GOOD = 20
BATCH, BATCHES, SIZE = 5, 34, 60_000  # 10 MB: more than kernels hold for one connection
HELD = 256 * 1024
MSP = {"Sec-WebSocket-Protocol": "msp.v1+json"}
GARBAGE = (
    websocket_frame(TEXT, b"{no json"),
    websocket_frame(TEXT, b'{"type":"subscribe"}'),
    websocket_frame(TEXT, b"\xff\xfe"),
    websocket_frame(BINARY, b"\x01" * 39),
    websocket_frame(BINARY, b"\xff" * 4096),
    websocket_frame(TEXT, b"{}", rsv=7),
    websocket_frame(TEXT, b"{}", mask=False),
    websocket_frame(TEXT, b"", length=1 << 40),
    b"\x00" * 4096,
)


@pytest.fixture(params=["picows", "portable"])
def transport(request: pytest.FixtureRequest) -> Transport:
    return request.param


@pytest.fixture
async def hub() -> AsyncIterator[StreamingConnectionManager]:
    hub = await open_hub(None)
    yield hub
    await hub.aclose()


class World:
    """One stream on a server that cuts nobody for being slow."""

    def __init__(self, hub: StreamingConnectionManager, streams: Streams, port: int, id_: str):
        self.hub, self.streams, self.id = hub, streams, id_
        self.finished = asyncio.Event()
        self._url = f"http://127.0.0.1:{port}"

    async def socket(self, headers: dict[str, str], **more: Any) -> WebSocket:
        return await WebSocket.open(f"{self._url}/ws/streams/{self.id}?from=start", headers, **more)

    async def subscriber(self, max_bytes: int) -> WebSocket:
        socket = await self.socket(MSP)
        said = {"type": "subscribe", "id": self.id, "from": "start", "max_bytes": max_bytes}
        socket.send(TEXT, json.dumps(said).encode())
        while (await socket.next())["type"] != "subscribed":
            pass
        return socket

    async def publish(self) -> int:
        """Everything, each batch acknowledged before the next; the most that was held for anybody
        meanwhile."""
        most = 0
        body = [{"data": "x" * SIZE}] * BATCH
        async with httpx2.AsyncClient(base_url=self._url) as http:
            for number in range(BATCHES):
                last = [{"type": "stream_end"}] if number == BATCHES - 1 else []
                answer = await http.post(f"/api/v1/streams/{self.id}/records", json=[*body, *last])
                assert answer.status_code == 200, answer.text
                assert self.hub.statistics().held_back == ()
                most = max(most, self.streams.connections.statistics().most_held)
        return most

    async def attack(self) -> int:
        """Garbage of every kind, on one connection after the other; how many there were."""
        for count in itertools.count(1):
            socket = await self.socket(MSP)
            socket.write(GARBAGE[count % len(GARBAGE)])
            heard: dict[str, Any] = {}
            while "closed" not in heard:
                heard = await socket.next()
            await socket.cut()
            if self.finished.is_set() and count >= len(GARBAGE):
                return count
        raise AssertionError


async def taken(socket: WebSocket) -> list[int]:
    """The sequences of the records that a reader gets, up to the end."""
    sequences: list[int] = []
    while True:
        message = await socket.next()
        assert "closed" not in message, message
        if "sequence" in message:
            sequences.append(message["sequence"])
        if message["type"] == "stream_end":
            return sequences


@pytest.mark.timeout(120)
async def test_bad_readers_beside_good_ones(
    hub: StreamingConnectionManager, transport: Transport
) -> None:
    streams = make_streams(hub, stall_s=600)
    async with stream_server(hub, transport=transport, streams=streams) as port:
        lane = await hub.create_stream("a", "p", durability="memory", external=True)
        world = World(hub, streams, port, lane.stream_id)
        lazy = await world.socket({}, window=4096)
        stingy = await world.subscriber(0)
        good = [
            await (world.socket({}) if number % 2 else world.subscriber(1 << 30))
            for number in range(GOOD)
        ]
        async with asyncio.TaskGroup() as group:
            attack = group.create_task(world.attack())
            reading = [group.create_task(taken(socket)) for socket in good]
            assert await world.publish() <= HELD
            for sequences in await asyncio.gather(*reading):
                assert sequences == list(range(1, BATCH * BATCHES + 3))
            world.finished.set()
        assert attack.result() >= len(GARBAGE)
        for socket in good:
            await socket.cut()

        # of the bad ones: one waits with what fits into its connection, one with nothing
        held = streams.connections.statistics()
        assert 0 < held.held == held.most_held <= HELD
        assert hub.statistics().held_bytes <= HELD
        assert hub.statistics().buffers.bytes <= HELD

        # and they have lost nothing by it
        said = {"type": "credit", "id": lane.stream_id, "max_bytes": 1 << 30}
        stingy.send(TEXT, json.dumps(said).encode())
        for socket in (lazy, stingy):
            assert await taken(socket) == list(range(1, BATCH * BATCHES + 3))
            await socket.cut()
