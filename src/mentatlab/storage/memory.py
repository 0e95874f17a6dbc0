"""The blob store of tests and of `--ephemeral`: a dict."""

import time
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, NamedTuple

from mentatlab.protocol.errors import Code, Conflict, NotFound
from mentatlab.storage import keys
from mentatlab.storage.copying import copy
from mentatlab.storage.hashing import ContentHash
from mentatlab.storage.port import (
    BlobInfo,
    ByteRange,
    Caps,
    Durability,
    Reader,
    StaleUpload,
    Upload,
    clip,
)
from mentatlab.storage.uploading import (
    Unsigned,
    already_complete,
    refuse_incomplete,
    unknown_upload,
)

_CHUNK = 1 << 20


class _Object(NamedTuple):
    info: BlobInfo
    data: bytes
    upload: str = ""  # the id of the one that it came by


class _Staged:
    """An upload as the store keeps it, whoever holds it."""

    def __init__(self, key: str, content_type: str, meta: dict[str, Any], size: int | None) -> None:
        self.id = f"{uuid.uuid4().hex}:{key}"
        self.key, self.content_type, self.meta, self.size = key, content_type, meta, size
        self.data = bytearray()
        self.changed_at = time.time()


class MemoryStore:
    caps = Caps()

    def __init__(self) -> None:
        self._objects: dict[str, _Object] = {}
        self._uploads: dict[str, _Staged] = {}

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
        return self.publish(
            key,
            data,
            content_type,
            meta or {},
            ContentHash(sha256=sha256, expected_sha256=expected_sha256),
        )

    def publish(
        self,
        key: str,
        data: bytes,
        content_type: str,
        meta: dict[str, Any],
        hash_: ContentHash,
        *,
        upload: str = "",
    ) -> BlobInfo:
        hash_.update(data)
        blake3, sha256 = hash_.finish()
        self._refuse_taken(key)
        info = BlobInfo(
            key=key,
            size=len(data),
            blake3=blake3,
            sha256=sha256,
            content_type=content_type,
            meta=meta,
            modified_at=time.time(),
        )
        self._objects[key] = _Object(info, data, upload)
        self._uploads.pop(upload, None)
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

    async def open_upload(
        self,
        key: str,
        *,
        content_type: str = "application/octet-stream",
        meta: dict[str, Any] | None = None,
        size: int | None = None,
        durability: Durability = "full",
    ) -> Upload:
        del durability
        keys.encode(key)
        self._refuse_taken(key)
        staged = _Staged(key, content_type, meta or {}, size)
        self._uploads[staged.id] = staged
        return _MemoryUpload(self, staged.id, key)

    async def resume_upload(self, upload_id: str) -> Upload:
        _, _, key = upload_id.partition(":")
        upload = _MemoryUpload(self, upload_id, key)
        if upload_id not in self._uploads and self.completed(upload_id, key) is None:
            raise unknown_upload(upload_id)
        return upload

    async def list_stale_uploads(self, *, before: float) -> AsyncIterator[StaleUpload]:
        for staged in list(self._uploads.values()):
            if staged.changed_at < before:
                yield StaleUpload(staged.id, staged.key, staged.changed_at)

    async def copy(self, source: str, target: str) -> BlobInfo:
        return await copy(self, source, target)

    def presign(
        self, key: str, *, expires_s: float, content_type: str = "", disposition: str = ""
    ) -> str | None:
        del key, expires_s, content_type, disposition
        return None

    async def check(self) -> None:
        """Memory is there."""

    async def tidy(self, *, before: float) -> None:
        """Nothing to do: an unfinished put lives in its own call."""

    def local_path(self, key: str) -> Path | None:
        keys.encode(key)
        return None

    def upload_path(self, upload_id: str) -> Path | None:
        del upload_id
        return None

    async def aclose(self) -> None:
        self._objects.clear()
        self._uploads.clear()

    def staged(self, upload_id: str) -> _Staged | None:
        return self._uploads.get(upload_id)

    def completed(self, upload_id: str, key: str) -> BlobInfo | None:
        found = self._objects.get(key)
        return found.info if found is not None and found.upload == upload_id else None

    def forget(self, upload_id: str) -> None:
        self._uploads.pop(upload_id, None)

    def _refuse_taken(self, key: str) -> None:
        if key in self._objects:
            raise Conflict(Code.KEY_EXISTS, f"{key!r} exists already")

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


class _MemoryUpload(Unsigned):
    def __init__(self, store: MemoryStore, upload_id: str, key: str) -> None:
        self.id = upload_id
        self.key = key
        self._store = store
        self.offset = self._taken()

    async def write(self, source: AsyncIterator[bytes]) -> int:
        async for piece in source:
            staged = self._open()
            staged.data += piece
            staged.changed_at = time.time()
            self.offset = len(staged.data)
        return self.offset

    async def checkpoint(self) -> int:
        self.offset = self._taken()
        return self.offset

    async def complete(
        self, *, sha256: bool = False, expected_sha256: str | None = None
    ) -> BlobInfo:
        if info := self._store.completed(self.id, self.key):
            return info
        staged = self._open()
        refuse_incomplete(len(staged.data), staged.size)
        return self._store.publish(
            self.key,
            bytes(staged.data),
            staged.content_type,
            staged.meta,
            ContentHash(sha256=sha256, expected_sha256=expected_sha256),
            upload=self.id,
        )

    async def abort(self) -> None:
        self._store.forget(self.id)

    async def aclose(self) -> None:
        """Nothing is held."""

    def _taken(self) -> int:
        if info := self._store.completed(self.id, self.key):
            return info.size
        staged = self._store.staged(self.id)
        return 0 if staged is None else len(staged.data)

    def _open(self) -> _Staged:
        if self._store.completed(self.id, self.key):
            raise already_complete()
        staged = self._store.staged(self.id)
        if staged is None:
            raise unknown_upload(self.id)
        return staged
