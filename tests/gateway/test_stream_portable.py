"""The portable transport, spoken to as an ASGI server speaks: no network in between."""

import asyncio
import gzip
import json
import zlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from tests.support.streams_server import make_app, make_streams

from mentatlab.gateway.stream_msp import PROTOCOL
from mentatlab.gateway.stream_portable import Outbox
from mentatlab.gateway.streams import WRITE_LIMIT
from mentatlab.protocol import frames
from mentatlab.protocol.frames import Frame
from mentatlab.protocol.records import Draft, data_draft
from mentatlab.streams import StreamingConnectionManager, open_hub

Message = dict[str, Any]


@pytest.fixture
async def hub() -> AsyncIterator[StreamingConnectionManager]:
    hub = await open_hub(None)
    yield hub
    await hub.aclose()


class Client:
    """What an ASGI server gives the app, and takes from it while `taking` is set."""

    def __init__(self) -> None:
        self.given: asyncio.Queue[Message] = asyncio.Queue()
        self.told: asyncio.Queue[Message] = asyncio.Queue()
        self.taking = asyncio.Event()
        self.taking.set()

    async def take(self, message: Message) -> None:
        await self.taking.wait()
        self.told.put_nowait(message)

    async def next(self) -> Message:
        async with asyncio.timeout(10):
            return await self.told.get()

    async def json(self) -> Message:
        return json.loads((await self.next())["text"])

    def send(self, text: str) -> None:
        self.given.put_nowait({"type": "websocket.receive", "text": text})

    def send_bytes(self, data: bytes) -> None:
        self.given.put_nowait({"type": "websocket.receive", "bytes": data})


@asynccontextmanager
async def calling(
    hub: StreamingConnectionManager, scope: Message, gone: str, **timing: float
) -> AsyncIterator[Client]:
    client = Client()
    streams = make_streams(hub, **timing)
    path = scope["path"].encode()
    whole = {
        "asgi": {"version": "3.0"}, "http_version": "1.1", "root_path": "", "raw_path": path,
        "query_string": b"", "client": ("127.0.0.1", 5000), "server": ("127.0.0.1", 7070), **scope,
        "headers": [(b"host", b"127.0.0.1:7070"), *scope.get("headers", ())],
    }  # fmt: skip
    task = asyncio.create_task(make_app(streams)(whole, client.given.get, client.take))
    try:
        yield client
    finally:
        client.given.put_nowait({"type": gone, "code": 1001})
        async with asyncio.timeout(10):
            await task
    assert streams.connections.statistics().open == {}
    assert hub.statistics().subscriptions == 0


@asynccontextmanager
async def socket(
    hub: StreamingConnectionManager, id_: str, *protocols: str, query: str = "", **timing: float
) -> AsyncIterator[Client]:
    scope = {
        "type": "websocket", "scheme": "ws", "path": f"/ws/streams/{id_}",
        "query_string": query.encode(), "subprotocols": list(protocols),
    }  # fmt: skip
    async with calling(hub, scope, "websocket.disconnect", **timing) as client:
        client.given.put_nowait({"type": "websocket.connect"})
        accepted = await client.next()
        assert accepted["type"] == "websocket.accept"
        assert accepted["subprotocol"] == (protocols[0] if protocols else None)
        yield client


@asynccontextmanager
async def sse(
    hub: StreamingConnectionManager, id_: str, *headers: tuple[bytes, bytes], **timing: float
) -> AsyncIterator[Client]:
    scope = {
        "type": "http", "method": "GET", "scheme": "http", "path": f"/api/v1/streams/{id_}/sse",
        "headers": headers,
    }  # fmt: skip
    async with calling(hub, scope, "http.disconnect", **timing) as client:
        client.given.put_nowait({"type": "http.request", "body": b"", "more_body": False})
        yield client


async def opened(hub: StreamingConnectionManager, **more: Any) -> str:
    return (await hub.create_stream("me", "out", **more)).stream_id


