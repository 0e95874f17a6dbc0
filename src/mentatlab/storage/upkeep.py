"""What housekeeping asks of the catalogue. Every write is one short transaction, so that others
write in between; what may be long is read in pages."""

from typing import NamedTuple

import msgspec

from mentatlab.database import Connection, Database
from mentatlab.storage.catalog import COLUMNS, blob_of
from mentatlab.storage.port import Blob

_DOOM = """
    UPDATE blobs SET state = 'deleting'
    WHERE id IN (SELECT id FROM blobs WHERE {due} <= :by AND state <> 'deleting' LIMIT :limit)
      AND {due} <= :by
"""
_UNVERIFIED = f"""
    SELECT {COLUMNS} FROM blobs
    WHERE verified_at IS NULL AND id > ? AND state <> 'deleting' ORDER BY id LIMIT ?
"""
_VERIFIED = f"""
    SELECT {COLUMNS}, verified_at FROM blobs
    WHERE verified_at <= ? AND (verified_at, id) > (?, ?) AND state <> 'deleting'
    ORDER BY verified_at, id LIMIT ?
"""


class Known(NamedTuple):
    """What a comparison with the store needs of a row."""

    key: str
    id: str
    size: int
    state: str


class Verified(NamedTuple):
    """A row, and when its bytes were last found to be right (or wrong)."""

    blob: Blob
    at: float

    @property
    def place(self) -> tuple[float, str]:
        return self.at, self.blob.id


class Holdings(msgspec.Struct, frozen=True):
    """All workspaces together."""

    bytes: int
    count: int
    corrupt: int


class Upkeep:
    """Times are Unix seconds."""

    def __init__(self, database: Database) -> None:
        self._database = database

    # --- what goes

    async def doom(self, *, orphaned_before: float, expired_before: float, limit: int) -> int:
        """Mark `deleting` what has had no owner since, or expired before; at most twice `limit`."""

        def work(db: Connection) -> int:
            orphaned = {"by": orphaned_before, "limit": limit}
            expired = {"by": expired_before, "limit": limit}
            count = db.execute(_DOOM.format(due="orphaned_at"), orphaned).rowcount
            return count + db.execute(_DOOM.format(due="expires_at"), expired).rowcount

        return await self._database.write(work)

    async def doomed(self, *, after: str, limit: int) -> list[Blob]:
        """What is marked `deleting`, in order of ids."""
        query = f"""
            SELECT {COLUMNS} FROM blobs
            WHERE state <> 'ready' AND state = 'deleting' AND id > ? ORDER BY id LIMIT ?
        """
        return await self._database.read(
            lambda db: [blob_of(r) for r in db.execute(query, (after, limit))]
        )

    # --- the other side: the store's

    async def identity(self) -> str:
        """This catalogue's own name."""
        query = "SELECT id FROM identity"
        return await self._database.read(lambda db: db.execute(query).fetchone()[0])

    async def is_empty(self) -> bool:
        query = "SELECT NOT EXISTS (SELECT 1 FROM blobs)"
        return await self._database.read(lambda db: bool(db.execute(query).fetchone()[0]))

    async def known(self, *, after: str, limit: int) -> list[Known]:
        """All rows in order of keys, a page."""
        query = "SELECT key, id, size, state FROM blobs WHERE key > ? ORDER BY key LIMIT ?"
        return await self._database.read(
            lambda db: [Known(*r) for r in db.execute(query, (after, limit))]
        )

    async def by_key(self, *, after: str, limit: int) -> list[Blob]:
        """What is not being deleted, in order of keys, a page."""
        query = f"""
            SELECT {COLUMNS} FROM blobs WHERE key > ? AND state <> 'deleting' ORDER BY key LIMIT ?
        """
        return await self._database.read(
            lambda db: [blob_of(r) for r in db.execute(query, (after, limit))]
        )

    async def open_uploads(self) -> int:
        query = "SELECT count(*) FROM uploads WHERE state = 'open'"
        return await self._database.read(lambda db: db.execute(query).fetchone()[0])

    async def is_expected(self, key: str) -> bool:
        """Whether a row, or an upload under way, means the object with this key."""
        query = """
            SELECT EXISTS (SELECT 1 FROM blobs WHERE key = :key)
                OR EXISTS (SELECT 1 FROM uploads WHERE key = :key AND state = 'open')
        """
        return await self._database.read(
            lambda db: bool(db.execute(query, {"key": key}).fetchone()[0])
        )

    async def is_upload_open(self, key: str, store_id: str) -> bool:
        query = """
            SELECT EXISTS (SELECT 1 FROM uploads WHERE key = ? AND store_id = ? AND state = 'open')
        """
        values = (key, store_id)
        return await self._database.read(lambda db: bool(db.execute(query, values).fetchone()[0]))

    # --- what is to be read again

    async def unverified(self, *, after: str, limit: int) -> list[Blob]:
        """Those whose bytes were never hashed by us, in order of ids."""
        return await self._database.read(
            lambda db: [blob_of(r) for r in db.execute(_UNVERIFIED, (after, limit))]
        )

    async def verified(
        self, *, before: float, after: tuple[float, str], limit: int
    ) -> list[Verified]:
        """Those verified by then, the longest ago first, behind a place."""

        def work(db: Connection) -> list[Verified]:
            found = db.execute(_VERIFIED, (before, *after, limit))
            return [Verified(blob_of(r), r["verified_at"]) for r in found]

        return await self._database.read(work)

    async def record(self, blob_id: str, *, whole: bool, now: float) -> str | None:
        """Its bytes were read: they are right, or they are not. The state that it had before, None
        when it is being deleted."""

        def work(db: Connection) -> str | None:
            query = "SELECT state FROM blobs WHERE id = ? AND state <> 'deleting'"
            row = db.execute(query, (blob_id,)).fetchone()
            if row is None:
                return None
            change = "UPDATE blobs SET state = ?, verified_at = ? WHERE id = ?"
            db.execute(change, ("ready" if whole else "corrupt", now, blob_id))
            return row["state"]

        return await self._database.write(work)

    async def mark_corrupt(self, blob_id: str) -> bool:
        """Whether it was `ready`: what is being deleted is no damage."""
        query = "UPDATE blobs SET state = 'corrupt' WHERE id = ? AND state = 'ready'"
        return await self._database.write(lambda db: db.execute(query, (blob_id,)).rowcount == 1)

    async def holdings(self) -> Holdings:
        query = """
            SELECT CAST(coalesce(sum(bytes), 0) AS BIGINT), CAST(coalesce(sum(count), 0) AS BIGINT),
                   (SELECT count(*) FROM blobs WHERE state <> 'ready' AND state = 'corrupt')
            FROM usage
        """
        return await self._database.read(lambda db: Holdings(*db.execute(query).fetchone()))
