"""Bytes on their way into an embedded store, as the pool's threads see them."""

import os
import threading
import uuid
from concurrent.futures import Future, wait
from pathlib import Path
from typing import Any

import msgspec

from mentatlab.protocol.errors import Code, Internal
from mentatlab.storage import keys
from mentatlab.storage.hashing import ContentHash, refuse_mismatch
from mentatlab.storage.local import disk
from mentatlab.storage.local.tree import Sidecar, Tree
from mentatlab.storage.port import BlobInfo, Durability
from mentatlab.storage.uploading import unknown_upload

_STEP = 4 << 20  # bytes read at once to hash them
_BEHIND = 32 << 20  # bytes after which the disk is set to work


class Staged:
    """A file of the staging folder. Methods block, and wait for one another.

    `hash` has seen the first `hashed` bytes: all, save those that another process wrote.
    """

    def __init__(
        self, tree: Tree, name: str, key: str, durability: Durability, hash_: ContentHash
    ) -> None:
        keys.encode(key)
        self.tree = tree
        self.key = key
        self.path = tree.staging / name
        self.durability = durability
        self.size = 0
        self.lock = threading.RLock()
        self._hash = hash_
        self._hashed = 0
        self._fd = -1
        self._gone = False
        self._behind: Future[None] | None = None  # a sync of the first `_begun` bytes
        self._begun = 0

    def write(self, batch: list[bytes]) -> None:
        with self.lock:
            size = sum(map(len, batch))
            self.tree.guard_space(size)
            disk.append(self._open(), batch, self.size)
            if self._hashed == self.size:
                for piece in batch:
                    self._hash.update(piece)
                self._hashed += size
            self.size += size
            if self.durability != "none" and self.size - self._begun >= _BEHIND:
                self._sync_behind()

    def sync(self) -> None:
        if self.durability != "none":
            if self._behind is not None:
                self._behind.result()  # the system tells a write that failed only once
            disk.sync_data(self._open())

    def _sync_behind(self) -> None:
        """Beside what comes yet: else the end waits for all of it (a fifth of the time of 1 GiB),
        and so does everybody who syncs meanwhile."""
        if self._behind is not None:
            if not self._behind.done():
                return
            self._behind.result()
        self._behind = self.tree.flushers.submit(disk.sync_data, self._open())
        self._begun = self.size

    def cut(self, size: int) -> None:
        """Forget what is behind the first `size` bytes."""
        with self.lock:
            os.ftruncate(self._open(), size)
            self._hash, self._hashed = ContentHash(sha256=False, expected_sha256=None), 0
            self.size = self._begun = size
            self._behind = None

    def want_sha256(self) -> None:
        """Hash anew, for it was not asked for when the bytes came."""
        with self.lock:
            if not self._hash.has_sha256:
                self._hash, self._hashed = ContentHash(sha256=True, expected_sha256=None), 0

    def catch_up(self, limit: int) -> bool:
        """Hash up to `limit` bytes that were not seen; whether all are hashed now."""
        with self.lock:
            stop = min(self._hashed + limit, self.size)
            while self._hashed < stop:
                piece = os.pread(self._open(), min(_STEP, stop - self._hashed), self._hashed)
                if not piece:
                    raise Internal(Code.REFERENCE_CORRUPT, f"bytes for {self.key!r} were lost")
                self._hash.update(piece)
                self._hashed += len(piece)
            return self._hashed == self.size

    def publish(
        self,
        content_type: str,
        meta: dict[str, Any],
        *,
        expected_sha256: str | None = None,
        upload: str = "",
    ) -> BlobInfo:
        """Durable as was asked; the staged names remain until `discard`."""
        with self.lock:
            self.catch_up(self.size)
            blake3, sha256 = self._hash.finish()
            refuse_mismatch(sha256, expected_sha256)
            fd = self._open()  # also when it is empty
            os.utime(fd)  # the object is new, however long its bytes took
            self.sync()
            info = BlobInfo(
                key=self.key,
                size=self.size,
                blake3=blake3,
                sha256=sha256,
                content_type=content_type,
                meta=meta,
                modified_at=os.fstat(fd).st_mtime,
            )
            sidecar = self._write_sidecar(info, upload)
            self.tree.publish(self.path, sidecar, self.key, sync=self.durability == "full")
            os.fchmod(fd, 0o400)
            return info

    def is_published(self) -> bool:
        """Whether the object stands there and the staged name, too."""
        return self.tree.has_published(self.path, self.key)

    def discard(self) -> None:
        """Take the staged names away; nothing can be written any more."""
        with self.lock:
            self._gone = True
            self.close()
            self.path.unlink(missing_ok=True)
            self._sidecar.unlink(missing_ok=True)

    def close(self) -> None:
        with self.lock:
            if self._behind is not None:
                wait([self._behind])
            if self._fd >= 0:
                os.close(self._fd)
                self._fd = -1

    def _open(self) -> int:
        if self._gone:
            raise unknown_upload(self.path.name)
        if self._fd < 0:
            flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
            self._fd = os.open(self.path, flags, 0o600)
        return self._fd

    @property
    def _sidecar(self) -> Path:
        return self.path.with_suffix(".meta")

    def _write_sidecar(self, info: BlobInfo, upload: str) -> Path:
        fields = {name: getattr(info, name) for name in BlobInfo.__struct_fields__}
        content = msgspec.json.encode(Sidecar(**fields, upload=upload))
        fd = os.open(self._sidecar, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            disk.append(fd, [content], 0)
            if self.durability == "full":
                disk.sync_data(fd)
        finally:
            os.close(fd)
        return self._sidecar


class StagedPut(Staged):
    """One put."""

    def __init__(self, tree: Tree, key: str, durability: Durability, hash_: ContentHash) -> None:
        super().__init__(tree, uuid.uuid4().hex, key, durability, hash_)
        self._done = False
        tree.writing.add(self.path.name)

    def finish(self, last: list[bytes], content_type: str, meta: dict[str, Any]) -> BlobInfo:
        if last:
            self.write(last)
        info = self.publish(content_type, meta)
        self._done = True
        self.discard()
        return info

    def abort(self) -> None:
        """Also what is published already: the caller was cancelled, or its folder did not sync."""
        with self.lock:
            if self._done or self.is_published():
                self.tree.remove(self.key)
            self.discard()

    def discard(self) -> None:
        super().discard()
        self.tree.writing.discard(self.path.name)
