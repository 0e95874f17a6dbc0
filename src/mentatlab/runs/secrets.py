"""Secrets by name: encrypted in the database, given to agents that name them, masked in what these
say. Values leave here only towards an agent's environment or a signature."""

import hashlib
import os
import re
from collections.abc import Awaitable, Callable, Collection, Iterable
from dataclasses import replace
from typing import Any

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from mentatlab.database import Connection, Database
from mentatlab.protocol.agent import is_secret_name
from mentatlab.protocol.errors import Code, Invalid, NotFound, Unavailable
from mentatlab.protocol.records import Draft
from mentatlab.protocol.values import is_object
from mentatlab.runs.edges import is_array
from mentatlab.runs.signals import AttemptEnded

LEAST_CHARACTERS = 4
"""Shorter ones could not be masked without masking everything."""
MOST_BYTES = 32 * 1024
_NONCE_BYTES = 12
_MASKED = "***"

SecretsFor = Callable[[str, Collection[str]], Awaitable[dict[str, str]]]
"""(workspace, names) → value by name; `Invalid(SECRET_MISSING)` names all that are missing."""


class SecretInfo(msgspec.Struct, frozen=True, kw_only=True):
    """What may be told of a secret; times in Unix seconds."""

    name: str
    created_at: float
    updated_at: float


Infos = list[SecretInfo]


class Seal:
    """AES-256-GCM under a key made of the server's own secret; what is sealed for one place
    cannot be opened in another."""

    def __init__(self, secret: str) -> None:
        self._cipher = AESGCM(hashlib.sha256(b"mentatlab secrets\0" + secret.encode()).digest())

    def close(self, text: str, place: str) -> bytes:
        nonce = os.urandom(_NONCE_BYTES)
        return nonce + self._cipher.encrypt(nonce, text.encode(), place.encode())

    def open(self, sealed: bytes, place: str) -> str:
        """`Unavailable(SECRET_UNREADABLE)` when it was sealed under another key."""
        nonce, body = sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:]
        try:
            return self._cipher.decrypt(nonce, body, place.encode()).decode()
        except InvalidTag as error:
            raise Unavailable(
                Code.SECRET_UNREADABLE,
                f"{place} was encrypted with another key",
                hint="bring back the home's `key` (or MENTATLAB_TOKEN_SECRET), or set it again",
            ) from error


class SecretStore:
    def __init__(self, database: Database, seal: Seal) -> None:
        self._db, self._seal = database, seal

    async def put(self, name: str, value: str, *, workspace: str, now: float) -> None:
        """`Invalid(SECRET_INVALID)` for a name or value that cannot be one."""
        _check(name, value)
        sealed = self._seal.close(value, _place(workspace, name))

        def work(db: Connection) -> None:
            db.execute(
                "INSERT INTO secrets VALUES (?, ?, ?, ?, ?) ON CONFLICT (workspace, name)"
                " DO UPDATE SET sealed = excluded.sealed, updated_at = excluded.updated_at",
                (workspace, name, sealed, now, now),
            )

        await self._db.write(work)

    async def list(self, *, workspace: str) -> Infos:
        sql = "SELECT name, created_at, updated_at FROM secrets WHERE workspace = ? ORDER BY name"
        rows = await self._db.read(lambda db: db.execute(sql, (workspace,)).fetchall())
        return [
            SecretInfo(name=r["name"], created_at=r["created_at"], updated_at=r["updated_at"])
            for r in rows
        ]

    async def delete(self, name: str, *, workspace: str) -> None:
        """`NotFound(NOT_FOUND)`"""

        def work(db: Connection) -> int:
            sql = "DELETE FROM secrets WHERE workspace = ? AND name = ?"
            return db.execute(sql, (workspace, name)).rowcount

        if await self._db.write(work) == 0:
            raise NotFound(
                Code.NOT_FOUND, f"there is no secret {name}", hint="`mentatlab secrets ls`"
            )

    async def secrets_for(self, workspace: str, names: Collection[str]) -> dict[str, str]:
        """The values by name. `Invalid(SECRET_MISSING)` with every name that is missing."""
        if not names:
            return {}
        sql = "SELECT name, sealed FROM secrets WHERE workspace = ?"
        rows = await self._db.read(lambda db: db.execute(sql, (workspace,)).fetchall())
        sealed = {r["name"]: bytes(r["sealed"]) for r in rows}
        if missing := sorted(set(names) - sealed.keys()):
            raise Invalid(
                Code.SECRET_MISSING,
                f"the workspace has no secret {', '.join(missing)}",
                hint=f"set it: mentatlab secrets set {missing[0]}",
            )
        return {name: self._seal.open(sealed[name], _place(workspace, name)) for name in names}


async def no_secrets(workspace: str, names: Collection[str]) -> dict[str, str]:
    """For engines without a store of secrets."""
    if names:
        raise Invalid(
            Code.SECRET_MISSING,
            f"the workspace {workspace} has no secret {', '.join(names)}",
            hint="set it: mentatlab secrets set NAME",
        )
    return {}


class Mask:
    """Replaces secrets in what agents say by `***`: whole ones, and each longer line of one, for
    logs come line by line."""

    def __init__(self, values: Iterable[str]) -> None:
        parts = {part for value in values for part in (value, *value.splitlines())}
        hidden = sorted((p for p in parts if len(p) >= LEAST_CHARACTERS), key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, hidden))) if hidden else None

    def text(self, text: str) -> str:
        return text if self._pattern is None else self._pattern.sub(_MASKED, text)

    def value(self, value: Any) -> Any:
        """The JSON value with every text in it masked, keys too."""
        if self._pattern is None:
            return value
        if isinstance(value, str):
            return self.text(value)
        if is_object(value):
            return {self.text(k): self.value(v) for k, v in value.items()}
        return [self.value(v) for v in value] if is_array(value) else value


def masked(ended: AttemptEnded, mask: Mask) -> AttemptEnded:
    """No secret that an agent was given gets into the run's record."""
    error = ended.error and msgspec.structs.replace(
        ended.error, message=mask.text(ended.error.message), hint=mask.text(ended.error.hint)
    )
    outputs, metrics = mask.value(dict(ended.outputs)), mask.value(dict(ended.metrics))
    return replace(ended, outputs=outputs, metrics=metrics, error=error)


def masked_note(draft: Draft, mask: Mask) -> Draft:
    return msgspec.structs.replace(draft, payload=mask.value(draft.values))


def _place(workspace: str, name: str) -> str:
    return f"secret {workspace}/{name}"


def _check(name: str, value: str) -> None:
    if not is_secret_name(name):
        raise Invalid(
            Code.SECRET_INVALID,
            f"{name[:100]!r} cannot be the name of a secret",
            hint="capital letters, digits and `_`, as of an environment variable",
        )
    if len(value) < LEAST_CHARACTERS or len(value.encode()) > MOST_BYTES or "\0" in value:
        raise Invalid(
            Code.SECRET_INVALID,
            f"the value of {name} cannot be a secret",
            hint=f"from {LEAST_CHARACTERS} characters to {MOST_BYTES} bytes, without NUL",
        )
