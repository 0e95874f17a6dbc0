"""Sealed runs of streams in a blob store: what `streams.port.SegmentStore` asks for."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Protocol

from mentatlab.protocol.errors import NotFound, RangeUnsatisfiable
from mentatlab.storage.port import BlobStore, ByteRange

_CHUNK = 1 << 20


class Earlier(Protocol):
    """Where runs were sealed before."""

    async def read(self, name: str, offset: int, length: int) -> bytes: ...

    async def delete(self, name: str) -> None: ...


class BlobSegments:
    """In a store that no catalogue sweeps, since segments have no rows in one.

    What is not there is looked for in `earlier`.
    """

    def __init__(self, store: BlobStore, earlier: Earlier | None = None) -> None:
        self._store, self._earlier = store, earlier

    async def put(self, name: str, path: Path) -> None:
        await self._store.put(name, _chunks(path))

    async def read(self, name: str, offset: int, length: int) -> bytes:
        """Less at the end of the file; `NotFound(REFERENCE_NOT_FOUND)` without it."""
        try:
            reader = await self._store.get(name, range_=ByteRange(offset, offset + length))
        except RangeUnsatisfiable:
            return b""
        except NotFound:
            if self._earlier is None:
                raise
            return await self._earlier.read(name, offset, length)
        try:
            return b"".join([chunk async for chunk in reader])
        finally:
            await reader.aclose()

    async def delete(self, name: str) -> None:
        await self._store.delete(name)
        if self._earlier is not None:
            await self._earlier.delete(name)


async def _chunks(path: Path) -> AsyncIterator[bytes]:
    with path.open("rb", buffering=0) as file:
        while chunk := await asyncio.to_thread(file.read, _CHUNK):
            yield chunk