async def test_a_plain_client_to_the_end(hub: StreamingConnectionManager) -> None:
    stream_id = await opened(hub)
    async with socket(hub, stream_id, query="from=start") as client:
        assert (await client.json())["type"] == "stream_start"
        client.send('{"data": "a"}')
        assert (await client.json())["payload"]["data"] == "a"
        client.send('{"type": "stream_end"}')
        assert (await client.json())["type"] == "stream_end"
        close = await client.next()
        assert (close["type"], close["code"]) == ("websocket.close", 1000)


async def test_text_and_binary_on_msp(hub: StreamingConnectionManager) -> None:
    stream_id = await opened(hub)
    async with socket(hub, stream_id, PROTOCOL) as client:
        assert (await client.json())["type"] == "welcome"
        client.send(json.dumps({"type": "publish", "id": stream_id}))
        lane = (await client.json())["lane"]
        client.send(json.dumps({"type": "subscribe", "id": stream_id, "from": "2"}))
        assert (await client.json())["type"] == "subscribed"
        assert (await client.json())["type"] == "stream_start"
        client.send_bytes(frames.encode(Frame(lane=lane, sequence=0, body=b"\x01")))
        told = [await client.next(), await client.next()]
        (frame,) = [frames.decode(t["bytes"]) for t in told if t.get("bytes") is not None]
        assert (frame.sequence, frame.body) == (2, b"\x01")


async def test_records_are_joined_on_msp(hub: StreamingConnectionManager) -> None:
    stream_id = await opened(hub, durability="memory")
    await hub.publish(stream_id, [data_draft("x" * 20_000) for _ in range(5)])
    async with socket(hub, stream_id, PROTOCOL) as client:
        await client.json()
        client.send(json.dumps({"type": "subscribe", "id": stream_id, "from": "start"}))
        await client.json()
        sizes: list[int] = []
        while sum(sizes) < 6:
            sizes.append(len((await client.next())["text"].split("\n")))
        assert sizes[0] > 1


async def test_one_that_takes_nothing_is_cut(hub: StreamingConnectionManager) -> None:
    stream_id = await opened(hub, durability="memory")
    async with socket(hub, stream_id, stall_s=0.02) as client:
        await client.json()
        client.taking.clear()
        for _ in range(40):
            await hub.publish(stream_id, [data_draft("x" * 10_000)])
        async with asyncio.timeout(10):
            while hub.statistics().subscriptions:
                await asyncio.sleep(0.001)
        client.taking.set()
        codes = [(await client.next()).get("code")]
        while codes[-1] is None:
            codes.append((await client.next()).get("code"))
        assert codes[-1] == 4000
        assert len(codes) < 12  # what did not fit stayed in the log


async def test_one_that_takes_again_gets_everything(hub: StreamingConnectionManager) -> None:
    stream_id = await opened(hub, durability="memory")
    async with socket(hub, stream_id) as client:
        await client.json()
        client.taking.clear()
        for _ in range(40):
            await hub.publish(stream_id, [data_draft("x" * 10_000)])
        client.taking.set()
        assert [(await client.json())["sequence"] for _ in range(40)] == list(range(2, 42))


async def test_who_does_not_take_answers_is_not_read(hub: StreamingConnectionManager) -> None:
    async with socket(hub, await opened(hub), PROTOCOL) as client:
        await client.json()
        client.taking.clear()
        for _ in range(10):
            client.send(json.dumps({"type": "ping", "text": "x" * 30_000}))
        async with asyncio.timeout(10):
            while client.given.qsize() > 7:
                await asyncio.sleep(0)
        assert client.given.qsize() >= 6
        client.taking.set()
        for _ in range(10):
            assert (await client.json())["type"] == "pong"


async def test_draining(hub: StreamingConnectionManager) -> None:
    stream_id = await opened(hub)
    async with socket(hub, stream_id, PROTOCOL) as client, sse(hub, stream_id) as events:
        await client.json()
        for _ in range(3):
            await events.next()
        await hub.drain()
        assert (await client.json())["type"] == "bye"
        assert (await client.next())["code"] == 1012
        assert (await events.next())["more_body"] is False


