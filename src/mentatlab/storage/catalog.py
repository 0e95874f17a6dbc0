"""The authority on what blobs exist and who needs them: catalog.db.

A blob is `ready` (or `corrupt`) while somebody owns it. When the last owner releases it,
`orphaned_at` is set; after a grace the sweep marks it `deleting`, deletes the bytes, then the row.
A blob that an owner still names is never swept, save by its own expiry.
"""

import sqlite3
from pathlib import Path
from typing import Any

import msgspec

from mentatlab.protocol.errors import Code, Conflict, Gone, NotFound
from mentatlab.protocol.pins import PinType
from mentatlab.sqlite import Database
from mentatlab.storage.port import Blob

SCHEMA = [
    """
    CREATE TABLE blobs (
        id TEXT PRIMARY KEY,
        workspace TEXT NOT NULL,
        key TEXT NOT NULL UNIQUE,
        type TEXT NOT NULL,
        size INTEGER NOT NULL,
        blake3 TEXT NOT NULL,
        sha256 TEXT NOT NULL,
        mime_type TEXT NOT NULL,
        metadata TEXT NOT NULL,
        state TEXT NOT NULL CHECK (state IN ('ready', 'corrupt', 'deleting')),
        filename TEXT NOT NULL,
        created_at REAL NOT NULL,
        expires_at REAL,
        orphaned_at REAL
    ) STRICT;
    CREATE INDEX blobs_by_workspace ON blobs (workspace, id);
    CREATE INDEX blobs_orphaned ON blobs (orphaned_at) WHERE orphaned_at IS NOT NULL;
    CREATE INDEX blobs_expiring ON blobs (expires_at) WHERE expires_at IS NOT NULL;
    CREATE TABLE blob_refs (
        owner TEXT NOT NULL,
        blob_id TEXT NOT NULL REFERENCES blobs (id),
        PRIMARY KEY (owner, blob_id)
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX blob_refs_by_blob ON blob_refs (blob_id);
    """,
    """
    CREATE TABLE usage (
        workspace TEXT PRIMARY KEY,
        bytes INTEGER NOT NULL,
        count INTEGER NOT NULL
    ) STRICT, WITHOUT ROWID;
    INSERT INTO usage SELECT workspace, sum(size), count(*) FROM blobs GROUP BY workspace;
    CREATE TRIGGER blob_counted AFTER INSERT ON blobs BEGIN
        INSERT INTO usage VALUES (new.workspace, new.size, 1)
        ON CONFLICT DO UPDATE SET bytes = bytes + new.size, count = count + 1;
    END;
    CREATE TRIGGER blob_discounted AFTER DELETE ON blobs BEGIN
        UPDATE usage SET bytes = bytes - old.size, count = count - 1
        WHERE workspace = old.workspace;
    END;
    CREATE TABLE uploads (
        id TEXT PRIMARY KEY,
        workspace TEXT NOT NULL,
        mode TEXT NOT NULL CHECK (mode IN ('single', 'tus', 'direct')),
        ref TEXT NOT NULL UNIQUE,
        key TEXT NOT NULL UNIQUE,
        store_id TEXT NOT NULL,
        state TEXT NOT NULL CHECK (state IN ('open', 'done')),
        size INTEGER,
        offset INTEGER NOT NULL,
        reserved INTEGER NOT NULL,
        expect TEXT,
        claims TEXT NOT NULL,
        filename TEXT NOT NULL,
        ttl_s REAL,
        created_at REAL NOT NULL,
        expires_at REAL NOT NULL,
        holder TEXT NOT NULL,
        fence INTEGER NOT NULL,
        leased_until REAL NOT NULL
    ) STRICT;
    CREATE INDEX uploads_by_workspace ON uploads (workspace, id);
    CREATE INDEX uploads_expiring ON uploads (expires_at);
    ALTER TABLE blobs ADD COLUMN verified_at REAL;
    CREATE INDEX blobs_by_verification ON blobs (verified_at, id);
    """,
    # A preview, owned by `preview:<source>`, goes when its source goes, or comes too late to stay.
    """
    CREATE TRIGGER previews_go AFTER UPDATE OF state ON blobs WHEN new.state = 'deleting' BEGIN
        UPDATE blobs SET state = 'deleting'
        WHERE id IN (SELECT blob_id FROM blob_refs WHERE owner = 'preview:' || new.id);
    END;
    CREATE TRIGGER preview_too_late AFTER INSERT ON blob_refs
    WHEN new.owner GLOB 'preview:*' AND NOT EXISTS (
        SELECT 1 FROM blobs WHERE id = substr(new.owner, 9) AND state <> 'deleting'
    ) BEGIN
        UPDATE blobs SET state = 'deleting' WHERE id = new.blob_id;
    END;
    """,
]
_COLUMNS = (
    "id, workspace, key, type, size, blake3, sha256, mime_type, metadata, state, filename,"
    " created_at, expires_at"
)
_INSERT = f"INSERT INTO blobs ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
_ORPHAN = """
    UPDATE blobs SET orphaned_at = :now
    WHERE id IN (SELECT blob_id FROM blob_refs WHERE owner = :owner)
      AND NOT EXISTS (SELECT 1 FROM blob_refs WHERE blob_id = blobs.id AND owner <> :owner)
"""
_DOOM = f"""
    UPDATE blobs SET state = 'deleting'
    WHERE id IN (
        SELECT id FROM blobs
        WHERE state = 'deleting' OR orphaned_at <= :before OR expires_at <= :before
        LIMIT :limit
    )
    RETURNING {_COLUMNS}
"""


