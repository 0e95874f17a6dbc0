"""The run store port and its SQLite form: runs, their event logs, flow snapshots, idempotency keys.

Appending events and changing the run's row are one transaction, fenced by the lease epoch: an owner
that lost its lease cannot append.
"""

import sqlite3
from collections.abc import Sequence
from typing import Any, Protocol

import msgspec

from mentatlab.protocol.errors import Code, Conflict, Fenced, NotFound
from mentatlab.runs import events as ev
from mentatlab.sqlite import Database


class Snapshot(msgspec.Struct, frozen=True):
    """What a run executes: the flow document and the manifests it names, by agent id as written."""

    digest: str
    document: dict[str, Any]
    manifests: dict[str, dict[str, Any]]


class RunRow(msgspec.Struct, frozen=True, kw_only=True):
    """One row of `runs`; times are Unix seconds. `closed`: the streams and the projection are done
    too."""

    id: str
    workspace: str
    flow_id: str
    digest: str
    engine_version: str
    inputs: dict[str, Any]
    state: str
    reason: str = ""
    created_at: float
    started_at: float | None = None
    finished_at: float | None = None
    owner: str
    epoch: int = 1
    last_seq: int = 0
    closed: bool = False


Rows = list[RunRow]
Facts = list[ev.RunFact]
Log = list[tuple[int, ev.RunFact]]


class Idempotency(msgspec.Struct, frozen=True):
    """`request`: a digest of what was asked; the same key with another one is a conflict."""

    key: str
    request: str


class RunStore(Protocol):
    """Promises: every call is atomic; a run's events are 1..n; reads see the last commit."""

    async def create(
        self,
        row: RunRow,
        snapshot: Snapshot,
        events: Sequence[ev.RunFact],
        idempotency: Idempotency | None = None,
    ) -> str:
        """The new run's id, or that of the run which the same key made before, with nothing
        written.

        `Conflict(IDEMPOTENCY_CONFLICT)` when the key was used for another request.
        """
        ...

    async def append(self, row: RunRow, events: Sequence[ev.RunFact]) -> None:
        """Add events after `row.last_seq - len(events)` and write the row's state.

        `Fenced(LEASE_LOST)` when the run's epoch or last event is not the one that `row` continues.
        """
        ...

    async def claim(self, owner: str) -> Rows:
        """Take over, under a higher epoch, every run that is not closed."""
        ...

    async def close(self, run_id: str, epoch: int) -> None:
        """Everything that follows from the run's end is done."""
        ...

    async def delete(self, run_id: str) -> None:
        """The run, its events and its idempotency key; fine when it is gone."""
        ...

    async def get(self, run_id: str) -> RunRow:
        """`NotFound(RUN_NOT_FOUND)`"""
        ...

    async def find(self, workspace: str, idempotency: Idempotency) -> str | None:
        """The run that this key made. `Conflict(IDEMPOTENCY_CONFLICT)` as in `create`."""
        ...

    async def list(
        self, workspace: str, *, state: str | None, limit: int, before: str | None
    ) -> Rows:
        """Newest first; `before` is a run id."""
        ...

    async def events(self, run_id: str, after: int = 0, limit: int | None = None) -> Log:
        """In order, with their sequence numbers."""
        ...

    async def item_events(self, run_id: str, node: str) -> Facts:
        """Outcomes of a `forEach` node's items and its voids, in commit order."""
        ...

    async def snapshot(self, digest: str) -> Snapshot: ...


_ROW = """id, workspace, flow_id, digest, engine_version, inputs, state, reason, created_at,
 started_at, finished_at, owner, epoch, last_seq, closed"""


