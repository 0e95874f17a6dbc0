"""`WS /ws/streams/{id}`: plain clients, and the subprotocol `msp.v1+json`.

A plain client gets JSON records and publishes by sending them; `wscat` is enough. With the
subprotocol one connection carries many streams, credits and acknowledgements. Both write through
one `_Wire`, which waits for the client: a slow one costs one batch, and is cut after `stall_s`
without progress.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Literal, NamedTuple, Protocol, TypeVar

import msgspec
from starlette.websockets import WebSocket, WebSocketDisconnect

from mentatlab.gateway.problems import status_of
from mentatlab.gateway.stream_access import admit, expiry, first_of
from mentatlab.protocol import errors
from mentatlab.protocol.errors import Code, Conflict, Invalid, MentatError, RateLimited
from mentatlab.protocol.records import MAX_RECORD_BYTES
from mentatlab.protocol.values import is_object
from mentatlab.streams import Appended, Lane, StreamingConnectionManager, Subscription
from mentatlab.streams.port import READ_BYTES, Run
from mentatlab.streams.publishing import Batch, Inbox, parse_publication

PROTOCOL = "msp.v1+json"
MAX_MESSAGE_BYTES = MAX_RECORD_BYTES + 64 * 1024
MAX_SUBSCRIPTIONS = 128
INITIAL_CREDIT = 1 << 20
_FRAME_BYTES = 64 * 1024
_CLOSE_REASON_BYTES = 120


class Timing(NamedTuple):
    """Seconds: idle until a `mark`; taking nothing until a client is cut."""

    mark_s: float = 15.0
    stall_s: float = 10.0


class Close(NamedTuple):
    """How a connection ends. 1000, 1012 and 40xx: come back and resume; 41xx: stop and raise."""

    code: int
    reason: str = ""


DONE = Close(1000, "the stream has ended")
DRAINING = Close(1012, "the server is restarting; resume from your last record")
STALLED = Close(4000, "too slow; resume from your last record")
EXPIRED = Close(4003, "the token has expired; reconnect with a new one")


def close_for(error: MentatError) -> Close:
    match error:
        case errors.Conflict():
            code = 4109
        case errors.OutOfSpace() | errors.Internal():
            code = 1011
        case errors.Unavailable():
            code = 1013
        case _:
            code = 3700 + status_of(error)  # 4100 bad, 4101, 4103, 4104, 4110, 4113, 4129
    reason = f"{error}".encode()[:_CLOSE_REASON_BYTES].decode(errors="ignore")
    return Close(code, reason)


Told = TypeVar("Told", bound=msgspec.Struct)


class _StalledError(Exception):
    pass


class _Wire:
    """Text frames out, one at a time; JSON messages in."""

    def __init__(self, websocket: WebSocket, stall_s: float) -> None:
        self._websocket, self._stall_s, self._gone = websocket, stall_s, False
        self._writing = asyncio.Lock()

    async def send(self, text: bytes) -> None:
        """`_StalledError` when the client takes nothing; to one that is gone nothing is said."""
        try:
            async with self._writing, asyncio.timeout(self._stall_s):
                if not self._gone:
                    await self._websocket.send_text(text.decode())
        except TimeoutError as error:
            raise _StalledError from error
        except WebSocketDisconnect:
            self._gone = True

    async def deliver(self, text: bytes) -> None:
        """As `send`; when the client is gone, waits to be cancelled by whoever reads."""
        await self.send(text)
        if self._gone:
            await asyncio.Event().wait()

    async def receive(self) -> tuple[dict[str, Any], int] | None:
        """A JSON object and its size in bytes; None when the client has gone."""
        message = await self._websocket.receive()
        if message["type"] == "websocket.disconnect":
            return None
        if (text := message.get("text")) is None:
            raise _bad_frame("send JSON in text frames; binary frames are not spoken here")
        size = len(text.encode())
        if size > MAX_MESSAGE_BYTES:
            raise errors.TooLarge(
                Code.STREAM_RECORD_TOO_LARGE, f"a message has at most {MAX_MESSAGE_BYTES} bytes"
            )
        return _object(text), size

    async def close(self, close: Close) -> None:
        with contextlib.suppress(TimeoutError, WebSocketDisconnect, RuntimeError):
            async with asyncio.timeout(1):  # a stalled client may never take it
                await self._websocket.close(close.code, close.reason)


def _object(text: str) -> dict[str, Any]:
    try:
        value = msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError) as error:
        raise _bad_frame(f"not JSON: {error}") from error
    if not is_object(value):
        raise _bad_frame("a message is a JSON object")
    return value


def _bad_frame(message: str) -> Invalid:
    return Invalid(Code.STREAM_RECORD_INVALID, message)


class Conversation(Protocol):
    """What is said on one accepted WebSocket, until somebody ends it."""

    hub: StreamingConnectionManager
    websocket: WebSocket
    wire: _Wire

    async def run(self) -> Close: ...


async def serve(conversation: Conversation, *, subprotocol: str | None = None) -> None:
    await conversation.websocket.accept(subprotocol)
    close = await first_of(
        _closing(conversation.run()),
        _after(conversation.hub.draining.wait(), DRAINING),
        _after(expiry(conversation.websocket), EXPIRED),
    )
    await conversation.wire.close(close)


async def _closing(run: Coroutine[Any, Any, Close]) -> Close:
    try:
        return await run
    except MentatError as error:
        return close_for(error)
    except _StalledError:
        return STALLED


async def _after(event: Awaitable[object], close: Close) -> Close:
    await event
    return close


class PlainSocket:
    """Records out from `?from=` (default latest); each message in is a record to publish."""

    def __init__(
        self, hub: StreamingConnectionManager, websocket: WebSocket, id_: str, timing: Timing
    ) -> None:
        self.hub, self.websocket, self._id = hub, websocket, id_
        self.wire = _Wire(websocket, timing.stall_s)
        self._failure: asyncio.Future[Close] = asyncio.get_running_loop().create_future()
        self._inbox = Inbox(hub, published=_silent, failed=self._refused)

    async def run(self) -> Close:
        await admit(self.hub, self.websocket, self._id, "sub")
        from_ = self.websocket.query_params.get("from") or "latest"
        async with self.hub.subscribe(self._id, from_=from_) as subscription:
            return await first_of(
                self._receive(), self._send(subscription), self._inbox.run(), self._refusal()
            )

    async def _send(self, subscription: Subscription) -> Close:
        if subscription.gap is not None:
            await self.wire.deliver(_gap(self._id, subscription))
        if subscription.preface is not None:
            await self.wire.deliver(subscription.preface.json)
        while not subscription.over:
            for item in await subscription.batch():
                await self.wire.deliver(item.json)
        return DONE

    async def _receive(self) -> Close:
        """What a client said before it left is published; leaving cancels nothing."""
        while (message := await self.wire.receive()) is not None:
            publication = parse_publication(message[0], stream_id=self._id, size=message[1])
            await admit(self.hub, self.websocket, self._id, "pub")
            await self._inbox.put(publication)
        await self._inbox.flushed()
        return Close(1000)

    async def _refused(self, _: Batch, error: MentatError) -> None:
        if not self._failure.done():
            self._failure.set_result(close_for(error))

    async def _refusal(self) -> Close:
        return await self._failure


async def _silent(_batch: Batch, _appended: Appended) -> None:
    """A plain client sees its records come back."""


class Subscribe(msgspec.Struct, rename={"from_": "from"}):
    """`max_bytes`: how many bytes may be delivered until `credit` raises it."""

    id: str
    from_: str | int = "latest"
    max_bytes: int = INITIAL_CREDIT


class Credit(msgspec.Struct):
    id: str
    max_bytes: int


class OfStream(msgspec.Struct):
    id: str


class _Followed(NamedTuple):
    subscription: Subscription
    task: asyncio.Task[None]


class MspSocket:
    """One connection, many streams. What goes wrong with one stream is an `error` that names it;
    what is wrong with the conversation closes it."""

    def __init__(
        self, hub: StreamingConnectionManager, websocket: WebSocket, id_: str, timing: Timing
    ) -> None:
        self.hub, self.websocket, self._id, self._timing = hub, websocket, id_, timing
        self.wire = _Wire(websocket, timing.stall_s)
        self._inbox = Inbox(hub, published=self._published, failed=self._refused)
        self._followed: dict[str, _Followed] = {}
        self._lanes = 0
        self._tasks: asyncio.TaskGroup
        self._handlers: dict[str, Callable[[dict[str, Any]], Awaitable[None]]] = {
            "subscribe": self._subscribe,
            "unsubscribe": self._unsubscribe,
            "credit": self._credit,
            "cancel": self._cancel,
            "ping": self._ping,
            "pong": self._pong,
        }

    async def run(self) -> Close:
        await admit(self.hub, self.websocket, self._id, "sub")
        await self._say(
            "welcome",
            protocol=PROTOCOL,
            id=self._id,
            limits={
                "record_bytes": MAX_RECORD_BYTES,
                "message_bytes": MAX_MESSAGE_BYTES,
                "streams": MAX_SUBSCRIPTIONS,
                "in_flight_bytes": READ_BYTES,
            },
        )
        failed: list[Exception] = []
        try:
            async with asyncio.TaskGroup() as self._tasks:
                publishing = self._tasks.create_task(self._inbox.run())
                await self._receive()
                for task in (publishing, *(followed.task for followed in self._followed.values())):
                    task.cancel()
        except* (MentatError, _StalledError) as group:
            failed.extend(group.exceptions)
        for error in failed:
            raise error
        return Close(1000)

    async def _receive(self) -> None:
        while (received := await self.wire.receive()) is not None:
            message, size = received
            kind = message.get("type", message.get("event_type"))
            handle = self._handlers.get(kind) if isinstance(kind, str) else None
            try:
                await (self._publish(message, size) if handle is None else handle(message))
            except MentatError as error:
                await self._complain(_named(message), error)
        await self._inbox.flushed()

    async def _publish(self, message: dict[str, Any], size: int) -> None:
        stream_id = _named(message) or self._id
        publication = parse_publication(message, stream_id=stream_id, size=size)
        await admit(self.hub, self.websocket, stream_id, "pub")
        await self._inbox.put(publication)

    async def _published(self, batch: Batch, appended: Appended) -> None:
        lane = await self.hub.identity(batch.stream_id)
        await self._say(
            "published",
            id=batch.stream_id,
            producer_seq=batch.producer_seq,
            sequence=appended.last,
            durable=lane.durability == "commit",
        )

    async def _refused(self, batch: Batch, error: MentatError) -> None:
        await self._complain(batch.stream_id, error)

    async def _subscribe(self, message: dict[str, Any]) -> None:
        asked = _convert(message, Subscribe)
        found = await admit(self.hub, self.websocket, asked.id, "sub")
        if asked.id in self._followed:
            raise Conflict(Code.CONFLICT, f"{asked.id} is subscribed on this connection")
        if len(self._followed) >= MAX_SUBSCRIPTIONS:
            raise RateLimited(1.0)
        await self.hub.finished(asked.id, asked.from_)  # a bad cursor is told before it begins
        self._lanes += 1
        began = asyncio.Event()
        task = self._tasks.create_task(self._follow(asked, found, began))
        task.add_done_callback(lambda _: began.set())
        await began.wait()

    async def _follow(self, asked: Subscribe, found: Lane | Run, began: asyncio.Event) -> None:
        task = asyncio.current_task()
        assert task is not None
        try:
            async with self.hub.subscribe(
                asked.id, from_=asked.from_, credit=asked.max_bytes
            ) as subscription:
                self._followed[asked.id] = _Followed(subscription, task)
                began.set()
                await self._greet(asked, found, subscription)
                await self._deliver(asked.id, subscription)
        except MentatError as error:  # deleted meanwhile
            await self._complain(asked.id, error)
        finally:
            self._followed.pop(asked.id, None)

    async def _greet(self, asked: Subscribe, found: Lane | Run, subscription: Subscription) -> None:
        await self._say(
            "subscribed",
            id=asked.id,
            lane=self._lanes,
            epoch=found.epoch,
            start=str(subscription.cursor),
            head=found.head,
            state=_state(found),
            recovered=":" in str(asked.from_) and subscription.gap is None,
        )
        if subscription.gap is not None:
            await self.wire.send(_gap(asked.id, subscription))
        if subscription.preface is not None:
            await self.wire.send(subscription.preface.json)

    async def _deliver(self, id_: str, subscription: Subscription) -> None:
        while not subscription.over:
            items = await subscription.batch(self._timing.mark_s)
            for frame in _frames([item.json for item in items]):
                await self.wire.deliver(frame)
            if not items or subscription.over:
                state = "ended" if subscription.over else "open"
                await self._say("mark", id=id_, cursor=str(subscription.cursor), state=state)

    async def _unsubscribe(self, message: dict[str, Any]) -> None:
        if (followed := self._followed.get(_convert(message, OfStream).id)) is not None:
            followed.task.cancel()
            await asyncio.wait([followed.task])

    async def _credit(self, message: dict[str, Any]) -> None:
        credit = _convert(message, Credit)
        if (followed := self._followed.get(credit.id)) is not None:
            followed.subscription.grant(credit.max_bytes)

    async def _cancel(self, message: dict[str, Any]) -> None:
        """The stream ends as cancelled, for everybody; once it has ended nothing changes."""
        id_ = _convert(message, OfStream).id
        await admit(self.hub, self.websocket, id_, "cancel")
        await self.hub.end_stream(id_, reason="cancelled")
        lane = await self.hub.lane(id_)
        await self._say("mark", id=id_, cursor=str(lane.cursor), state=lane.state)

    async def _ping(self, message: dict[str, Any]) -> None:
        await self.wire.send(msgspec.json.encode({**message, "type": "pong"}))

    async def _pong(self, message: dict[str, Any]) -> None:
        """Any message shows that the client is there."""

    async def _complain(self, id_: str | None, error: MentatError) -> None:
        close = close_for(error)
        if id_ is None:
            raise error
        await self._say(
            "error", id=id_, code=error.code, close=close.code, message=error.message,
            hint=error.hint, details=error.details,
        )  # fmt: skip

    async def _say(self, type_: str, **fields: Any) -> None:
        await self.wire.send(msgspec.json.encode({"type": type_, **fields}))


def _frames(records: list[bytes]) -> list[bytes]:
    """Records joined by newlines into frames of about 64 KiB."""
    frames: list[bytes] = []
    for record in records:
        if frames and len(frames[-1]) + len(record) < _FRAME_BYTES:
            frames[-1] += b"\n" + record
        else:
            frames.append(record)
    return frames


def _named(message: dict[str, Any]) -> str | None:
    name = message.get("stream_id", message.get("id"))
    return name if isinstance(name, str) else None


def _convert(message: dict[str, Any], kind: type[Told]) -> Told:
    try:
        return msgspec.convert(message, kind)
    except msgspec.ValidationError as error:
        raise _bad_frame(f"{kind.__name__.lower()}: {error}") from error


def _state(found: Lane | Run) -> Literal["open", "ended", "errored"]:
    return found.state if isinstance(found, Lane) else "open"


def _gap(id_: str, subscription: Subscription) -> bytes:
    gap = msgspec.to_builtins(subscription.gap)
    return msgspec.json.encode({"type": "gap", "id": id_, **gap})
