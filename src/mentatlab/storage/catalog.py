"""The authority on what blobs exist and who needs them: catalog.db, or tables in Postgres.

A blob is `ready` (or `corrupt`) while somebody owns it. When the last owner releases it,
`orphaned_at` is set; after a grace the sweep marks it `deleting`, deletes the bytes, then the row.
A blob that an owner still names is never swept, save by its own expiry.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from mentatlab.database import Connection, Database
from mentatlab.protocol.errors import Code, Conflict, Gone, NotFound
from mentatlab.protocol.pins import PinType
from mentatlab.sqlite import Database as SqliteDatabase
from mentatlab.storage.port import Blob
from mentatlab.storage.schema import SCHEMA

_MOST_RECENT = 1024
COLUMNS = (
    "id, workspace, key, type, size, blake3, sha256, mime_type, metadata, state, filename,"
    " created_at, expires_at"
)
_INSERT = f"""
    INSERT INTO blobs ({COLUMNS}, verified_at)
    VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
"""
_ORPHAN = """
    UPDATE blobs SET orphaned_at = :now
    WHERE id IN (SELECT blob_id FROM blob_refs WHERE owner = :owner)
      AND NOT EXISTS (SELECT 1 FROM blob_refs WHERE blob_id = blobs.id AND owner <> :owner)
"""
_LOCK_OWNED = """
    SELECT id FROM blobs WHERE id IN (SELECT blob_id FROM blob_refs WHERE owner = ?)
    ORDER BY id FOR UPDATE
