"""The log in SQLite: what was acknowledged survives a power cut.

Lanes are an index over one table of records. An append is one job of the database's writer, so that
records, lane, run order and producer state are committed together, and appends that wait together
share a commit.
"""

import itertools
import sqlite3
from collections.abc import Iterable, Sequence

import msgspec

from mentatlab.protocol.errors import Code, Conflict, NotFound
from mentatlab.protocol.records import Draft, Producer, RecordType
from mentatlab.sqlite import Database
from mentatlab.streams import lanes
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
    find_place,
    is_due,
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
    """
    ALTER TABLE records DROP COLUMN producer;
    ALTER TABLE records DROP COLUMN producer_epoch;
    ALTER TABLE records DROP COLUMN producer_seq;
    ALTER TABLE records RENAME COLUMN record TO json; -- JSON of `StreamChunk`
    ALTER TABLE records ADD COLUMN frame BLOB; -- of a binary record
    ALTER TABLE records ADD COLUMN time_ms INTEGER NOT NULL DEFAULT 0; -- Unix
    UPDATE records SET time_ms = unixepoch(json_extract(CAST(json AS TEXT), '$.timestamp')) * 1000;
    ALTER TABLE producers ADD COLUMN places TEXT NOT NULL DEFAULT '[]';
    """,
)

_lane = msgspec.json.Decoder(Lane).decode
_places = msgspec.json.Decoder(tuple[tuple[int, int, int], ...]).decode


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
            return Opened(_find(connection, made.stream_id)[2], appended.entries)

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
    ) -> list[Entry]:
        def work(connection: sqlite3.Connection) -> list[Entry]:
            id_, _, lane = _find(connection, stream_id)
            check_kept(lane)
            return _within(
                connection.execute(
                    f"SELECT {_ENTRY} WHERE records.lane = ? AND sequence > ?"
                    " ORDER BY sequence LIMIT ?",
                    (id_, after, max_records),
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
    ) -> list[Entry]:
        def work(connection: sqlite3.Connection) -> list[Entry]:
            _run(connection, run_id)
            return _within(
                connection.execute(
                    f"SELECT {_ENTRY} WHERE runs.run_id = ? AND rseq > ? ORDER BY rseq LIMIT ?",
                    (run_id, after, max_records),
                ),
                max_bytes,
            )

        return await self._database.read(work)

    async def producer(self, stream_id: str, producer_id: str) -> Known | None:
        def work(connection: sqlite3.Connection) -> Known | None:
            return _producer(connection, _find(connection, stream_id)[0], producer_id)

        return await self._database.read(work)

    async def fence(self, stream_id: str, producer_id: str) -> Known | None:
        return await self._database.write(lambda c: _fence(c, stream_id, producer_id))

    async def at_time(self, id_: str, time_ms: int) -> int:
        return await self._database.read(lambda connection: _at_time(connection, id_, time_ms))

    async def due(self, now: float, *, limit: int = 100) -> list[Lane]:
        def work(connection: sqlite3.Connection) -> list[Lane]:
            rows = connection.execute(
                "SELECT lane FROM lanes WHERE lane LIKE '%retention%' ORDER BY id"
            )
            found = (lane for (text,) in rows if is_due(lane := _lane(text), now))
            return list(itertools.islice(found, limit))

        return await self._database.read(work)

    async def expire(self, stream_id: str) -> Lane:
        return await self._database.write(lambda connection: _expire(connection, stream_id))

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
        if step.entries:
            self._store(step)
        return step.answer(self._producer, len(drafts))

    def _store(self, step: lanes.Step) -> None:
        self._connection.executemany(
            "INSERT INTO records (run, lane, sequence, rseq, type, size, json, frame, time_ms)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            [
                (
                    self._run,
                    self._id,
                    e.sequence,
                    e.rseq,
                    e.type,
                    e.size,
                    e.json,
                    e.frame,
                    e.time_ms,
                )
                for e in step.entries
            ],
        )
        _save(self._connection, self._id, self._trimmed(step.lane))
        if (rseq := step.entries[-1].rseq) is not None:
            self._connection.execute("UPDATE runs SET head = ? WHERE id = ?", (rseq, self._run))
        if self._producer is not None and step.known is not None:
            _save_producer(self._connection, self._id, self._producer.id, step.known)

    def _trimmed(self, lane: Lane) -> Lane:
        limit = lane.retention.max_bytes
        if limit is None or lane.kept <= limit:
            return lane
        lengths = self._connection.execute(
            "SELECT sequence, length(json) + coalesce(length(frame), 0) FROM records"
            " WHERE lane = ? AND sequence >= ? ORDER BY sequence",
            (self._id, lane.floor),
        )
        lane = lanes.trimmed(lane, lengths)
        self._connection.execute(
            "DELETE FROM records WHERE lane = ? AND sequence > 1 AND sequence < ?",
            (self._id, lane.floor),
        )
        return lane

    def _known(self) -> Known | None:
        if self._producer is None:
            return None
        return _producer(self._connection, self._id, self._producer.id)

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


