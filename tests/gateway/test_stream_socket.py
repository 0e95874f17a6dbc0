"""Both kinds of WebSocket conversation, spoken straight to the app: no network in between."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Any, Self

import pytest
from tests.support.streams_server import make_app, make_streams

from mentatlab.gateway.stream_msp import PROTOCOL
from mentatlab.gateway.stream_wire import MAX_MESSAGE_BYTES
from mentatlab.protocol.records import data_draft
from mentatlab.streams import StreamingConnectionManager, open_hub

Message = dict[str, Any]


@pytest.fixture
async def hub() -> AsyncIterator[StreamingConnectionManager]:
    hub = await open_hub(None)
    yield hub
    await hub.aclose()


class Socket:
    """A client of the app's WebSocket. `code` is set when the server has closed."""

    def __init__(self, app: Any, path: str, query: str, *protocols: str) -> None:
        self._scope = {
            "type": "websocket",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "scheme": "ws",
            "path": path,
            "raw_path": path.encode(),
            "root_path": "",
            "query_string": query.encode(),
            "headers": [(b"host", b"127.0.0.1:7070")],
            "client": ("127.0.0.1", 50000),
            "server": ("127.0.0.1", 7070),
            "subprotocols": list(protocols),
        }
        self._app = app
        self._in: asyncio.Queue[Message] = asyncio.Queue()
        self._out: asyncio.Queue[Message] = asyncio.Queue()
        self._lines: list[Message] = []
        self.taking = asyncio.Event()
        self.taking.set()
        self.code: int | None = None

    async def __aenter__(self) -> Self:
        self._in.put_nowait({"type": "websocket.connect"})
        self._task = asyncio.create_task(self._app(self._scope, self._in.get, self._took))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: object, trace: TracebackType | None
    ) -> None:
        self.leave()
        async with asyncio.timeout(10):
            await self._task

    async def _took(self, message: Message) -> None:
        await self.taking.wait()
        if message["type"] == "websocket.close":
            self.code = message["code"]
        self._out.put_nowait(message)

    def leave(self) -> None:
        self._in.put_nowait({"type": "websocket.disconnect", "code": 1001})

    def send(self, text: str) -> None:
        self._in.put_nowait({"type": "websocket.receive", "text": text})

    def say_bytes(self, data: bytes) -> None:
        self._in.put_nowait({"type": "websocket.receive", "bytes": data})

    def say(self, type_: str, **fields: Any) -> None:
        self.send(json.dumps({"type": type_, **fields}))

    async def next(self) -> Message:
        """The next message of the server; `{"type": "websocket.close"}` and the like, too."""
        async with asyncio.timeout(10):
            while not self._lines:
                message = await self._out.get()
                text = message.get("text")
                self._lines = (
                    [message] if text is None else [json.loads(t) for t in text.split("\n")]
                )
        return self._lines.pop(0)

    async def heard(self, type_: str) -> Message:
        """The next message of that type; marks may come before."""
        while (message := await self.next())["type"] != type_:
            assert message["type"] in ("mark", "websocket.accept"), message
        return message

    async def joined(self, id_: str) -> None:
        """Subscribes from the latest record; a joiner gets the stream's start."""
        self.say("subscribe", id=id_)
        await self.heard("subscribed")
        await self.heard("stream_start")

    async def closed(self) -> int:
        while self.code is None:
            await self.next()
        return self.code


@asynccontextmanager
async def talk(
    hub: StreamingConnectionManager, id_: str, *protocols: str, query: str = "", **timing: float
) -> AsyncIterator[Socket]:
    async with Socket(
        make_app(make_streams(hub, **timing)), f"/ws/streams/{id_}", query, *protocols
    ) as socket:
        yield socket


async def opened(hub: StreamingConnectionManager, **more: Any) -> str:
    session = await hub.create_stream("me", "out", run_id=None, **more)
    return session.stream_id


# -- plain clients


async def test_a_plain_client_follows_to_the_end(hub: StreamingConnectionManager) -> None:
    stream_id = await opened(hub)
    await hub.publish(stream_id, [data_draft("a")])
    async with talk(hub, stream_id, query="from=start") as socket:
        assert (await socket.heard("stream_start"))["sequence"] == 1
        assert (await socket.heard("stream_data"))["payload"]["data"] == "a"
        await hub.end_stream(stream_id)
        assert (await socket.heard("stream_end"))["sequence"] == 3
        assert await socket.closed() == 1000


