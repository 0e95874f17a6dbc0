"""`WS /ws/streams/{id}` with the subprotocol `msp.v1+json`: one connection carries many streams,
credits and acknowledgements.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple, TypeVar

import msgspec
from starlette.websockets import WebSocket

from mentatlab.gateway.stream_access import admit
from mentatlab.gateway.stream_wire import (
    MAX_MESSAGE_BYTES,
    Close,
    StalledError,
    Timing,
    Wire,
    bad_frame,
    close_for,
    gap_message,
)
from mentatlab.protocol.errors import Code, Conflict, MentatError, RateLimited
from mentatlab.protocol.records import MAX_RECORD_BYTES
from mentatlab.streams import Appended, Lane, StreamingConnectionManager, Subscription
from mentatlab.streams.port import READ_BYTES, LaneState, Run
from mentatlab.streams.publishing import Batch, Inbox, parse_publication

PROTOCOL = "msp.v1+json"
MAX_SUBSCRIPTIONS = 128
INITIAL_CREDIT = 1 << 20
_FRAME_BYTES = 64 * 1024

Told = TypeVar("Told", bound=msgspec.Struct)


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
        self.wire = Wire(websocket, timing.stall_s)
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
        except* (MentatError, StalledError) as group:
            failed.extend(group.exceptions)
        for error in failed:
            raise error
        return Close(1000)

    async def _receive(self) -> None:
        """What was said before the client left, or erred, is published."""
        try:
            while (received := await self.wire.receive()) is not None:
                await self._heard(*received)
        except MentatError:
            await self._inbox.flushed()
            raise
        await self._inbox.flushed()

    async def _heard(self, message: dict[str, Any], size: int) -> None:
        kind = message.get("type", message.get("event_type"))
        handle = self._handlers.get(kind) if isinstance(kind, str) else None
        try:
            await (self._publish(message, size) if handle is None else handle(message))
        except MentatError as error:
            await self._complain(_named(message), error)

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
            raise Conflict(
                Code.CONFLICT,
                f"{asked.id} is subscribed on this connection",
                hint="unsubscribe first to begin at another place",
            )
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
            await self.wire.send(gap_message(asked.id, subscription))
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
        raise bad_frame(f"{kind.__name__.lower()}: {error}") from error


def _state(found: Lane | Run) -> LaneState:
    return found.state if isinstance(found, Lane) else "open"
