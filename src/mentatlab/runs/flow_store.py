"""Stored flows, versioned by the digest of their content."""

import contextlib
from collections.abc import Mapping
from typing import Any

import msgspec

from mentatlab.database import Connection, Database
from mentatlab.flows.check import Lookup, check_document
from mentatlab.flows.subflows import inline, names
from mentatlab.protocol.errors import Code, NotFound, Problem, ValidationFailed
from mentatlab.runs.digests import digest_of


class StoredFlow(msgspec.Struct, frozen=True, kw_only=True):
    """One version of a flow; `created_at` in Unix seconds."""

    id: str
    digest: str
    document: dict[str, Any]
    created_at: float

    def to_dict(self) -> dict[str, Any]:
        return msgspec.to_builtins(self)


Flows = list[StoredFlow]
Documents = dict[str, dict[str, Any]]


class FlowStore:
    """Flows of a workspace. Putting a document makes it the current version; older ones stay
    readable."""

    def __init__(self, database: Database) -> None:
        self._db = database

    async def put(
        self, flow_id: str, document: dict[str, Any], *, workspace: str, now: float
    ) -> StoredFlow:
        """Idempotent: the same content is the same version."""
        flow = StoredFlow(id=flow_id, digest=digest_of(document), document=document, created_at=now)
        body = msgspec.json.encode(document)

        def work(db: Connection) -> None:
            db.execute(
                "UPDATE flows SET current = 0 WHERE workspace = ? AND id = ?", (workspace, flow_id)
            )
            db.execute(
                "INSERT INTO flows VALUES (?, ?, ?, ?, ?, 1)"
                " ON CONFLICT (workspace, id, digest) DO UPDATE SET current = 1",
                (workspace, flow_id, flow.digest, body, now),
            )

        await self._db.write(work)
        return await self.get(flow_id, workspace=workspace)

    async def get(self, flow_id: str, *, workspace: str, digest: str | None = None) -> StoredFlow:
        """The current version, or the one named; `NotFound(NOT_FOUND)`."""
        which, value = ("current = ?", 1) if digest is None else ("digest = ?", digest)
        sql = f"SELECT * FROM flows WHERE workspace = ? AND id = ? AND {which}"
        row = await self._db.read(
            lambda db: db.execute(sql, (workspace, flow_id, value)).fetchone()
        )
        if row is None:
            raise _unknown(flow_id)
        return _flow(row)

    async def whole(
        self, document: Mapping[str, Any], *, workspace: str, lookup: Lookup
    ) -> dict[str, Any]:
        """The document with the stored flows that it names in it, so that it stands for itself.

        `ValidationFailed(FLOW_INVALID)` when one cannot be put in, with whatever else is wrong.
        """
        find = (await self._named(document, workspace)).get
        whole, lacking = inline(document, find)
        if lacking:
            found = check_document(document, find, lookup)
            errors = [problem for problem in found if problem.severity == "error"]
            raise ValidationFailed(Code.FLOW_INVALID, "the flow cannot run", errors)
        return whole

    async def check(
        self, document: Mapping[str, Any], *, workspace: str, lookup: Lookup
    ) -> list[Problem]:
        """Every problem of a document, with the stored flows that it names."""
        find = (await self._named(document, workspace)).get
        return check_document(document, find, lookup)

    async def _named(self, document: Mapping[str, Any], workspace: str) -> Documents:
        """The stored flows that it names, directly or in others, by id."""
        found: Documents = {}
        waiting = set(names(document))
        while waiting:
            name = waiting.pop()
            with contextlib.suppress(NotFound):
                found[name] = (await self.get(name, workspace=workspace)).document
                waiting |= names(found[name]) - found.keys()
        return found

    async def list(self, *, workspace: str) -> Flows:
        """Current versions, by id."""
        sql = "SELECT * FROM flows WHERE workspace = ? AND current = 1 ORDER BY id"
        rows = await self._db.read(lambda db: db.execute(sql, (workspace,)).fetchall())
        return [_flow(row) for row in rows]

    async def versions(self, flow_id: str, *, workspace: str) -> Flows:
        """Every version, newest first."""
        sql = "SELECT * FROM flows WHERE workspace = ? AND id = ? ORDER BY created_at DESC, digest"
        rows = await self._db.read(lambda db: db.execute(sql, (workspace, flow_id)).fetchall())
        return [_flow(row) for row in rows]

    async def delete(self, flow_id: str, *, workspace: str) -> None:
        """Remove all versions; runs keep their own snapshots."""

        def work(db: Connection) -> int:
            sql = "DELETE FROM flows WHERE workspace = ? AND id = ?"
            return db.execute(sql, (workspace, flow_id)).rowcount

        if await self._db.write(work) == 0:
            raise _unknown(flow_id)


def _flow(row: Any) -> StoredFlow:
    return StoredFlow(
        id=row["id"],
        digest=row["digest"],
        document=msgspec.json.decode(row["document"]),
        created_at=row["created_at"],
    )


def _unknown(flow_id: str) -> NotFound:
    return NotFound(
        Code.NOT_FOUND, f"there is no flow {flow_id}", hint="`GET /api/v1/flows` lists them"
    )
