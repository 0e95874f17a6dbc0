"""The log in memory: for `memory` and `relaxed` lanes, and for everything with `--ephemeral`."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import msgspec

from mentatlab.protocol.errors import Code, Conflict, OutOfSpace
from mentatlab.protocol.records import Draft, Producer, StreamChunk
from mentatlab.streams import lanes
from mentatlab.streams.lanes import Entry, Known
from mentatlab.streams.port import (
    READ_BYTES,
    READ_RECORDS,
    Appended,
    Lane,
    Opened,
    Run,
    find_place,
    unknown,
)

_decode = msgspec.json.Decoder(StreamChunk).decode


@dataclass(slots=True)
class _Stored:
    """`entries` are (record JSON, payload bytes), by sequence - 1."""

    lane: Lane
    entries: list[tuple[bytes, int]] = field(default_factory=list[tuple[bytes, int]])
    producers: dict[str, Known] = field(default_factory=dict[str, Known])
    sequences: dict[tuple[str, int, int], int] = field(
        default_factory=dict[tuple[str, int, int], int]
    )

    def measure(self, first: int, last: int) -> int:
        return sum(size for _, size in self.entries[first - 1 : last])


@dataclass(slots=True)
class _Run:
    run: Run
    lanes: dict[tuple[str, str], _Stored] = field(default_factory=dict[tuple[str, str], _Stored])
    order: list[bytes] = field(default_factory=list[bytes])  # record JSON, by rseq - 1


class MemoryStreamLog:
    """A `StreamLog` that ends with the process; `epoch` must differ from that of an earlier one.

    Holds at most `max_bytes` of record JSON: the oldest runs whose lanes have all ended go first,
    then an append is `OutOfSpace(STREAM_BUFFER_EXCEEDED)`.
    """

    def __init__(self, *, epoch: int = 1, max_bytes: int = 256 << 20) -> None:
        self._epoch, self._max_bytes, self._bytes = epoch, max_bytes, 0
        self._lanes: dict[str, _Stored] = {}
        self._runs: dict[str, _Run] = {}

    def __contains__(self, stream_id: str) -> bool:
        return stream_id in self._lanes

    async def create(self, lane: Lane) -> Lane:
        run = self._runs.get(lane.run_id) or _Run(
            Run(run_id=lane.run_id, workspace=lane.workspace, epoch=self._epoch)
        )
        if (existing := find_place((s.lane for s in run.lanes.values()), lane)) is not None:
            return existing
        if lane.stream_id in self._lanes:
            raise Conflict(
                Code.CONFLICT,
                f"the id {lane.stream_id} names another stream",
                hint="choose another id",
            )
        stored = _Stored(msgspec.structs.replace(lane, epoch=self._epoch))
        run.lanes[lane.node_id, lane.pin_name] = self._lanes[lane.stream_id] = stored
        self._runs[lane.run_id] = run
        return stored.lane

    async def open(self, lane: Lane, start: Draft, *, now: float) -> Opened:
        made = await self.create(lane)
        if made.head:
            return Opened(made)
        appended = await self.append(made.stream_id, [start], now=now)
        return Opened(self._stored(made.stream_id).lane, appended.records)

    async def get(self, stream_id: str) -> Lane:
        return self._stored(stream_id).lane

    async def lanes(self, run_id: str) -> list[Lane]:
        run = self._runs.get(run_id)
        return [] if run is None else [stored.lane for stored in run.lanes.values()]

    async def run(self, run_id: str) -> Run:
        return self._run(run_id).run

    async def append(
        self,
        stream_id: str,
        drafts: Sequence[Draft],
        *,
        now: float,
        producer: Producer | None = None,
    ) -> Appended:
        stored = self._stored(stream_id)
        run = self._run(stored.lane.run_id)
        step = lanes.append(
            stored.lane,
            drafts,
            now=now,
            measure=stored.measure,
            producer=producer,
            known=None if producer is None else stored.producers.get(producer.id),
            rseq=run.run.head,
        )
        self._make_room(sum(len(entry.json) for entry in step.entries))
        self._store(stored, run, step.lane, step.entries)
        if producer is not None:
            return _with_producer(stored, producer, len(drafts), step)
        last = stored.lane.head
        return Appended(
            last + 1 - max(1, len(step.entries)), last, step.repeated, _records(step.entries)
        )

    def _store(self, stored: _Stored, run: _Run, lane: Lane, entries: tuple[Entry, ...]) -> None:
        stored.lane = lane
        stored.entries.extend((entry.json, entry.size) for entry in entries)
        if lane.durability == "commit":
            run.order.extend(entry.json for entry in entries)
            run.run = msgspec.structs.replace(run.run, head=len(run.order))

    def _make_room(self, needed: int) -> None:
        for run_id in list(self._runs) if self._bytes + needed > self._max_bytes else ():
            if all(s.lane.state != "open" for s in self._runs[run_id].lanes.values()):
                self._forget(run_id)
            if self._bytes + needed <= self._max_bytes:
                break
        if self._bytes + needed > self._max_bytes:
            raise OutOfSpace(
                Code.STREAM_BUFFER_EXCEEDED,
                f"the memory log is full ({self._max_bytes} bytes)",
                hint="use durability `commit` for long streams, and end the streams that are done",
            )
        self._bytes += needed

    async def read(
        self,
        stream_id: str,
        after: int,
        *,
        max_records: int = READ_RECORDS,
        max_bytes: int = READ_BYTES,
    ) -> list[StreamChunk]:
        entries = self._stored(stream_id).entries[after : after + max_records]
        return _decode_within([encoded for encoded, _ in entries], max_bytes)

    async def read_run(
        self,
        run_id: str,
        after: int,
        *,
        max_records: int = READ_RECORDS,
        max_bytes: int = READ_BYTES,
    ) -> list[StreamChunk]:
        return _decode_within(self._run(run_id).order[after : after + max_records], max_bytes)

    async def delete_run(self, run_id: str) -> None:
        if run_id in self._runs:
            self._forget(run_id)

    async def aclose(self) -> None:
        self._lanes.clear()
        self._runs.clear()

    def _forget(self, run_id: str) -> None:
        for stored in self._runs.pop(run_id).lanes.values():
            del self._lanes[stored.lane.stream_id]
            self._bytes -= sum(len(encoded) for encoded, _ in stored.entries)

    def _stored(self, stream_id: str) -> _Stored:
        if (stored := self._lanes.get(stream_id)) is None:
            raise unknown(stream_id)
        return stored

    def _run(self, run_id: str) -> _Run:
        if (run := self._runs.get(run_id)) is None:
            raise unknown(run_id)
        return run


def _with_producer(stored: _Stored, producer: Producer, count: int, step: lanes.Step) -> Appended:
    last = producer.seq + count - 1
    for offset, entry in enumerate(step.entries, producer.seq + step.skipped):
        stored.sequences[producer.id, producer.epoch, offset] = entry.record.sequence
    if not step.repeated:
        stored.producers[producer.id] = Known(producer.epoch, last)
    return Appended(
        stored.sequences[producer.id, producer.epoch, producer.seq],
        stored.sequences[producer.id, producer.epoch, last],
        step.repeated,
        _records(step.entries),
    )


def _records(entries: Sequence[Entry]) -> tuple[StreamChunk, ...]:
    return tuple(entry.record for entry in entries)


def _decode_within(encoded: Sequence[bytes], max_bytes: int) -> list[StreamChunk]:
    records: list[StreamChunk] = []
    for text in encoded:
        max_bytes -= len(text)
        if records and max_bytes < 0:
            break
        records.append(_decode(text))
    return records
