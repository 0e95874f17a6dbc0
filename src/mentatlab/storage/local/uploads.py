"""The open uploads of an embedded store, and what a caller holds of one."""

import threading
import uuid
from collections.abc import AsyncIterator, Callable
from typing import Any

from mentatlab.protocol.errors import Invalid, NotFound
from mentatlab.storage.local.staged_upload import Record, StagedUpload, read_record
from mentatlab.storage.local.tree import RECORD, Tree, taken
from mentatlab.storage.port import BlobInfo, Durability, StaleUpload
from mentatlab.storage.pump import pump, to_its_end
from mentatlab.storage.uploading import Unsigned, unknown_upload

_HASH_STEP = 64 << 20  # bytes hashed in one thread hop


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
        record = Record(
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
                _, record = read_record(path)
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
                read_record(path)
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
        durable, record = read_record(path)
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
        record = Record(key=key, content_type="", meta={}, size=sidecar.size, durability="full")
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
                await to_its_end(self._submit(self._staged.write, last))
        finally:
            self.offset = self._staged.size
        return self.offset

    async def checkpoint(self) -> int:
        self.offset = await self._submit(self._staged.checkpoint)
        return self.offset

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
