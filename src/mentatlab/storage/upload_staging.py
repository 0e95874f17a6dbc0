"""The store's side of an upload: opened, found again, begun again, dropped."""

import asyncio
import contextlib

import msgspec

from mentatlab.protocol.errors import Code, Internal, NotFound
from mentatlab.protocol.pins import PinType
from mentatlab.storage import keys, sniff
from mentatlab.storage.port import BlobStore, Upload
from mentatlab.storage.upload_leases import Lease
from mentatlab.storage.upload_rows import Mode, UploadRow, UploadRows, unknown
from mentatlab.storage.upload_rules import begun_again, meta_of


class Staging:
    def __init__(self, store: BlobStore, rows: UploadRows) -> None:
        self._store, self._rows = store, rows

    async def open(self, lease: Lease) -> Upload:
        """It is in the row before any byte is taken, so that a crash loses none.

        The key and the type are by what is known of the bytes: usually all there is to know.
        """
        row = lease.row
        mime = row.claims.mime or sniff.sniff(row.claims.head)
        key = keys.upload_key(row.workspace, row.ref, keys.extension(mime), now=row.created_at)
        upload = await self._store.open_upload(
            key, content_type=mime, meta=meta_of(row, row.created_at), size=row.size
        )
        await lease.record(key=key, store_id=upload.id)
        return upload

    async def open_direct(self, row: UploadRow) -> UploadRow:
        """Of a row that nobody knows yet; it goes when the store does not want it."""
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

    async def resume(self, row: UploadRow) -> Upload | None:
        """None when there is nothing at the store yet, or nothing more to do.

        `NotFound(UPLOAD_NOT_FOUND)` when it was swept there, `Internal(REFERENCE_CORRUPT)` when
        bytes that were told durable are not.
        """
        if not row.store_id or row.state == "done":
            return None
        try:
            upload = await self._store.resume_upload(row.store_id)
        except NotFound:
            await self._rows.remove(row.id)
            raise unknown(row.id) from None
        if upload.offset < row.offset:
            await upload.aclose()
            raise Internal(
                Code.REFERENCE_CORRUPT,
                f"of the upload {row.id} bytes are lost that were stored",
                hint="start a new upload",
            )
        return upload

    async def begin_again(self, lease: Lease, mode: Mode) -> None:
        await self._abort(lease.row)
        lease.row = begun_again(lease.row, mode)
        await self._rows.move(lease.row)

    async def drop(self, row: UploadRow) -> None:
        """Bytes on their way, then the row."""
        if row.state == "open":
            await self._abort(row)
        await self._rows.remove(row.id)

    async def _abort(self, row: UploadRow) -> None:
        if row.store_id:
            with contextlib.suppress(NotFound):
                await (await self._store.resume_upload(row.store_id)).abort()
