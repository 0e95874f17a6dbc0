"""Bytes on their way out of the embedded store."""

import asyncio
import os
import threading
from collections.abc import AsyncIterator, Callable
from typing import Any

from mentatlab.protocol.errors import Code, Internal
from mentatlab.storage.port import BlobInfo, ByteRange

_CHUNK = 1 << 20  # bytes read at once


class LocalReader:
    """Owns `fd`. It goes on to the end although the object is deleted meanwhile.

    Made in one of the pool's threads, where it reads its first chunk at once: a short range needs
    no other.
    """

    def __init__(
        self, submit: Callable[..., Any], fd: int, info: BlobInfo, span: ByteRange
    ) -> None:
        self.info = info
        self._submit = submit
        self._span = span
        self._fd = fd
        self._lock = threading.Lock()  # the descriptor is not closed under a running read
        self._first = self._read(span.start)
        if span.start + len(self._first) == span.stop:
            self.close()

    async def __aiter__(self) -> AsyncIterator[bytes]:
        chunk, offset = self._first, self._span.start
        self._first = b""
        while chunk:
            yield chunk
            offset += len(chunk)
            chunk = await self._submit(self._read, offset) if offset < self._span.stop else b""

    async def aclose(self) -> None:
        if self._fd >= 0:
            await asyncio.shield(self._submit(self.close))

    def _read(self, offset: int) -> bytes:
        size = min(_CHUNK, self._span.stop - offset)
        with self._lock:
            chunk = os.pread(self._fd, size, offset)
        if size and not chunk:
            raise Internal(Code.REFERENCE_CORRUPT, f"{self.info.key!r} ends before its size")
        return chunk

    def close(self) -> None:
        with self._lock:
            if self._fd >= 0:
                os.close(self._fd)
                self._fd = -1


def close_unclaimed(opening: "asyncio.Future[LocalReader]") -> None:
    """When whoever opened it was cancelled meanwhile."""
    if opening.exception() is None:
        opening.result().close()
