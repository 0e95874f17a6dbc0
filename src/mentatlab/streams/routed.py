"""One log made of two: `commit` lanes go to the durable one, all others to memory."""

from collections.abc import Sequence

from mentatlab.protocol.errors import NotFound
from mentatlab.protocol.records import Draft, Producer
from mentatlab.streams.memory import MemoryStreamLog
from mentatlab.streams.port import (
    READ_BYTES,
    READ_RECORDS,
    Appended,
    Entry,
    Known,
    Lane,
    Opened,
    Run,
    StreamLog,
    find_place,
)


class RoutedLog:
    """A `StreamLog`. A run is ordered by the durable log, which has all of its commit lanes."""

    def __init__(self, durable: StreamLog, memory: MemoryStreamLog) -> None:
        self._durable, self._memory = durable, memory

    async def create(self, lane: Lane) -> Lane:
        log, other = self._by_durability(lane)
        return find_place(await other.lanes(lane.run_id), lane) or await log.create(lane)

    async def open(self, lane: Lane, start: Draft, *, now: float) -> Opened:
        log, other = self._by_durability(lane)
        there = find_place(await other.lanes(lane.run_id), lane)
        return Opened(there) if there else await log.open(lane, start, now=now)

    async def get(self, stream_id: str) -> Lane:
        return await self._log_of(stream_id).get(stream_id)

    async def lanes(self, run_id: str) -> list[Lane]:
        found = await self._durable.lanes(run_id) + await self._memory.lanes(run_id)
        return sorted(found, key=lambda lane: lane.created_at)

    async def run(self, run_id: str) -> Run:
        try:
            return await self._durable.run(run_id)
        except NotFound:
            run = await self._memory.run(run_id)
            return Run(run_id=run_id, workspace=run.workspace)

    async def append(
        self,
        stream_id: str,
        drafts: Sequence[Draft],
        *,
        now: float,
        producer: Producer | None = None,
    ) -> Appended:
        log = self._log_of(stream_id)
        return await log.append(stream_id, drafts, now=now, producer=producer)

    def append_now(
        self,
        stream_id: str,
        drafts: Sequence[Draft],
        *,
        now: float,
        producer: Producer | None = None,
    ) -> Appended | None:
        if stream_id not in self._memory:
            return None
        return self._memory.append_now(stream_id, drafts, now=now, producer=producer)

    async def producer(self, stream_id: str, producer_id: str) -> Known | None:
        return await self._log_of(stream_id).producer(stream_id, producer_id)

    async def fence(self, stream_id: str, producer_id: str) -> Known | None:
        return await self._log_of(stream_id).fence(stream_id, producer_id)

    async def at_time(self, id_: str, time_ms: int) -> int:
        return await self._log_of(id_).at_time(id_, time_ms)

    async def due(self, now: float, *, limit: int = 100) -> list[Lane]:
        found = await self._memory.due(now, limit=limit)
        return found or await self._durable.due(now, limit=limit)

    async def expire(self, stream_id: str) -> Lane:
        return await self._log_of(stream_id).expire(stream_id)

    async def read(
        self,
        stream_id: str,
        after: int,
        *,
        max_records: int = READ_RECORDS,
        max_bytes: int = READ_BYTES,
    ) -> list[Entry]:
        log = self._log_of(stream_id)
        return await log.read(stream_id, after, max_records=max_records, max_bytes=max_bytes)

    async def read_run(
        self,
        run_id: str,
        after: int,
        *,
        max_records: int = READ_RECORDS,
        max_bytes: int = READ_BYTES,
    ) -> list[Entry]:
        try:
            return await self._durable.read_run(
                run_id, after, max_records=max_records, max_bytes=max_bytes
            )
        except NotFound:
            await self._memory.run(run_id)
            return []

    async def delete_run(self, run_id: str) -> None:
        await self._durable.delete_run(run_id)
        await self._memory.delete_run(run_id)

    async def aclose(self) -> None:
        await self._durable.aclose()
        await self._memory.aclose()

    def _by_durability(self, lane: Lane) -> tuple[StreamLog, StreamLog]:
        """The log that takes the lane, and the other one."""
        if lane.durability == "commit":
            return self._durable, self._memory
        return self._memory, self._durable

    def _log_of(self, stream_id: str) -> StreamLog:
        return self._memory if stream_id in self._memory else self._durable
