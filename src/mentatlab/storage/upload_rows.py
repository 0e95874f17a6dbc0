"""What the catalogue knows of uploads: their rows, leases and reservations. Times are arguments.

A row is `open` until its blob is entered in the same transaction that makes it `done`. An open row
reserves bytes and one place of its workspace's quota. Whoever writes holds the row's lease: every
lease has a higher `fence`, and what is written under an older one changes nothing (`Fenced`).
"""

import contextlib
from collections.abc import Callable
from typing import Any, Literal

import msgspec

from mentatlab.database import Connection, Database
from mentatlab.protocol.errors import Code, Fenced, Gone, NotFound, OutOfSpace
from mentatlab.protocol.pins import PinType

Mode = Literal["single", "tus", "direct"]


class Claims(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What the client says of the bytes, and what their beginning says.

    `head` is the beginning itself, until enough of it is there to be judged: then `mime` is final.
    """

    declared_mime: str = ""
    sha256: str = ""  # hex
    blake3: str = ""  # hex
    owner: str = ""  # "" = the upload itself
    metadata: dict[str, Any] = {}
    tus_metadata: str = ""  # as it came
    head: bytes = b""
    mime: str = ""


class UploadRow(msgspec.Struct, frozen=True, kw_only=True):
    """`offset`: bytes that are durable. `size` None = not known yet."""

    id: str
    workspace: str
    mode: Mode
    ref: str
    key: str
    store_id: str = ""  # "" = the store knows nothing of it
    state: Literal["open", "done"] = "open"
    size: int | None
    offset: int = 0
    reserved: int
    expect: PinType | None = None
    claims: Claims = Claims()
    filename: str = ""
    ttl_s: float | None = None
    created_at: float
    expires_at: float
    holder: str = ""
    fence: int = 0
    leased_until: float = 0.0

    @property
    def is_whole(self) -> bool:
        return self.size is not None and self.offset == self.size


class Quota(msgspec.Struct, frozen=True):
    """Of one workspace; 0 = no bound."""

    bytes: int = 0
    count: int = 0


class Usage(msgspec.Struct, frozen=True):
    bytes: int  # stored
    count: int
    reserved_bytes: int  # announced by open uploads
    reserved_count: int


NO_QUOTA = Quota()
_STEP = 16 << 20

_NAMES = UploadRow.__struct_fields__
_COLUMNS = ", ".join(f'"{name}"' for name in _NAMES)  # offset is a word of SQL
_INSERT = f"INSERT INTO uploads ({_COLUMNS}) VALUES ({', '.join(f':{n}' for n in _NAMES)})"
_USAGE = """
    SELECT CAST(coalesce(sum(bytes), 0) AS BIGINT), CAST(coalesce(sum(count), 0) AS BIGINT),
           (SELECT CAST(coalesce(sum(reserved), 0) AS BIGINT)
            FROM uploads WHERE workspace = :w AND state = 'open'),
           (SELECT count(*) FROM uploads WHERE workspace = :w AND state = 'open')
    FROM usage WHERE workspace = :w
"""
_ONE_AT_A_TIME = """
    INSERT INTO usage VALUES (?, 0, 0) ON CONFLICT (workspace) DO UPDATE SET count = usage.count
"""
_LEASE = f"""
    UPDATE uploads SET holder = :holder, fence = fence + 1, leased_until = :until
    WHERE id = :id AND (state = 'done' OR holder IN ('', :holder) OR leased_until <= :now)
    RETURNING {_COLUMNS}
"""
_RECORD = """
    UPDATE uploads SET store_id = :store_id, key = :key, claims = :claims, "offset" = :offset,
                       size = :size, expires_at = :expires_at, leased_until = :leased_until
    WHERE id = :id AND fence = :fence AND state = 'open'
"""
_DONE = """
    UPDATE uploads SET state = 'done', size = :size, "offset" = :size, reserved = 0, key = :key,
                       store_id = :store_id, expires_at = :expires_at, holder = ''
    WHERE id = :id AND state = 'open'
"""


class UploadRows:
    def __init__(self, database: Database, quota: Quota) -> None:
        self._database, self.quota, self.shared = database, quota, database.shared

    async def add(self, row: UploadRow) -> None:
        """`OutOfSpace(QUOTA_EXCEEDED)` when what it reserves, or one more, is over the quota."""

        def work(db: Connection) -> None:
            _check_quota(db, row.workspace, self.quota, more_bytes=row.reserved, more_count=1)
            db.execute(_INSERT, _values(row))

        await self._database.write(work)

    async def reserve(self, upload_id: str, reserved: int) -> None:
        """From now on so many bytes; `OutOfSpace(QUOTA_EXCEEDED)`."""

        def work(db: Connection) -> None:
            row = _find(db, "id", upload_id)
            more = reserved - row.reserved
            _check_quota(db, row.workspace, self.quota, more_bytes=more, more_count=0)
            db.execute("UPDATE uploads SET reserved = ? WHERE id = ?", (reserved, upload_id))

        await self._database.write(work)

    async def reserve_up_to(self, upload_id: str, needed: int) -> int:
        """`needed` bytes, with a step ahead where the quota has room for it; how many it is now."""
        if self.quota.bytes == 0:
            return needed + _STEP
        with contextlib.suppress(OutOfSpace):
            await self.reserve(upload_id, needed + _STEP)
            return needed + _STEP
        await self.reserve(upload_id, needed)
        return needed

    async def get(self, upload_id: str, *, workspace: str, now: float) -> UploadRow:
        """`NotFound(UPLOAD_NOT_FOUND)` when unknown or foreign, `Gone(UPLOAD_EXPIRED)`."""
        row = await self._database.read(lambda db: _find(db, "id", upload_id))
        return _checked(row, workspace, now)

    async def of_ref(self, ref: str, *, workspace: str, now: float) -> UploadRow:
        """The upload that becomes this blob; errors as of `get`."""
        row = await self._database.read(lambda db: _find(db, "ref", ref))
        return _checked(row, workspace, now)

    async def lease(
        self, upload_id: str, holder: str, *, now: float, until: float
    ) -> UploadRow | None:
        """The row, with a fence of its own; None while somebody else holds it."""
        values = {"id": upload_id, "holder": holder, "now": now, "until": until}

        def work(db: Connection) -> UploadRow | None:
            found = db.execute(_LEASE, values).fetchall()
            return _row(found[0]) if found else _none_unless_gone(db, upload_id)

        return await self._database.write(work)

    async def renew(self, upload_id: str, fence: int, *, until: float) -> None:
        """`Fenced` when somebody else holds it now."""
        query = "UPDATE uploads SET leased_until = ? WHERE id = ? AND fence = ?"
        await self._fenced(upload_id, query, (until, upload_id, fence))

    async def record(self, row: UploadRow) -> None:
        """What its holder has found out; `Fenced` when somebody else holds it now."""
        await self._fenced(row.id, _RECORD, _values(row))

    async def release(self, upload_id: str, fence: int) -> None:
        """End the lease; fine when somebody else holds it now."""

        def work(db: Connection) -> None:
            query = "UPDATE uploads SET holder = '', leased_until = 0 WHERE id = ? AND fence = ?"
            db.execute(query, (upload_id, fence))

        await self._database.write(work)

    async def move(self, row: UploadRow) -> None:
        """Another mode, at another place of the store, from the start; fenced."""
        query = """
            UPDATE uploads SET mode = :mode, store_id = :store_id, "offset" = 0, claims = :claims
            WHERE id = :id AND fence = :fence AND state = 'open'
        """
        await self._fenced(row.id, query, _values(row))

    async def remove(self, upload_id: str) -> None:
        def work(db: Connection) -> None:
            db.execute("DELETE FROM uploads WHERE id = ?", (upload_id,))

        await self._database.write(work)

    async def break_leases(self) -> None:
        def work(db: Connection) -> None:
            db.execute("UPDATE uploads SET holder = '', leased_until = 0 WHERE holder <> ''")

        await self._database.write(work)

    async def expired(self, *, now: float, after: str, limit: int) -> list[UploadRow]:
        """Those whose time is over, and which nobody holds; in order of their ids."""
        query = f"""
            SELECT {_COLUMNS} FROM uploads
            WHERE expires_at <= ? AND leased_until <= ? AND id > ? ORDER BY id LIMIT ?
        """
        values = (now, now, after, limit)
        return await self._database.read(lambda db: [_row(r) for r in db.execute(query, values)])

    async def usage(self, workspace: str) -> Usage:
        return await self._database.read(lambda db: _usage(db, workspace))

    async def _fenced(self, upload_id: str, query: str, values: Any) -> None:
        def work(db: Connection) -> None:
            if db.execute(query, values).rowcount == 0:
                raise superseded(upload_id)

        await self._database.write(work)


def done(row: UploadRow) -> Callable[[Connection], None]:
    """Written beside its blob's row: nothing is reserved any more, and the answer stays until
    `expires_at`. `Fenced` when it is done already."""

    def work(db: Connection) -> None:
        if db.execute(_DONE, _values(row)).rowcount == 0:
            raise superseded(row.id)

    return work


def forgotten(upload_id: str) -> Callable[[Connection], None]:
    """Written beside a blob's row: its reservation is no longer needed."""

    def work(db: Connection) -> None:
        db.execute("DELETE FROM uploads WHERE id = ?", (upload_id,))

    return work


def superseded(upload_id: str) -> Fenced:
    return Fenced(
        Code.UPLOAD_SUPERSEDED,
        f"another request has taken {upload_id} over",
        hint="ask for the offset and go on from there, from one client at a time",
    )


def unknown(upload_id: str) -> NotFound:
    return NotFound(
        Code.UPLOAD_NOT_FOUND, f"there is no upload {upload_id}", hint="start a new upload"
    )


def _find(db: Connection, column: Literal["id", "ref"], value: str) -> UploadRow:
    query = f"SELECT {_COLUMNS} FROM uploads WHERE {column} = ?"
    found = db.execute(query, (value,)).fetchone()
    if found is None:
        raise unknown(value)
    return _row(found)


def _checked(row: UploadRow, workspace: str, now: float) -> UploadRow:
    if row.workspace != workspace:
        raise unknown(row.id)
    if row.expires_at <= now:
        raise Gone(
            Code.UPLOAD_EXPIRED, f"the upload {row.id} has expired", hint="start a new upload"
        )
    return row


def _none_unless_gone(db: Connection, upload_id: str) -> None:
    _find(db, "id", upload_id)


def _check_quota(
    db: Connection, workspace: str, quota: Quota, *, more_bytes: int, more_count: int
) -> None:
    if quota == NO_QUOTA:
        return
    db.execute(_ONE_AT_A_TIME, (workspace,))
    used = _usage(db, workspace)
    too_big = 0 < quota.bytes < used.bytes + used.reserved_bytes + more_bytes
    too_many = 0 < quota.count < used.count + used.reserved_count + more_count
    if too_big or too_many:
        raise _over(quota, used, too_big)


def _over(quota: Quota, used: Usage, too_big: bool) -> OutOfSpace:
    what = f"{quota.bytes} bytes" if too_big else f"{quota.count} objects"
    return OutOfSpace(
        Code.QUOTA_EXCEEDED,
        f"the workspace may store {what}, with what its open uploads have announced",
        hint="delete what is not needed (`mentatlab storage usage`, `mentatlab storage rm`)",
        details={
            **msgspec.structs.asdict(used),
            "quota_bytes": quota.bytes,
            "quota_count": quota.count,
        },
    )


def _usage(db: Connection, workspace: str) -> Usage:
    return Usage(*db.execute(_USAGE, {"w": workspace}).fetchone())


def _values(row: UploadRow) -> dict[str, Any]:
    values = msgspec.structs.asdict(row)
    return {**values, "claims": msgspec.json.encode(row.claims).decode()}


def _row(found: Any) -> UploadRow:
    fields = dict(found)
    fields["expect"] = None if fields["expect"] is None else PinType(fields["expect"])
    fields["claims"] = msgspec.json.decode(fields["claims"], type=Claims)
    return UploadRow(**fields)
