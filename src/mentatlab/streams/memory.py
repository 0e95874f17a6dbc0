"""The log in memory: for `memory` and `relaxed` lanes, and for everything with `--ephemeral`."""

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import islice

import msgspec

from mentatlab.protocol.errors import Code, Conflict, OutOfSpace
from mentatlab.protocol.records import Draft, Producer
from mentatlab.streams import lanes
from mentatlab.streams.lanes import Step
from mentatlab.streams.port import (
    PRODUCERS,
    READ_BYTES,
    READ_RECORDS,
    Appended,
    Entry,
    Known,
    Lane,
    Opened,
    Run,
    check_kept,
    find_place,
    is_due,
    unknown,
)

_LITTLE = 64 * 1024
"""Bytes; a lane that holds no more is not asked to make room."""


@dataclass(slots=True)
class _Run:
    """`order` are the records of the commit lanes by rseq."""

    run: Run
    lanes: dict[tuple[str, str], "_Stored"] = field(
        default_factory=dict[tuple[str, str], "_Stored"]
    )
    order: dict[int, Entry] = field(default_factory=dict[int, Entry])


@dataclass(slots=True)
class _Stored:
    """`entries`: the first record, then those from `lane.floor` on, without holes."""

    lane: Lane
    run: _Run
    entries: list[Entry] = field(default_factory=list[Entry])
    producers: dict[str, Known] = field(default_factory=dict[str, Known])

    def measure(self, first: int, last: int) -> int:
        return sum(entry.size for entry in self.entries if first <= entry.sequence <= last)

    def remember(self, producer_id: str, known: Known) -> None:
        others = self.producers
        if self.lane.external and producer_id not in others and len(others) >= PRODUCERS:
            del others[min(others, key=lambda each: others[each].age)]
        others[producer_id] = known

    def after(self, sequence: int) -> int:
        """The index of the first entry that follows."""
        return 0 if sequence < 1 else max(1, 2 + sequence - self.lane.floor)


