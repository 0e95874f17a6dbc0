"""Sealed runs of streams in a blob store: what `streams.port.SegmentStore` asks for."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

from mentatlab.protocol.errors import RangeUnsatisfiable
from mentatlab.storage.port import BlobStore, ByteRange

_CHUNK = 1 << 20


class BlobSegments:
    """Under `prefix` of a store that no catalogue sweeps, since segments have no rows in one."""

    def __init__(self, store: BlobStore, prefix: str = "segments") -> None:
        self._store, self._prefix = store, prefix

    async def put(self, name: str, path: Path) -> None:
        await self._store.put(self._key(name), _chunks(path))

    async def read(self, name: str, offset: int, length: int) -> bytes:
        """Less at the end of the file; `NotFound(REFERENCE_NOT_FOUND)` without it."""
        try:
            reader = await self._store.get(
                self._key(name), range_=ByteRange(offset, offset + length)
            )
        except RangeUnsatisfiable:
            return b""
        try:
            return b"".join([chunk async for chunk in reader])
        finally:
            await reader.aclose()

    async def delete(self, name: str) -> None:
        await self._store.delete(self._key(name))

    def _key(self, name: str) -> str:
        return f"{self._prefix}/{name}"


async def _chunks(path: Path) -> AsyncIterator[bytes]:
    with path.open("rb", buffering=0) as file:
        while chunk := await asyncio.to_thread(file.read, _CHUNK):
            yield chunk
