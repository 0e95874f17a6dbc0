"""The log in SQLite: what was acknowledged survives a power cut.

Lanes are an index over one table of records (`rows`). An append is one job of the database's
writer, so that records, lane, run order and producer state are committed together, and appends that
wait together share a commit. Large payloads lie in files beside it (`segments`).
"""

import sqlite3
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

from mentatlab.protocol.errors import Code, Gone, NotFound
from mentatlab.protocol.records import Draft, Producer
from mentatlab.sqlite import Database
from mentatlab.streams import rows, sealed_rows
from mentatlab.streams.leases import SqliteLeases
from mentatlab.streams.port import (
    READ_BYTES,
    READ_RECORDS,
    Appended,
    Entry,
    Known,
    Lane,
    Opened,
    Run,
    SegmentStore,
    check_kept,
)
from mentatlab.streams.schema import SCHEMA
from mentatlab.streams.sealed import Names, Part, SealedRun
from mentatlab.streams.sealing import Limits, Sealer
from mentatlab.streams.segment_folder import SegmentFolder
from mentatlab.streams.segments import ROLL_BYTES, SegmentFiles

T = TypeVar("T")
_LIMITS = Limits()


class InPart(NamedTuple):
    """A lane that lies in the segment of its run."""

    run: SealedRun
    part: Part
    lane: Lane


class InOrder(NamedTuple):
    """A run up to `head` lies in its segment; `names` are the lanes of it that may be read."""

    run: SealedRun
    names: Names
    head: int


async def open_sqlite(
    path: Path,
    *,
    store: SegmentStore | None = None,
    limits: Limits = _LIMITS,
    roll_bytes: int = ROLL_BYTES,
) -> "SqliteStreamLog":
    """The log of the database `path`; large payloads lie in `<stem>-segments` beside it, and sealed
    runs in the `store`, by default `<stem>-sealed`.
    """
    folder = path.with_name(f"{path.stem}-segments")
    files = SegmentFiles(folder, roll_bytes=roll_bytes)
    store = store or SegmentFolder(path.with_name(f"{path.stem}-sealed"))
    database = await Database(path, SCHEMA, before_commit=files.sync).open()
    files.open(await database.read(rows.last_file))
    sealer = Sealer(database, store, folder, limits)
    sealer.forget_unfinished()
    log = SqliteStreamLog(database, files, store, sealer)
    await log.drop_unused()
    return log


