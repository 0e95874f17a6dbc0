"""A resumable upload of an embedded store, as the pool's threads see it.

    .staging/<name>             the bytes
    .staging/<name>.upload      the durable offset in 20 digits, a newline, `Record` as JSON

An upload's id is `<name>:<key>`. When it is complete nothing of it remains in the staging folder:
the object's sidecar names the upload it came by, so that `complete` can be repeated for ever.
"""

import os
from pathlib import Path
from typing import Any

import msgspec

from mentatlab.protocol.errors import Code, Internal
from mentatlab.storage.hashing import ContentHash
from mentatlab.storage.local import disk
from mentatlab.storage.local.staged import Staged
from mentatlab.storage.local.tree import RECORD, Tree
from mentatlab.storage.port import BlobInfo, Durability
from mentatlab.storage.uploading import already_complete, refuse_incomplete, unknown_upload

_DIGITS = 20


class Record(msgspec.Struct, frozen=True, kw_only=True):
    key: str
    content_type: str
    meta: dict[str, Any]
    size: int | None
    durability: Durability


class StagedUpload(Staged):
    """`info` is set when it is complete. Bytes behind the durable offset count as long as the
    process that wrote them lives."""

    def __init__(self, tree: Tree, name: str, record: Record) -> None:
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


def _offset_line(offset: int) -> bytes:
    return f"{offset:0{_DIGITS}d}\n".encode()


def read_record(path: Path) -> tuple[int, Record]:
    """The durable offset and the rest; `NotFound` when it is damaged."""
    line, _, record = path.read_bytes().partition(b"\n")
    try:
        return int(line), msgspec.json.decode(record, type=Record)
    except (ValueError, msgspec.DecodeError):
        raise unknown_upload(path.stem) from None