class MemoryStreamLog:
    """A `StreamLog` that ends with the process; `epoch` must differ from that of an earlier one.

    Holds at most `max_bytes` of records, and `max_lanes`: the oldest runs whose lanes have all
    ended go first, then an append or a new lane is `OutOfSpace(STREAM_BUFFER_EXCEEDED)`. A terminal
    record always fits, since what has ended can go.
    """

    def __init__(
        self, *, epoch: int = 1, max_bytes: int = 256 << 20, max_lanes: int = 65_536
    ) -> None:
        self._epoch, self._max_bytes, self._max_lanes, self._bytes = epoch, max_bytes, max_lanes, 0
        self._lanes: dict[str, _Stored] = {}
        self._timed: dict[str, _Stored] = {}  # those that can become due
        self._runs: dict[str, _Run] = {}

    @property
    def epoch(self) -> int:
        """That of the lanes that are made now: a new one whenever others were forgotten."""
        return self._epoch

    def __contains__(self, stream_id: str) -> bool:
        return stream_id in self._lanes

    async def create(self, lane: Lane) -> Lane:
        if (existing := find_place(await self.lanes(lane.run_id), lane)) is not None:
            return existing
        if lane.stream_id in self._lanes:
            raise Conflict(
                Code.CONFLICT,
                f"the id {lane.stream_id} names another stream",
                hint="choose another id",
            )
        if len(self._lanes) >= self._max_lanes and not self._forget_ended():
            raise _full(f"{self._max_lanes} open streams")
        run = self._runs.get(lane.run_id) or _Run(
            Run(run_id=lane.run_id, workspace=lane.workspace, epoch=self._epoch)
        )
        stored = _Stored(msgspec.structs.replace(lane, epoch=self._epoch), run)
        run.lanes[lane.node_id, lane.pin_name] = self._lanes[lane.stream_id] = stored
        self._runs[lane.run_id] = run
        if lane.retention.ttl_s is not None or lane.retention.retain_s is not None:
            self._timed[lane.stream_id] = stored
        return stored.lane

    async def open(self, lane: Lane, start: Draft, *, now: float) -> Opened:
        made = await self.create(lane)
        if made.head:
            return Opened(made)
        appended = await self.append(made.stream_id, [start], now=now)
        return Opened(self._stored(made.stream_id).lane, appended.entries)

    async def get(self, stream_id: str) -> Lane:
        return self._stored(stream_id).lane

    async def lanes(self, run_id: str) -> list[Lane]:
        run = self._runs.get(run_id)
        return [] if run is None else [stored.lane for stored in run.lanes.values()]

    async def run(self, run_id: str) -> Run:
        return self._run(run_id).run

    async def producer(self, stream_id: str, producer_id: str) -> Known | None:
        return self._stored(stream_id).producers.get(producer_id)

    async def append(
        self,
        stream_id: str,
        drafts: Sequence[Draft],
        *,
        now: float,
        producer: Producer | None = None,
    ) -> Appended:
        return self.append_now(stream_id, drafts, now=now, producer=producer)

    def append_now(
        self,
        stream_id: str,
        drafts: Sequence[Draft],
        *,
        now: float,
        producer: Producer | None = None,
    ) -> Appended:
        stored = self._stored(stream_id)
        step = lanes.append(
            stored.lane,
            drafts,
            now=now,
            measure=stored.measure,
            producer=producer,
            known=None if producer is None else stored.producers.get(producer.id),
            rseq=stored.run.run.head,
        )
        if step.entries:
            needed = step.lane.kept - stored.lane.kept
            if step.lane.state == "open":
                self._make_room(needed)
            self._bytes += needed
            self._store(stored, step)
            self._squeeze()
        if producer is not None and step.known is not None:
            stored.remember(producer.id, step.known)
        return step.answer(producer, len(drafts))

    def _store(self, stored: _Stored, step: Step) -> None:
        stored.lane = step.lane
        stored.entries.extend(step.entries)
        if (head := step.entries[-1].rseq) is not None:
            stored.run.order.update((e.rseq, e) for e in step.entries if e.rseq is not None)
            stored.run.run = msgspec.structs.replace(stored.run.run, head=head)
        if (limit := step.lane.retention.max_bytes) is not None and step.lane.kept > limit:
            self._trim(stored)

    def _trim(self, stored: _Stored, to_bytes: int | None = None) -> None:
        before = stored.lane
        held = islice(stored.entries, 1, None)  # no copy: it is one of all that the lane holds
        stored.lane = lanes.trimmed(
            before, ((e.sequence, e.length) for e in held), to_bytes=to_bytes
        )
        self._bytes -= before.kept - stored.lane.kept
        taken = stored.lane.floor - before.floor
        _forget_order(stored.run, stored.entries[1 : 1 + taken])
        del stored.entries[1 : 1 + taken]

    def _make_room(self, needed: int) -> None:
        while self._bytes + needed > self._max_bytes:
            if self._forget_ended():
                continue
            if self._largest() is None:
                raise _full(f"{self._max_bytes} bytes")
            return  # `_squeeze` makes it, when this append is there

    def _squeeze(self) -> None:
        """A live stream of a client goes on for ever: in a full log its oldest data make room."""
        while self._bytes > self._max_bytes and (largest := self._largest()) is not None:
            self._trim(largest, to_bytes=largest.lane.kept // 2)

    def _largest(self) -> _Stored | None:
        """Of the lanes that clients opened, and that promise to keep nothing, the one that holds
        most; None: none holds enough to matter."""
        lanes_ = (s for s in self._lanes.values() if s.lane.external and len(s.entries) > 2)
        free = (stored for stored in lanes_ if stored.lane.durability != "commit")
        found = max(free, key=lambda stored: stored.lane.kept, default=None)
        return found if found is not None and found.lane.kept > _LITTLE else None

    def _forget_ended(self) -> bool:
        """The oldest run whose lanes have all ended; False: there is none."""
        for run_id, run in self._runs.items():
            if all(stored.lane.state != "open" for stored in run.lanes.values()):
                self._forget(run_id)
                return True
        return False

    async def fence(self, stream_id: str, producer_id: str) -> Known | None:
        producers = self._stored(stream_id).producers
        if (known := producers.get(producer_id)) is None:
            return None
        producers[producer_id] = lanes.fenced(known)
        return producers[producer_id]

    async def read(
        self,
        stream_id: str,
        after: int,
        *,
        max_records: int = READ_RECORDS,
        max_bytes: int = READ_BYTES,
    ) -> list[Entry]:
        stored = self._stored(stream_id)
        check_kept(stored.lane)
        begin = stored.after(after)
        return within(stored.entries[begin : begin + max_records], max_bytes)

    async def read_run(
        self,
        run_id: str,
        after: int,
        *,
        max_records: int = READ_RECORDS,
        max_bytes: int = READ_BYTES,
    ) -> list[Entry]:
        run = self._run(run_id)
        order, found = run.order, list[Entry]()
        begin = max(after + 1, next(iter(order), after + 1))  # retention takes the oldest first
        for rseq in range(begin, run.run.head + 1):
            if len(found) == max_records:
                break
            if (entry := order.get(rseq)) is not None:
                found.append(entry)
        return within(found, max_bytes)

    async def at_time(self, id_: str, time_ms: int) -> int:
        if (run := self._runs.get(id_)) is not None:
            later = (rseq for rseq, entry in run.order.items() if entry.time_ms >= time_ms)
            return next(later, run.run.head + 1) - 1
        stored = self._stored(id_)
        at = bisect_left(stored.entries, time_ms, key=lambda entry: entry.time_ms)
        return stored.entries[at].sequence - 1 if at < len(stored.entries) else stored.lane.head

    async def due(self, now: float, *, limit: int = 100) -> list[Lane]:
        found = [stored.lane for stored in self._timed.values() if is_due(stored.lane, now)]
        return found[:limit]

    async def expire(self, stream_id: str) -> Lane:
        stored = self._stored(stream_id)
        self._bytes -= stored.lane.kept
        self._timed.pop(stream_id, None)
        _forget_order(stored.run, stored.entries)
        stored.entries.clear()
        stored.producers.clear()
        stored.lane = msgspec.structs.replace(
            stored.lane, state="expired", kept=0, floor=stored.lane.head + 1
        )
        return stored.lane

    async def delete_run(self, run_id: str) -> None:
        if run_id in self._runs:
            self._forget(run_id)

    async def aclose(self) -> None:
        self._lanes.clear()
        self._runs.clear()

    def _forget(self, run_id: str) -> None:
        self._epoch += 1
        for stored in self._runs.pop(run_id).lanes.values():
            del self._lanes[stored.lane.stream_id]
            self._timed.pop(stored.lane.stream_id, None)
            self._bytes -= stored.lane.kept

    def _stored(self, stream_id: str) -> _Stored:
        if (stored := self._lanes.get(stream_id)) is None:
            raise unknown(stream_id)
        return stored

    def _run(self, run_id: str) -> _Run:
        if (run := self._runs.get(run_id)) is None:
            raise unknown(run_id)
        return run


def _full(what: str) -> OutOfSpace:
    return OutOfSpace(
        Code.STREAM_BUFFER_EXCEEDED,
        f"the memory log is full ({what})",
        hint="use durability `commit` for long streams, and end the streams that are done",
    )


def _forget_order(run: _Run, entries: Iterable[Entry]) -> None:
    for entry in entries:
        if entry.rseq is not None:
            run.order.pop(entry.rseq, None)


def within(entries: Sequence[Entry], max_bytes: int) -> list[Entry]:
    """The first entries that fit together, at least one."""
    for count, entry in enumerate(entries):
        max_bytes -= entry.length
        if count and max_bytes < 0:
            return list(entries[:count])
    return list(entries)
