"""The port, on asyncio: every piece of file work goes to a small pool of threads."""

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from mentatlab.storage import keys
from mentatlab.storage.copying import copy
from mentatlab.storage.hashing import ContentHash
from mentatlab.storage.local.disk import translated
from mentatlab.storage.local.reading import LocalReader, close_unclaimed
from mentatlab.storage.local.staged import StagedPut
from mentatlab.storage.local.tree import Tree
from mentatlab.storage.local.uploads import LocalUpload, Uploads
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
from mentatlab.storage.pump import pump

T = TypeVar("T")
_PAGE = 256  # sidecars read in one thread hop


class LocalStore:
    """`min_free_bytes`: a put that would leave less on the disk is refused as `OutOfSpace`.

    Exactly one process may have a root open (the home folder's lock sees to that).
    """

    caps = Caps()

    def __init__(self, root: Path, *, min_free_bytes: int = 0, threads: int = 8) -> None:
        root.mkdir(parents=True, exist_ok=True)
        self._tree = Tree(root.resolve(), min_free_bytes)
        self._tree.clear_staging()
        self._uploads = Uploads(self._tree)
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="blobs")

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
        hash_ = ContentHash(sha256=sha256, expected_sha256=expected_sha256)
        staged = StagedPut(self._tree, key, durability, hash_)
        try:
            last = await pump(source, lambda batch: self._submit(staged.write, batch))
            return await self._submit(staged.finish, last, content_type, meta or {})
        except BaseException:
            await asyncio.shield(self._submit(staged.abort))
            raise

    async def get(self, key: str, *, range_: ByteRange | None = None) -> Reader:
        opening = self._submit(self._open, key, range_)
        try:
            return await asyncio.shield(opening)
        except asyncio.CancelledError:
            opening.add_done_callback(close_unclaimed)
            raise

    async def head(self, key: str) -> BlobInfo:
        return await self._submit(self._tree.info, key)

    async def delete(self, key: str) -> None:
        await self._submit(self._tree.remove, key)

    async def list(self, prefix: str = "", after: str = "") -> AsyncIterator[BlobInfo]:
        found = self._tree.keys(prefix, after)
        while page := await self._submit(self._tree.infos, found, _PAGE):
            for info in page:
                yield info

    async def open_upload(
        self,
        key: str,
        *,
        content_type: str = "application/octet-stream",
        meta: dict[str, Any] | None = None,
        size: int | None = None,
        durability: Durability = "full",
    ) -> Upload:
        opening = self._submit(self._uploads.open, key, content_type, meta or {}, size, durability)
        return LocalUpload(self._submit, self._uploads, await asyncio.shield(opening))

    async def resume_upload(self, upload_id: str) -> Upload:
        staged = await self._submit(self._uploads.resume, upload_id)
        return LocalUpload(self._submit, self._uploads, staged)

    async def list_stale_uploads(self, *, before: float) -> AsyncIterator[StaleUpload]:
        for upload in await self._submit(self._uploads.stale, before):
            yield upload

    async def copy(self, source: str, target: str) -> BlobInfo:
        return await copy(self, source, target)

    def presign(
        self, key: str, *, expires_s: float, content_type: str = "", disposition: str = ""
    ) -> str | None:
        del key, expires_s, content_type, disposition
        return None

    async def check(self) -> None:
        await self._submit(self._tree.check)

    async def tidy(self, *, before: float) -> None:
        await self._submit(self._uploads.tidy, before)
        await self._submit(self._tree.tidy, before)

    def local_path(self, key: str) -> Path | None:
        path = self._tree.root.joinpath(*keys.encode(key))
        return path if path.is_file() and path.resolve() == path else None

    def upload_path(self, upload_id: str) -> Path | None:
        name = upload_id.partition(":")[0]
        path = self._tree.staging / name
        return path if name.isalnum() and path.is_file() else None

    async def aclose(self) -> None:
        for pool in (self._pool, self._tree.flushers):
            await asyncio.to_thread(pool.shutdown)

    def _submit(self, work: Callable[..., T], *args: Any) -> "asyncio.Future[T]":
        return asyncio.get_running_loop().run_in_executor(self._pool, translated(work), *args)

    def _open(self, key: str, range_: ByteRange | None) -> LocalReader:
        fd, sidecar = self._tree.open(key)
        try:
            return LocalReader(self._submit, fd, sidecar.info(), clip(range_, sidecar.size))
        except BaseException:
            os.close(fd)
            raise
