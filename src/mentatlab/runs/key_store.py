"""API keys: stored as hashes, shown once.

A key is 32 random bytes, so a plain SHA-256 of it cannot be guessed back; a slow hash would only
slow us.
"""

import hashlib
import os
from base64 import urlsafe_b64encode
from collections.abc import Iterable
from typing import Any, NamedTuple

import msgspec

from mentatlab.database import Connection, Database
from mentatlab.protocol.errors import Code, NotFound
from mentatlab.protocol.ids import new_id


class Key(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of a key; never the key itself. Times in Unix seconds."""

    id: str
    workspace: str
    scopes: tuple[str, ...]
    name: str = ""
    created_at: float

    def to_dict(self) -> dict[str, object]:
        return msgspec.to_builtins(self)


class NewKey(NamedTuple):
    key: Key
    plaintext: str


Keys = list[Key]


class KeyStore:
    def __init__(self, database: Database) -> None:
        self._db = database

    async def create(
        self, *, workspace: str, scopes: Iterable[str], name: str = "", now: float
    ) -> NewKey:
        """`plaintext` is told here and never again."""
        plaintext = "ml_" + urlsafe_b64encode(os.urandom(32)).rstrip(b"=").decode()
        key = Key(
            id=new_id("key"),
            workspace=workspace,
            scopes=tuple(sorted(set(scopes))),
            name=name,
            created_at=now,
        )
        values = (key.id, _hash(plaintext), workspace, ",".join(key.scopes), name, now)

        def work(db: Connection) -> None:
            db.execute("INSERT INTO keys VALUES (?, ?, ?, ?, ?, ?, NULL)", values)

        await self._db.write(work)
        return NewKey(key, plaintext)

    async def verify(self, plaintext: str) -> Key | None:
        """The key that this is, unless unknown or revoked."""
        sql = "SELECT * FROM keys WHERE digest = ? AND revoked_at IS NULL"
        digest = _hash(plaintext)
        row = await self._db.read(lambda db: db.execute(sql, (digest,)).fetchone())
        return _key(row) if row else None

    async def list(self, *, workspace: str | None = None) -> Keys:
        """Keys that are not revoked, oldest first; of all workspaces without one."""
        where, values = ("", ()) if workspace is None else (" AND workspace = ?", (workspace,))
        sql = f"SELECT * FROM keys WHERE revoked_at IS NULL{where} ORDER BY id"
        rows = await self._db.read(lambda db: db.execute(sql, values).fetchall())
        return [_key(row) for row in rows]

    async def revoke(self, key_id: str, *, now: float) -> None:
        """`NotFound(NOT_FOUND)` for an id that is not there or revoked already."""

        def work(db: Connection) -> int:
            sql = "UPDATE keys SET revoked_at = ? WHERE id = ? AND revoked_at IS NULL"
            return db.execute(sql, (now, key_id)).rowcount

        if await self._db.write(work) == 0:
            raise NotFound(
                Code.NOT_FOUND, f"there is no key {key_id}", hint="`mentatlab keys ls` lists them"
            )


def _hash(plaintext: str) -> str:
    return hashlib.sha256(plaintext.encode()).hexdigest()


def _key(row: Any) -> Key:
    return Key(
        id=row["id"],
        workspace=row["workspace"],
        scopes=tuple(row["scopes"].split(",")),
        name=row["name"],
        created_at=row["created_at"],
    )