"""

Write = Callable[[Connection], None]
"""What is written beside a row, in its transaction."""


def nothing(db: Connection) -> None:
    """There is nothing to write beside it."""


class Catalog:
    """Times are Unix seconds and always an argument. Every write is one transaction."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._recent: dict[str, Blob] = {}
        self._recent_as_of = 0

    @property
    def database(self) -> Database:
        """For the rows of others beside these."""
        return self._database

    @classmethod
    async def open(cls, place: Path | Database) -> "Catalog":
        """A file's, or that of an open database, which is closed with it."""
        return cls(await SqliteDatabase(place, SCHEMA).open() if isinstance(place, Path) else place)

    async def aclose(self) -> None:
        await self._database.aclose()

    async def add(
        self, blob: Blob, owner: str, *, also: Write = nothing, verified_at: float | None = None
    ) -> None:
        """The row together with its first owner, and what `also` writes in the same transaction.

        `verified_at` None: nobody here has hashed the bytes yet.
        """

        def work(db: Connection) -> None:
            db.execute(_INSERT, (*_values(blob), verified_at))
            db.execute("INSERT INTO blob_refs VALUES (?, ?)", (owner, blob.id))
            also(db)

        await self._database.write(work)

    async def get(self, blob_id: str, *, workspace: str, now: float) -> Blob:
        """`NotFound` when unknown, foreign or being deleted; `Gone` when expired."""
        blob = await self._current(blob_id)
        if blob is None or blob.workspace != workspace:
            raise _unknown(blob_id)
        if blob.expires_at is not None and blob.expires_at <= now:
            raise Gone(Code.REFERENCE_EXPIRED, f"{blob_id} has expired", hint="upload it again")
        return blob

    async def _current(self, blob_id: str) -> Blob | None:
        """As of the last commit. What was read since then need not be read again: a client that
        takes a medium in many ranges asks for the same row each time."""
        if self._database.shared:
            return await self._database.read(lambda db: _find(db, blob_id))
        commits = self._database.commits
        if commits != self._recent_as_of or len(self._recent) > _MOST_RECENT:
            self._recent, self._recent_as_of = {}, commits
        recent = self._recent
        if (known := recent.get(blob_id)) is not None:
            return known
        blob = await self._database.read(lambda db: _find(db, blob_id))
        if blob is not None and commits == self._database.commits:
            recent[blob_id] = blob
        return blob

    async def page(
        self, workspace: str, *, limit: int, before: str | None, now: float
    ) -> list[Blob]:
        """Newest first, those with an id below `before`; previews are left out."""
        query = f"""
            SELECT {COLUMNS} FROM blobs
            WHERE workspace = ? AND id < ? AND state <> 'deleting'
              AND (expires_at IS NULL OR expires_at > ?)
              AND NOT EXISTS (
                SELECT 1 FROM blob_refs WHERE blob_id = blobs.id AND owner LIKE 'preview:%'
              )
            ORDER BY id DESC LIMIT ?
        """
        values = (workspace, before or "~", now, limit)
        return await self._database.read(lambda db: [blob_of(r) for r in db.execute(query, values)])

    async def preview(self, source: str, name: str) -> Blob | None:
        query = f"""
            SELECT {COLUMNS} FROM blob_refs JOIN blobs ON id = blob_id
            WHERE owner = ? AND filename = ? AND state = 'ready'
        """
        values = (f"preview:{source}", name)
        row = await self.database.read(lambda db: db.execute(query, values).fetchone())
        return None if row is None else blob_of(row)

    async def add_owner(self, blob_id: str, owner: str) -> None:
        def work(db: Connection) -> None:
            needed = "UPDATE blobs SET orphaned_at = NULL WHERE id = ? AND state <> 'deleting'"
            if db.execute(needed, (blob_id,)).rowcount == 0:
                raise _unknown(blob_id)
            add = "INSERT INTO blob_refs VALUES (?, ?) ON CONFLICT DO NOTHING"
            db.execute(add, (owner, blob_id))

        await self._database.write(work)

    async def release(self, owner: str, *, now: float) -> None:
        def work(db: Connection) -> None:
            if self._database.shared:  # of two last owners that go at once, one is the last
                db.execute(_LOCK_OWNED, (owner,)).fetchall()
            db.execute(_ORPHAN, {"owner": owner, "now": now})
            db.execute("DELETE FROM blob_refs WHERE owner = ?", (owner,))

        await self._database.write(work)

    async def doom(self, blob_id: str, *, ignoring: str) -> None:
        """Mark it `deleting`; `Conflict` when an owner other than `ignoring` needs it."""

        def work(db: Connection) -> None:
            db.execute("UPDATE blobs SET state = 'deleting' WHERE id = ?", (blob_id,))
            query = "SELECT owner FROM blob_refs WHERE blob_id = ? AND owner <> ? LIMIT 1"
            row = db.execute(query, (blob_id, ignoring)).fetchone()
            if row is not None:
                raise Conflict(
                    Code.CONFLICT,
                    f"{blob_id} is in use by {row[0]}",
                    hint="delete the run or stream that uses it first",
                )

        await self._database.write(work)

    async def forget(self, blob_ids: list[str]) -> None:
        """Delete rows whose bytes are gone."""
        ids = [(blob_id,) for blob_id in blob_ids]

        def work(db: Connection) -> None:
            db.executemany("DELETE FROM blob_refs WHERE blob_id = ?", ids)
            db.executemany("DELETE FROM blobs WHERE id = ?", ids)

        await self._database.write(work)


def _find(db: Connection, blob_id: str) -> Blob | None:
    query = f"SELECT {COLUMNS} FROM blobs WHERE id = ? AND state <> 'deleting'"
    row = db.execute(query, (blob_id,)).fetchone()
    return None if row is None else blob_of(row)


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


def blob_of(row: Any) -> Blob:
    """Of a row that has COLUMNS, and perhaps more."""
    fields: dict[str, Any] = {name: row[name] for name in Blob.__struct_fields__}
    fields["type"] = PinType(fields["type"])
    fields["metadata"] = msgspec.json.decode(fields["metadata"])
    return Blob(**fields)


def _unknown(blob_id: str) -> NotFound:
    return NotFound(
        Code.REFERENCE_NOT_FOUND,
        f"there is no blob {blob_id}",
        hint="`mentatlab storage ls` lists what is stored; upload it again if it is gone",
    )
