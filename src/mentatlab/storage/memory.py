"""The blob store of tests and of `--ephemeral`: a dict."""

import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec

from mentatlab.protocol.errors import Code, Conflict, NotFound
from mentatlab.storage import keys
from mentatlab.storage.hashing import ContentHash
from mentatlab.storage.port import BlobInfo, ByteRange, Durability, Reader, clip

_CHUNK = 1 << 20


class _Object(msgspec.Struct, frozen=True):
    info: BlobInfo
    data: bytes


class MemoryStore:
    def __init__(self) -> None:
        self._objects: dict[str, _Object] = {}

    async def put(
        self,
        key: str,
        source: AsyncIterator[bytes],
        *,
        content_type: str = "application/octet-stream",
        meta: dict[str, Any] | None = None,
        durability: Durability = "full",
        sha256: bool = False,
        expected_sha256: str | None = None,
    ) -> BlobInfo:
        del durability  # memory has none to choose
        keys.encode(key)
        data = b"".join([piece async for piece in source])
        hash_ = ContentHash(sha256=sha256, expected_sha256=expected_sha256)
        hash_.update(data)
        blake3, sha256_hex = hash_.finish()
        if key in self._objects:
            raise Conflict(Code.KEY_EXISTS, f"{key!r} exists already")
        info = BlobInfo(
            key=key,
            size=len(data),
            blake3=blake3,
            sha256=sha256_hex,
            content_type=content_type,
            meta=meta or {},
            modified_at=time.time(),
        )
        self._objects[key] = _Object(info, data)
        return info

    async def get(self, key: str, *, range_: ByteRange | None = None) -> Reader:
        found = self._object(key)
        return _MemoryReader(found, clip(range_, found.info.size))

    async def head(self, key: str) -> BlobInfo:
        return self._object(key).info

    async def delete(self, key: str) -> None:
        keys.encode(key)
        self._objects.pop(key, None)

    async def list(self, prefix: str = "", after: str = "") -> AsyncIterator[BlobInfo]:
        for key in sorted(self._objects):
            if key.startswith(prefix) and key > after and (found := self._objects.get(key)):
                yield found.info

    async def tidy(self, *, before: float) -> None:
        """Nothing to do: an unfinished put lives in its own call."""

    def local_path(self, key: str) -> Path | None:
        keys.encode(key)
        return None

    async def aclose(self) -> None:
        self._objects.clear()

    def _object(self, key: str) -> _Object:
        keys.encode(key)
        try:
            return self._objects[key]
        except KeyError as error:
            raise NotFound(Code.REFERENCE_NOT_FOUND, f"no object {key!r}") from error


class _MemoryReader:
    def __init__(self, found: _Object, span: ByteRange) -> None:
        self.info = found.info
        self._data = found.data
        self._span = span

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for offset in range(self._span.start, self._span.stop, _CHUNK):
            yield self._data[offset : min(offset + _CHUNK, self._span.stop)]

    async def aclose(self) -> None:
        self._data = b""
