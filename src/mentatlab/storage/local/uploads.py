"""Uploads of an embedded store: staged bytes that outlive a connection and a process.

    .staging/<name>             the bytes
    .staging/<name>.upload      the durable offset in 20 digits, a newline, `_Record` as JSON

An upload's id is `<name>:<key>`. When it is complete nothing of it remains in the staging folder:
the object's sidecar names the upload it came by, so that `complete` can be repeated for ever.
"""

import asyncio
import os
import threading
import uuid
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import msgspec

from mentatlab.protocol.errors import Code, Internal, Invalid, NotFound
from mentatlab.storage.hashing import ContentHash
from mentatlab.storage.local import disk
from mentatlab.storage.local.staged import Staged
from mentatlab.storage.local.tree import RECORD, Tree, taken
from mentatlab.storage.port import BlobInfo, Durability, StaleUpload
from mentatlab.storage.pump import pump
from mentatlab.storage.uploading import (
    Unsigned,
    already_complete,
    refuse_incomplete,
    unknown_upload,
)

_DIGITS = 20
_HASH_STEP = 64 << 20  # bytes hashed in one thread hop


class _Record(msgspec.Struct, frozen=True, kw_only=True):
    key: str
    content_type: str
    meta: dict[str, Any]
    size: int | None
    durability: Durability


class StagedUpload(Staged):
    """`info` is set when it is complete. Bytes behind the durable offset count as long as the
    process that wrote them lives."""

    def __init__(self, tree: Tree, name: str, record: _Record) -> None:
        plain = ContentHash(sha256=False, expected_sha256=None)
        super().__init__(tree, name, record.key, record.durability, plain)
        self.id = f"{name}:{record.key}"
        self.info: BlobInfo | None = None
        self._record = record
        self._durable = 0

    # --- begun and found again

    def create(self) -> None:
        """Both files, durably; the bytes' first, so that none lacks them."""
        with self.lock:
            self.tree.writing.add(self.path.name)
            try:
                self._open()
                draft = self.path.with_suffix(".draft")
                flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
                self._record_in(draft, flags, _offset_line(0) + msgspec.json.encode(self._record))
                draft.rename(self._record_path)
                if self.durability != "none":
                    self.tree.sync_staging()
            finally:
                self.tree.writing.discard(self.path.name)

    def recover(self, durable: int) -> None:
        """After another process: what lies behind its durable offset is not to be trusted, but when
        it was killed as the object had its name already, the upload is complete."""
        with self.lock:
            if self.is_published():
                self.tree.sync_folder(self.key)
                self.info = self.tree.info(self.key)
                self.size = self.info.size
                self.discard()
                return
            if os.fstat(self._open()).st_size < durable:
                self.discard()
                raise Internal(
                    Code.REFERENCE_CORRUPT,
                    f"of the upload to {self.key!r} bytes are lost that were on disk",
                    hint="upload it again",
                )
            self._durable = durable
            self.cut(durable)

    # --- one connection

    def write(self, batch: list[bytes]) -> None:
        with self.lock:
            if self.info is not None:
                raise already_complete()
            super().write(batch)

    def sync(self) -> None:
        """What cannot be synced is lost, although it can be read: back to what is durable."""
        try:
            super().sync()
        except OSError:
            self.cut(self._durable)
            raise

    def checkpoint(self) -> int:
        with self.lock:
            if self.info is None and self._durable != self.size:
                self.sync()
                self._record_in(
                    self._record_path, os.O_WRONLY | os.O_CLOEXEC, _offset_line(self.size)
                )
                self._durable = self.size
            return self.size

    # --- the end

    def prepare(self, sha256: bool) -> None:
        """Before `catch_up` and `complete`."""
        with self.lock:
            if self.info is None:
                refuse_incomplete(self.size, self._record.size)
                if sha256:
                    self.want_sha256()

    def complete(self, expected_sha256: str | None) -> BlobInfo:
        with self.lock:
            if self.info is None:
                self.info = self.publish(
                    self._record.content_type,
                    self._record.meta,
                    expected_sha256=expected_sha256,
                    upload=self.id,
                )
                self.discard()
            return self.info

    def catch_up(self, limit: int) -> bool:
        with self.lock:
            return self.info is not None or super().catch_up(limit)

    def abort(self) -> None:
        """An object stays when `complete` has returned, and goes when that was interrupted."""
        with self.lock:
            if self.info is None and self.is_published():
                self.tree.remove(self.key)
            self.discard()

    def discard(self) -> None:
        """The record goes first: without it the rest is litter, which is cleared."""
        with self.lock:
            self._record_path.unlink(missing_ok=True)
            self.path.with_suffix(".draft").unlink(missing_ok=True)
            super().discard()

    @property
    def _record_path(self) -> Path:
        return self.path.with_suffix(RECORD)

    def _record_in(self, path: Path, flags: int, content: bytes) -> None:
        fd = os.open(path, flags, 0o600)
        try:
            disk.overwrite(fd, content)
            if self.durability != "none":
                disk.sync_data(fd)
        finally:
            os.close(fd)


