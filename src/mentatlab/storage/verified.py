"""Whole reads are verified: an error instead of wrong bytes."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable

from blake3 import blake3

from mentatlab.protocol.errors import Code, Internal, MentatError
from mentatlab.storage.port import Blob, BlobStore, Reader

Tell = Callable[[Blob, str], Awaitable[None]]
"""What to do about a damaged blob, and how it was seen."""


class VerifiedReader:
    """All of a blob. Its last chunk is given out only when the hash of everything is right, so
    that nobody takes wrong bytes for the whole; else `Internal(REFERENCE_CORRUPT)`."""

    def __init__(self, reader: Reader, blob: Blob, tell: Tell) -> None:
        self.info = reader.info
        self._reader, self._blob, self._tell = reader, blob, tell

    async def __aiter__(self) -> AsyncIterator[bytes]:
        hash_, last = blake3(), b""
        try:
            async for chunk in self._reader:
                if last:
                    yield last
                hash_.update(chunk)
                last = chunk
        except Internal as error:
            if is_damage(error):
                await self._tell(self._blob, error.message)
            raise
        if hash_.hexdigest() != self._blob.blake3:
            await self._tell(self._blob, "the bytes have another hash")
            raise damaged(self._blob)
        if last:
            yield last

    async def aclose(self) -> None:
        await self._reader.aclose()


async def _at_once(size: int) -> None:
    """No pause after so many bytes."""


async def digest(
    store: BlobStore, key: str, *, after_chunk: Callable[[int], Awaitable[None]] = _at_once
) -> str:
    """blake3 (hex) of an object's bytes, read from the store now."""
    hash_ = blake3()
    async with contextlib.aclosing(await store.get(key)) as reader:
        async for chunk in reader:
            await asyncio.to_thread(hash_.update, chunk)
            await after_chunk(len(chunk))
    return hash_.hexdigest()


def is_damage(error: BaseException) -> bool:
    """As against a disk that cannot be read now, or a store that cannot be reached."""
    return isinstance(error, MentatError) and error.code in (
        Code.REFERENCE_CORRUPT,
        Code.REFERENCE_NOT_FOUND,
    )


def damaged(blob: Blob) -> Internal:
    return Internal(
        Code.REFERENCE_CORRUPT, f"the bytes of {blob.id} are damaged", hint="upload it again"
    )