class Catalog:
    """Times are Unix seconds and always an argument. Every write is one transaction."""

    def __init__(self, database: Database) -> None:
        self._database = database

    @classmethod
    async def open(cls, path: Path) -> "Catalog":
        return cls(await Database(path, SCHEMA).open())

    async def aclose(self) -> None:
        await self._database.aclose()

    async def add(self, blob: Blob, owner: str) -> None:
        """The row together with its first owner."""

        def work(db: sqlite3.Connection) -> None:
            db.execute(_INSERT, _values(blob))
            db.execute("INSERT INTO blob_refs VALUES (?, ?)", (owner, blob.id))

        await self._database.write(work)

    async def get(self, blob_id: str, *, workspace: str, now: float) -> Blob:
        """`NotFound` when unknown, foreign or being deleted; `Gone` when expired."""
        blob = await self._database.read(lambda db: _find(db, blob_id))
        if blob is None or blob.workspace != workspace:
            raise _unknown(blob_id)
        if blob.expires_at is not None and blob.expires_at <= now:
            raise Gone(Code.REFERENCE_EXPIRED, f"{blob_id} has expired", hint="upload it again")
        return blob

    async def page(
        self, workspace: str, *, limit: int, before: str | None, now: float
    ) -> list[Blob]:
        """Newest first, those with an id below `before`."""
        query = f"""
            SELECT {_COLUMNS} FROM blobs
            WHERE workspace = ? AND id < ? AND state <> 'deleting'
              AND (expires_at IS NULL OR expires_at > ?)
            ORDER BY id DESC LIMIT ?
        """
        values = (workspace, before or "~", now, limit)
        return await self._database.read(lambda db: [_blob(r) for r in db.execute(query, values)])

    async def add_owner(self, blob_id: str, owner: str) -> None:
        def work(db: sqlite3.Connection) -> None:
            if _find(db, blob_id) is None:
                raise _unknown(blob_id)
            db.execute("INSERT OR IGNORE INTO blob_refs VALUES (?, ?)", (owner, blob_id))
            db.execute("UPDATE blobs SET orphaned_at = NULL WHERE id = ?", (blob_id,))

        await self._database.write(work)

    async def release(self, owner: str, *, now: float) -> None:
        def work(db: sqlite3.Connection) -> None:
            db.execute(_ORPHAN, {"owner": owner, "now": now})
            db.execute("DELETE FROM blob_refs WHERE owner = ?", (owner,))

        await self._database.write(work)

    async def doom(self, blob_id: str, *, ignoring: str) -> None:
        """Mark it `deleting`; `Conflict` when an owner other than `ignoring` needs it."""

        def work(db: sqlite3.Connection) -> None:
            query = "SELECT owner FROM blob_refs WHERE blob_id = ? AND owner <> ? LIMIT 1"
            row = db.execute(query, (blob_id, ignoring)).fetchone()
            if row is not None:
                raise Conflict(
                    Code.CONFLICT,
                    f"{blob_id} is in use by {row[0]}",
                    hint="delete the run or stream that uses it first",
                )
            db.execute("UPDATE blobs SET state = 'deleting' WHERE id = ?", (blob_id,))

        await self._database.write(work)

    async def doomed(self, *, before: float, limit: int) -> list[Blob]:
        """Mark what has had no owner since `before`, or expired then, and return all marked."""

        def work(db: sqlite3.Connection) -> list[Blob]:
            return [_blob(r) for r in db.execute(_DOOM, {"before": before, "limit": limit})]

        return await self._database.write(work)

    async def forget(self, blob_ids: list[str]) -> None:
        """Delete rows whose bytes are gone."""
        ids = [(blob_id,) for blob_id in blob_ids]

        def work(db: sqlite3.Connection) -> None:
            db.executemany("DELETE FROM blob_refs WHERE blob_id = ?", ids)
            db.executemany("DELETE FROM blobs WHERE id = ?", ids)

        await self._database.write(work)

    async def mark_corrupt(self, blob_id: str) -> None:
        def work(db: sqlite3.Connection) -> None:
            db.execute("UPDATE blobs SET state = 'corrupt' WHERE id = ?", (blob_id,))

        await self._database.write(work)

    async def has_key(self, key: str) -> bool:
        query = "SELECT 1 FROM blobs WHERE key = ?"
        return await self._database.read(
            lambda db: db.execute(query, (key,)).fetchone() is not None
        )


def _find(db: sqlite3.Connection, blob_id: str) -> Blob | None:
    query = f"SELECT {_COLUMNS} FROM blobs WHERE id = ? AND state <> 'deleting'"
    row = db.execute(query, (blob_id,)).fetchone()
    return None if row is None else _blob(row)


def _values(blob: Blob) -> tuple[Any, ...]:
    return (
        blob.id,
        blob.workspace,
        blob.key,
        blob.type,
        blob.size,
        blob.blake3,
        blob.sha256,
        blob.mime_type,
        msgspec.json.encode(blob.metadata).decode(),
        blob.state,
        blob.filename,
        blob.created_at,
        blob.expires_at,
    )


def _blob(row: sqlite3.Row) -> Blob:
    fields = dict(row)
    fields["type"] = PinType(fields["type"])
    fields["metadata"] = msgspec.json.decode(fields["metadata"])
    return Blob(**fields)


def _unknown(blob_id: str) -> NotFound:
    return NotFound(
        Code.REFERENCE_NOT_FOUND,
        f"there is no blob {blob_id}",
        hint="`mentatlab storage ls` lists what is stored; upload it again if it is gone",
    )