class Uploads:
    """The open uploads of a store. Keeps those that this process has touched (a few KiB each, until
    they end), since it knows their bytes and the state of their hash."""

    def __init__(self, tree: Tree) -> None:
        self._tree = tree
        self._known: dict[str, StagedUpload] = {}
        self._lock = threading.Lock()

    def open(
        self,
        key: str,
        content_type: str,
        meta: dict[str, Any],
        size: int | None,
        durability: Durability,
    ) -> StagedUpload:
        if self._tree.exists(key):
            raise taken(key)
        self._tree.guard_space(size or 0)
        record = _Record(
            key=key, content_type=content_type, meta=meta, size=size, durability=durability
        )
        upload = StagedUpload(self._tree, uuid.uuid4().hex, record)
        try:
            upload.create()
        except BaseException:
            upload.abort()
            raise
        with self._lock:
            self._known[upload.id] = upload
        return upload

    def resume(self, upload_id: str) -> StagedUpload:
        with self._lock:
            known = self._known.get(upload_id)
            if known is None:
                known = self._recovered(upload_id) or self._completed(upload_id)
                if known.info is None:
                    self._known[upload_id] = known
            return known

    def forget(self, upload: StagedUpload) -> None:
        """It is complete or aborted."""
        with self._lock:
            self._known.pop(upload.id, None)

    def stale(self, before: float) -> list[StaleUpload]:
        found: list[StaleUpload] = []
        for path in sorted(self._tree.staging.glob(f"*{RECORD}")):
            try:
                _, record = _read(path)
                bytes_ = path.with_suffix("").stat()
                changed = max(path.stat().st_mtime, bytes_.st_mtime)
            except (FileNotFoundError, NotFound):
                continue  # it ended meanwhile
            if changed < before:
                found.append(StaleUpload(f"{path.stem}:{record.key}", record.key, changed))
        return found

    def tidy(self, before: float) -> None:
        """Records that cannot be read: no process wrote one so."""
        for path in self._tree.staging.glob(f"*{RECORD}"):
            try:
                _read(path)
            except FileNotFoundError:
                continue  # it ended meanwhile
            except NotFound:
                if path.stat().st_mtime < before:
                    path.unlink()

    def _recovered(self, upload_id: str) -> StagedUpload | None:
        name, _, key = upload_id.partition(":")
        path = self._tree.staging / f"{name}{RECORD}"
        if not name.isalnum() or not path.exists():
            return None
        durable, record = _read(path)
        if record.key != key:
            return None
        upload = StagedUpload(self._tree, name, record)
        upload.recover(durable)
        return upload

    def _completed(self, upload_id: str) -> StagedUpload:
        _, _, key = upload_id.partition(":")
        try:
            sidecar = self._tree.sidecar(key)
        except (NotFound, Invalid):
            raise unknown_upload(upload_id) from None
        if sidecar.upload != upload_id:
            raise unknown_upload(upload_id)
        record = _Record(key=key, content_type="", meta={}, size=sidecar.size, durability="full")
        upload = StagedUpload(self._tree, upload_id.partition(":")[0], record)
        upload.info, upload.size = sidecar.info(), sidecar.size
        return upload


class LocalUpload(Unsigned):
    """`storage.port.Upload` on the pool's threads."""

    def __init__(self, submit: Callable[..., Any], uploads: Uploads, staged: StagedUpload) -> None:
        self.id = staged.id
        self.key = staged.key
        self.offset = staged.size
        self._submit = submit
        self._uploads = uploads
        self._staged = staged

    async def write(self, source: AsyncIterator[bytes]) -> int:
        try:
            last = await pump(source, lambda batch: self._submit(self._staged.write, batch))
            if last:
                await asyncio.shield(self._submit(self._staged.write, last))
        finally:
            self.offset = self._staged.size
        return self.offset

    async def checkpoint(self) -> int:
        return await self._submit(self._staged.checkpoint)

    async def complete(
        self, *, sha256: bool = False, expected_sha256: str | None = None
    ) -> BlobInfo:
        await self._submit(self._staged.prepare, sha256 or expected_sha256 is not None)
        while not await self._submit(self._staged.catch_up, _HASH_STEP):
            pass
        info = await self._submit(self._staged.complete, expected_sha256)
        self._uploads.forget(self._staged)
        return info

    async def abort(self) -> None:
        await self._submit(self._staged.abort)
        self._uploads.forget(self._staged)

    async def aclose(self) -> None:
        await self._submit(self._staged.close)


def _offset_line(offset: int) -> bytes:
    return f"{offset:0{_DIGITS}d}\n".encode()


def _read(path: Path) -> tuple[int, _Record]:
    """The durable offset and the rest; `NotFound` when it is damaged."""
    line, _, record = path.read_bytes().partition(b"\n")
    try:
        return int(line), msgspec.json.decode(record, type=_Record)
    except ValueError:
        raise unknown_upload(path.stem) from None
