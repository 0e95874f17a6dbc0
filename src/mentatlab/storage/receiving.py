"""Bytes of an upload that come through us: looked at, counted, written, kept safe on the way."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable

import msgspec

from mentatlab.protocol.errors import MentatError
from mentatlab.storage import sniff
from mentatlab.storage.arriving import Arriving
from mentatlab.storage.kinds import first_kind
from mentatlab.storage.port import Upload
from mentatlab.storage.upload_growth import Growths
from mentatlab.storage.upload_leases import Lease
from mentatlab.storage.upload_rows import UploadRows
from mentatlab.storage.upload_staging import Staging

CHECKPOINT = 64 << 20
CHECKPOINT_S = 10.0
"""So much, or so long, of what comes in may be lost when the server is killed."""


class Receiving:
    """`max_bytes` bounds one object."""

    def __init__(
        self, staging: Staging, rows: UploadRows, growths: Growths, *, max_bytes: int | None
    ) -> None:
        self._staging, self._rows, self._growths = staging, rows, growths
        self._max_bytes = max_bytes

    async def take(
        self, lease: Lease, upload: Upload | None, source: AsyncIterator[bytes]
    ) -> Upload:
        """All of `source`, at `upload` or, at the first bytes, at one that is opened for them.

        What came before an error is kept, and durable. `UnsupportedMedia(MEDIA_TYPE_MISMATCH)`,
        `Invalid(EMPTY_MEDIA)`, `TooLarge`, `OutOfSpace`, `Fenced`.
        """
        arriving = self._arriving(lease, source, 0 if upload is None else upload.offset)
        async with contextlib.aclosing(arriving):
            with lease.interruptible():
                await self._look(lease, arriving)
            upload = upload or await self._staging.open(lease)
            try:
                await self._write(lease, upload, arriving)
            except BaseException:
                await asyncio.shield(upload.aclose())
                raise
        return upload

    def _arriving(self, lease: Lease, source: AsyncIterator[bytes], offset: int) -> Arriving:
        def before_piece(total: int) -> Awaitable[None] | None:
            lease.check()
            return self._reserve(lease, total) if total > lease.row.reserved else None

        return Arriving(
            source,
            offset=offset,
            end=lease.row.size,
            limit=self._max_bytes,
            before_piece=before_piece,
        )

    async def _reserve(self, lease: Lease, total: int) -> None:
        """Of an upload whose size is not known: a step ahead of its bytes, or else just them."""
        reserved = await self._rows.reserve_up_to(lease.row.id, total)
        lease.row = msgspec.structs.replace(lease.row, reserved=reserved)

    async def _look(self, lease: Lease, arriving: Arriving) -> None:
        """Judge the beginning as soon as it is there. One of which a crash has left a hole is
        judged at the end."""
        row, claims = lease.row, lease.row.claims
        head = claims.head[: arriving.offset]
        if claims.mime or len(head) < min(arriving.offset, sniff.HEAD):
            return
        head += await arriving.peek(sniff.HEAD - len(head))
        if len(head) >= sniff.HEAD or (row.size is not None and len(head) >= row.size):
            mime = first_kind(head, row.expect).mime
            claims = msgspec.structs.replace(claims, head=b"", mime=mime)
        else:
            claims = msgspec.structs.replace(claims, head=head)
        lease.row = msgspec.structs.replace(row, claims=claims)

    async def _write(self, lease: Lease, upload: Upload, arriving: Arriving) -> None:
        """With checkpoints on the way; none of the whole, which is synced by its end."""
        loop = asyncio.get_running_loop()
        saved, until = upload.offset, loop.time() + CHECKPOINT_S
        try:
            while not arriving.ended:
                with lease.interruptible():
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
        await lease.record(offset=offset)
        self._growths.visible(lease.row, offset)

    async def _save_quietly(self, lease: Lease, upload: Upload) -> None:
        """Beside an error that is told."""
        with contextlib.suppress(MentatError):
            await self._save(lease, upload)