async def test_a_bug_in_a_link_is_not_hidden(hub: StreamingConnectionManager) -> None:
    client = Client()

    async def broken(_: Message) -> None:
        raise ValueError("a bug")

    client.take = broken  # type: ignore[method-assign]
    streams = make_streams(hub)
    scope = {
        "type": "websocket", "scheme": "ws", "path": f"/ws/streams/{await opened(hub)}",
        "raw_path": b"", "root_path": "", "query_string": b"", "subprotocols": [],
        "headers": [(b"host", b"127.0.0.1")], "asgi": {"version": "3.0"},
    }  # fmt: skip
    client.given.put_nowait({"type": "websocket.connect"})
    with pytest.raises(ValueError, match="a bug"):
        await make_app(streams)(scope, client.given.get, client.take)
    assert streams.connections.statistics().open == {}


async def test_a_bug_while_reading_the_log_ends_the_connection(
    hub: StreamingConnectionManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(*_: object) -> None:
        raise ValueError("a bug")

    stream_id = await opened(hub)
    monkeypatch.setattr("mentatlab.streams.subscription.Subscription.load", broken)
    async with socket(hub, stream_id, query="from=start") as client:
        assert (await client.next())["code"] == 1011


async def test_events_to_the_end(hub: StreamingConnectionManager) -> None:
    stream_id = await opened(hub)
    await hub.publish(stream_id, [data_draft(1), Draft(body=b"x")])
    async with sse(hub, stream_id) as client:
        assert (await client.next())["status"] == 200
        body = b""
        while body.count(b"\n\n") < 4:
            body += (await client.next())["body"]
        await hub.end_stream(stream_id)
        while (message := await client.next())["more_body"]:
            body += message["body"]
        names = [line for line in body.decode().split("\n") if line.startswith("event: ")]
        assert [name.removeprefix("event: ") for name in names] == [
            "hello", "stream_start", "stream_data", "stream_data", "stream_end",
        ]  # fmt: skip
    lane = await hub.lane(stream_id)
    async with sse(hub, stream_id, (b"last-event-id", str(lane.cursor).encode())) as client:
        assert (await client.next())["status"] == 204
        await client.next()


async def test_events_in_gzip_are_flushed(hub: StreamingConnectionManager) -> None:
    stream_id = await opened(hub)
    async with sse(hub, stream_id, (b"accept-encoding", b"gzip")) as client:
        head = dict((await client.next())["headers"])
        assert head[b"content-encoding"] == b"gzip"
        packed = b""
        while (message := await client.next())["more_body"]:
            packed += message["body"]
            if b"stream_start" in _unpacked(packed):
                await hub.end_stream(stream_id)
        packed += message["body"]
        assert b"event: stream_end" in gzip.decompress(packed)


def _unpacked(packed: bytes) -> bytes:
    return zlib.decompressobj(wbits=31).decompress(packed)


async def test_one_that_leaves_leaves_nothing(hub: StreamingConnectionManager) -> None:
    stream_id = await opened(hub)
    async with sse(hub, stream_id) as client:
        await client.next()
        await client.next()
        client.taking.clear()
        await hub.publish(stream_id, [data_draft("x")])
        client.given.put_nowait({"type": "http.disconnect"})
        client.taking.set()


async def test_an_outbox_is_bounded_by_who_looks() -> None:
    outbox = Outbox[str]()
    outbox.put("a", WRITE_LIMIT - 1)
    assert outbox.writable
    outbox.put("b", 1)
    assert (outbox.writable, outbox.bytes) == (False, WRITE_LIMIT)
    assert await outbox.take() == [("a", WRITE_LIMIT - 1), ("b", 1)]
    assert (outbox.sent(1), outbox.sent(1)) == (True, False)
    outbox.close()
    outbox.put("c", 1)
    assert await outbox.take() == []
