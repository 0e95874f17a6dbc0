"""The run store in SQL, on SQLite or Postgres."""

import re
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import msgspec

from mentatlab.database import MOST_ROWS, Connection, Database, Hint
from mentatlab.protocol.errors import Code, Conflict, Fenced
from mentatlab.protocol.ids import new_id
from mentatlab.runs import events as ev
from mentatlab.runs import outbox
from mentatlab.runs.store import (
    EVERY_RUN,
    LEASE_S,
    CacheEntry,
    Checkpoint,
    Checkpoints,
    Facts,
    Idempotency,
    Log,
    Request,
    Requests,
    Rows,
    RunFilter,
    RunRow,
    Snapshot,
    unknown_run,
)

_ROW = """id, workspace, flow_id, digest, engine_version, inputs, state, reason, created_at,
 started_at, finished_at, owner, epoch, last_seq, closed, origin, from_node, trigger_name"""
_CLAIM = f"""
    WITH due AS (
        SELECT id FROM runs WHERE closed = 0 AND owner <> :owner AND (:alone = 1 OR NOT EXISTS (
            SELECT 1 FROM engines WHERE engines.id = runs.owner AND lease_until > clock()
        )) ORDER BY id LIMIT :limit {{skip_locked}}
    )
    UPDATE runs SET epoch = epoch + 1, owner = :owner WHERE id IN (SELECT id FROM due)
    RETURNING {_ROW}
"""
_RENEW = """
    INSERT INTO engines VALUES (?, clock() + ?)
    ON CONFLICT (id) DO UPDATE SET lease_until = excluded.lease_until
"""
_WAITING = "SELECT count(*) AS count FROM runs WHERE workspace = ? AND state = 'queued'"
_FORGET_AFTER_S = 3600.0
_IS_MINE = "SELECT 1 FROM runs WHERE id = ? AND epoch = ?"
_SAVE_CHECKPOINT = """
    INSERT INTO checkpoints VALUES (?, ?, ?, ?)
    ON CONFLICT (run_id, node, item) DO UPDATE SET body = excluded.body
"""
_DROP_CHECKPOINT = "DELETE FROM checkpoints WHERE run_id = ? AND node = ? AND item = ?"
_REMEMBER = """
    INSERT INTO cache VALUES (?, ?, ?, ?)
    ON CONFLICT (workspace, key) DO UPDATE SET run_id = excluded.run_id, body = excluded.body
"""
_UNIT_ENDS = ev.NodeSucceeded | ev.NodeCached | ev.NodeSkipped | ev.NodeFailed | ev.NodeCancelled


