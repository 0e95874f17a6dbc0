"""One log made of two: `commit` lanes go to the durable one, all others to memory.

The durable log keeps the names of the others, too. After a restart such a lane is there again,
under a new epoch: who had some of it learns by a gap that what follows does not continue that.
"""

import time
from collections.abc import Callable, Sequence

import msgspec

from mentatlab.protocol.errors import NotFound
from mentatlab.protocol.records import Draft, Producer, error_draft, start_draft
from mentatlab.streams.leases import leases_of
from mentatlab.streams.memory import MemoryStreamLog
from mentatlab.streams.port import (
    READ_BYTES,
    READ_RECORDS,
    Appended,
    Entry,
    HousekeptLog,
    Known,
    Lane,
    Opened,
    Run,
    StreamLog,
    find_place,
)

AWAITED_S = 60.0
"""How long a client's lane that a restart has emptied waits for its publisher."""

_REMEMBERED = 100_000
_LOST = error_draft(
    "storage_failed", "its records were held in memory, and are gone", retryable=False
)


class RoutedLog:
    """A `StreamLog`. A run is ordered by the durable log, which has all of its commit lanes."""

    def __init__(
        self,
        durable: StreamLog,
        memory: MemoryStreamLog,
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._durable, self._memory, self._clock = durable, memory, clock
        self._boot_epoch = memory.epoch
        self._commit: set[str] = set()  # lanes that are known to be in the durable log
        self._awaited: dict[str, float] = {}  # since when lanes wait for their publisher
        self.leases = leases_of(durable)

    async def create(self, lane: Lane) -> Lane:
        made = await self._durable.create(self._named(lane))
        return made if made.durability == "commit" else await self._memory.create(made)

    async def open(self, lane: Lane, start: Draft, *, now: float) -> Opened:
        if (there := find_place(await self._memory.lanes(lane.run_id), lane)) is not None:
            return Opened(there)
        if lane.durability != "commit":
            made = await self._durable.create(self._named(lane))
            if made.durability == "commit":
                return Opened(made)
            return await self._memory.open(made, start, now=now)
        opened = await self._durable.open(lane, start, now=now)
        if opened.lane.durability == "commit":
            self._remember(opened.lane.stream_id)
            return opened
        return Opened(await self._revived(opened.lane))

    async def get(self, stream_id: str) -> Lane:
        if stream_id in self._memory:
            return await self._memory.get(stream_id)
        lane = await self._durable.get(stream_id)
        return lane if _is_durable(lane) else await self._revived(lane)

    async def lanes(self, run_id: str) -> list[Lane]:
        return [
            lane if _is_durable(lane) else await self.get(lane.stream_id)
            for lane in await self._durable.lanes(run_id)
        ]

    async def run(self, run_id: str) -> Run:
        return await self._durable.run(run_id)

    async def append(
        self,
        stream_id: str,
        drafts: Sequence[Draft],
        *,
        now: float,
        producer: Producer | None = None,
    ) -> Appended:
        log = await self._log_of(stream_id)
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
        return await (await self._log_of(stream_id)).producer(stream_id, producer_id)

    async def fence(self, stream_id: str, producer_id: str) -> Known | None:
        return await (await self._log_of(stream_id)).fence(stream_id, producer_id)

    async def at_time(self, id_: str, time_ms: int) -> int:
        try:
            log = await self._log_of(id_)
        except NotFound:
            log = self._durable  # a run
        return await log.at_time(id_, time_ms)

    async def due(self, now: float, *, limit: int = 100) -> list[Lane]:
        """Lanes whose publisher did not come back after a restart are due too."""
        found = await self._given_up(now) + await self._memory.due(now, limit=limit)
        return (found + await self._durable.due(now, limit=limit))[:limit]

    async def expire(self, stream_id: str) -> Lane:
        log = await self._log_of(stream_id)
        if log is self._memory:
            await self._durable.expire(stream_id)
        return await log.expire(stream_id)

    async def read(
        self,
        stream_id: str,
        after: int,
        *,
        max_records: int = READ_RECORDS,
        max_bytes: int = READ_BYTES,
    ) -> list[Entry]:
        log = await self._log_of(stream_id)
        return await log.read(stream_id, after, max_records=max_records, max_bytes=max_bytes)

    async def read_run(
        self,
        run_id: str,
        after: int,
        *,
        max_records: int = READ_RECORDS,
        max_bytes: int = READ_BYTES,
    ) -> list[Entry]:
        return await self._durable.read_run(
            run_id, after, max_records=max_records, max_bytes=max_bytes
        )

    async def delete_run(self, run_id: str) -> None:
        await self._durable.delete_run(run_id)
        await self._memory.delete_run(run_id)
        self._commit.clear()

    async def tidy(self, now: float) -> None:
        if isinstance(self._durable, HousekeptLog):
            await self._durable.tidy(now)

    async def aclose(self) -> None:
        await self._durable.aclose()
        await self._memory.aclose()

    # -- parts of these

    def _named(self, lane: Lane) -> Lane:
        """As the durable log keeps it: the epoch tells in which process it was made."""
        if lane.durability == "commit":
            return lane
        return msgspec.structs.replace(lane, epoch=self._memory.epoch)

    async def _log_of(self, stream_id: str) -> StreamLog:
        if stream_id in self._memory:
            return self._memory
        if stream_id not in self._commit:
            lane = await self._durable.get(stream_id)
            if not _is_durable(lane):
                await self._revived(lane)
                return self._memory
            self._remember(stream_id)
        return self._durable

    def _remember(self, stream_id: str) -> None:
        if len(self._commit) >= _REMEMBERED:
            self._commit.clear()
        self._commit.add(stream_id)

    async def _revived(self, lane: Lane) -> Lane:
        """The lane again, empty and under a new epoch; ended when nobody can go on with it."""
        over = lane.epoch >= self._boot_epoch or await self._is_over(lane)
        now = self._clock()
        start = start_draft(mime_type=lane.mime_type, durability=lane.durability, **lane.facts)
        opened = await self._memory.open(lane, start, now=now)
        if opened.entries and over:
            await self._memory.append(lane.stream_id, [_LOST], now=now)
        elif opened.entries and lane.external:
            self._awaited[lane.stream_id] = now
        return await self._memory.get(lane.stream_id)

    async def _is_over(self, lane: Lane) -> bool:
        """Whether the engine has ended the run of this lane of its own."""
        lanes = await self._durable.lanes(lane.run_id)
        states = [each.state for each in lanes if each.durability == "commit"]
        return not lane.external and bool(states) and "open" not in states

    async def _given_up(self, now: float) -> list[Lane]:
        found: list[Lane] = []
        for stream_id, since in list(self._awaited.items()):
            lane = await self._memory.get(stream_id) if stream_id in self._memory else None
            if lane is None or lane.head > 1:
                del self._awaited[stream_id]
            elif since + AWAITED_S <= now:
                found.append(lane)
        return found


def _is_durable(lane: Lane) -> bool:
    """Whether the durable log itself answers for it: also when nothing of it is kept any more."""
    return lane.durability == "commit" or lane.state == "expired"
