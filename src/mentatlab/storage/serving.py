"""Shorter ways out than a `Reader`, for stores that have them: the file itself, or an address."""

import asyncio
import os
from io import FileIO
from pathlib import Path
from typing import NamedTuple

from mentatlab.protocol.errors import Code, Internal
from mentatlab.storage.port import Blob, BlobStore, ByteRange

SMALL = 256 << 10
"""Up to so many bytes are read in the same step that opens the file."""


class Opened(NamedTuple):
    """The asked bytes of a small span, else the file, which the caller closes."""

    content: bytes = b""
    file: FileIO | None = None


class Serving:
    """Of blobs that are `ready`. Every method gives None where the store has no such way."""

    def __init__(self, store: BlobStore) -> None:
        self._store = store

    async def open(self, blob: Blob, span: ByteRange) -> Opened | None:
        """In one step of a thread. `Internal(REFERENCE_CORRUPT)` when the file has another size."""
        opening = asyncio.get_running_loop().run_in_executor(None, self._open, blob, span)
        try:
            return await asyncio.shield(opening)
        except asyncio.CancelledError:
            opening.add_done_callback(_close_unclaimed)
            raise

    async def path(self, blob: Blob) -> Path | None:
        """Of its file."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(None, self._store.local_path, blob.key)

    def presigned(self, blob: Blob, *, expires_s: float, disposition: str) -> str | None:
        """An address of the store's own, which answers with the blob's type."""
        return self._store.presign(
            blob.key, expires_s=expires_s, content_type=blob.mime_type, disposition=disposition
        )

    def _open(self, blob: Blob, span: ByteRange) -> Opened | None:
        path = self._store.local_path(blob.key)
        if path is None:
            return None
        file = FileIO(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC))
        try:
            if os.fstat(file.fileno()).st_size != blob.size:
                raise _damaged(blob)
            if span.stop - span.start > SMALL:
                return Opened(file=file)
            content = os.pread(file.fileno(), span.stop - span.start, span.start)
        except BaseException:
            file.close()
            raise
        file.close()
        return Opened(content)


def _close_unclaimed(opening: "asyncio.Future[Opened | None]") -> None:
    """When whoever opened it was cancelled meanwhile."""
    if opening.exception() is None and (opened := opening.result()) and opened.file is not None:
        opened.file.close()


def _damaged(blob: Blob) -> Internal:
    return Internal(
        Code.REFERENCE_CORRUPT, f"the bytes of {blob.id} are damaged", hint="upload it again"
    )