class SqlRunStore:
    """On either database. When no other process writes to it, leases bind nobody."""

    def __init__(self, database: Database) -> None:
        self._db = database
        self._checkpointed: set[str] = set()  # runs that may have checkpoints
        self._claim = _CLAIM.format(skip_locked=database.skip_locked)

    @property
    def shared(self) -> bool:
        return self._db.shared

    async def create(
        self,
        row: RunRow,
        snapshot: Snapshot,
        events: Sequence[ev.RunFact],
        idempotency: Idempotency | None = None,
    ) -> str:
        encoded = _encode_events(row, events)

        def work(db: Connection) -> str:
            if idempotency is not None:
                mine = db.execute(
                    "INSERT INTO idempotency VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING",
                    (row.workspace, idempotency.key, idempotency.request, row.id),
                ).rowcount
                if not mine and (made := _known(db, row.workspace, idempotency)):
                    return made
            db.execute(
                "INSERT INTO snapshots VALUES (?, ?, ?) ON CONFLICT DO NOTHING",
                (
                    snapshot.digest,
                    msgspec.json.encode(snapshot.document),
                    msgspec.json.encode(snapshot.manifests),
                ),
            )
            db.execute(f"INSERT INTO runs ({_ROW}) VALUES ({_marks(18)})", _values(row))
            db.executemany(_INSERT_EVENT, encoded)
            outbox.add_webhooks(db, row, snapshot)
            return row.id

        return await self._db.write(work)

    async def append(self, row: RunRow, events: Sequence[ev.RunFact]) -> None:
        encoded = _encode_events(row, events)

        def work(db: Connection) -> bool:
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
                raise _fenced(row.id)
            db.executemany(_INSERT_EVENT, encoded)
            if ended:
                db.executemany(_DROP_CHECKPOINT, ended)
            return outbox.enqueue(db, row, events)

        ended = self._ended_checkpoints(row.id, events)
        if await self._db.write(work):
            self._db.tell(outbox.TOPIC)
        if row.finished_at is not None:
            self._db.tell(row.id)

    def _ended_checkpoints(
        self, run_id: str, events: Sequence[ev.RunFact]
    ) -> list[tuple[str, str, int]]:
        if run_id not in self._checkpointed:
            return []
        return [(run_id, e.node, e.item or 0) for e in events if isinstance(e, _UNIT_ENDS)]

    async def close(self, run_id: str, epoch: int) -> None:
        def work(db: Connection) -> None:
            sql = "UPDATE runs SET closed = 1 WHERE id = ? AND epoch = ?"
            if db.execute(sql, (run_id, epoch)).rowcount:
                _forget_work(db, run_id)

        await self._db.write(work)
        self._checkpointed.discard(run_id)
        self._db.tell(run_id)

    async def delete(self, run_id: str) -> None:
        def work(db: Connection) -> None:
            _forget_work(db, run_id)
            outbox.forget(db, run_id)
            for table in ("idempotency", "run_events", "cache"):
                db.execute(f"DELETE FROM {table} WHERE run_id = ?", (run_id,))
            found = db.execute(
                "DELETE FROM runs WHERE id = ? RETURNING digest", (run_id,)
            ).fetchone()
            if found is not None:
                db.execute(_DROP_SNAPSHOT, {"digest": found["digest"]})

        await self._db.write(work)

    async def get(self, run_id: str) -> RunRow:
        def work(db: Connection) -> Any:
            return db.execute(f"SELECT {_ROW} FROM runs WHERE id = ?", (run_id,)).fetchone()

        found = await self._db.read(work)
        if found is None:
            raise unknown_run(run_id)
        return _row(found)

    async def find(self, workspace: str, idempotency: Idempotency) -> str | None:
        return await self._db.read(lambda db: _known(db, workspace, idempotency))

    async def list(
        self,
        workspace: str,
        *,
        filter: RunFilter = EVERY_RUN,
        limit: int,
        before: str | None = None,
    ) -> Rows:
        wanted = [("workspace = ?", [workspace]), *_conditions(filter)]
        if before is not None:
            wanted.append(("id < ?", [before]))
        where = " AND ".join(condition for condition, _ in wanted)
        values = [value for _, some in wanted for value in some]
        sql = f"SELECT {_ROW} FROM runs WHERE {where} ORDER BY id DESC LIMIT ?"
        rows = await self._db.read(lambda db: db.execute(sql, (*values, limit)).fetchall())
        return [_row(r) for r in rows]

    async def waiting(self, workspace: str) -> int:
        def work(db: Connection) -> int:
            return db.execute(_WAITING, (workspace,)).fetchone()["count"]

        return await self._db.read(work)

    async def events(self, run_id: str, after: int = 0, limit: int | None = None) -> Log:
        sql = (
            "SELECT seq, payload FROM run_events WHERE run_id = ? AND seq > ? ORDER BY seq LIMIT ?"
        )
        count = MOST_ROWS if limit is None else limit
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

    # --- whose a run is

    async def renew(self, owner: str, lease_s: float = LEASE_S) -> set[str]:
        def work(db: Connection) -> set[str]:
            db.execute(_RENEW, (owner, lease_s))
            db.execute("DELETE FROM engines WHERE lease_until < clock() - ?", (_FORGET_AFTER_S,))
            sql = "SELECT id FROM runs WHERE closed = 0 AND owner = ?"
            return {row["id"] for row in db.execute(sql, (owner,))}

        return await self._db.write(work)

    async def claim(self, owner: str, *, limit: int = 100) -> Rows:
        values = {"owner": owner, "limit": limit, "alone": int(not self._db.shared)}
        found = await self._db.write(lambda db: db.execute(self._claim, values).fetchall())
        return sorted((_row(r) for r in found), key=lambda row: row.id)

    async def release(self, owner: str) -> None:
        sql = "DELETE FROM engines WHERE id = ?"
        await self._db.write(lambda db: db.execute(sql, (owner,)).rowcount)

    # --- what others want of a run's owner

    async def ask(self, run_id: str, request: dict[str, Any]) -> Request:
        asked = Request(new_id("rq"), run_id, request)
        values = (asked.id, run_id, msgspec.json.encode(request))

        def work(db: Connection) -> str:
            sql = "SELECT owner, closed FROM runs WHERE id = ?"
            found = db.execute(sql, (run_id,)).fetchone()
            if found is None:
                raise unknown_run(run_id)
            if not found["closed"]:
                db.execute("INSERT INTO requests VALUES (?, ?, ?)", values)
            return found["owner"]

        self._db.tell(await self._db.write(work))
        return asked

    async def is_open(self, request: Request) -> bool:
        sql = "SELECT 1 FROM requests WHERE id = ?"
        return await self._db.read(lambda db: db.execute(sql, (request.id,)).fetchone()) is not None

    async def asked(self, owner: str) -> Requests:
        sql = """
            SELECT requests.id, run_id, request FROM requests JOIN runs ON runs.id = run_id
            WHERE owner = ? ORDER BY requests.id
        """
        rows = await self._db.read(lambda db: db.execute(sql, (owner,)).fetchall())
        return [Request(r["id"], r["run_id"], msgspec.json.decode(r["request"])) for r in rows]

    async def answered(self, request: Request) -> None:
        sql = "DELETE FROM requests WHERE id = ?"
        await self._db.write(lambda db: db.execute(sql, (request.id,)).rowcount)
        self._db.tell(request.run_id)

    def listen(self, topic: str) -> AbstractContextManager[Hint]:
        return self._db.listen(topic)

    # --- checkpoints, and results to be used again

    async def save_checkpoint(self, run_id: str, epoch: int, checkpoint: Checkpoint) -> None:
        at = (run_id, checkpoint.node, checkpoint.item or 0)
        body = msgspec.json.encode(checkpoint)

        def work(db: Connection) -> None:
            if db.execute(_IS_MINE, (run_id, epoch)).fetchone() is None:
                raise _fenced(run_id)
            db.execute(_SAVE_CHECKPOINT, (*at, body))

        self._checkpointed.add(run_id)
        await self._db.write(work)

    async def checkpoints(self, run_id: str) -> Checkpoints:
        sql = "SELECT body FROM checkpoints WHERE run_id = ? ORDER BY node, item"
        rows = await self._db.read(lambda db: db.execute(sql, (run_id,)).fetchall())
        if rows:
            self._checkpointed.add(run_id)
        return [msgspec.json.decode(r["body"], type=Checkpoint) for r in rows]

    async def remember(self, entry: CacheEntry) -> None:
        values = (entry.workspace, entry.key, entry.run_id, msgspec.json.encode(entry))
        await self._db.write(lambda db: db.execute(_REMEMBER, values).rowcount)

    async def cached(self, workspace: str, key: str) -> CacheEntry | None:
        sql = "SELECT body FROM cache WHERE workspace = ? AND key = ?"
        row = await self._db.read(lambda db: db.execute(sql, (workspace, key)).fetchone())
        return None if row is None else msgspec.json.decode(row["body"], type=CacheEntry)


