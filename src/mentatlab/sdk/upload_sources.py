"""Where the bytes of an upload come from: read at any offset, or kept until the server has them."""

import asyncio
from collections.abc import AsyncIterable, AsyncIterator
from pathlib import Path
from typing import NamedTuple, Protocol

from mentatlab.protocol.errors import Code, Invalid
from mentatlab.sdk.hashing import new_hasher
from mentatlab.sdk.upload_plan import CHUNK, SMALL

BLOCK = 1 << 20
_KEPT = 8 << 20
"""Bytes of an async iterable that one request carries, and that are kept until they are safe."""


class Reach(NamedTuple):
    """Bytes up to `stop` are at hand. `total`: of the whole, None while that is not known."""

    stop: int
    total: int | None


class Source(Protocol):
    @property
    def size(self) -> int | None:
        """Bytes; None while that is not known."""
        ...

    async def small(self) -> bytes | None:
        """All of it when that is little; asked first."""
        ...

    async def reach(self, offset: int) -> Reach:
        """What there is to send from `offset` on; what lies before it is not asked for again."""
        ...

    def blocks(self, start: int, stop: int) -> AsyncIterator[bytes]: ...

    async def blake3(self) -> str:
        """Of the whole, in hex, as soon as it is known; "" when the package is not installed."""
        ...


def source_of(given: Path | bytes | AsyncIterable[bytes]) -> "Source":
    """`FileNotFoundError`, … as of the path."""
    match given:
        case Path():
            return FileSource(given, given.stat().st_size)
        case bytes():
            return BytesSource(given)
        case _:
            return StreamSource(given)


class BytesSource:
    def __init__(self, data: bytes) -> None:
        self._data, self.size = data, len(data)

    async def small(self) -> bytes | None:
        return self._data if self.size <= SMALL else None

    async def reach(self, offset: int) -> Reach:
        return Reach(min(offset + CHUNK, self.size), self.size)

    async def blocks(self, start: int, stop: int) -> AsyncIterator[bytes]:
        for at in range(start, stop, BLOCK):
            yield self._data[at : min(at + BLOCK, stop)]

    async def blake3(self) -> str:
        return await _blake3_of(self.blocks(0, self.size))


class FileSource:
    """A file that does not change meanwhile; a change of its size is noticed."""

    def __init__(self, path: Path, size: int) -> None:
        self._path, self.size = path, size

    async def small(self) -> bytes | None:
        return await asyncio.to_thread(self._path.read_bytes) if self.size <= SMALL else None

    async def reach(self, offset: int) -> Reach:
        return Reach(min(offset + CHUNK, self.size), self.size)

    async def blocks(self, start: int, stop: int) -> AsyncIterator[bytes]:
        with await asyncio.to_thread(self._path.open, "rb") as file:
            file.seek(start)
            while start < stop:
                block = await asyncio.to_thread(file.read, min(BLOCK, stop - start))
                if not block:
                    raise _changed(self._path)
                start += len(block)
                yield block

    async def blake3(self) -> str:
        return await _blake3_of(self.blocks(0, self.size))


class StreamSource:
    """An async iterable, once through. What the server has acknowledged is forgotten."""

    def __init__(self, source: AsyncIterable[bytes]) -> None:
        self._blocks = aiter(source)
        self._start, self._kept = 0, bytearray()
        self._hash, self._ended = new_hasher(), asyncio.Event()
        self.size: int | None = None

    async def small(self) -> bytes | None:
        await self._fill(SMALL)
        return bytes(self._kept) if self.size is not None and self.size <= SMALL else None

    async def reach(self, offset: int) -> Reach:
        if not self._start <= offset <= self._start + len(self._kept):
            raise Invalid(
                Code.INVALID_REQUEST,
                f"the server asks for bytes from {offset} on, which are no longer at hand",
                hint="upload it again; a file can be read twice, a stream cannot",
            )
        del self._kept[: offset - self._start]
        self._start = offset
        await self._fill(_KEPT)
        return Reach(self._start + min(len(self._kept), _KEPT), self.size)

    async def _fill(self, enough: int) -> None:
        """More than `enough` bytes, or all that there are."""
        while self.size is None and len(self._kept) <= enough:
            block = await anext(self._blocks, None)
            if block is None:
                self.size = self._start + len(self._kept)
                self._ended.set()
                return
            self._kept += block
            if self._hash is not None:
                self._hash.update(block)

    async def blocks(self, start: int, stop: int) -> AsyncIterator[bytes]:
        for at in range(start - self._start, stop - self._start, BLOCK):
            yield bytes(self._kept[at : min(at + BLOCK, stop - self._start)])

    async def blake3(self) -> str:
        await self._ended.wait()
        return self._hash.hexdigest() if self._hash is not None else ""


async def _blake3_of(blocks: AsyncIterator[bytes]) -> str:
    if (hasher := new_hasher()) is None:
        return ""
    async for block in blocks:
        await asyncio.to_thread(hasher.update, block)
    return hasher.hexdigest()


def _changed(path: Path) -> Invalid:
    return Invalid(
        Code.INVALID_REQUEST,
        f"{path} became shorter while it was uploaded",
        hint="upload it when nobody writes to it any more",
    )
