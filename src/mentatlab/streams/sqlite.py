"""The log in SQLite: what was acknowledged survives a power cut.

Lanes are an index over one table of records. An append is one job of the database's writer, so that
records, lane, run order and producer state are committed together, and appends that wait together
share a commit.
"""

import sqlite3
from collections.abc import Iterable, Sequence

import msgspec

from mentatlab.protocol.errors import Code, Conflict
from mentatlab.protocol.records import Draft, Producer, RecordType, StreamChunk
from mentatlab.sqlite import Database
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

SCHEMA = (
    """
    CREATE TABLE runs (
        id INTEGER PRIMARY KEY, run_id TEXT NOT NULL UNIQUE, workspace TEXT NOT NULL,
        head INTEGER NOT NULL DEFAULT 0
    );
    CREATE TABLE lanes (
        id INTEGER PRIMARY KEY, run INTEGER NOT NULL REFERENCES runs,
        node_id TEXT NOT NULL, pin_name TEXT NOT NULL, stream_id TEXT NOT NULL UNIQUE,
        lane TEXT NOT NULL, -- JSON of `Lane`
        UNIQUE (run, node_id, pin_name)
    );
    CREATE TABLE records (
        run INTEGER NOT NULL, lane INTEGER NOT NULL,
        sequence INTEGER NOT NULL, rseq INTEGER, type TEXT NOT NULL,
        size INTEGER NOT NULL, -- bytes of the payload's JSON
        producer TEXT, producer_epoch INTEGER, producer_seq INTEGER,
        record BLOB NOT NULL -- JSON of `StreamChunk`
    );
    CREATE UNIQUE INDEX records_by_lane ON records (lane, sequence);
    CREATE UNIQUE INDEX records_by_run ON records (run, rseq);
    CREATE TABLE producers (
        lane INTEGER NOT NULL, producer TEXT NOT NULL, epoch INTEGER NOT NULL, seq INTEGER NOT NULL,
        PRIMARY KEY (lane, producer)
    ) WITHOUT ROWID;
    """,
)

_record = msgspec.json.Decoder(StreamChunk).decode
_lane = msgspec.json.Decoder(Lane).decode


class SqliteStreamLog:
    """A `StreamLog` on an open database made with `SCHEMA`; closes it."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def create(self, lane: Lane) -> Lane:
        return await self._database.write(lambda connection: _create(connection, lane))

    async def open(self, lane: Lane, start: Draft, *, now: float) -> Opened:
        def work(connection: sqlite3.Connection) -> Opened:
            made = _create(connection, lane)
            if made.head:
                return Opened(made)
            appended = _Append(connection, made.stream_id, None).carry_out([start], now)
            return Opened(_find(connection, made.stream_id)[2], appended.records)

        return await self._database.write(work)

    async def get(self, stream_id: str) -> Lane:
        return await self._database.read(lambda connection: _find(connection, stream_id)[2])

    async def lanes(self, run_id: str) -> list[Lane]:
        return await self._database.read(lambda connection: _lanes(connection, run_id))

    async def run(self, run_id: str) -> Run:
        return await self._database.read(lambda connection: _run(connection, run_id))

    async def append(
        self,
        stream_id: str,
        drafts: Sequence[Draft],
        *,
        now: float,
        producer: Producer | None = None,
    ) -> Appended:
        return await self._database.write(
            lambda connection: _Append(connection, stream_id, producer).carry_out(drafts, now)
        )

    async def read(
        self,
        stream_id: str,
        after: int,
        *,
        max_records: int = READ_RECORDS,
        max_bytes: int = READ_BYTES,
    ) -> list[StreamChunk]:
        def work(connection: sqlite3.Connection) -> list[StreamChunk]:
            lane, _, _ = _find(connection, stream_id)
            return _decode_within(
                connection.execute(
                    "SELECT record FROM records WHERE lane = ? AND sequence > ?"
                    " ORDER BY sequence LIMIT ?",
                    (lane, after, max_records),
                ),
                max_bytes,
            )

        return await self._database.read(work)

    async def read_run(
        self,
        run_id: str,
        after: int,
        *,
        max_records: int = READ_RECORDS,
        max_bytes: int = READ_BYTES,
    ) -> list[StreamChunk]:
        def work(connection: sqlite3.Connection) -> list[StreamChunk]:
            _run(connection, run_id)
            return _decode_within(
                connection.execute(
                    "SELECT record FROM records WHERE run = (SELECT id FROM runs WHERE run_id = ?)"
                    " AND rseq > ? ORDER BY rseq LIMIT ?",
                    (run_id, after, max_records),
                ),
                max_bytes,
            )

        return await self._database.read(work)

    async def delete_run(self, run_id: str) -> None:
        await self._database.write(lambda connection: _delete(connection, run_id))

    async def aclose(self) -> None:
        await self._database.aclose()


class _Append:
    """One append inside the writer's transaction."""

    def __init__(
        self, connection: sqlite3.Connection, stream_id: str, producer: Producer | None
    ) -> None:
        self._connection, self._producer = connection, producer
        self._id, self._run, self._lane = _find(connection, stream_id)

    def carry_out(self, drafts: Sequence[Draft], now: float) -> Appended:
        step = lanes.append(
            self._lane,
            drafts,
            now=now,
            measure=self._measure,
            producer=self._producer,
            known=self._known(),
            rseq=self._run_head(),
        )
        if not step.repeated:
            self._store(step, len(drafts))
        last = step.lane.head
        first = last + 1 - max(1, len(step.entries))
        if self._producer is not None and step.skipped:
            first = self._sequence_of(self._producer.seq)
            last = self._sequence_of(self._producer.seq + len(drafts) - 1)
        return Appended(first, last, step.repeated, tuple(e.record for e in step.entries))

    def _store(self, step: lanes.Step, count: int) -> None:
        self._connection.executemany(
            "INSERT INTO records VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            [self._row(entry, step.skipped + at) for at, entry in enumerate(step.entries)],
        )
        self._connection.execute(
            "UPDATE lanes SET lane = ? WHERE id = ?",
            (msgspec.json.encode(step.lane).decode(), self._id),
        )
        if (rseq := step.entries[-1].record.rseq) is not None:
            self._connection.execute("UPDATE runs SET head = ? WHERE id = ?", (rseq, self._run))
        if self._producer is not None:
            self._connection.execute(
                "INSERT OR REPLACE INTO producers VALUES (?, ?, ?, ?)",
                (
                    self._id,
                    self._producer.id,
                    self._producer.epoch,
                    self._producer.seq + count - 1,
                ),
            )

    def _row(self, entry: Entry, offset: int) -> tuple[object, ...]:
        record, producer = entry.record, self._producer
        origin = (
            (None, None, None)
            if producer is None
            else (producer.id, producer.epoch, producer.seq + offset)
        )
        place = (self._run, self._id, record.sequence, record.rseq)
        return (*place, record.type, entry.size, *origin, entry.json)

    def _known(self) -> Known | None:
        if self._producer is None:
            return None
        row = self._connection.execute(
            "SELECT epoch, seq FROM producers WHERE lane = ? AND producer = ?",
            (self._id, self._producer.id),
        ).fetchone()
        return None if row is None else Known(*row)

    def _run_head(self) -> int:
        (head,) = self._connection.execute(
            "SELECT head FROM runs WHERE id = ?", (self._run,)
        ).fetchone()
        return head

    def _measure(self, first: int, last: int) -> int:
        (size,) = self._connection.execute(
            "SELECT coalesce(sum(size), 0) FROM records"
            " WHERE lane = ? AND sequence BETWEEN ? AND ? AND type = ?",
            (self._id, first, last, RecordType.DATA),
        ).fetchone()
        return size

    def _sequence_of(self, producer_seq: int) -> int:
        assert self._producer is not None
        (sequence,) = self._connection.execute(
            "SELECT sequence FROM records WHERE lane = ?"
            " AND producer = ? AND producer_epoch = ? AND producer_seq = ?",
            (self._id, self._producer.id, self._producer.epoch, producer_seq),
        ).fetchone()
        return sequence


