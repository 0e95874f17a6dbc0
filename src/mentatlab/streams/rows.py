"""The rows of the log in SQLite: every function is one step inside a transaction."""

import contextlib
import sqlite3
from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from mentatlab.protocol.errors import Code, Conflict, Gone
from mentatlab.protocol.records import Draft, Producer, RecordType
from mentatlab.streams import lanes
from mentatlab.streams.port import (
    PRODUCERS,
    Appended,
    Entry,
    Known,
    Lane,
    Run,
    due_at,
    find_place,
    unknown,
)
from mentatlab.streams.sealed import Order, Part
from mentatlab.streams.segments import Place, SegmentFiles

LARGE = 16 * 1024
"""Bytes of a payload from which on it goes to a segment file."""

decode_lane = msgspec.json.Decoder(Lane).decode
_places = msgspec.json.Decoder(tuple[tuple[int, int, int], ...]).decode


decode_order = msgspec.json.Decoder(Order).decode
decode_part = msgspec.json.Decoder(Part).decode


class FoundLane(NamedTuple):
    """With the keys of its row and its run's; `part` is its place in the run's segment."""

    id: int
    run: int
    lane: Lane
    part: Part | None


class FoundRun(NamedTuple):
    """With the key of its row; up to `order.head` its records lie in `segment`."""

    id: int
    run: Run
    segment: str | None
    order: Order | None


# ---------------------------------------------------------------------- lanes and runs


def create(connection: sqlite3.Connection, lane: Lane) -> Lane:
    connection.execute(
        "INSERT OR IGNORE INTO runs (run_id, workspace) VALUES (?, ?)",
        (lane.run_id, lane.workspace),
    )
    if (existing := find_place(lanes_of(connection, lane.run_id), lane)) is not None:
        return existing
    if lane.durability == "commit":
        connection.execute("UPDATE runs SET idle_since = NULL WHERE run_id = ?", (lane.run_id,))
    try:
        connection.execute(
            "INSERT INTO lanes (run, node_id, pin_name, stream_id, lane, open)"
            " VALUES ((SELECT id FROM runs WHERE run_id = ?), ?, ?, ?, ?, ?)",
            (
                *(lane.run_id, lane.node_id, lane.pin_name, lane.stream_id),
                *(_encoded(lane), _is_open(lane)),
            ),
        )
    except sqlite3.IntegrityError as error:
        raise Conflict(
            Code.CONFLICT,
            f"the id {lane.stream_id} names another stream",
            hint="choose another id",
        ) from error
    return lane


def find(connection: sqlite3.Connection, stream_id: str) -> FoundLane:
    row = connection.execute(
        "SELECT id, run, lane, part FROM lanes WHERE stream_id = ?", (stream_id,)
    ).fetchone()
    if row is None:
        raise unknown(stream_id)
    return FoundLane(row[0], row[1], decode_lane(row[2]), row[3] and decode_part(row[3]))


def save(connection: sqlite3.Connection, id_: int, lane: Lane) -> None:
    connection.execute(
        "UPDATE lanes SET lane = ?, due = ?, open = ? WHERE id = ?",
        (_encoded(lane), due_at(lane), _is_open(lane), id_),
    )


def _encoded(lane: Lane) -> str:
    return msgspec.json.encode(lane).decode()


def _is_open(lane: Lane) -> bool:
    return lane.durability == "commit" and lane.state == "open"


def _rest(connection: sqlite3.Connection, run: int, since: float) -> None:
    """There may be something to seal, unless a lane of the run is open."""
    connection.execute(
        "UPDATE runs SET idle_since = :since WHERE id = :run"
        " AND NOT EXISTS (SELECT 1 FROM lanes WHERE lanes.run = :run AND open)",
        {"run": run, "since": since},
    )


def lanes_of(connection: sqlite3.Connection, run_id: str) -> list[Lane]:
    rows = connection.execute(
        "SELECT lane FROM lanes WHERE run = (SELECT id FROM runs WHERE run_id = ?) ORDER BY id",
        (run_id,),
    )
    return [decode_lane(text) for (text,) in rows]


def find_run(connection: sqlite3.Connection, run_id: str) -> FoundRun:
    row = connection.execute(
        "SELECT id, workspace, head, segment, segment_order FROM runs WHERE run_id = ?", (run_id,)
    ).fetchone()
    if row is None:
        raise unknown(run_id)
    run = Run(run_id=run_id, workspace=row[1], head=row[2])
    return FoundRun(row[0], run, row[3], row[4] and decode_order(row[4]))


def due(connection: sqlite3.Connection, now: float, limit: int) -> list[Lane]:
    rows = connection.execute(
        "SELECT lane FROM lanes WHERE due <= ? ORDER BY due LIMIT ?", (now, limit)
    )
    return [decode_lane(text) for (text,) in rows]