async def test_what_a_plain_client_sends_is_a_record(hub: StreamingConnectionManager) -> None:
    stream_id = await opened(hub)
    async with talk(hub, stream_id, query="from=start") as socket:
        await socket.heard("stream_start")
        socket.send('{"data": {"n": 1}}')
        assert (await socket.heard("stream_data"))["payload"]["data"] == {"n": 1}
    assert (await hub.lane(stream_id)).chunks == 1


async def test_what_is_said_before_leaving_is_published(hub: StreamingConnectionManager) -> None:
    stream_id = await opened(hub)
    async with talk(hub, stream_id) as socket:
        for n in range(50):
            socket.send(json.dumps({"data": n}))
    lane = await hub.lane(stream_id)
    assert (lane.chunks, lane.state) == (50, "open")


async def test_a_gap_is_told_and_the_start_comes_first(hub: StreamingConnectionManager) -> None:
    stream_id = await opened(hub)
    await hub.publish(stream_id, [data_draft(n) for n in range(3)])
    epoch = (await hub.lane(stream_id)).epoch
    async with talk(hub, stream_id, query=f"from={epoch + 1}:2") as socket:
        assert (await socket.heard("gap"))["id"] == stream_id
    async with talk(hub, stream_id, query="from=3") as socket:
        assert (await socket.heard("stream_start"))["sequence"] == 1
        assert (await socket.heard("stream_data"))["sequence"] == 3


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("{", 4100),
        ("[]", 4100),
        ("[" * 100_000, 4100),
        ('{"type": "dance"}', 4100),
        ("x" * (MAX_MESSAGE_BYTES + 1), 4113),
        ('{"type": "stream_data", "data": 1, "producer": {"id": "p", "epoch": 0, "seq": 7}}', 4109),
    ],
)
async def test_what_is_no_record_closes(
    hub: StreamingConnectionManager, text: str, code: int
) -> None:
    stream_id = await opened(hub)
    async with talk(hub, stream_id) as socket:
        socket.send(text)
        assert await socket.closed() == code
    assert (await hub.lane(stream_id)).chunks == 0


async def test_binary_frames_are_not_spoken(hub: StreamingConnectionManager) -> None:
    async with talk(hub, await opened(hub)) as socket:
        socket.say_bytes(b"{}")
        assert await socket.closed() == 4100


async def test_one_that_takes_nothing_is_cut(hub: StreamingConnectionManager) -> None:
    stream_id = await opened(hub)
    async with talk(hub, stream_id, stall_s=0.02) as socket:
        await socket.heard("websocket.accept")
        socket.taking.clear()
        await hub.publish(stream_id, [data_draft("x")])
        while hub.statistics().subscriptions:
            await asyncio.sleep(0.001)
        socket.taking.set()
        assert await socket.closed() == 4000


async def test_draining_says_come_back(hub: StreamingConnectionManager) -> None:
    async with talk(hub, await opened(hub)) as socket:
        await socket.heard("websocket.accept")
        await hub.drain()
        assert await socket.closed() == 1012


async def test_unknown_streams(hub: StreamingConnectionManager) -> None:
    async with talk(hub, "st_nobody") as socket:
        assert await socket.closed() == 4104


# -- the subprotocol


async def test_a_welcome_then_records_and_the_end(hub: StreamingConnectionManager) -> None:
    stream_id = await opened(hub)
    await hub.publish(stream_id, [data_draft("x" * 40_000) for _ in range(4)])
    async with talk(hub, stream_id, PROTOCOL) as socket:
        assert (await socket.next())["subprotocol"] == PROTOCOL
        assert (await socket.heard("welcome"))["id"] == stream_id
        socket.say("subscribe", id=stream_id, **{"from": "start"})
        told = await socket.heard("subscribed")
        assert (told["lane"], told["head"], told["state"]) == (1, 5, "open")
        found = [await socket.next() for _ in range(5)]
        assert [record["sequence"] for record in found] == [1, 2, 3, 4, 5]
        await hub.end_stream(stream_id)
        await socket.heard("stream_end")
        assert (await socket.heard("mark"))["state"] == "ended"
        socket.say("subscribe", id=stream_id)  # it may be followed anew
        await socket.heard("subscribed")


