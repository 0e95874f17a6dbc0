"""Shorter ways out than a `Reader`, for stores that have them: the file itself, or an address."""

import asyncio
import os
from collections.abc import Callable
from io import FileIO
from pathlib import Path
from typing import NamedTuple, TypeVar

from mentatlab.storage.port import Blob, BlobStore, ByteRange
from mentatlab.storage.verified import damaged

T = TypeVar("T")

SMALL = 256 << 10
"""Up to so many bytes are read in the same step that opens the file."""
_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC


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
        return await _unless_cancelled(lambda: self._open(blob, span), _close)

    async def open_upload(self, store_id: str) -> FileIO | None:
        """The bytes of an upload under way, and of what it becomes; the caller closes it."""
        opening = lambda: _file(self._store.upload_path(store_id))  # noqa: E731  a step of a thread
        return await _unless_cancelled(opening, lambda file: file and file.close())

    async def path(self, blob: Blob) -> Path | None:
        """Of its file."""
        return await asyncio.to_thread(self._store.local_path, blob.key)

    def presigned(self, blob: Blob, *, expires_s: float, disposition: str) -> str | None:
        """An address of the store's own, which answers with the blob's type."""
        return self._store.presign(
            blob.key, expires_s=expires_s, content_type=blob.mime_type, disposition=disposition
        )

    def _open(self, blob: Blob, span: ByteRange) -> Opened | None:
        file = _file(self._store.local_path(blob.key))
        if file is None:
            return None
        try:
            if os.fstat(file.fileno()).st_size != blob.size:
                raise damaged(blob)
            if span.stop - span.start > SMALL:
                return Opened(file=file)
            content = os.pread(file.fileno(), span.stop - span.start, span.start)
        except BaseException:
            file.close()
            raise
        file.close()
        return Opened(content)


def _file(path: Path | None) -> FileIO | None:
    try:
        return None if path is None else FileIO(os.open(path, _FLAGS))
    except FileNotFoundError:  # it was deleted just now
        return None


async def _unless_cancelled(work: Callable[[], T], undo: Callable[[T], object]) -> T:
    """`work` in a thread; what it gave is undone when whoever wants it was cancelled meanwhile."""
    future = asyncio.get_running_loop().run_in_executor(None, work)
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        future.add_done_callback(lambda done: done.exception() or undo(done.result()))
        raise


def _close(opened: Opened | None) -> None:
    if opened is not None and opened.file is not None:
        opened.file.close()
