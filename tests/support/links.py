"""Connections without a network: what a conversation or an event stream says is kept."""

import asyncio
import json
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import asynccontextmanager
from typing import Any

from mentatlab.gateway.admission import Admission, Rules
from mentatlab.gateway.head import Head
from mentatlab.gateway.stream_access import Authority
from mentatlab.gateway.stream_connections import Connections
from mentatlab.gateway.stream_conversation import Conversation
from mentatlab.gateway.stream_sse import EventFeed, event_of
from mentatlab.gateway.stream_wire import Timing
from mentatlab.protocol import frames
from mentatlab.streams import StreamingConnectionManager
from mentatlab.streams.buffer import Item

SECRET = b"s" * 32
Message = dict[str, Any]


class _Link:
    """`writable` is set by hand."""

    def __init__(self) -> None:
        self.writable = True
        self.held = 0
        self.said: asyncio.Queue[Any] = asyncio.Queue()
        self.closed: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._tasks: set[asyncio.Task[None]] = set()

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


class RecordingLink(_Link):
    """A `stream_conversation.Link`: messages as values, binary ones as frames."""

    def __init__(self) -> None:
        super().__init__()
        self.frames: list[bytes] = []  # text frames, as they were sent
        self.reading = True
        self.pings = 0
        self.reason = ""

    def send_text(self, text: bytes) -> None:
        self.frames.append(text)
        self.said.put_nowait(json.loads(text))

    def send_items(self, items: Sequence[Item], *, joined: bool) -> None:
        self.frames.extend(
            [b"\n".join(i.json for i in items)] if joined else [i.json for i in items]
        )
        for item in items:
            self.said.put_nowait(json.loads(item.json))

    def send_binary(self, parts: Sequence[bytes | memoryview]) -> None:
        self.said.put_nowait(frames.decode(b"".join(parts)))

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True

    def ping(self) -> None:
        self.pings += 1

    def close(self, code: int, reason: str = "") -> None:
        assert not self.closed.done()
        assert len(reason.encode()) <= 123
        self.reason = reason
        self.closed.set_result(code)


class RecordingEvents(_Link):
    """A `stream_sse.EventLink`."""

    def send(self, events: bytes) -> None:
        for block in events.decode().removesuffix("\n\n").split("\n\n"):
            self.said.put_nowait(dict(line.split(": ", 1) for line in block.split("\n")))

    def send_items(self, items: Sequence[Item], epoch: int) -> None:
        for item in items:
            self.send(event_of(item, epoch))

    def finish(self) -> None:
        self.closed.set_result(1000)

    async def event(self) -> dict[str, str]:
        async with asyncio.timeout(10):
            return await self.said.get()


def admission(hub: StreamingConnectionManager, **rules: Any) -> Admission:
    async def no_keys(_: str) -> None:
        return None

    made = Rules(**{"loopback": True, "home_key": "k" * 32, "token_secret": SECRET, **rules})
    return Admission(made, no_keys, hub)


async def authority(
    hub: StreamingConnectionManager, token: str | None = None, **rules: Any
) -> Authority:
    """Of somebody who calls with that credential; nobody when the server is not on loopback."""
    headers = [(b"host", b"127.0.0.1")]
    if token is not None:
        headers.append((b"authorization", f"Bearer {token}".encode()))
    door = admission(hub, **rules)
    return await door.authorise(door.admit(Head(True, "GET", "/ws/streams/x", b"", headers)))


class Talk:
    """A client's side of one conversation."""

    def __init__(self, connections: Connections, conversation: Conversation) -> None:
        self.connections, self.conversation = connections, conversation
        self.link = RecordingLink()
        self.conversation.opened(self.link)

    def send(self, *texts: str | bytes) -> None:
        """In one read."""
        self.conversation.heard()
        for text in texts:
            if isinstance(text, str):
                self.conversation.text(text.encode())
            else:
                self.conversation.binary(text)
        self.conversation.read_done()

    def say(self, type_: str, **fields: Any) -> None:
        self.send(json.dumps({"type": type_, **fields}))

    async def next(self) -> Any:
        async with asyncio.timeout(10):
            return await self.link.said.get()

    async def heard(self, type_: str) -> Message:
        """The next message must be of that type."""
        message = await self.next()
        assert isinstance(message, dict), message
        assert message["type"] == type_, message
        return message

    async def all_heard(self, *types: str) -> list[Message]:
        return [await self.heard(type_) for type_ in types]

    async def closed(self) -> int:
        async with asyncio.timeout(10):
            return await asyncio.shield(self.link.closed)

    async def settled(self) -> None:
        """Everything that was said so far has been carried out (msp only)."""
        self.say("auth", token="v1.x.y")
        while (message := await self.next())["type"] != "error" or message["close"] != 4101:
            pass

    def tick(self, now: float, wall: float = 0.0) -> None:
        """As if so many seconds had passed."""
        self.connections.publishers.sweep(now)
        self.conversation.tick(now, wall)  # pyright: ignore[reportAttributeAccessIssue]  a member


@asynccontextmanager
async def talk(
    hub: StreamingConnectionManager,
    id_: str,
    *protocols: str,
    query: dict[str, str] | None = None,
    who: Authority | None = None,
    **timing: float,
) -> AsyncIterator[Talk]:
    connections = Connections(hub, timing=Timing(**timing))
    who = who or await authority(hub)
    accepted = connections.converse(id_, query or {}, protocols, who)
    spoken = Talk(connections, accepted.conversation)
    try:
        yield spoken
    finally:
        spoken.conversation.lost()


@asynccontextmanager
async def events(feed: EventFeed) -> AsyncIterator[RecordingEvents]:
    link = RecordingEvents()
    feed.opened(link)
    try:
        yield link
    finally:
        feed.lost()
