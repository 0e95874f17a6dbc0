"""Uploads that outlive a connection: opened, appended to, completed; and what they may take.

    create ──> append … append ──> (done)        tus, and `single` in one go
    create ──> sign_parts … ──> complete         direct: the client speaks with the store itself

Everybody who changes an upload holds its lease. The bytes are judged by their beginning as soon as
4 KiB (or all) of them are there; an upload of a wrong type is gone then. The last byte completes
it.
"""

import contextlib
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from typing import NamedTuple, Protocol

import msgspec

from mentatlab.protocol.errors import (
    Conflict,
    Gone,
    Invalid,
    MentatError,
    NotFound,
    UnsupportedMedia,
)
from mentatlab.protocol.ids import new_id
from mentatlab.protocol.pins import PinType
from mentatlab.storage import keys
from mentatlab.storage.kinds import first_kind
from mentatlab.storage.port import Blob, BlobStore, Caps, SignedPart, Upload
from mentatlab.storage.publishing import Enter, Publishing
from mentatlab.storage.receiving import Receiving
from mentatlab.storage.upload_growth import Growth, Growths
from mentatlab.storage.upload_leases import Lease, Leases
from mentatlab.storage.upload_rows import Claims, Mode, Quota, UploadRow, UploadRows, Usage
from mentatlab.storage.upload_rules import (
    HOPELESS,
    check_direct,
    check_limit,
    check_mode,
    check_parts,
    check_place,
    check_size,
    check_whole,
    with_claims,
)
from mentatlab.storage.upload_staging import Staging

log = logging.getLogger(__name__)

OPEN_TTL_S = 86_400.0
"""How long an upload waits for its next bytes, and how long its result can be asked for."""
SIGNED_S = 3600.0
_SWEEP_PAGE = 64


class NewUpload(msgspec.Struct, frozen=True, kw_only=True):
    """`size` None = told later. `ttl_s` None = until nobody needs the blob."""

    workspace: str
    size: int | None = None
    expect: PinType | None = None
    filename: str = ""
    ttl_s: float | None = None
    claims: Claims = Claims()


class Blobs(Protocol):
    """What an upload becomes."""

    async def get(self, ref: object, *, workspace: str) -> Blob: ...

    async def delete(self, ref: object, *, workspace: str) -> None: ...


class Parts(NamedTuple):
    size: int  # bytes of each but the last
    signed: list[SignedPart]