def expire(connection: sqlite3.Connection, stream_id: str) -> Lane:
    id_, run, lane, part = find(connection, stream_id)
    connection.execute("DELETE FROM records WHERE lane = ?", (id_,))
    connection.execute("DELETE FROM producers WHERE lane = ?", (id_,))
    lane = msgspec.structs.replace(lane, state="expired", kept=0, floor=lane.head + 1)
    save(connection, id_, lane)
    if part is not None:
        _rest(connection, run, lane.changed_at)  # sealed anew, without it
    return lane


def delete_run(connection: sqlite3.Connection, run_id: str) -> None:
    run = "(SELECT id FROM runs WHERE run_id = :run_id)"
    connection.execute(
        "INSERT INTO garbage SELECT segment FROM runs WHERE run_id = ? AND segment IS NOT NULL",
        (run_id,),
    )
    for table, where in (
        ("producers", f"lane IN (SELECT id FROM lanes WHERE run = {run})"),
        ("records", f"run = {run}"),
        ("lanes", f"run = {run}"),
        ("runs", "run_id = :run_id"),
    ):
        connection.execute(f"DELETE FROM {table} WHERE {where}", {"run_id": run_id})


# ---------------------------------------------------------------------- producers


def producer(connection: sqlite3.Connection, lane: int, id_: str) -> Known | None:
    row = connection.execute(
        "SELECT epoch, seq, places FROM producers WHERE lane = ? AND producer = ?", (lane, id_)
    ).fetchone()
    return None if row is None else Known(row[0], row[1], _places(row[2]))


def save_producer(connection: sqlite3.Connection, lane: int, id_: str, known: Known) -> None:
    connection.execute(
        "INSERT OR REPLACE INTO producers (lane, producer, epoch, seq, places)"
        " VALUES (?, ?, ?, ?, ?)",
        (lane, id_, known.epoch, known.seq, msgspec.json.encode(known.places).decode()),
    )


def make_room_for_producer(connection: sqlite3.Connection, lane: int) -> None:
    """In the order of `Known.age`."""
    connection.execute(
        "DELETE FROM producers WHERE lane = :lane AND producer IN ("
        "SELECT producer FROM producers WHERE lane = :lane"
        " ORDER BY epoch > 0 DESC, json_extract(places, '$[#-1][1]') DESC LIMIT -1 OFFSET :most)",
        {"lane": lane, "most": PRODUCERS - 1},
    )


def fence(connection: sqlite3.Connection, stream_id: str, producer_id: str) -> Known | None:
    id_ = find(connection, stream_id).id
    if (known := producer(connection, id_, producer_id)) is None:
        return None
    known = lanes.fenced(known)
    save_producer(connection, id_, producer_id, known)
    return known


# ---------------------------------------------------------------------- records


