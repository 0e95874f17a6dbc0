"""The log in SQLite: what was acknowledged survives a power cut.

Lanes are an index over one table of records (`rows`). An append is one job of the database's
writer, so that records, lane, run order and producer state are committed together, and appends that
wait together share a commit. Large payloads lie in files beside it (`segments`).
"""

import sqlite3
from collections.abc import Callable, Sequence
from pathlib import Path

from mentatlab.protocol.errors import Code, Gone, NotFound
from mentatlab.protocol.records import Draft, Producer
from mentatlab.sqlite import Database
from mentatlab.streams import rows
from mentatlab.streams.port import (
    READ_BYTES,
    READ_RECORDS,
    Appended,
    Entry,
    Known,
    Lane,
    Opened,
    Run,
    check_kept,
)
from mentatlab.streams.schema import SCHEMA
from mentatlab.streams.segments import ROLL_BYTES, SegmentFiles

Read = Callable[[sqlite3.Connection], list[Entry]]


async def open_sqlite(path: Path, *, roll_bytes: int = ROLL_BYTES) -> "SqliteStreamLog":
    """The log of the database `path`; its segment files are in `<stem>-segments` beside it."""
    files = SegmentFiles(path.with_name(f"{path.stem}-segments"), roll_bytes=roll_bytes)
    database = await Database(path, SCHEMA, before_commit=files.sync).open()
    files.open(await database.read(rows.last_file))
    log = SqliteStreamLog(database, files)
    await log.tidy()
    return log


class SqliteStreamLog:
    """A `StreamLog`; `open_sqlite` makes it, `aclose` closes its database and files."""

    def __init__(self, database: Database, files: SegmentFiles) -> None:
        self._database, self._files = database, files

    async def create(self, lane: Lane) -> Lane:
        return await self._database.write(lambda connection: rows.create(connection, lane))

    async def open(self, lane: Lane, start: Draft, *, now: float) -> Opened:
        def work(connection: sqlite3.Connection) -> Opened:
            made = rows.create(connection, lane)
            if made.head:
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
        return await self._database.read(lambda connection: rows.run_of(connection, run_id)[1])

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
        def work(connection: sqlite3.Connection) -> list[Entry]:
            id_, _, lane = rows.find(connection, stream_id)
            check_kept(lane)
            found = rows.by_lane(connection, id_, after, max_records)
            return rows.entries(found, lane.run_id, self._files, max_bytes)

        return await self._read(work)

    async def read_run(
        self,
        run_id: str,
        after: int,
        *,
        max_records: int = READ_RECORDS,
        max_bytes: int = READ_BYTES,
    ) -> list[Entry]:
        def work(connection: sqlite3.Connection) -> list[Entry]:
            id_, _ = rows.run_of(connection, run_id)
            found = rows.by_run(connection, id_, after, max_records)
            return rows.entries(found, run_id, self._files, max_bytes)

        return await self._read(work)

    async def _read(self, work: Read) -> list[Entry]:
        try:
            return await self._database.read(work)
        except Gone as gone:
            if gone.code is not Code.STREAM_LOST:
                raise
            return await self._database.read(work)  # retention may have taken it just then

    async def at_time(self, id_: str, time_ms: int) -> int:
        """First as a stream's, then as a run's id."""

        def work(connection: sqlite3.Connection) -> int:
            try:
                key, _, lane = rows.find(connection, id_)
            except NotFound:
                key, run = rows.run_of(connection, id_)
                return rows.run_at_time(connection, key, run.head, time_ms)
            return rows.lane_at_time(connection, key, lane, time_ms)

        return await self._database.read(work)

    async def due(self, now: float, *, limit: int = 100) -> list[Lane]:
        return await self._database.read(lambda connection: rows.due(connection, now, limit))

    async def expire(self, stream_id: str) -> Lane:
        lane = await self._database.write(lambda connection: rows.expire(connection, stream_id))
        await self.tidy()
        return lane

    async def delete_run(self, run_id: str) -> None:
        await self._database.write(lambda connection: rows.delete_run(connection, run_id))
        await self.tidy()

    async def tidy(self) -> int:
        """Remove the segment files that nothing refers to any more; how many."""

        def work(connection: sqlite3.Connection) -> int:
            return self._files.drop(lambda number: rows.names_file(connection, number))

        return await self._database.read(work)

    async def aclose(self) -> None:
        await self._database.aclose()
        self._files.close()