class Uploads:
    """Those of one process. `max_bytes` bounds one object; `clock` gives Unix seconds."""

    def __init__(
        self,
        store: BlobStore,
        rows: UploadRows,
        blobs: Blobs,
        enter: Enter,
        *,
        max_bytes: int | None,
        clock: Callable[[], float],
        open_ttl_s: float = OPEN_TTL_S,
    ) -> None:
        self._store, self._rows, self._blobs = store, rows, blobs
        self.max_bytes, self._clock, self._open_ttl_s = max_bytes, clock, open_ttl_s
        self._growths = Growths()
        self._leases = Leases(rows, clock, keep_s=open_ttl_s)
        self._staging = Staging(store, rows)
        self._receiving = Receiving(self._staging, rows, self._growths, max_bytes=max_bytes)
        self._publish = Publishing(store, enter, clock, keep_s=open_ttl_s)

    @property
    def caps(self) -> Caps:
        return self._store.caps

    # --- begun and looked at

    async def create(self, new: NewUpload, mode: Mode) -> UploadRow:
        """`OutOfSpace(QUOTA_EXCEEDED)`, `TooLarge(PAYLOAD_TOO_LARGE)`."""
        check_limit(new.size, self.max_bytes)
        now, ref = self._clock(), new_id("blob")
        row = UploadRow(
            id=new_id("up"),
            workspace=new.workspace,
            mode=mode,
            ref=ref,
            key=keys.upload_key(
                new.workspace, ref, keys.extension(new.claims.declared_mime), now=now
            ),
            size=new.size,
            reserved=new.size or 0,
            expect=new.expect,
            claims=new.claims,
            filename=new.filename,
            ttl_s=new.ttl_s,
            created_at=now,
            expires_at=now + self._open_ttl_s,
        )
        await self._rows.add(row)
        return await self._staging.open_direct(row) if mode == "direct" else row

    async def find(self, upload_id: str, *, workspace: str) -> UploadRow:
        """`NotFound(UPLOAD_NOT_FOUND)`, `Gone(UPLOAD_EXPIRED)`."""
        return await self._rows.get(upload_id, workspace=workspace, now=self._clock())

    async def result(self, row: UploadRow) -> Blob:
        """The blob of an upload that is done."""
        return await self._blobs.get(row.ref, workspace=row.workspace)

    async def usage(self, workspace: str) -> Usage:
        return await self._rows.usage(workspace)

    @property
    def quota(self) -> Quota:
        return self._rows.quota

    # --- bytes through us

    async def pause(self, upload_id: str, *, workspace: str) -> UploadRow:
        """Whoever writes is asked to let go; the row with its durable offset, at which to go on.

        An upload whose bytes are all there is completed.
        """
        async with self._held(upload_id, workspace) as lease:
            check_mode(lease.row, "tus")
            if lease.row.state == "open":
                await self._settle_down(lease)
            return lease.row

    async def append(
        self,
        upload_id: str,
        source: AsyncIterator[bytes],
        *,
        workspace: str,
        offset: int,
        length: int | None = None,
        size: int | None = None,
    ) -> UploadRow:
        """Take `source` behind `offset`; what came before an error of it stays.

        `length` of `source` and `size` of the whole, when they are told now. `Conflict(
        UPLOAD_OFFSET_MISMATCH)`, `TooLarge`, `UnsupportedMedia(MEDIA_TYPE_MISMATCH)`, what
        `pause` and `create` raise. The row is `done` when this was the end.
        """
        async with self._held(upload_id, workspace) as lease:
            check_mode(lease.row, "tus")
            if size is not None:
                await self._size_is(lease, size)
            return await self._append(lease, source, offset, length)

    async def put(
        self, upload_id: str, source: AsyncIterator[bytes], *, workspace: str, sha256: str = ""
    ) -> Blob:
        """All of a `single` upload; one that was cut off before begins again."""
        async with self._held(upload_id, workspace) as lease:
            check_mode(lease.row, "single")
            if lease.row.state == "open":
                await self._staging.begin_again(lease, "single")
                lease.row = with_claims(lease.row, sha256=sha256)
                if (await self._take(lease, None, source)).state == "open":
                    await self._end_here(lease)
            return await self.result(lease.row)

    # --- parts straight to the store

    async def sign_parts(self, row: UploadRow, numbers: list[int]) -> Parts:
        """`Conflict` for an upload that is not direct, `Invalid` for a number beyond its size."""
        check_direct(row)
        async with self._resumed(row) as upload:
            assert upload is not None  # it was opened with the row
            signed = await upload.sign_parts(numbers, expires_s=SIGNED_S)
        return Parts(self._store.caps.part_size, signed)

    async def missing_parts(self, row: UploadRow) -> list[int]:
        check_direct(row)
        async with self._resumed(row) as upload:
            assert upload is not None
            return await upload.missing_parts()

    async def fall_back(self, upload_id: str, *, workspace: str) -> UploadRow:
        """From `direct` to `tus`; parts that have arrived are dropped."""
        async with self._held(upload_id, workspace) as lease:
            if lease.row.state == "open" and lease.row.mode == "direct":
                await self._staging.begin_again(lease, "tus")
            return lease.row

    # --- the end

    async def complete(
        self, upload_id: str, *, workspace: str, blake3: str = "", sha256: str = ""
    ) -> Blob:
        """The blob, the same one however often it is asked for. `Conflict(UPLOAD_INCOMPLETE)`,
        `Invalid(DIGEST_MISMATCH)`, errors of type."""
        async with self._held(upload_id, workspace) as lease:
            if lease.row.state == "open":
                lease.row = with_claims(lease.row, blake3=blake3, sha256=sha256)
                await self._end_here(lease)
            return await self.result(lease.row)

    async def abort(self, upload_id: str, *, workspace: str) -> None:
        """Forget the upload; its blob too, unless somebody needs that."""
        async with self._held(upload_id, workspace) as lease:
            if lease.row.state == "done":
                with contextlib.suppress(NotFound, Gone, Conflict):
                    await self._blobs.delete(lease.row.ref, workspace=workspace)
            await self._drop(lease.row)

    async def sweep(self) -> int:
        """Forget what has expired; how many."""
        swept, after = 0, ""
        while page := await self._rows.expired(now=self._clock(), after=after, limit=_SWEEP_PAGE):
            for row in page:
                swept += await self._expire(row.id)
            after = page[-1].id
        return swept

    async def take_over(self) -> None:
        """At start: what a dead process held is free, unless others live beside this one."""
        if not self._rows.shared:
            await self._rows.break_leases()

    # --- looked at while it grows

    async def follow(self, ref: str, *, workspace: str, beyond: int = -1) -> Growth:
        """How far the upload that becomes `ref` has come, as soon as that is beyond `beyond` bytes
        or it has ended. `NotFound(UPLOAD_NOT_FOUND)` when it has died, or never was."""
        while True:
            async with self._growths.watch(ref) as change:
                now = self._clock()
                row = await self._rows.of_ref(ref, workspace=workspace, now=now)
                growth = self._growths.of(row)
                if growth.offset > beyond or row.state == "done":
                    return growth
                await change()

    # --- within

    @contextlib.asynccontextmanager
    async def _held(self, upload_id: str, workspace: str) -> AsyncGenerator[Lease]:
        """What the bytes cannot be mended of ends the upload."""
        await self.find(upload_id, workspace=workspace)
        async with self._leases.hold(upload_id) as lease:
            try:
                yield lease
            except (UnsupportedMedia, Invalid) as error:
                if error.code in HOPELESS:
                    await self._drop(lease.row)
                raise

    @contextlib.asynccontextmanager
    async def _resumed(self, row: UploadRow) -> AsyncGenerator[Upload | None]:
        upload = await self._staging.resume(row)
        try:
            yield upload
        finally:
            if upload is not None:
                await upload.aclose()

    async def _size_is(self, lease: Lease, size: int) -> None:
        if lease.row.state == "open" and lease.row.size != size:
            check_size(lease.row, size)
            check_limit(size, self.max_bytes)
            await self._rows.reserve(lease.row.id, size)
            await lease.record(size=size, reserved=size)

    async def _settle_down(self, lease: Lease) -> None:
        """What has come is durable; when that is all, it is the end."""
        async with self._resumed(lease.row) as upload:
            if upload is not None:
                await lease.record(offset=await upload.checkpoint())
            if lease.row.is_whole:
                await self._end(lease, upload)

    async def _append(
        self, lease: Lease, source: AsyncIterator[bytes], offset: int, length: int | None
    ) -> UploadRow:
        async with self._resumed(lease.row) as upload:
            at = lease.row.offset if upload is None else upload.offset
            check_place(lease.row, at, offset, length)
            check_limit(None if length is None else offset + length, self.max_bytes)
            if lease.row.state == "done":
                return lease.row
            return await self._take(lease, upload, source)

    async def _take(
        self, lease: Lease, upload: Upload | None, source: AsyncIterator[bytes]
    ) -> UploadRow:
        taken = await self._receiving.take(lease, upload, source)
        async with contextlib.aclosing(taken):
            if taken.offset == lease.row.size:
                await self._end(lease, taken)
        return lease.row

    async def _end_here(self, lease: Lease) -> None:
        """`Conflict(UPLOAD_INCOMPLETE)`; what has no size yet ends where it is."""
        async with self._resumed(lease.row) as upload:
            at = lease.row.offset if upload is None else upload.offset
            if lease.row.size is None:
                lease.row = msgspec.structs.replace(lease.row, size=at)
            if lease.row.mode == "direct" and upload is not None:
                check_parts(await upload.missing_parts())
            else:
                check_whole(lease.row, at)
            await self._end(lease, upload)

    async def _end(self, lease: Lease, upload: Upload | None) -> None:
        if upload is None:  # of 0 bytes
            first_kind(b"", lease.row.expect)
            upload = await self._staging.open(lease)
        lease.row = await self._publish(lease.row, upload)
        self._growths.ended(lease.row)

    async def _expire(self, upload_id: str) -> bool:
        try:
            async with self._leases.hold(upload_id) as lease:
                if expired := lease.row.expires_at <= self._clock():
                    await self._drop(lease.row)
                return expired
        except NotFound:
            return False  # another sweeper was first
        except (OSError, MentatError) as error:
            log.warning("the upload %s has expired and cannot be removed: %s", upload_id, error)
            return False

    async def _drop(self, row: UploadRow) -> None:
        await self._staging.drop(row)
        self._growths.ended(row)
