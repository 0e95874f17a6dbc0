"""The hub: who publishes, who reads, and the one place where the two meet.

Appending is the log's; the hub then puts the new records on the tails of those who listen and wakes
them. Readers pull at their own pace (`Subscription`), so a publisher never waits for one.
"""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import AbstractContextManager, asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from mentatlab.protocol.errors import (
    Code,
    Conflict,
    Gone,
    Invalid,
    MentatError,
    NotFound,
    Unavailable,
)
from mentatlab.protocol.ids import new_id
from mentatlab.protocol.records import (
    Draft,
    Durability,
    EndReason,
    Producer,
    RecordType,
    StreamChunk,
    end_draft,
    error_draft,
    start_draft,
)
from mentatlab.streams.backpressure import Backpressure, Gate, Hold, Widened
from mentatlab.streams.buffer import (
    BufferManager,
    BufferStatistics,
    Item,
    Items,
    by_rseq,
    by_sequence,
)
from mentatlab.streams.claims import Claims, LocalClaims
from mentatlab.streams.leases import leases_of
from mentatlab.streams.memory import MemoryStreamLog
from mentatlab.streams.port import (
    KEEP,
    Appended,
    Audience,
    Entry,
    HousekeptLog,
    ImmediateLog,
    Known,
    Lane,
    LiveLog,
    Retention,
    Run,
    SegmentStore,
    StreamLog,
    check_kept,
    find_place,
)
from mentatlab.streams.positions import FromKey, FromTime, Start, parse_from
from mentatlab.streams.registry import StreamRegistry
from mentatlab.streams.routed import RoutedLog
from mentatlab.streams.sqlite import open_sqlite
from mentatlab.streams.subscription import RUN_NODE, Feed, LaneFeed, Options, RunFeed, Subscription

log = logging.getLogger("mentatlab.streams")

T = TypeVar("T")
_DEFAULT = Options()
_DUE = 100  # lanes that retention is asked about at once


class StreamSession:
    """A publisher's hold on one lane, as `create_stream` gives it."""

    def __init__(self, hub: "StreamingConnectionManager", lane: Lane) -> None:
        self._hub, self.lane = hub, lane

    @property
    def stream_id(self) -> str:
        return self.lane.stream_id

    @property
    def run_id(self) -> str:
        return self.lane.run_id

    @property
    def agent_id(self) -> str:
        return self.lane.agent_id

    @property
    def pin_name(self) -> str:
        return self.lane.pin_name

    @property
    def created_at(self) -> float:
        """Unix seconds."""
        return self.lane.created_at

    async def publish(self, *drafts: Draft, producer: Producer | None = None) -> Appended:
        return await self._hub.publish(self.stream_id, drafts, producer=producer)

    async def end(self, reason: EndReason = "complete") -> Appended:
        return await self._hub.end_stream(self.stream_id, reason=reason)


class HubStatistics(NamedTuple):
    """`open` lanes by durability as this process knows them, its readers, and the streams whose
    publishers wait for one."""

    open: dict[str, int]
    subscriptions: int
    held_bytes: int
    buffers: BufferStatistics
    held_back: tuple[str, ...] = ()