def _create(connection: sqlite3.Connection, lane: Lane) -> Lane:
    connection.execute(
        "INSERT OR IGNORE INTO runs (run_id, workspace) VALUES (?, ?)",
        (lane.run_id, lane.workspace),
    )
    if (existing := find_place(_lanes(connection, lane.run_id), lane)) is not None:
        return existing
    try:
        connection.execute(
            "INSERT INTO lanes (run, node_id, pin_name, stream_id, lane)"
            " VALUES ((SELECT id FROM runs WHERE run_id = ?), ?, ?, ?, ?)",
            (
                lane.run_id,
                lane.node_id,
                lane.pin_name,
                lane.stream_id,
                msgspec.json.encode(lane).decode(),
            ),
        )
    except sqlite3.IntegrityError as error:
        raise Conflict(
            Code.CONFLICT,
            f"the id {lane.stream_id} names another stream",
            hint="choose another id",
        ) from error
    return lane


def _find(connection: sqlite3.Connection, stream_id: str) -> tuple[int, int, Lane]:
    """The keys of a lane and of its run, and the lane."""
    row = connection.execute(
        "SELECT id, run, lane FROM lanes WHERE stream_id = ?", (stream_id,)
    ).fetchone()
    if row is None:
        raise unknown(stream_id)
    return row["id"], row["run"], _lane(row["lane"])


def _lanes(connection: sqlite3.Connection, run_id: str) -> list[Lane]:
    rows = connection.execute(
        "SELECT lane FROM lanes WHERE run = (SELECT id FROM runs WHERE run_id = ?) ORDER BY id",
        (run_id,),
    )
    return [_lane(text) for (text,) in rows]


def _run(connection: sqlite3.Connection, run_id: str) -> Run:
    row = connection.execute(
        "SELECT workspace, head FROM runs WHERE run_id = ?", (run_id,)
    ).fetchone()
    if row is None:
        raise unknown(run_id)
    return Run(run_id=run_id, workspace=row["workspace"], head=row["head"])


def _delete(connection: sqlite3.Connection, run_id: str) -> None:
    run = "(SELECT id FROM runs WHERE run_id = :run_id)"
    for table, where in (
        ("producers", f"lane IN (SELECT id FROM lanes WHERE run = {run})"),
        ("records", f"run = {run}"),
        ("lanes", f"run = {run}"),
        ("runs", "run_id = :run_id"),
    ):
        connection.execute(f"DELETE FROM {table} WHERE {where}", {"run_id": run_id})


def _decode_within(rows: Iterable[tuple[bytes]], max_bytes: int) -> list[StreamChunk]:
    records: list[StreamChunk] = []
    for (encoded,) in rows:
        max_bytes -= len(encoded)
        if records and max_bytes < 0:
            break
        records.append(_record(encoded))
    return records
