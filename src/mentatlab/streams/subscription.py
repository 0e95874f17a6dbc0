"""A subscriber: a cursor and a byte credit, never a queue.

    attach → take what the tail has, or load from the log → wait to be woken → take on

Without credit nothing is read for it. A subscription is one reader's: `take` and `load` for
transports (see `pump`), `batch` or `async for` for programs.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Literal, NamedTuple, Protocol

import msgspec

from mentatlab.protocol.errors import Code, Gone
from mentatlab.protocol.records import TERMINAL, Cursor, StreamChunk
from mentatlab.streams.backpressure import Hold
from mentatlab.streams.buffer import (
    NOTHING,
    Item,
    Items,
    Listener,
    Wake,
    by_rseq,
    by_sequence,
)
from mentatlab.streams.port import READ_BYTES, Lane, StreamLog
from mentatlab.streams.positions import Gap, Start

RUN_NODE = "_run"
"""The node whose lane is the projection of the run's own events; its end is the run's end."""

Policy = Literal["log", "latest", "keyframe", "block"]
Guard = Callable[[], Awaitable[None]]


class Filter(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A record passes when it matches one of each list that is given; starts and ends of a lane
    that matches always do. A name that is none is refused: it would let everything pass."""

    type: tuple[str, ...] | None = None
    node_id: tuple[str, ...] | None = None
    pin_name: tuple[str, ...] | None = None
    item: tuple[int, ...] | None = None

    def passes(self, item: Item) -> bool:
        record = item.entry.record
        return (
            (self.node_id is None or record.node_id in self.node_id)
            and (self.pin_name is None or record.pin_name in self.pin_name)
            and (record.type != "stream_data" or self._passes_data(record))
        )

    def _passes_data(self, record: StreamChunk) -> bool:
        return (self.type is None or record.type in self.type) and (
            self.item is None or record.item in self.item
        )


class Options(NamedTuple):
    """How a reader wants it. `credit`: bytes that may be delivered before the first `grant`, None =
    its own pace is enough. `rate`: a factor of recorded time, None = as fast as it can. `binary`:
    it takes frames. `reader`: the node that reads, for `block`. `guard` is asked before what is
    replayed from the log; it raises when the reader may not (any more).
    """

    credit: int | None = None
    rate: float | None = None
    policy: Policy = "log"
    filter: Filter | None = None
    binary: bool = False
    reader: str = ""
    guard: Guard | None = None


class Feed(Protocol):
    """What is followed: a lane by sequence, or a run's commit lanes by rseq."""

    key: str

    async def read(self, after: int, max_bytes: int) -> Items: ...

    async def head(self) -> int: ...

    async def over(self, position: int) -> bool:
        """Whether nothing can come after `position`."""
        ...


class LaneFeed:
    __slots__ = ("_log", "key")

    def __init__(self, log: StreamLog, stream_id: str) -> None:
        self._log, self.key = log, stream_id

    async def read(self, after: int, max_bytes: int) -> Items:
        found = await self._log.read(self.key, after, max_bytes=max_bytes)
        return Items(map(by_sequence, found))

    async def head(self) -> int:
        return (await self._log.get(self.key)).head

    async def over(self, position: int) -> bool:
        lane = await self._log.get(self.key)
        return lane.state != "open" and position >= lane.head


class RunFeed:
    __slots__ = ("_log", "key")

    def __init__(self, log: StreamLog, run_id: str) -> None:
        self._log, self.key = log, run_id

    async def read(self, after: int, max_bytes: int) -> Items:
        found = await self._log.read_run(self.key, after, max_bytes=max_bytes)
        return Items(map(by_rseq, found))

    async def head(self) -> int:
        return (await self._log.run(self.key)).head

    async def over(self, position: int) -> bool:
        """When its lanes have ended, the run's own among them; a client's run has none of those."""
        lanes = [x for x in await self._log.lanes(self.key) if x.durability == "commit"]
        engine = [x for x in lanes if not x.external]
        complete = not engine or any(x.node_id == RUN_NODE for x in engine)
        ended = bool(lanes) and all(x.state != "open" for x in engine or lanes)
        return complete and ended and position >= await self.head()


class SubscriptionStatistics(NamedTuple):
    """Bytes: delivered so far, granted in all (None = no limit), held just now."""

    position: int
    delivered: int
    granted: int | None
    held: int


