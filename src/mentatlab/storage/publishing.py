"""The end of an upload: published by the store, judged, probed, entered."""

import contextlib
from collections.abc import Callable
from typing import Protocol

import msgspec

from mentatlab.protocol.errors import Invalid, UnsupportedMedia
from mentatlab.storage import sniff
from mentatlab.storage.catalog import Write
from mentatlab.storage.kinds import Kind, first_kind
from mentatlab.storage.port import Blob, BlobInfo, BlobStore, ByteRange, Upload
from mentatlab.storage.upload_rows import UploadRow, done
from mentatlab.storage.upload_rules import check_blake3, meta_of
from mentatlab.storage.verified import digest


class Enter(Protocol):
    """Probes stored bytes and writes their row together with the owner's and with `also`."""

    async def __call__(
        self, info: BlobInfo, kind: Kind, owner: str, *, also: Write, claimed: bool
    ) -> Blob: ...


class Publishing:
    """Every step may be done again after a crash; the blob's row and the upload's are written in
    one transaction. `keep_s`: how long the answer can be asked for."""

    def __init__(
        self, store: BlobStore, enter: Enter, clock: Callable[[], float], *, keep_s: float
    ) -> None:
        self._store, self._enter, self._clock, self._keep_s = store, enter, clock, keep_s

    async def __call__(self, row: UploadRow, upload: Upload) -> UploadRow:
        """The row as it is when the upload is done. `Invalid(DIGEST_MISMATCH)`, errors of type."""
        claims = row.claims
        info = await upload.complete(
            sha256=bool(claims.sha256), expected_sha256=claims.sha256 or None
        )
        info = await self._identified(info, claims.blake3)
        try:
            kind = await self._kind(row, info)
            return await self._make_done(row, upload.id, info, kind)
        except (UnsupportedMedia, Invalid):
            await self._store.delete(info.key)
            raise

    async def _make_done(
        self, row: UploadRow, upload_id: str, info: BlobInfo, kind: Kind
    ) -> UploadRow:
        now = self._clock()
        check_blake3(info.blake3, row.claims.blake3)
        finished = msgspec.structs.replace(
            row,
            state="done",
            size=info.size,
            offset=info.size,
            key=info.key,
            store_id=upload_id,
            reserved=0,
            expires_at=now + self._keep_s,
        )
        told = msgspec.structs.replace(info, meta=meta_of(row, now))
        owner = row.claims.owner or f"upload:{row.ref}"
        claimed = row.mode == "direct" and row.claims.blake3 != ""
        await self._enter(told, kind, owner, also=done(finished), claimed=claimed)
        return finished

    async def _identified(self, info: BlobInfo, claimed: str) -> BlobInfo:
        """A direct upload's blake3 is the client's word, which the scrub checks, or read back."""
        if info.blake3:
            return info
        return msgspec.structs.replace(info, blake3=claimed or await digest(self._store, info.key))

    async def _kind(self, row: UploadRow, info: BlobInfo) -> Kind:
        """By the beginning, which is read back unless it has been judged while it came."""
        mime = row.claims.mime
        if mime:
            return Kind(row.expect or sniff.family(mime), mime)
        reader = await self._store.get(info.key, range_=ByteRange(0, sniff.HEAD))
        async with contextlib.aclosing(reader):
            return first_kind(b"".join([chunk async for chunk in reader]), row.expect)