_ENTRY = (
    "stream_id, run_id, type, sequence, rseq, time_ms, size, json, frame FROM records"
    " JOIN lanes ON lanes.id = records.lane JOIN runs ON runs.id = records.run"
)


def _save(connection: sqlite3.Connection, id_: int, lane: Lane) -> None:
    encoded = msgspec.json.encode(lane).decode()
    connection.execute("UPDATE lanes SET lane = ? WHERE id = ?", (encoded, id_))


def _producer(connection: sqlite3.Connection, lane: int, producer: str) -> Known | None:
    row = connection.execute(
        "SELECT epoch, seq, places FROM producers WHERE lane = ? AND producer = ?", (lane, producer)
    ).fetchone()
    return None if row is None else Known(row["epoch"], row["seq"], _places(row["places"]))


def _save_producer(connection: sqlite3.Connection, lane: int, producer: str, known: Known) -> None:
    connection.execute(
        "INSERT OR REPLACE INTO producers (lane, producer, epoch, seq, places)"
        " VALUES (?, ?, ?, ?, ?)",
        (lane, producer, known.epoch, known.seq, msgspec.json.encode(known.places).decode()),
    )


def _fence(connection: sqlite3.Connection, stream_id: str, producer: str) -> Known | None:
    id_, _, _ = _find(connection, stream_id)
    if (known := _producer(connection, id_, producer)) is None:
        return None
    known = lanes.fenced(known)
    _save_producer(connection, id_, producer, known)
    return known


def _at_time(connection: sqlite3.Connection, id_: str, time_ms: int) -> int:
    """First as a stream's, then as a run's id."""
    try:
        key, _, lane = _find(connection, id_)
    except NotFound:
        run = _run(connection, id_)
        (found,) = connection.execute(
            "SELECT min(rseq) FROM records WHERE run = (SELECT id FROM runs WHERE run_id = ?)"
            " AND time_ms >= ?",
            (id_, time_ms),
        ).fetchone()
        return run.head if found is None else found - 1
    (found,) = connection.execute(
        "SELECT min(sequence) FROM records WHERE lane = ? AND time_ms >= ?", (key, time_ms)
    ).fetchone()
    return lane.head if found is None else found - 1


def _expire(connection: sqlite3.Connection, stream_id: str) -> Lane:
    id_, _, lane = _find(connection, stream_id)
    connection.execute("DELETE FROM records WHERE lane = ?", (id_,))
    connection.execute("DELETE FROM producers WHERE lane = ?", (id_,))
    lane = msgspec.structs.replace(lane, state="expired", kept=0, floor=lane.head + 1)
    _save(connection, id_, lane)
    return lane


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


def _within(rows: Iterable[sqlite3.Row], max_bytes: int) -> list[Entry]:
    entries: list[Entry] = []
    for row in rows:
        entry = Entry(row[0], row[1], RecordType(row[2]), *row[3:])
        max_bytes -= entry.length
        if entries and max_bytes < 0:
            break
        entries.append(entry)
    return entries