class Subscription:
    """`over` is true once everything up to the terminal record was taken.

    `head` is the feed's cursor when listening had begun. Closing it closes the `listener`.
    `gap` is set when what is taken next does not follow on what was: a transport says it first and
    clears it. `preface` is the lane's `stream_start` for a reader who begins further on, outside
    the order. `lane` is the lane when it was attached, None for a run. Items are shared.
    """

    __slots__ = (
        "_at_once", "_checked", "_delivered", "_detach", "_ending", "_epoch", "_feed", "_granted",
        "_head", "_held", "_hold", "_is_run", "_listener", "_news", "_options", "_pace", "_pending",
        "_position", "_tail", "_timer", "gap", "lane", "over", "preface",
    )  # fmt: skip

    def __init__(
        self,
        feed: Feed,
        listener: Listener,
        *,
        lane: Lane | None,
        head: Cursor,
        start: Start,
        over: bool,
        preface: Item | None,
        options: Options,
        hold: Hold | None,
        detach: Callable[["Subscription"], None],
    ) -> None:
        self._feed, self._tail, self._options = feed, listener.tail, options
        self._listener = listener
        self._epoch, self._head, self._position = *head, start.position
        self.gap, self.over, self.preface, self.lane = start.gap, over, preface, lane
        self._is_run = lane is None
        self._checked = -1  # the position at which a run was last found to go on
        self._ending = False
        self._granted, self._delivered, self._held = options.credit, 0, 0
        self._pace: tuple[int, float] | None = None  # record time in ms, loop time in s
        self._timer: asyncio.TimerHandle | None = None
        self._pending: deque[Item] | None = None
        self._hold = hold
        self._at_once = (
            lane is not None
            and hold is None
            and (options.policy, options.rate, options.filter) == ("log", None, None)
        )
        self._detach = detach
        self._news: asyncio.Event | None = None

    @property
    def id(self) -> str:
        return self._feed.key

    @property
    def cursor(self) -> Cursor:
        """After the last record that was handed out."""
        ahead = self._pending[0].position - 1 if self._pending else self._position
        return Cursor(self._epoch, ahead)

    @property
    def epoch(self) -> int:
        return self._epoch

    def close(self) -> None:
        """Idempotent; nothing is delivered afterwards."""
        if self._timer is not None:
            self._timer.cancel()
        self.over = True
        self._listener.close()
        if self._hold is not None:
            self._hold.close()
        self._detach(self)

    @property
    def on_wake(self) -> Wake:
        """Called when `take` may have something new."""
        return self._listener.on_wake

    @on_wake.setter
    def on_wake(self, wake: Wake) -> None:
        self._listener.on_wake = wake

    def grant(self, max_bytes: int) -> None:
        """The absolute number of bytes that may be delivered in all; a lower one changes nothing.

        A record is delivered while any credit is left, so the last one may go over by its own size.
        """
        if self._granted is not None and max_bytes > self._granted:
            self._granted = max_bytes
            self.on_wake()

    def acknowledge(self, position: int) -> None:
        """What was handed out up to there is consumed; for `block`: its publisher may go on."""
        if self._hold is not None:
            self._hold.consumed(position)

    def begin_again(self, epoch: int) -> None:
        """The log goes on in this epoch; the reader learns by a gap, and gets all that is there."""
        begin = str(Cursor(epoch, 0))
        since = self.gap.from_ if self.gap is not None else str(self.cursor)
        self.gap = Gap(since, begin, "epoch", begin)
        self._epoch, self._position, self._head, self._checked = epoch, 0, 0, -1
        self._ending = False
        self._pending = None
        if self._hold is not None:
            self._hold.begin_again()
        self.on_wake()

    def statistics(self) -> SubscriptionStatistics:
        return SubscriptionStatistics(self._position, self._delivered, self._granted, self._held)

    # ------------------------------------------------------------------ for transports

    @property
    def waits(self) -> bool:
        """Whether it has all there is just now, so that `take` need not be asked."""
        return self._position == self._tail.position and not self._is_run and self._hold is None

    def take(self, room: int = READ_BYTES) -> Items | None:
        """What can be handed out now, at most `room` bytes or one item.

        []: nothing now; `wake` says when to try again, unless it is `over`. None: the log must be
        asked, `await load()`. Set `gap` is told before the items.
        """
        self._held = 0
        if self._position == self._tail.position and not self._unsure():
            self._starve(True)
            return NOTHING
        room = room if self._granted is None else min(room, self._granted - self._delivered)
        if self._at_once and (items := self._newest(room)) is not None:
            return items
        while room > 0 and not self.over:
            if self._options.policy != "log":
                self._skip(room)
            items = self._tail.read(self._position, room, self._options.binary)
            if items is None and self._tail.untouched and self._position >= self._head:
                items = NOTHING
            if items is None or (not items and self._unsure()):
                return None
            if not items:
                self._starve(True)
                return items
            found = self._handed_out(items)
            if found or self._timer is not None:
                return found
        return NOTHING

    async def load(self, room: int = READ_BYTES) -> Items:
        """As `take`, from the log; [] also when a run turns out to be over.

        What `guard` and the log raise.
        """
        if self._options.guard is not None:
            await self._options.guard()
        room = self._room(room)
        while room > 0 and not self.over:
            if self._options.policy == "latest" and (head := await self._feed.head()):
                self._skip_to(head)
            epoch = self._epoch
            items = await self._feed.read(self._position, room)
            if epoch != self._epoch:
                continue  # these are from before
            if not items:
                self._checked = self._position
                self._starve(True)
                self.over = self._ending and await self._feed.over(self._position)
                return items
            found = self._handed_out(items)
            if found or self._timer is not None:
                return found
        return NOTHING

    def _newest(self, room: int) -> Items | None:
        """What has just come, for a reader of a lane who had everything before it and wants it as
        it is: the short way through `take`. None: the long one."""
        items = self._tail.last
        if not items or items[0].position != self._position + 1:
            return None
        size, last = items.size(self._options.binary), items[-1]
        if size > room or last.position - self._position != len(items):
            return None
        self._position = last.position
        self._held = size
        self._delivered += size
        if last.entry.type in TERMINAL:
            self._ending = self.over = True
        return items

    def _room(self, room: int) -> int:
        return room if self._granted is None else min(room, self._granted - self._delivered)

    def _unsure(self) -> bool:
        """In a run others may still publish after its last terminal record was read."""
        return self._is_run and self._ending and self._checked != self._position

    def _handed_out(self, items: Items) -> Items:
        """Those of the items, one after the other, that may go now; moves the cursor."""
        if items[0].position != self._position + 1:
            self._miss(items[0].position, "retention")
        if items[-1].position - self._position != len(items):
            items = _contiguous(items)
        if self._options.rate is not None and not (items := self._due(items, self._options.rate)):
            return NOTHING
        if items[-1].entry.type in TERMINAL or (
            self._is_run and any(item.entry.terminal for item in items)
        ):
            self._ending = True
        self._position = items[-1].position
        if self._ending and not self._is_run:
            self.over = True
        self._starve(False)
        items = self._filtered(items)
        self._held = items.size(self._options.binary)
        self._delivered += self._held
        return items

    def _filtered(self, items: Items) -> Items:
        """Those that the reader gets."""
        wanted = self._options.filter
        told = items if wanted is None else Items(item for item in items if wanted.passes(item))
        if self._hold is not None:
            self._hold.took(items, told)
        return told

    def _starve(self, starved: bool) -> None:
        if self._hold is not None:
            self._hold.starve(starved)

    def _skip(self, room: int) -> None:
        """Policies that would rather miss records than be late."""
        newest = self._tail.newest
        if newest is None or newest.position <= self._position + 1:
            return
        if self._options.policy == "latest":
            self._skip_to(newest.position)
        elif self._options.policy == "keyframe":
            items = self._tail.read(self._position, room, self._options.binary)
            behind = items is None or items[-1].position < newest.position
            if behind and (key := self._tail.newest_key(self._position)) is not None:
                self._skip_to(key.position)

    def _skip_to(self, position: int) -> None:
        if position > self._position + 1:
            self._miss(position, "dropped")

    def _miss(self, position: int, reason: str) -> None:
        """What comes next is at that position. Two gaps in a row are one."""
        begin = self.gap.from_ if self.gap is not None else str(self.cursor)
        kind = reason if self.gap is None else self.gap.reason
        end = str(Cursor(self._epoch, position - 1))
        self.gap = Gap(begin, end, kind, end)
        self._position = position - 1

    def _due(self, items: Items, rate: float) -> Items:
        """Those whose time has come; the rest will wake the reader."""
        loop = asyncio.get_running_loop()
        now = loop.time()
        if self._pace is None:
            self._pace = (items[0].entry.time_ms, now)
        self._timer = None
        for count, item in enumerate(items):
            wait = self._time_of(item, rate) - now
            if wait > 0:
                self._timer = loop.call_later(wait, self._time_has_come)
                return Items(items[:count])
        return items

    def _time_of(self, item: Item, rate: float) -> float:
        assert self._pace is not None
        recorded_ms, began = self._pace
        return began + (item.entry.time_ms - recorded_ms) / 1000 / rate

    def _time_has_come(self) -> None:
        self._timer = None
        self.on_wake()

    # ------------------------------------------------------------------ for programs

    async def batch(self, idle_s: float | None = None) -> Items:
        """The next records, at most 256 KiB or one; [] when over, or after `idle_s` without any."""
        self._held = 0
        self.acknowledge(self._position)
        if self._news is None:
            self._news = asyncio.Event()
            self.on_wake = self._news.set
        try:
            async with asyncio.timeout(idle_s):
                return await self._next(self._news)
        except TimeoutError:
            return NOTHING

    async def _next(self, news: asyncio.Event) -> Items:
        while not self.over:
            news.clear()
            items = self.take()
            if items is None:
                items = await self.load()
            if items:
                return items
            if not self.over:
                await news.wait()
        return NOTHING

    def __aiter__(self) -> "Subscription":
        return self

    async def __anext__(self) -> StreamChunk:
        self.acknowledge(self.cursor.sequence)
        if not self._pending:
            self._pending = deque(await self.batch())
        if self.gap is not None and self.gap.reason != "dropped":
            raise Gone(
                Code.STREAM_LOST,
                f"records after {self.gap.from_} cannot be had any more ({self.gap.reason})",
                hint="read it from the start",
            )
        if not self._pending:
            raise StopAsyncIteration
        item = self._pending.popleft()
        self._held -= item.size(self._options.binary)
        return item.entry.record


def _contiguous(items: Items) -> Items:
    """Up to the first hole."""
    first = items[0].position
    holed = (at for at, item in enumerate(items) if item.position != first + at)
    return Items(items[: next(holed, len(items))])