class SqliteStreamLog:
    """A `StreamLog`; `open_sqlite` makes it, `aclose` closes its database and files."""

    def __init__(
        self, database: Database, files: SegmentFiles, store: SegmentStore, sealer: Sealer
    ) -> None:
        self._database, self._files, self._store = database, files, store
        self._sealer = sealer
        self.leases = SqliteLeases(database)

    async def create(self, lane: Lane) -> Lane:
        return await self._database.write(lambda connection: rows.create(connection, lane))

    async def open(self, lane: Lane, start: Draft, *, now: float) -> Opened:
        def work(connection: sqlite3.Connection) -> Opened:
            made = rows.create(connection, lane)
            if made.head or made.durability != lane.durability:
                return Opened(made)
            append = rows.Append(connection, self._files, made.stream_id)
            appended, made = append.carry_out([start], now)
            return Opened(made, appended.entries)

        return await self._database.write(work)

    async def get(self, stream_id: str) -> Lane:
        return await self._database.read(lambda connection: rows.find(connection, stream_id).lane)

    async def lanes(self, run_id: str) -> list[Lane]:
        return await self._database.read(lambda connection: rows.lanes_of(connection, run_id))

    async def run(self, run_id: str) -> Run:
        return await self._database.read(lambda connection: rows.find_run(connection, run_id).run)

    async def producer(self, stream_id: str, producer_id: str) -> Known | None:
        def work(connection: sqlite3.Connection) -> Known | None:
            return rows.producer(connection, rows.find(connection, stream_id).id, producer_id)

        return await self._database.read(work)

    async def append(
        self,
        stream_id: str,
        drafts: Sequence[Draft],
        *,
        now: float,
        producer: Producer | None = None,
    ) -> Appended:
        def work(connection: sqlite3.Connection) -> Appended:
            append = rows.Append(connection, self._files, stream_id, producer)
            return append.carry_out(drafts, now)[0]

        return await self._database.write(work)

    async def fence(self, stream_id: str, producer_id: str) -> Known | None:
        return await self._database.write(lambda c: rows.fence(c, stream_id, producer_id))

    async def read(
        self,
        stream_id: str,
        after: int,
        *,
        max_records: int = READ_RECORDS,
        max_bytes: int = READ_BYTES,
    ) -> list[Entry]:
        def work(connection: sqlite3.Connection) -> list[Entry] | InPart:
            id_, _, lane, part = rows.find(connection, stream_id)
            check_kept(lane)
            if part is not None:
                run = rows.find_run(connection, lane.run_id)
                return InPart(self._sealed(run), part, lane)
            found = rows.by_lane(connection, id_, after, max_records)
            return rows.entries(found, lane.run_id, self._files, max_bytes)

        async def read() -> list[Entry]:
            found = await self._database.read(work)
            if not isinstance(found, InPart):
                return found
            run, part, lane = found
            return await run.read_part(
                part, lane, after, max_records=max_records, max_bytes=max_bytes
            )

        return await _twice(read)

    async def read_run(
        self,
        run_id: str,
        after: int,
        *,
        max_records: int = READ_RECORDS,
        max_bytes: int = READ_BYTES,
    ) -> list[Entry]:
        def work(connection: sqlite3.Connection) -> list[Entry] | InOrder:
            run = rows.find_run(connection, run_id)
            if run.order is not None and after < run.order.head:
                names = sealed_rows.readable(connection, run.id)
                return InOrder(self._sealed(run), names, run.order.head)
            found = rows.by_run(connection, run.id, after, max_records)
            return rows.entries(found, run_id, self._files, max_bytes)

        async def read() -> list[Entry]:
            found = await self._database.read(work)
            if not isinstance(found, InOrder):
                return found
            run, names, head = found
            return await run.read(
                after, names, max_records=max_records, max_bytes=max_bytes
            ) or await self.read_run(run_id, head, max_records=max_records, max_bytes=max_bytes)

        return await _twice(read)

    def _sealed(self, found: rows.FoundRun) -> SealedRun:
        assert found.segment is not None
        assert found.order is not None
        return SealedRun(self._store, found.segment, found.run.run_id, found.order)

    async def at_time(self, id_: str, time_ms: int) -> int:
        """First as a stream's, then as a run's id."""
        try:
            return await self._lane_at_time(id_, time_ms)
        except NotFound:
            return await self._run_at_time(id_, time_ms)

    async def _lane_at_time(self, stream_id: str, time_ms: int) -> int:
        def work(connection: sqlite3.Connection) -> int | InPart:
            id_, _, lane, part = rows.find(connection, stream_id)
            if part is not None:
                run = rows.find_run(connection, lane.run_id)
                return InPart(self._sealed(run), part, lane)
            return rows.lane_at_time(connection, id_, lane.head, time_ms)

        found = await self._database.read(work)
        if not isinstance(found, InPart):
            return found
        run, part, lane = found
        position = await run.part_at_time(part, time_ms)
        return lane.head if position is None else position

    async def _run_at_time(self, run_id: str, time_ms: int) -> int:
        def work(connection: sqlite3.Connection) -> tuple[SealedRun | None, int]:
            """The segment, and the position among the rows that follow on it."""
            run = rows.find_run(connection, run_id)
            sealed = None if run.order is None else self._sealed(run)
            return sealed, rows.run_at_time(connection, run, time_ms)

        sealed, among_rows = await self._database.read(work)
        position = None if sealed is None else await sealed.at_time(time_ms)
        return among_rows if position is None else position

    async def due(self, now: float, *, limit: int = 100) -> list[Lane]:
        return await self._database.read(lambda connection: rows.due(connection, now, limit))

    async def expire(self, stream_id: str) -> Lane:
        lane = await self._database.write(lambda connection: rows.expire(connection, stream_id))
        await self.drop_unused()
        return lane

    async def delete_run(self, run_id: str) -> None:
        await self._database.write(lambda connection: rows.delete_run(connection, run_id))
        await self.drop_unused()

    async def tidy(self, now: float) -> None:
        """Seal the runs whose time has come, and give back what is not needed any more."""
        await self._sealer.seal(self.read_run, now)
        await self.drop_unused()

    async def drop_unused(self) -> None:
        """Rows and files that nothing refers to."""

        def work(connection: sqlite3.Connection) -> None:
            self._files.drop(lambda number: rows.names_file(connection, number))

        await self._sealer.clear()
        await self._database.read(work)

    async def aclose(self) -> None:
        await self._database.aclose()
        self._files.close()


async def _twice(read: Callable[[], Awaitable[T]]) -> T:
    """Once more when something was lost: housekeeping may have moved it just then."""
    try:
        return await read()
    except Gone as gone:
        if gone.code is not Code.STREAM_LOST:
            raise
        return await read()