class SqliteRunStore:
    def __init__(self, database: Database) -> None:
        self._db = database

    async def create(
        self,
        row: RunRow,
        snapshot: Snapshot,
        events: Sequence[ev.RunFact],
        idempotency: Idempotency | None = None,
    ) -> str:
        encoded = _encode_events(row, events)

        def work(db: sqlite3.Connection) -> str:
            if idempotency is not None:
                made = _known(db, row.workspace, idempotency)
                if made is not None:
                    return made
                db.execute(
                    "INSERT INTO idempotency VALUES (?, ?, ?, ?)",
                    (row.workspace, idempotency.key, idempotency.request, row.id),
                )
            db.execute(
                "INSERT OR IGNORE INTO snapshots VALUES (?, ?, ?)",
                (
                    snapshot.digest,
                    msgspec.json.encode(snapshot.document),
                    msgspec.json.encode(snapshot.manifests),
                ),
            )
            db.execute(f"INSERT INTO runs ({_ROW}) VALUES ({_marks(15)})", _values(row))
            db.executemany(_INSERT_EVENT, encoded)
            return row.id

        return await self._db.write(work)

    async def append(self, row: RunRow, events: Sequence[ev.RunFact]) -> None:
        encoded = _encode_events(row, events)

        def work(db: sqlite3.Connection) -> None:
            changed = db.execute(
                "UPDATE runs SET state = ?, reason = ?, started_at = ?, finished_at = ?,"
                " last_seq = ? WHERE id = ? AND epoch = ? AND last_seq = ?",
                (
                    row.state,
                    row.reason,
                    row.started_at,
                    row.finished_at,
                    row.last_seq,
                    row.id,
                    row.epoch,
                    row.last_seq - len(events),
                ),
            ).rowcount
            if changed == 0:
                raise Fenced(Code.LEASE_LOST, f"run {row.id} has another owner now")
            db.executemany(_INSERT_EVENT, encoded)

        await self._db.write(work)

    async def claim(self, owner: str) -> Rows:
        def work(db: sqlite3.Connection) -> Rows:
            db.execute("UPDATE runs SET epoch = epoch + 1, owner = ? WHERE closed = 0", (owner,))
            rows = db.execute(f"SELECT {_ROW} FROM runs WHERE closed = 0 ORDER BY id").fetchall()
            return [_row(r) for r in rows]

        return await self._db.write(work)

    async def close(self, run_id: str, epoch: int) -> None:
        def work(db: sqlite3.Connection) -> None:
            db.execute("UPDATE runs SET closed = 1 WHERE id = ? AND epoch = ?", (run_id, epoch))

        await self._db.write(work)

    async def delete(self, run_id: str) -> None:
        def work(db: sqlite3.Connection) -> None:
            db.execute("DELETE FROM idempotency WHERE run_id = ?", (run_id,))
            db.execute("DELETE FROM run_events WHERE run_id = ?", (run_id,))
            found = db.execute(
                "DELETE FROM runs WHERE id = ? RETURNING digest", (run_id,)
            ).fetchone()
            if found is not None:
                db.execute(_DROP_SNAPSHOT, (found["digest"],))

        await self._db.write(work)

    async def get(self, run_id: str) -> RunRow:
        def work(db: sqlite3.Connection) -> Any:
            return db.execute(f"SELECT {_ROW} FROM runs WHERE id = ?", (run_id,)).fetchone()

        found = await self._db.read(work)
        if found is None:
            raise unknown_run(run_id)
        return _row(found)

    async def find(self, workspace: str, idempotency: Idempotency) -> str | None:
        return await self._db.read(lambda db: _known(db, workspace, idempotency))

    async def list(
        self, workspace: str, *, state: str | None, limit: int, before: str | None
    ) -> Rows:
        sql = f"SELECT {_ROW} FROM runs WHERE workspace = ?"
        values: list[Any] = [workspace]
        for condition, value in ((" AND state = ?", state), (" AND id < ?", before)):
            if value is not None:
                sql += condition
                values.append(value)
        sql += " ORDER BY id DESC LIMIT ?"
        rows = await self._db.read(lambda db: db.execute(sql, (*values, limit)).fetchall())
        return [_row(r) for r in rows]

    async def events(self, run_id: str, after: int = 0, limit: int | None = None) -> Log:
        sql = (
            "SELECT seq, payload FROM run_events WHERE run_id = ? AND seq > ? ORDER BY seq LIMIT ?"
        )
        count = -1 if limit is None else limit
        rows = await self._db.read(lambda db: db.execute(sql, (run_id, after, count)).fetchall())
        return [(r["seq"], ev.decode(r["payload"])) for r in rows]

    async def item_events(self, run_id: str, node: str) -> Facts:
        sql = (
            "SELECT payload FROM run_events WHERE run_id = ? AND node = ?"
            f" AND type IN ({_marks(len(_ITEM_TYPES))}) ORDER BY seq"
        )
        values = (run_id, node, *_ITEM_TYPES)
        rows = await self._db.read(lambda db: db.execute(sql, values).fetchall())
        return [ev.decode(r["payload"]) for r in rows]

    async def snapshot(self, digest: str) -> Snapshot:
        sql = "SELECT * FROM snapshots WHERE digest = ?"
        row = await self._db.read(lambda db: db.execute(sql, (digest,)).fetchone())
        return Snapshot(
            digest,
            msgspec.json.decode(row["document"]),
            msgspec.json.decode(row["manifests"]),
        )


def unknown_run(run_id: str) -> NotFound:
    return NotFound(
        Code.RUN_NOT_FOUND, f"there is no run {run_id}", hint="`mentatlab runs ls` lists them"
    )


_INSERT_EVENT = "INSERT INTO run_events VALUES (?, ?, ?, ?, ?, ?, ?, ?)"
_DROP_SNAPSHOT = """
    DELETE FROM snapshots WHERE digest = ?1 AND NOT EXISTS (SELECT 1 FROM runs WHERE digest = ?1)
"""
_ITEM_TYPES = tuple(
    str(t.__struct_config__.tag) for t in (ev.NodeSucceeded, ev.NodeFailed, ev.ItemsVoided)
)


def _encode_events(row: RunRow, events: Sequence[ev.RunFact]) -> list[tuple[Any, ...]]:
    first = row.last_seq - len(events) + 1
    return [
        (row.id, seq, ev.stored_type(e), e.node, e.item, e.attempt, ev.encode(e), e.at)
        for seq, e in enumerate(events, first)
    ]


def _known(db: sqlite3.Connection, workspace: str, idempotency: Idempotency) -> str | None:
    row = db.execute(
        "SELECT request, run_id FROM idempotency WHERE workspace = ? AND key = ?",
        (workspace, idempotency.key),
    ).fetchone()
    if row is None:
        return None
    if row["request"] != idempotency.request:
        raise Conflict(
            Code.IDEMPOTENCY_CONFLICT,
            "this idempotency key was used for another request",
            hint="use a new key for a new request",
        )
    return row["run_id"]


def _marks(count: int) -> str:
    return ", ".join("?" * count)


def _values(row: RunRow) -> tuple[Any, ...]:
    columns = msgspec.structs.asdict(row)
    return tuple({**columns, "inputs": msgspec.json.encode(row.inputs)}.values())


def _row(row: sqlite3.Row) -> RunRow:
    columns: dict[str, Any] = {**dict(row), "inputs": msgspec.json.decode(row["inputs"])}
    return msgspec.convert({**columns, "closed": bool(row["closed"])}, RunRow)
