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
    """Owns `fd`. It goes on to the end although the object is deleted meanwhile."""

    def __init__(
        self, submit: Callable[..., Any], fd: int, info: BlobInfo, span: ByteRange
    ) -> None:
        self.info = info
        self._submit = submit
        self._span = span
        self._fd = fd
        self._lock = threading.Lock()  # the descriptor is not closed under a running read

    async def __aiter__(self) -> AsyncIterator[bytes]:
        offset, stop = self._span
        while offset < stop:
            chunk = await self._submit(self._read, offset, min(_CHUNK, stop - offset))
            offset += len(chunk)
            yield chunk

    async def aclose(self) -> None:
        await asyncio.shield(self._submit(self.close))

    def _read(self, offset: int, size: int) -> bytes:
        with self._lock:
            chunk = os.pread(self._fd, size, offset)
        if not chunk:
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
