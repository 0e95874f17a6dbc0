"""Uploads that outlive a connection: opened, appended to, completed; and what they may take.

    create ──> append … append ──> (done)        tus, and `single` in one go
    create ──> sign_parts … ──> complete         direct: the client speaks with the store itself

Everybody who changes an upload holds its lease. The bytes are judged by their beginning as soon as
4 KiB (or all) of them are there; an upload of a wrong type is gone then. The last byte completes
it.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any, NamedTuple, Protocol

import msgspec

from mentatlab.protocol.errors import (
    Code,
    Conflict,
    Gone,
    Internal,
    Invalid,
    MentatError,
    NotFound,
    UnsupportedMedia,
)
from mentatlab.protocol.ids import new_id
from mentatlab.protocol.pins import PinType
from mentatlab.storage import keys, sniff, sources
from mentatlab.storage.arriving import Arriving, beyond
from mentatlab.storage.kinds import first_kind
from mentatlab.storage.port import Blob, BlobStore, Caps, SignedPart, Upload
from mentatlab.storage.publishing import Enter, Publishing, meta_of
from mentatlab.storage.upload_growth import Growth, Growths
from mentatlab.storage.upload_leases import Lease, Leases
from mentatlab.storage.upload_rows import Claims, Mode, Quota, UploadRow, UploadRows, Usage

OPEN_TTL_S = 86_400.0
"""How long an upload waits for its next bytes, and how long its result can be asked for."""
SIGNED_S = 3600.0
CHECKPOINT = 64 << 20
CHECKPOINT_S = 10.0
"""So much, or so long, of what comes in may be lost when the server is killed."""
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
        self._store, self._rows, self._blobs, self._enter = store, rows, blobs, enter
        self.max_bytes, self._clock, self._open_ttl_s = max_bytes, clock, open_ttl_s
        self._publish = Publishing(store, enter, clock, keep_s=open_ttl_s)
        self._leases = Leases(rows, clock)
        self._growths = Growths()

    @property
    def caps(self) -> Caps:
        return self._store.caps

    # --- begun and looked at

    async def create(self, new: NewUpload, mode: Mode) -> UploadRow:
        """`OutOfSpace(QUOTA_EXCEEDED)`, `TooLarge(PAYLOAD_TOO_LARGE)`."""
        self._refuse_too_large(new.size)
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
        return await self._open_direct(row) if mode == "direct" else row

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
        await self.find(upload_id, workspace=workspace)
        async with self._leases.hold(upload_id) as lease:
            if lease.row.state == "done" or not lease.row.store_id:
                return await self._whole_or_open(lease, None)
            upload = await self._resume(lease.row)
            async with contextlib.aclosing(upload):
                await self._record(lease, offset=await upload.checkpoint())
                return await self._whole_or_open(lease, upload)

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
        await self.find(upload_id, workspace=workspace)
        async with self._leases.hold(upload_id) as lease:
            if lease.row.state == "open":
                await self._size_is(lease, size)
            upload = await self._resume(lease.row) if lease.row.store_id else None
            at = lease.row.offset if upload is None else upload.offset
            _check_place(lease.row, at, offset, length)
            if lease.row.state == "done":
                return lease.row
            return await self._take(lease, upload, source)

    async def put(
        self, upload_id: str, source: AsyncIterator[bytes], *, workspace: str, sha256: str = ""
    ) -> Blob:
        """All of a `single` upload; one that was cut off before begins again."""
        row = await self.find(upload_id, workspace=workspace)
        if row.mode != "single":
            raise _wrong_mode(row)
        async with self._leases.hold(upload_id) as lease:
            if lease.row.state == "open":
                await self._begin_again(lease, "single")
                if sha256:
                    claims = msgspec.structs.replace(lease.row.claims, sha256=sha256)
                    lease.row = msgspec.structs.replace(lease.row, claims=claims)
                await self._take(lease, None, source)
                if lease.row.state == "open":
                    await self._end_here(lease)
            return await self.result(lease.row)

    # --- parts straight to the store

    async def sign_parts(self, row: UploadRow, numbers: list[int]) -> Parts:
        """`Conflict` for an upload that is not direct, `Invalid` for a number beyond its size."""
        _refuse_not_direct(row)
        async with contextlib.aclosing(await self._resume(row)) as upload:
            signed = await upload.sign_parts(numbers, expires_s=SIGNED_S)
        return Parts(self._store.caps.part_size, signed)

    async def missing_parts(self, row: UploadRow) -> list[int]:
        _refuse_not_direct(row)
        async with contextlib.aclosing(await self._resume(row)) as upload:
            return await upload.missing_parts()

    async def fall_back(self, upload_id: str, *, workspace: str) -> UploadRow:
        """From `direct` to `tus`; parts that have arrived are dropped."""
        await self.find(upload_id, workspace=workspace)
        async with self._leases.hold(upload_id) as lease:
            if lease.row.state == "open" and lease.row.mode == "direct":
                await self._begin_again(lease, "tus")
            return lease.row

    # --- the end

    async def complete(
        self, upload_id: str, *, workspace: str, blake3: str = "", sha256: str = ""
    ) -> Blob:
        """The blob, the same one however often it is asked for. `Conflict(UPLOAD_INCOMPLETE)`,
        `Invalid(DIGEST_MISMATCH)`, errors of type."""
        await self.find(upload_id, workspace=workspace)
        async with self._leases.hold(upload_id) as lease:
            if lease.row.state == "open":
                _add_claims(lease, blake3, sha256)
                await self._end_here(lease)
            return await self.result(lease.row)

    async def abort(self, upload_id: str, *, workspace: str) -> None:
        """Forget the upload; its blob too, unless somebody needs that."""
        await self.find(upload_id, workspace=workspace)
        async with self._leases.hold(upload_id) as lease:
            if lease.row.state == "done":
                with contextlib.suppress(NotFound, Gone, Conflict):
                    await self._blobs.delete(lease.row.ref, workspace=workspace)
            await self._drop(lease.row)

    async def sweep(self) -> int:
        """Forget what has expired; how many."""
        swept = 0
        while page := await self._rows.expired(now=self._clock(), limit=_SWEEP_PAGE):
            for row in page:
                async with self._leases.hold(row.id) as lease:
                    await self._drop(lease.row)
                swept += 1
        return swept

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

    # --- within: bytes

    async def _take(
        self, lease: Lease, upload: Upload | None, source: AsyncIterator[bytes]
    ) -> UploadRow:
        arriving = self._arriving(lease, source, 0 if upload is None else upload.offset)
        try:
            await self._look(lease, arriving)
            upload = upload or await self._open(lease)
            async with contextlib.aclosing(upload):
                await self._write(lease, upload, arriving)
                return await self._whole_or_open(lease, upload)
        except (UnsupportedMedia, Invalid) as error:
            if error.code in _HOPELESS:
                await self._drop(lease.row)
            raise

    def _arriving(self, lease: Lease, source: AsyncIterator[bytes], offset: int) -> Arriving:
        def before_piece(total: int) -> Any:
            lease.check()
            return self._reserve(lease, total) if total > lease.row.reserved else None

        size = lease.row.size
        return Arriving(
            source, offset=offset, end=size, limit=self.max_bytes, before_piece=before_piece
        )

    async def _reserve(self, lease: Lease, total: int) -> None:
        """Of an upload whose size is not known: a step ahead of its bytes, or else just them."""
        reserved = await self._rows.reserve_up_to(lease.row.id, total)
        lease.row = msgspec.structs.replace(lease.row, reserved=reserved)

    async def _look(self, lease: Lease, arriving: Arriving) -> None:
        """Judge the beginning as soon as it is there. `UnsupportedMedia`, `Invalid(EMPTY_MEDIA)`"""
        claims, row = lease.row.claims, lease.row
        if claims.mime:
            return
        head = claims.head + await arriving.peek(sniff.HEAD - len(claims.head))
        if len(head) >= sniff.HEAD or (row.size is not None and len(head) >= row.size):
            kind = first_kind(head, row.expect)
            claims = msgspec.structs.replace(claims, head=b"", mime=kind.mime)
        else:
            claims = msgspec.structs.replace(claims, head=head)
        lease.row = msgspec.structs.replace(row, claims=claims)

    async def _size_is(self, lease: Lease, size: int | None) -> None:
        """A size that is told now. `Invalid` when it was another one, `TooLarge`, `OutOfSpace`."""
        row = lease.row
        if size is None or size == row.size:
            return
        if row.size is not None or size < row.offset:
            raise Invalid(
                Code.INVALID_REQUEST,
                f"the size {size} does not fit the {row.size or row.offset} bytes known before",
                hint="Upload-Length is said once, and is not below what has arrived",
            )
        self._refuse_too_large(size)
        await self._rows.reserve(row.id, size)
        await self._record(lease, size=size, reserved=size)

    async def _record(self, lease: Lease, **changes: Any) -> None:
        """In the row, and that the upload goes on."""
        changes["expires_at"] = self._clock() + self._open_ttl_s
        row = msgspec.structs.replace(lease.row, leased_until=self._leases.until(), **changes)
        await self._rows.record(row)
        lease.row = row

    def _refuse_too_large(self, size: int | None) -> None:
        if self.max_bytes is not None and size is not None and size > self.max_bytes:
            raise sources.too_large(self.max_bytes)

    async def _write(self, lease: Lease, upload: Upload, arriving: Arriving) -> None:
        """All that comes, with checkpoints; none at the end, when the whole is synced anyway."""
        loop = asyncio.get_running_loop()
        saved, until = upload.offset, loop.time() + CHECKPOINT_S
        try:
            while not arriving.ended:
                await upload.write(arriving.slice())
                self._growths.visible(lease.row, upload.offset)
                if upload.offset - saved >= CHECKPOINT or loop.time() >= until:
                    await self._save(lease, upload)
                    saved, until = upload.offset, loop.time() + CHECKPOINT_S
        except BaseException:
            await asyncio.shield(self._save_quietly(lease, upload))
            raise
        if upload.offset != lease.row.size:
            await self._save(lease, upload)

    async def _save(self, lease: Lease, upload: Upload) -> None:
        offset = await upload.checkpoint()
        await self._record(lease, offset=offset)
        self._growths.visible(lease.row, offset)

    async def _save_quietly(self, lease: Lease, upload: Upload) -> None:
        """Beside an error that is told."""
        with contextlib.suppress(MentatError):
            await self._save(lease, upload)

    async def _open(self, lease: Lease) -> Upload:
        """At the store; it is in the row before any byte is taken, so that a crash loses none."""
        row = lease.row
        mime = row.claims.mime or sniff.sniff(row.claims.head)
        key = keys.upload_key(row.workspace, row.ref, keys.extension(mime), now=row.created_at)
        upload = await self._store.open_upload(
            key, content_type=mime, meta=meta_of(row, row.created_at), size=row.size
        )
        await self._record(lease, key=key, store_id=upload.id)
        return upload

    async def _open_direct(self, row: UploadRow) -> UploadRow:
        mime = row.claims.declared_mime
        safe = mime if sniff.family(mime) is not PinType.BINARY else sniff.UNKNOWN
        try:
            upload = await self._store.open_upload(
                row.key, content_type=safe, meta=meta_of(row, row.created_at), size=row.size
            )
            await upload.aclose()
            opened = msgspec.structs.replace(row, store_id=upload.id)
            await self._rows.record(opened)
        except BaseException:
            await asyncio.shield(self._rows.remove(row.id))
            raise
        return opened

    async def _resume(self, row: UploadRow) -> Upload:
        upload = await self._store.resume_upload(row.store_id)
        if upload.offset < row.offset:
            raise Internal(
                Code.REFERENCE_CORRUPT,
                f"of the upload {row.id} bytes are lost that were stored",
                hint="start a new upload",
            )
        return upload

    async def _begin_again(self, lease: Lease, mode: Mode) -> None:
        if lease.row.store_id:
            await (await self._resume(lease.row)).abort()
        claims = msgspec.structs.replace(lease.row.claims, head=b"", mime="")
        lease.row = msgspec.structs.replace(
            lease.row, mode=mode, store_id="", offset=0, claims=claims
        )
        await self._rows.move(lease.row)

    # --- within: the end

    async def _whole_or_open(self, lease: Lease, upload: Upload | None) -> UploadRow:
        """Complete it when all its bytes are there."""
        at = lease.row.offset if upload is None else upload.offset
        if lease.row.state == "open" and lease.row.mode != "direct" and at == lease.row.size:
            await self._end(lease, upload)
        return lease.row

    async def _end_here(self, lease: Lease) -> None:
        """`Conflict(UPLOAD_INCOMPLETE)`; what has no size yet ends where it is."""
        upload = await self._resume(lease.row) if lease.row.store_id else None
        row = lease.row
        at = row.offset if upload is None else upload.offset
        if row.mode == "direct" and upload is not None:
            if missing := await upload.missing_parts():
                raise _incomplete(f"{len(missing)} parts are missing", missing_parts=missing[:1000])
        elif row.size is None:
            lease.row = msgspec.structs.replace(row, size=at)
        elif at != row.size:
            raise _incomplete(f"{at} of {row.size} bytes have arrived", offset=at, size=row.size)
        await self._end(lease, upload)

    async def _end(self, lease: Lease, upload: Upload | None) -> None:
        lease.settle()
        try:
            upload = upload or await self._open_empty(lease)
            async with contextlib.aclosing(upload):
                lease.row = await self._publish(lease.row, upload)
        except (UnsupportedMedia, Invalid) as error:
            if error.code in _HOPELESS:
                await self._drop(lease.row)
            raise
        self._growths.ended(lease.row)

    async def _open_empty(self, lease: Lease) -> Upload:
        first_kind(b"", lease.row.expect)
        return await self._open(lease)

    async def _drop(self, row: UploadRow) -> None:
        """Bytes on their way, then the row."""
        if row.store_id and row.state == "open":
            with contextlib.suppress(NotFound):
                await (await self._store.resume_upload(row.store_id)).abort()
        await self._rows.remove(row.id)
        self._growths.ended(row)


_HOPELESS = {Code.MEDIA_TYPE_MISMATCH, Code.EMPTY_MEDIA, Code.DIGEST_MISMATCH}
"""What more bytes cannot mend: the upload goes."""


def _check_place(row: UploadRow, at: int, offset: int, length: int | None) -> None:
    if offset != at:
        raise Conflict(
            Code.UPLOAD_OFFSET_MISMATCH,
            f"the upload is at {at}, not at {offset}",
            hint="ask for the offset (HEAD) and go on from there",
            details={"offset": at},
        )
    if row.size is not None and length is not None and offset + length > row.size:
        raise beyond(row.size)


def _refuse_not_direct(row: UploadRow) -> None:
    if row.mode != "direct" or row.state != "open":
        raise _wrong_mode(row)


def _wrong_mode(row: UploadRow) -> Conflict:
    return Conflict(
        Code.CONFLICT,
        f"the upload {row.id} has the mode {row.mode} and is {row.state}",
        hint="follow the `mode` that the server answered",
    )


def _incomplete(message: str, **details: Any) -> Conflict:
    return Conflict(
        Code.UPLOAD_INCOMPLETE,
        message,
        hint="send what is missing, then complete it again",
        details=details,
    )


def _add_claims(lease: Lease, blake3: str, sha256: str) -> None:
    claims = lease.row.claims
    claims = msgspec.structs.replace(
        claims, blake3=blake3 or claims.blake3, sha256=sha256 or claims.sha256
    )
    lease.row = msgspec.structs.replace(lease.row, claims=claims)