class Append:
    """One append; what is large goes to the segment files."""

    def __init__(
        self,
        connection: sqlite3.Connection,
        files: SegmentFiles,
        stream_id: str,
        by: Producer | None = None,
    ) -> None:
        self._connection, self._files, self._producer = connection, files, by
        self._id, self._run, self._lane, _ = find(connection, stream_id)

    def carry_out(self, drafts: Sequence[Draft], now: float) -> tuple[Appended, Lane]:
        """The answer, and the lane afterwards."""
        known = self._known()
        step = lanes.append(
            self._lane,
            drafts,
            now=now,
            measure=self._measure,
            producer=self._producer,
            known=known,
            rseq=self._run_head(),
        )
        lane = self._store(step, known) if step.entries else self._lane
        return step.answer(self._producer, len(drafts)), lane

    def _store(self, step: lanes.Step, before: Known | None) -> Lane:
        self._connection.executemany(
            "INSERT INTO records (run, lane, sequence, rseq, type, size, time_ms, json, frame,"
            " file, file_offset, file_length, file_crc)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            [self._row(entry) for entry in step.entries],
        )
        lane = self._trimmed(step.lane)
        save(self._connection, self._id, lane)
        if lane.state != "open" and lane.durability == "commit":
            _rest(self._connection, self._run, lane.changed_at)
        if (rseq := step.entries[-1].rseq) is not None:
            self._connection.execute("UPDATE runs SET head = ? WHERE id = ?", (rseq, self._run))
        if self._producer is not None and step.known is not None:
            if lane.external and before is None:
                make_room_for_producer(self._connection, self._id)
            save_producer(self._connection, self._id, self._producer.id, step.known)
        return lane

    def _row(self, entry: Entry) -> tuple[object, ...]:
        json, frame = entry.json, entry.frame
        place: tuple[int | None, ...] = _NOWHERE
        if frame is not None and len(frame) > LARGE:
            place, frame = self._files.append(frame), None
        elif frame is None and len(json) > LARGE:
            place, json = self._files.append(json), b""
        return (
            *(self._run, self._id, entry.sequence, entry.rseq),
            *(entry.type, entry.size, entry.time_ms, json, frame),
            *place,
        )

    def _trimmed(self, lane: Lane) -> Lane:
        limit = lane.retention.max_bytes
        if limit is None or lane.kept <= limit:
            return lane
        lengths = self._connection.execute(
            f"SELECT sequence, {_LENGTH} FROM records WHERE lane = ? AND sequence >= ?"
            " ORDER BY sequence",
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
        return producer(self._connection, self._id, self._producer.id)

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


_NOWHERE = (None, None, None, None)
_LENGTH = "length(json) + coalesce(length(frame), 0) + coalesce(file_length, 0)"
_COLUMNS = (
    "type, sequence, rseq, time_ms, size, json, frame, file, file_offset, file_length, file_crc"
)


def by_lane(connection: sqlite3.Connection, id_: int, after: int, limit: int) -> sqlite3.Cursor:
    return connection.execute(
        f"SELECT stream_id, {_COLUMNS} FROM records JOIN lanes ON lanes.id = records.lane"
        " WHERE records.lane = ? AND sequence > ? ORDER BY sequence LIMIT ?",
        (id_, after, limit),
    )


def by_run(connection: sqlite3.Connection, id_: int, after: int, limit: int) -> sqlite3.Cursor:
    return connection.execute(
        f"SELECT stream_id, {_COLUMNS} FROM records JOIN lanes ON lanes.id = records.lane"
        " WHERE records.run = ? AND rseq > ? ORDER BY rseq LIMIT ?",
        (id_, after, limit),
    )


def entries(found: sqlite3.Cursor, run_id: str, files: SegmentFiles, max_bytes: int) -> list[Entry]:
    """Those that fit together, at least one; `Gone(STREAM_LOST)` when the first is damaged."""
    taken: list[Entry] = []
    with contextlib.closing(found):
        for stream_id, type_, sequence, rseq, time_ms, size, json, frame, *place in found:
            max_bytes -= len(json) + len(frame or b"") + (place[2] or 0)
            if taken and max_bytes < 0:
                break
            try:
                json, frame = _whole(json, frame, place, files)
            except Gone as gone:
                if taken:
                    break
                gone.details = {"stream_id": stream_id, "sequence": sequence}
                raise
            kind = RecordType(type_)
            taken.append(Entry(stream_id, run_id, kind, sequence, rseq, time_ms, size, json, frame))
    return taken


def _whole(
    json: bytes, frame: bytes | None, place: Sequence[int | None], files: SegmentFiles
) -> tuple[bytes, bytes | None]:
    file, offset, length, crc = place
    if file is None or offset is None or length is None or crc is None:
        return json, frame
    data = files.read(Place(file, offset, length, crc))
    return (json, data) if json else (data, None)


# ---------------------------------------------------------------------- times


def lane_at_time(connection: sqlite3.Connection, id_: int, head: int, time_ms: int) -> int:
    return _at_time(connection, "lane", "sequence", id_, (0, head), time_ms)


def run_at_time(connection: sqlite3.Connection, run: FoundRun, time_ms: int) -> int:
    """Among the records that its segment has not."""
    begin = 0 if run.order is None else run.order.head
    return _at_time(connection, "run", "rseq", run.id, (begin, run.run.head), time_ms)


def _at_time(
    connection: sqlite3.Connection,
    of: str,
    order: str,
    id_: int,
    bounds: tuple[int, int],
    time_ms: int,
) -> int:
    """Bisects: records are in the order of their times, as far as one clock made them."""
    query = (
        f"SELECT {order}, time_ms FROM records WHERE {of} = ? AND {order} > ?"
        f" ORDER BY {order} LIMIT 1"
    )
    low, high = bounds  # the last record before that time lies between them
    while low < high:
        middle = (low + high) // 2
        row = connection.execute(query, (id_, middle)).fetchone()
        if row is None or row[1] >= time_ms:
            high = middle
        else:
            low = row[0]
    row = connection.execute(query, (id_, low)).fetchone()
    return bounds[1] if row is None else row[0] - 1


# ---------------------------------------------------------------------- segment files


def last_file(connection: sqlite3.Connection) -> int:
    query = "SELECT coalesce(max(file), 0) FROM records WHERE file IS NOT NULL"
    return connection.execute(query).fetchone()[0]


def names_file(connection: sqlite3.Connection, number: int) -> bool:
    query = "SELECT EXISTS (SELECT 1 FROM records WHERE file = ?)"
    return bool(connection.execute(query, (number,)).fetchone()[0])
