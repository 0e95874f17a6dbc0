"""What the database in SQLite knows of sealed runs; each function is one step in a transaction."""

import sqlite3
from collections.abc import Iterable
from typing import NamedTuple

import msgspec

from mentatlab.streams.rows import decode_lane, decode_order, decode_part, lanes_of
from mentatlab.streams.sealed import Directory, Order, Part


class IdleRun(NamedTuple):
    """A run whose commit lanes have all ended; `kept`: bytes of their records."""

    id: int
    run_id: str
    idle_since: float
    segment: str | None
    kept: int


def idle(connection: sqlite3.Connection, before: float, limit: int) -> list[IdleRun]:
    """Those that have been since before that time (Unix seconds), longest first."""
    found = connection.execute(
        "SELECT id, run_id, idle_since, segment FROM runs WHERE idle_since <= ?"
        " ORDER BY idle_since LIMIT ?",
        (before, limit),
    ).fetchall()
    return [IdleRun(id_, run, at, name, _kept(connection, run)) for id_, run, at, name in found]


def _kept(connection: sqlite3.Connection, run_id: str) -> int:
    return sum(x.kept for x in lanes_of(connection, run_id) if x.durability == "commit")


def leave(connection: sqlite3.Connection, runs: Iterable[IdleRun]) -> None:
    """There is nothing to seal, as long as nothing changes."""
    connection.executemany(
        "UPDATE runs SET idle_since = NULL WHERE id = ? AND idle_since = ?",
        [(run.id, run.idle_since) for run in runs],
    )


def switch(
    connection: sqlite3.Connection, run: IdleRun, segment: str | None, directory: Directory | None
) -> bool:
    """Read the run from that segment from now on, unless it has changed since."""
    if _kept(connection, run.run_id) != run.kept:  # a lane has expired meanwhile
        return False
    changed = connection.execute(
        "UPDATE runs SET segment = ?, segment_order = ?, idle_since = NULL, clearing = 1"
        " WHERE id = ? AND run_id = ? AND idle_since = ? AND segment IS ?",
        (
            *(segment, directory and _json(directory.order)),
            *(run.id, run.run_id, run.idle_since, run.segment),
        ),
    )
    if changed.rowcount == 0:
        return False
    connection.execute("UPDATE lanes SET part = NULL WHERE run = ?", (run.id,))
    connection.executemany(
        "UPDATE lanes SET part = ? WHERE stream_id = ?",
        [(_json(part), id_) for id_, part in (directory.parts if directory else {}).items()],
    )
    if segment is not None:
        forget_garbage(connection, segment)
    if run.segment is not None:
        note_garbage(connection, run.segment)
    return True


def to_clear(connection: sqlite3.Connection) -> int | None:
    """The key of a run some of whose rows its segment has."""
    row = connection.execute("SELECT id FROM runs WHERE clearing LIMIT 1").fetchone()
    return row and row[0]


def clear(connection: sqlite3.Connection, run: int, limit: int) -> None:
    """Delete some of those rows."""
    row = connection.execute(
        "SELECT segment_order FROM runs WHERE id = ? AND clearing", (run,)
    ).fetchone()
    if row is None:
        return
    deleted = connection.execute(
        "DELETE FROM records WHERE rowid IN"
        " (SELECT rowid FROM records WHERE run = ? AND rseq <= ? LIMIT ?)",
        (run, decode_order(row[0]).head if row[0] else 0, limit),
    )
    if deleted.rowcount < limit:
        connection.execute("UPDATE runs SET clearing = 0 WHERE id = ?", (run,))


def readable(connection: sqlite3.Connection, run: int) -> dict[int, str]:
    """The lanes of a run's segment that may be read, by their numbers there."""
    found = connection.execute(
        "SELECT lane, part FROM lanes WHERE run = ? AND part IS NOT NULL", (run,)
    )
    both = [(decode_lane(lane), decode_part(part)) for lane, part in found]
    return {part.lane: lane.stream_id for lane, part in both if lane.state != "expired"}


def garbage(connection: sqlite3.Connection) -> list[str]:
    return [name for (name,) in connection.execute("SELECT segment FROM garbage")]


def note_garbage(connection: sqlite3.Connection, segment: str) -> None:
    connection.execute("INSERT INTO garbage VALUES (?)", (segment,))


def forget_garbage(connection: sqlite3.Connection, segment: str) -> None:
    connection.execute("DELETE FROM garbage WHERE segment = ?", (segment,))


def _json(value: Order | Part) -> str:
    return msgspec.json.encode(value).decode()