async def test_idle_streams_are_marked(hub: StreamingConnectionManager) -> None:
    stream_id = await opened(hub)
    async with talk(hub, stream_id, PROTOCOL, mark_s=0.001) as socket:
        await socket.heard("welcome")
        await socket.joined(stream_id)
        mark = await socket.heard("mark")
        assert (mark["id"], mark["state"]) == (stream_id, "open")


async def test_credit_bounds_what_is_delivered(hub: StreamingConnectionManager) -> None:
    stream_id = await opened(hub)
    await hub.publish(stream_id, [data_draft("x" * 1000) for _ in range(3)])
    async with talk(hub, stream_id, PROTOCOL) as socket:
        socket.say("subscribe", id=stream_id, max_bytes=1, **{"from": "start"})
        await socket.heard("welcome")
        await socket.heard("subscribed")
        assert (await socket.next())["sequence"] == 1  # what begins within the credit is whole
        socket.say("ping", n=1)
        assert (await socket.heard("pong"))["n"] == 1  # and no record before it
        socket.say("credit", id=stream_id, max_bytes=1 << 20)
        assert [(await socket.next())["sequence"] for _ in range(3)] == [2, 3, 4]
        socket.say("credit", id="st_other", max_bytes=1)  # not followed here: nothing
        socket.say("ping")
        await socket.heard("pong")


async def test_a_publisher_is_told_what_is_durable(hub: StreamingConnectionManager) -> None:
    stream_id = await opened(hub)
    async with talk(hub, stream_id, PROTOCOL) as socket:
        await socket.heard("welcome")
        producer = {"id": "p", "epoch": 0, "seq": 1}
        socket.say("stream_data", payload={"data": 1}, producer=producer)
        told = await socket.heard("published")
        assert (told["sequence"], told["producer_seq"], told["durable"]) == (2, 1, True)
        socket.say("stream_data", payload={"data": 1}, producer={**producer, "seq": 9})
        error = await socket.heard("error")
        assert (error["close"], error["details"]) == (4109, {"expected": 2})


async def test_what_is_wrong_with_one_stream_leaves_the_others(
    hub: StreamingConnectionManager,
) -> None:
    stream_id = await opened(hub)
    async with talk(hub, stream_id, PROTOCOL) as socket:
        await socket.heard("welcome")
        socket.say("subscribe", id="st_nobody")
        assert (await socket.heard("error"))["code"] == "STREAM_UNKNOWN"
        await socket.joined(stream_id)
        socket.say("subscribe", id=stream_id)
        assert (await socket.heard("error"))["code"] == "CONFLICT"
        socket.say("unsubscribe", id=stream_id)
        socket.say("unsubscribe", id=stream_id)
        socket.say("subscribe", id=stream_id, **{"from": "zz"})
        assert (await socket.heard("error"))["code"] == "STREAM_CURSOR_INVALID"
        socket.say("pong")
        socket.say("cancel", id=stream_id)
        assert (await socket.heard("mark"))["state"] == "ended"
        socket.say("stream_data", stream_id=stream_id, data=1)
        assert (await socket.heard("error"))["code"] == "STREAM_ENDED"
    lane = await hub.lane(stream_id)
    assert (lane.state, lane.chunks) == ("ended", 0)


@pytest.mark.parametrize("text", ['{"type": "dance"}', "{", '{"type": "credit", "max_bytes": 1}'])
async def test_what_names_no_stream_closes(hub: StreamingConnectionManager, text: str) -> None:
    async with talk(hub, await opened(hub), PROTOCOL) as socket:
        socket.send(text)
        assert await socket.closed() == 4100


async def test_a_connection_follows_a_bounded_number(
    hub: StreamingConnectionManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mentatlab.gateway.stream_msp.MAX_SUBSCRIPTIONS", 1)
    first, second = await opened(hub), await opened(hub)
    async with talk(hub, first, PROTOCOL) as socket:
        await socket.heard("welcome")
        await socket.joined(first)
        socket.say("subscribe", id=second)
        error = await socket.heard("error")
        assert (error["id"], error["code"], error["close"]) == (second, "RATE_LIMITED", 4129)


async def test_one_who_leaves_leaves_nothing(hub: StreamingConnectionManager) -> None:
    stream_id = await opened(hub)
    async with talk(hub, stream_id, PROTOCOL) as socket:
        await socket.heard("welcome")
        await socket.joined(stream_id)
        assert hub.statistics().subscriptions == 1
    assert hub.statistics().subscriptions == 0
    assert (await hub.lane(stream_id)).state == "open"