class StreamingConnectionManager:
    """This process's streams. `log` defaults to memory; `aclose` closes it.

    `draining` is set by `drain`: transports then say goodbye and close, in-process readers go on.
    """

    def __init__(
        self, log: StreamLog | None = None, *, clock: Callable[[], float] = time.time
    ) -> None:
        self._clock = clock
        self._log: StreamLog = log or MemoryStreamLog(epoch=_boot_epoch(clock))
        self._immediate = _immediate(self._log)
        self.leases = leases_of(self._log)
        self._claims = self._log if isinstance(self._log, Claims) else LocalClaims(clock)
        self._registry = StreamRegistry()
        self._live = self._log if isinstance(self._log, LiveLog) else None
        self._buffers = BufferManager(None if self._live is None else self._live.unwatch)
        self._backpressure = Backpressure()
        self._subscriptions: set[Subscription] = set()
        self._appending: set[asyncio.Task[Any]] = set()
        self.draining = asyncio.Event()
        self._epoch: int | None = None  # the last that began while this process was looking
        if self._live is not None:
            self._live.tell(Audience(self._deliver, self._forget, self._begin_again))

    async def create_stream(
        self,
        agent_id: str,
        pin_name: str,
        *,
        workspace: str = "default",
        run_id: str | None = None,
        node_id: str | None = None,
        mime_type: str = "application/json",
        durability: Durability = "commit",
        attempt: int = 1,
        stream_id: str | None = None,
        external: bool = False,
        retention: Retention = KEEP,
        facts: Mapping[str, Any] = {},
    ) -> StreamSession:
        """The lane `(run_id, node_id, pin_name)` with its `stream_start`; made if it is not there.

        Without a run it gets one of its own (`rs_…`); `node_id` defaults to the agent's id. An
        existing lane is returned as it is: a later attempt begins with `start_attempt`. A run of
        another workspace is `Forbidden(STREAM_FORBIDDEN)`. `external` lanes, and those without a
        run, may be published to by clients. `facts` are told in the `stream_start`. A new external
        lane in a run of the engine's that has ended is `Conflict(RUN_TERMINAL)`.
        """
        lane = Lane(
            stream_id=stream_id or new_id("st"),
            run_id=run_id or new_id("rs"),
            node_id=node_id or agent_id,
            pin_name=pin_name,
            workspace=workspace,
            agent_id=agent_id,
            mime_type=mime_type,
            durability=durability,
            created_at=self._clock(),
            external=external or run_id is None,
            retention=retention,
            facts=dict(facts),
        )
        start = start_draft(
            mime_type=mime_type, durability=durability, attempt=attempt, resume_from=0, **facts
        )
        if external and run_id is not None:
            await self._check_joinable(lane)
        return StreamSession(self, await self._carried_out(self._open(lane, start)))

    async def _check_joinable(self, wanted: Lane) -> None:
        """Readers of a run leave with the end of its own events."""
        lanes = await self._log.lanes(wanted.run_id)
        over = any(lane.node_id == RUN_NODE and lane.state != "open" for lane in lanes)
        if find_place(lanes, wanted) is None and over:
            raise Conflict(
                Code.RUN_TERMINAL,
                f"the run {wanted.run_id} has ended",
                hint="leave `run_id` out to open a stream of its own, or start a new run",
            )

    async def _open(self, wanted: Lane, start: Draft) -> Lane:
        lane, entries = await self._log.open(wanted, start, now=self._clock())
        self._registry.register(lane)
        if entries:
            self._deliver(entries)
        return lane

    async def publish(
        self,
        stream_id: str,
        drafts: Sequence[Draft],
        *,
        producer: Producer | None = None,
        patience_s: float | None = None,
    ) -> Appended:
        """Append, then wake the readers. Returns when the lane's durability allows.

        Data wait while a reader with the policy `block` lags too far: `OutOfSpace(
        STREAM_BUFFER_EXCEEDED)`, and `Unavailable` after `patience_s`, with nothing appended. A
        cancelled caller's append is carried out and delivered.
        """
        gate = self._backpressure.gates.get(stream_id)
        if gate is not None and any(draft.type is RecordType.DATA for draft in drafts):
            await _room(gate, patience_s)
        return await self._carried_out(self._append(stream_id, drafts, producer))

    def working(
        self, run_id: str, node_id: str, widened: Widened = lambda stream_id, bytes_: None
    ) -> AbstractContextManager[None]:
        """A node of a run is at work meanwhile (see `backpressure`); `widened` is called when
        readers of a stream of its may lag further, so that the run can go on."""
        return self._backpressure.live(run_id, node_id, widened)

    def publish_now(
        self, stream_id: str, drafts: Sequence[Draft], *, producer: Producer | None = None
    ) -> Appended | None:
        """`publish` without waiting, to a lane that allows it (not `commit`, and no reader holds
        the publisher back); None for others."""
        if self._immediate is None or stream_id in self._backpressure.gates:
            return None
        appended = self._immediate.append_now(
            stream_id, drafts, now=self._clock(), producer=producer
        )
        if appended is not None and appended.entries:
            self._deliver(appended.entries)
        return appended

    async def producer(self, stream_id: str, producer_id: str) -> Known | None:
        """What the log has of a producer."""
        return await self._log.producer(stream_id, producer_id)

    async def _carried_out(self, work: Coroutine[Any, Any, T]) -> T:
        """Whatever becomes of the caller."""
        return await asyncio.shield(self.start(work))

    def start(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Work that goes on whatever becomes of the caller; `aclose` waits for it."""
        task = asyncio.create_task(work)
        self._appending.add(task)
        task.add_done_callback(self._appending.discard)
        return task

    async def fence(self, stream_id: str, producer_id: str) -> None:
        """What this producer still sends under its epoch is refused."""
        await self._log.fence(stream_id, producer_id)

    async def _append(
        self, stream_id: str, drafts: Sequence[Draft], producer: Producer | None
    ) -> Appended:
        appended = await self._log.append(stream_id, drafts, now=self._clock(), producer=producer)
        if appended.entries:
            self._deliver(appended.entries)
        return appended

    def _deliver(self, entries: Sequence[Entry]) -> None:
        first = entries[0]
        if (gate := self._backpressure.gates.get(first.stream_id)) is not None:
            gate.appended(entries)
        self._registry.appended(entries[-1])
        self._feed(first.stream_id, entries, by_sequence)
        if first.rseq is not None:
            self._feed(first.run_id, entries, by_rseq)

    def _feed(self, key: str, entries: Sequence[Entry], item_of: Callable[[Entry], Item]) -> None:
        if (tail := self._buffers.get(key)) is not None:
            tail.add(Items([item_of(entry) for entry in entries]))
            tail.ring()

    async def stream_chunk(self, stream_id: str, chunk: Draft | StreamChunk) -> Appended:
        """Publish one record; of a `StreamChunk` the log takes what a publisher may say."""
        if isinstance(chunk, StreamChunk):
            chunk = Draft(
                type=chunk.type,
                payload=chunk.payload,
                pts_us=chunk.pts_us,
                dur_us=chunk.dur_us,
                attempt=chunk.attempt,
                item=chunk.item,
            )
        return await self.publish(stream_id, [chunk])

    async def start_attempt(self, stream_id: str, *, attempt: int, resume_from: int) -> Appended:
        """Data after `resume_from` is void from now on.

        The same attempt again changes nothing, an older one is `Fenced(STREAM_FENCED)`.
        """
        lane = await self._log.get(stream_id)
        start = start_draft(
            mime_type=lane.mime_type,
            durability=lane.durability,
            attempt=attempt,
            resume_from=resume_from,
        )
        return await self.publish(stream_id, [start])

    async def end_stream(
        self,
        stream_id: str,
        *,
        reason: EndReason = "complete",
        error: tuple[str, str] | None = None,
        producer: Producer | None = None,
    ) -> Appended:
        """The terminal record: `stream_end`, or with `error` (code, message) `stream_error`.

        A stream that has ended already stays as it is.
        """
        draft = end_draft(reason, chunks=0) if error is None else error_draft(*error)
        try:
            return await self.publish(stream_id, [draft], producer=producer)
        except Conflict as conflict:
            if conflict.code is not Code.STREAM_ENDED:
                raise
            head = (await self._log.get(stream_id)).head
            return Appended(head, head, duplicate=True)

    async def lane(self, stream_id: str) -> Lane:
        return await self._log.get(stream_id)

    async def lanes(self, run_id: str) -> list[Lane]:
        return await self._log.lanes(run_id)

    async def entry(self, stream_id: str, sequence: int) -> Entry:
        """One record. `NotFound(NOT_FOUND)` when there is none yet, `Gone(STREAM_EXPIRED)` when
        retention has taken it.
        """
        lane = check_kept(await self._log.get(stream_id))
        found = await self._log.read(stream_id, sequence - 1, max_records=1)
        if found and found[0].sequence == sequence:
            return found[0]
        if sequence <= lane.head:
            raise Gone(
                Code.STREAM_EXPIRED,
                f"retention has taken the record {sequence}",
                hint="open streams with a larger `max_bytes`, or without one",
            )
        raise NotFound(
            Code.NOT_FOUND,
            f"the stream has no record {sequence}, its last one is {lane.head}",
            hint="follow the stream to get what comes",
        )

    async def identity(self, stream_id: str) -> Lane:
        """The lane as it was when this process met it: cheap; its counters may be old."""
        if (lane := self._registry.get(stream_id)) is None:
            lane = await self._log.get(stream_id)
            self._registry.register(lane)
        return lane

    async def find(self, id_: str) -> Lane | Run:
        """The lane or the run of that id; `NotFound(STREAM_UNKNOWN)`."""
        try:
            return await self._log.get(id_)
        except NotFound:
            return await self._log.run(id_)

    async def finished(self, id_: str, from_: str | int) -> bool:
        """Whether a reader who starts there would get nothing, now and later."""
        found = await self.find(id_)
        start = await self._start(id_, found, from_)
        told = start.gap is not None or (start.fresh and found.cursor.sequence > 0)
        return not told and await self._feed_of(id_, found).over(start.position)

    @asynccontextmanager
    async def subscribe(
        self,
        id_: str,
        *,
        from_: str | int = "start",
        credit: int | None = None,
        options: Options | None = None,
    ) -> AsyncGenerator[Subscription]:
        """Follow a stream, or all commit lanes of a run; see `attach`."""
        options = options or Options(credit=credit)
        subscription = await self.attach(id_, from_=from_, options=options)
        try:
            yield subscription
        finally:
            subscription.close()

    async def attach(
        self, id_: str, *, from_: str | int = "start", options: Options = _DEFAULT
    ) -> Subscription:
        """A subscription that the caller closes. `from_` as in `positions.parse_from`.

        `NotFound(STREAM_UNKNOWN)`, `Gone(STREAM_EXPIRED)`, `Invalid(STREAM_CURSOR_INVALID)`.
        """
        before = self._epoch
        listener = self._buffers.listen(id_)  # first listen, then look: nothing is missed
        try:
            if self._live is not None:
                await self._live.watch(id_)
            found = await self.find(id_)
            start = await self._start(id_, found, from_)
            feed = self._feed_of(id_, found)
            over = await feed.over(start.position)
            preface = await self._preface(found, start)
            subscription = Subscription(
                feed,
                listener,
                lane=found if isinstance(found, Lane) else None,
                head=found.cursor,
                start=start,
                over=over,
                preface=preface,
                options=options,
                hold=self._hold(found, start, options),
                detach=self._subscriptions.discard,
            )
        except BaseException:
            listener.close()
            raise
        self._subscriptions.add(subscription)
        if self._epoch not in (before, None):
            subscription.begin_again(self._epoch)
        return subscription

    def _hold(self, found: Lane | Run, start: Start, options: Options) -> Hold | None:
        if options.policy != "block":
            return None
        if isinstance(found, Run):
            raise Invalid(
                Code.INVALID_REQUEST,
                "a run cannot be followed with the policy `block`",
                hint="subscribe to the one stream whose publisher shall wait",
            )
        return self._backpressure.hold(found, options.reader or new_id("reader"), start.position)

    async def _start(self, id_: str, found: Lane | Run, from_: str | int) -> Start:
        asked = parse_from(from_, found.cursor)
        match asked:
            case Start():
                return asked
            case FromTime(time_ms):
                return Start(await self._log.at_time(id_, time_ms), fresh=True)
            case FromKey() if isinstance(found, Lane):
                return Start(max(0, found.key - 1), fresh=True)
            case FromKey():
                raise Invalid(
                    Code.STREAM_CURSOR_INVALID,
                    "a run has no key records",
                    hint="ask one of its streams",
                )

    def _feed_of(self, id_: str, found: Lane | Run) -> Feed:
        if isinstance(found, Run):
            return RunFeed(self._log, id_)
        check_kept(found)
        return LaneFeed(self._log, id_)

    async def _preface(self, found: Lane | Run, start: Start) -> Item | None:
        if isinstance(found, Run) or not start.fresh or start.position == 0:
            return None
        (first,) = await self._log.read(found.stream_id, 0, max_records=1)
        return by_sequence(first) if first.type is RecordType.START else None

    async def sweep(self) -> int:
        """Carry out what retention asks for; how many lanes it was done to."""
        total = done = await self._sweep_some()
        while done == _DUE:  # there may be more
            total += (done := await self._sweep_some())
        return total

    async def _sweep_some(self) -> int:
        done = 0
        for lane in await self._log.due(self._clock(), limit=_DUE):
            try:
                await self._retire(lane)
                done += 1
            except MentatError as error:  # of one lane: the others have their turn all the same
                log.warning("retention of the stream %s: %s", lane.stream_id, error)
        return done

    async def _retire(self, lane: Lane) -> None:
        if lane.state == "open":
            await self.end_stream(lane.stream_id, reason="expired")
        else:
            await self._log.expire(lane.stream_id)
            self._forget(lane.stream_id)

    async def tidy(self) -> None:
        """What the log itself has to put in order: finished runs are sealed, files given back."""
        if isinstance(self._log, HousekeptLog):
            await self._log.tidy(self._clock())

    async def sweep_forever(self, *, every_s: float = 1.0) -> None:
        """Beside everything else, until cancelled. After one that fails the next one comes."""
        await _forever(self.sweep, every_s)

    async def tidy_forever(self, *, every_s: float = 10.0) -> None:
        """The same; apart from it, since it may take long."""
        await _forever(self.tidy, every_s)

    async def delete_run(self, run_id: str) -> None:
        """Readers get `NotFound(STREAM_UNKNOWN)`, at the latest when they ask for more."""
        lanes = await self._log.lanes(run_id)
        self._registry.forget_run(run_id)
        await self._log.delete_run(run_id)
        for key in (run_id, *(lane.stream_id for lane in lanes)):
            self._forget(key)

    def _forget(self, key: str) -> None:
        """Who reads it must ask the log, and learns why there is nothing."""
        if (tail := self._buffers.get(key)) is not None:
            tail.clear()
            tail.ring()

    def _begin_again(self, epoch: int) -> None:
        """The log lost records that may have been read."""
        self._epoch = epoch
        for subscription in tuple(self._subscriptions):
            self._forget(subscription.id)
            subscription.begin_again(epoch)

    async def claim(self, name: str, ttl_s: float) -> bool:
        """Take a name (a ticket's id) that can be taken once; see `Claims`."""
        return await self._claims.claim(name, ttl_s)

    def statistics(self) -> HubStatistics:
        return HubStatistics(
            open=self._registry.statistics(),
            subscriptions=len(self._subscriptions),
            held_bytes=sum(s.statistics().held for s in self._subscriptions),
            buffers=self._buffers.statistics(),
            held_back=self._backpressure.held_back(),
        )

    async def drain(self) -> None:
        """Ask every connection to go: WebSockets close with 1012, SSE ends; both resume later."""
        self.draining.set()

    async def aclose(self) -> None:
        """Finish what is being appended, then close the log."""
        await self.drain()
        await asyncio.gather(*self._appending, return_exceptions=True)
        await self._log.aclose()


async def open_hub(
    path: Path | None,
    *,
    clock: Callable[[], float] = time.time,
    sealed: SegmentStore | None = None,
) -> StreamingConnectionManager:
    """`path` is the database of the commit lanes; None keeps everything in memory. `sealed` is
    where finished runs go, by default a folder beside it."""
    memory = MemoryStreamLog(epoch=_boot_epoch(clock))
    if path is None:
        return StreamingConnectionManager(memory, clock=clock)
    routed = RoutedLog(await open_sqlite(path, store=sealed), memory, clock=clock)
    return StreamingConnectionManager(routed, clock=clock)


async def _room(gate: Gate, patience_s: float | None) -> None:
    try:
        async with asyncio.timeout(patience_s):
            await gate.room()
    except TimeoutError as error:
        raise Unavailable(
            Code.UNAVAILABLE,
            f"a reader of {gate.stream_id} holds its publishers back",
            hint="try again; or let that reader follow with the policy `log`",
        ) from error


async def _forever(work: Callable[[], Awaitable[object]], every_s: float) -> None:
    while True:
        try:
            await work()
        except Unavailable as error:  # a log that cannot be reached
            log.warning("housekeeping of the streams: %s", error)
        except Exception:
            log.exception("housekeeping of the streams failed; the next is in %g s", every_s)
        await asyncio.sleep(every_s)


def _immediate(log: StreamLog) -> ImmediateLog | None:
    return log if isinstance(log, ImmediateLog) else None


def _boot_epoch(clock: Callable[[], float]) -> int:
    """Of lanes that end with the process: another one each time it starts."""
    return int(clock() * 1000)
