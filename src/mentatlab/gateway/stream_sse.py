"""Server-Sent Events: one stream or run, as any EventSource follows it. Nothing here waits.

`hello` (with an id, so that a cut before the first record resumes), the `stream_start`, then the
records with `id:` = cursor; `mark` when idle, `gap` for what cannot be had. Ends after the terminal
record. As in `stream_conversation`, a transport has an `EventLink` and calls the `EventFeed`:

    feed = await follow(…)    before the first byte: None → 204, an error → its answer
    feed.opened(link); writable() each time that a full link has drained; lost(), once, last
"""

from collections.abc import Coroutine, Sequence
from typing import Any, Protocol

import msgspec

from mentatlab.gateway.stream_access import Authority
from mentatlab.gateway.stream_socket import Surroundings
from mentatlab.gateway.stream_wire import Marks
from mentatlab.protocol.errors import MentatError
from mentatlab.streams.buffer import Item, Items
from mentatlab.streams.positions import parse_rate
from mentatlab.streams.pump import Pump
from mentatlab.streams.subscription import Options, Subscription

RETRY_MS = 1500
HEADERS = {
    "Content-Type": "text/event-stream; charset=utf-8",
    "Cache-Control": "no-cache, no-transform",
    "X-Accel-Buffering": "no",
}

_encode = msgspec.json.Encoder().encode


def event(name: str, data: bytes, *, id_: object = None) -> bytes:
    """One event; JSON has no raw line breaks, so `data` is one line."""
    head = f"event: {name}\n" if id_ is None else f"id: {id_}\nevent: {name}\n"
    return head.encode() + b"data: " + data + b"\n\n"


def event_of(item: Item, epoch: int) -> bytes:
    """A record as an event; its id is the cursor after it."""
    entry = item.entry
    return b"id: %d:%d\nevent: %b\ndata: %b\n\n" % (
        epoch,
        item.position,
        entry.type.encode(),
        entry.json,
    )


def chunk(data: bytes) -> bytes:
    """One chunk of an HTTP/1.1 answer whose length is not known."""
    return b"%x\r\n%b\r\n" % (len(data), data)


class EventLink(Protocol):
    """An answer as a feed sees it. After `finish` or `lost` its methods do nothing."""

    @property
    def writable(self) -> bool:
        """False above the high-water mark (64 KiB); then `EventFeed.writable` is called."""
        ...

    @property
    def held(self) -> int:
        """Bytes that wait for the client to take them."""
        ...

    def send(self, events: bytes) -> None:
        """Whole events."""
        ...

    def send_items(self, items: Sequence[Item], epoch: int) -> None:
        """Records: `event_of` each."""
        ...

    def finish(self) -> None:
        """The answer ends behind what was sent."""
        ...

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """A task that is cancelled when the link is lost."""
        ...


class EventFeed:
    """What one reader is told, and a member of the connections."""

    __slots__ = (
        "_around",
        "_authority",
        "_checked_at",
        "_closed",
        "_id",
        "_link",
        "_marks",
        "_pump",
        "_subscription",
    )
    kind = "sse"
    reading = True

    def __init__(
        self, around: Surroundings, id_: str, authority: Authority, subscription: Subscription
    ) -> None:
        self._around, self._id, self._authority = around, id_, authority
        self._subscription = subscription
        self._link: EventLink
        self._pump: Pump | None = None
        self._marks = Marks(stalled=False)
        self._checked_at = 0.0
        self._closed = False

    @property
    def held(self) -> int:
        return self._link.held

    def opened(self, link: EventLink) -> None:
        self._link = link
        self._around.add(self)
        link.send(self._greeting())
        self._pump = Pump(
            self._subscription,
            ready=self._ready,
            deliver=self._deliver,
            ended=self._finish,
            failed=self._failed,
            spawn=link.spawn,
        )
        self._pump.run()

    def writable(self) -> None:
        if self._pump is not None:
            self._pump.run()

    def lost(self) -> None:
        """Idempotent; also instead of `opened`."""
        self._closed = True
        if self._pump is not None:
            self._pump.close()
        self._subscription.close()
        self._around.discard(self)

    def tick(self, now: float, wall: float) -> None:
        expires = self._authority.expires
        if expires is not None and expires <= wall:
            self._finish()
        if self._authority.revocable and now - self._checked_at >= self._around.timing.mark_s:
            self._checked_at = now
            self._link.spawn(self._recheck())
        if self._closed or not self._link.writable:
            return
        stalled = self._around.publishers.stalled(self._id)
        state = self._marks.due(now, self._around.timing.mark_s, stalled=stalled)
        if state is not None:
            mark = {"id": self._id, "cursor": str(self._subscription.cursor), "state": state}
            self._link.send(event("mark", _encode(mark)))

    async def _recheck(self) -> None:
        """A revoked key is noticed also by who asks for nothing more."""
        if await self._authority.revoked() is not None:
            self._finish()

    def drain(self) -> None:
        self._finish()

    def _greeting(self) -> bytes:
        cursor = self._subscription.cursor
        hello = {"stream_id": self._id, "cursor": str(cursor), "protocol": 1}
        told = b"retry: %d\n" % RETRY_MS + event("hello", _encode(hello), id_=cursor)
        told += self._gap()
        if (preface := self._subscription.preface) is not None:
            told += event(preface.entry.type, preface.json, id_=cursor)
        return told

    def _gap(self) -> bytes:
        """What must be told before the next record, if anything; its id is where it goes on."""
        gap, self._subscription.gap = self._subscription.gap, None
        if gap is None:
            return b""
        return event("gap", _encode({"id": self._id, **msgspec.to_builtins(gap)}), id_=gap.next)

    def _ready(self) -> bool:
        return self._link.writable

    def _deliver(self, items: Items) -> None:
        self._marks.fresh = True
        if self._subscription.gap is not None:
            self._link.send(self._gap())
        self._link.send_items(items, self._subscription.epoch)

    def _failed(self, _: MentatError) -> None:
        """Deleted, expired, or not his any more: it just ends, and coming back tells why."""
        self._finish()

    def _finish(self) -> None:
        if not self._closed:
            self._closed = True
            self._link.finish()
            self._subscription.close()


async def follow(
    around: Surroundings,
    id_: str,
    authority: Authority,
    *,
    from_: str | None,
    rate: str | None,
    last_event_id: str | None,
) -> EventFeed | None:
    """None: he has all of it, and nothing will come. `Last-Event-ID` beats `from`.

    What `Authority.check` and `attach` raise.
    """
    await authority.check("sub", id_)
    start = last_event_id or from_ or "start"
    options = Options(rate=parse_rate(rate), guard=authority.guard)
    if await around.hub.finished(id_, start):
        return None
    subscription = await around.hub.attach(id_, from_=start, options=options)
    return EventFeed(around, id_, authority, subscription)
