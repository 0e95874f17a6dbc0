"""A subscriber: a cursor and a byte credit, never a queue.

    listen → take the head → read after the cursor (tail or log) → wait to be woken → read on

Without credit nothing is read for it. A subscription is one reader's: `batch` for transports,
`async for` for programs, not both.
"""

import asyncio
from collections import deque
from typing import NamedTuple, Protocol

import msgspec

from mentatlab.protocol.errors import Code, Gone, Invalid
from mentatlab.protocol.records import Cursor, StreamChunk, parse_cursor
from mentatlab.streams.buffer import Item, Tail, by_rseq, by_sequence
from mentatlab.streams.port import READ_BYTES, StreamLog

RUN_NODE = "_run"
"""The node whose lane is the projection of the run's own events; its end is the run's end."""


class Feed(Protocol):
    """What is followed: a lane by sequence, or a run's commit lanes by rseq."""

    @property
    def key(self) -> str: ...

    async def read(self, after: int, max_bytes: int) -> list[Item]: ...

    async def over(self, position: int) -> bool:
        """Whether nothing can come after `position`."""
        ...


class LaneFeed:
    def __init__(self, log: StreamLog, stream_id: str) -> None:
        self._log, self.key = log, stream_id

    async def read(self, after: int, max_bytes: int) -> list[Item]:
        records = await self._log.read(self.key, after, max_bytes=max_bytes)
        return [by_sequence(record) for record in records]

    async def over(self, position: int) -> bool:
        lane = await self._log.get(self.key)
        return lane.state != "open" and position >= lane.head


class RunFeed:
    def __init__(self, log: StreamLog, run_id: str) -> None:
        self._log, self.key = log, run_id

    async def read(self, after: int, max_bytes: int) -> list[Item]:
        records = await self._log.read_run(self.key, after, max_bytes=max_bytes)
        return [by_rseq(record) for record in records]

    async def over(self, position: int) -> bool:
        """When its lanes have ended, the run's own among them; a client's run has none of those."""
        lanes = [x for x in await self._log.lanes(self.key) if x.durability == "commit"]
        engine = [x for x in lanes if not x.external]
        complete = not engine or any(x.node_id == RUN_NODE for x in engine)
        ended = bool(lanes) and all(x.state != "open" for x in engine or lanes)
        return complete and ended and position >= (await self._log.run(self.key)).head


class Gap(msgspec.Struct, frozen=True, rename={"from_": "from"}):
    """What a reader asked for and cannot get: the log goes on after `next`, under another epoch."""

    from_: str
    to: str
    reason: str
    next: str


class Start(NamedTuple):
    """Where reading begins (a position already had), and what the reader must be told first.

    `fresh`: the reader has nothing yet, so it gets the lane's first `stream_start` in any case.
    """

    position: int
    fresh: bool
    gap: Gap | None = None


def start_at(from_: str | int, head: Cursor) -> Start:
    """`from_`: start, latest, a sequence (inclusive) or a cursor (exclusive)."""
    match from_:
        case "start":
            return Start(0, fresh=True)
        case "latest":
            return Start(head.sequence, fresh=True)
        case str() if not (from_.isascii() and from_.isdigit() and len(from_) < 19):
            return _after(parse_cursor(from_), head)
        case _ if 0 <= int(from_) < 10**18:
            return Start(max(0, int(from_) - 1), fresh=True)
        case _:
            raise Invalid(
                Code.STREAM_CURSOR_INVALID,
                f"{from_} is not a sequence",
                hint="sequences count from 1",
            )


def _after(cursor: Cursor, head: Cursor) -> Start:
    if cursor.epoch != head.epoch:
        begin = str(Cursor(head.epoch, 0))
        return Start(0, fresh=True, gap=Gap(str(cursor), begin, "epoch", begin))
    if cursor.sequence > head.sequence:
        raise Invalid(
            Code.STREAM_CURSOR_INVALID,
            f"the cursor {cursor} lies after the last record",
            hint="use the id of the last event you got, unchanged",
        )
    return Start(cursor.sequence, fresh=cursor.sequence == 0)


class SubscriptionStatistics(NamedTuple):
    """Bytes of record JSON: delivered so far, granted in all (None = no limit), held just now."""

    position: int
    delivered: int
    granted: int | None
    held: int


class Subscription:
    """`over` is true once everything up to the terminal record was read.

    `gap` is set when the asked cursor belongs to another epoch: a transport tells it before the
    records; iteration raises `Gone(STREAM_LOST)`. `preface` is the lane's `stream_start` for a
    reader who begins further on, outside the order. Records are shared: do not change payloads.
    """

    def __init__(
        self,
        feed: Feed,
        tail: Tail,
        wake: asyncio.Event,
        *,
        epoch: int,
        start: Start,
        over: bool,
        preface: Item | None,
        credit: int | None,
    ) -> None:
        self._feed, self._tail, self._wake = feed, tail, wake
        self._epoch, self._position = epoch, start.position
        self.gap, self.over, self.preface = start.gap, over, preface
        self._ending = False
        self._granted, self._delivered, self._held = credit, 0, 0
        self._pending: deque[Item] = deque()

    @property
    def cursor(self) -> Cursor:
        """After the last record that was handed out."""
        return Cursor(self._epoch, self._position)

    def cursor_at(self, item: Item) -> Cursor:
        return Cursor(self._epoch, item.position)

    def grant(self, max_bytes: int) -> None:
        """The absolute number of bytes that may be delivered in all; a lower one changes nothing.

        A record is delivered while any credit is left, so the last one may go over by its own size.
        """
        if self._granted is not None:
            self._granted = max(self._granted, max_bytes)
            self._wake.set()

    def statistics(self) -> SubscriptionStatistics:
        return SubscriptionStatistics(self._position, self._delivered, self._granted, self._held)

    async def batch(self, idle_s: float | None = None) -> list[Item]:
        """The next records, at most 256 KiB or one; [] when over, or after `idle_s` without any."""
        self._held = 0
        items = await self._next(idle_s)
        if items:
            self._position = items[-1].position
        return items

    def __aiter__(self) -> "Subscription":
        return self

    async def __anext__(self) -> StreamChunk:
        if self.gap is not None:
            raise Gone(
                Code.STREAM_LOST,
                f"the stream has begun again since {self.gap.from_}",
                hint="read it from the start",
            )
        if not self._pending:
            self._pending.extend(await self._next(None))
        if not self._pending:
            raise StopAsyncIteration
        item = self._pending.popleft()
        self._position = item.position
        self._held -= len(item.json)
        return item.record

    async def _next(self, idle_s: float | None) -> list[Item]:
        try:
            async with asyncio.timeout(idle_s):
                while not self.over:
                    self._wake.clear()
                    if items := await self._fetch():
                        return items
                    if not await self._has_ended():
                        await self._wake.wait()
        except TimeoutError:
            pass
        return []

    async def _has_ended(self) -> bool:
        """In a run others may still publish after its last terminal record was read."""
        if self._ending:
            self.over = await self._feed.over(self._position)
        return self.over

    async def _fetch(self) -> list[Item]:
        """Takes all or, cancelled, nothing."""
        room = READ_BYTES
        if self._granted is not None:
            room = min(room, self._granted - self._delivered)
        if room <= 0:
            return []
        items = self._tail.read(self._position, room)
        if items is None:
            items = await self._feed.read(self._position, room)
        if any(item.record.terminal for item in items):
            self._ending = True
            self.over = await self._feed.over(items[-1].position)
        self._held = sum(len(item.json) for item in items)
        self._delivered += self._held
        return items