_INSERT_EVENT = "INSERT INTO run_events VALUES (?, ?, ?, ?, ?, ?, ?, ?)"
_DROP_SNAPSHOT = """
    DELETE FROM snapshots
    WHERE digest = :digest AND NOT EXISTS (SELECT 1 FROM runs WHERE digest = :digest)
"""
_ITEM_TYPES = tuple(
    str(t.__struct_config__.tag)
    for t in (ev.NodeSucceeded, ev.NodeCached, ev.NodeSkipped, ev.NodeFailed, ev.ItemsVoided)
)


def _encode_events(row: RunRow, events: Sequence[ev.RunFact]) -> list[tuple[Any, ...]]:
    first = row.last_seq - len(events) + 1
    return [
        (row.id, seq, ev.stored_type(e), e.node, e.item, e.attempt, ev.encode(e), e.at)
        for seq, e in enumerate(events, first)
    ]


def _conditions(wanted: RunFilter) -> list[tuple[str, list[Any]]]:
    """SQL with its values, for what the filter names."""
    part = f"%{_escaped((wanted.text or '').lower())}%"
    kind = f"{_escaped(wanted.trigger or '')}:%"
    every: list[tuple[object, str, list[Any]]] = [
        (wanted.states or None, f"state IN ({_marks(len(wanted.states))})", [*wanted.states]),
        (wanted.flow_id, "flow_id = ?", [wanted.flow_id]),
        (wanted.since, "created_at >= ?", [wanted.since]),
        (wanted.until, "created_at < ?", [wanted.until]),
        (
            wanted.trigger,
            "(trigger_name = ? OR trigger_name LIKE ? ESCAPE '!')",
            [wanted.trigger, kind],
        ),
        (wanted.origin, "origin = ?", [wanted.origin]),
        (wanted.text, f"({' OR '.join(_CONTAINS)})", [part] * len(_CONTAINS)),
    ]
    return [(condition, values) for asked, condition, values in every if asked is not None]


_CONTAINS = [f"lower({name}) LIKE ? ESCAPE '!'" for name in ("id", "flow_id", "reason")]


def _escaped(text: str) -> str:
    """For LIKE, literally."""
    return re.sub("[!%_]", r"!\g<0>", text)


def _fenced(run_id: str) -> Fenced:
    return Fenced(Code.LEASE_LOST, f"run {run_id} has another owner now")


def _forget_work(db: Connection, run_id: str) -> None:
    """What only a run that goes on needs."""
    for table in ("requests", "checkpoints"):
        db.execute(f"DELETE FROM {table} WHERE run_id = ?", (run_id,))


def _known(db: Connection, workspace: str, idempotency: Idempotency) -> str | None:
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
    changed = {"inputs": msgspec.json.encode(row.inputs), "closed": int(row.closed)}
    return tuple({**columns, **changed}.values())


def _row(row: Any) -> RunRow:
    columns: dict[str, Any] = {**dict(row), "inputs": msgspec.json.decode(row["inputs"])}
    columns["trigger"] = columns.pop("trigger_name")
    return msgspec.convert({**columns, "closed": bool(row["closed"])}, RunRow)
