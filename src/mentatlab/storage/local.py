"""The embedded blob store: one file an object, one sidecar beside it.

    <root>/.staging/<random>            bytes on their way in
    <root>/ws/_uploads/20261123/blob_x.jpg
    <root>/ws/_uploads/20261123/.blob_x.jpg.meta      BlobInfo as JSON, published before the bytes

A put writes below `.staging` (same file system), syncs, then links to the final name, which cannot
replace and is atomic: SIGKILL at any point leaves no partial object. Every path is walked folder by
folder without following symbolic links. All file work runs in a small pool of threads, hashing
included; one batch is written while the next one arrives.
"""

import asyncio
import contextlib
import errno
import os
import shutil
import stat
import threading
import time
import uuid
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from mentatlab.protocol.errors import Code, Conflict, Internal, NotFound, OutOfSpace
from mentatlab.storage import beneath, keys
from mentatlab.storage.hashing import ContentHash
from mentatlab.storage.port import BlobInfo, ByteRange, Durability, Reader, clip

T = TypeVar("T")
BATCH = 4 << 20  # bytes handed to a thread at once
_PIECES = 512  # buffers in one writev; Linux takes 1024
_CHUNK = 1 << 20  # bytes read at once
_PAGE = 256  # sidecars read in one thread hop
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_sync_data = getattr(os, "fdatasync", os.fsync)  # macOS has only fsync


class LocalStore:
    """`min_free_bytes`: a put that would leave less on the disk is refused as `OutOfSpace`.

    Exactly one process may have a root open (the home folder's lock sees to that).
    """

    def __init__(self, root: Path, *, min_free_bytes: int = 0, threads: int = 4) -> None:
        root.mkdir(parents=True, exist_ok=True)
        self._tree = _Tree(root.resolve(), min_free_bytes)
        self._tree.clear_staging()
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
        staged = _Staged(self._tree, keys.encode(key), hash_, durability)
        writing = asyncio.get_running_loop().create_future()
        writing.set_result(None)
        try:
            async for batch in _batches(source):
                await writing
                writing = self._submit(staged.write, batch)
            await writing
            return await self._submit(staged.publish, key, content_type, meta or {})
        except BaseException:
            abort = self._submit(staged.abort)
            await asyncio.shield(asyncio.gather(writing, abort, return_exceptions=True))
            raise

    async def get(self, key: str, *, range_: ByteRange | None = None) -> Reader:
        opening = self._submit(self._open, key, range_)
        try:
            return await asyncio.shield(opening)
        except asyncio.CancelledError:
            opening.add_done_callback(_close_unclaimed)
            raise

    async def head(self, key: str) -> BlobInfo:
        return await self._submit(self._tree.info, key)

    async def delete(self, key: str) -> None:
        await self._submit(self._tree.remove, keys.encode(key))

    async def list(self, prefix: str = "", after: str = "") -> AsyncIterator[BlobInfo]:
        found = await self._submit(self._tree.keys, prefix, after)
        for start in range(0, len(found), _PAGE):
            for info in await self._submit(self._tree.infos, found[start : start + _PAGE]):
                yield info

    async def tidy(self, *, before: float) -> None:
        await self._submit(self._tree.tidy, before)

    def local_path(self, key: str) -> Path | None:
        path = self._tree.root.joinpath(*keys.encode(key))
        return path if path.is_file() and path.resolve() == path else None

    async def aclose(self) -> None:
        await asyncio.to_thread(self._pool.shutdown)

    def _submit(self, work: Callable[..., T], *args: Any) -> "asyncio.Future[T]":
        return asyncio.get_running_loop().run_in_executor(self._pool, _translated(work), *args)

    def _open(self, key: str, range_: ByteRange | None) -> "_LocalReader":
        info = self._tree.info(key)
        span = clip(range_, info.size)
        fd = beneath.open_file(self._tree.root, keys.encode(key))
        return _LocalReader(self._submit, fd, info, span)


async def _batches(source: AsyncIterator[bytes]) -> AsyncIterator[list[bytes]]:
    """Server messages (about 64 KiB) joined to lists of about 4 MiB, so that a thread hop pays."""
    batch: list[bytes] = []
    size = 0
    async for piece in source:
        if piece:
            batch.append(piece)
            size += len(piece)
        if size >= BATCH or len(batch) >= _PIECES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


class _Tree:
    """The folders of a store; every method blocks. `links` serialises what changes them."""

    def __init__(self, root: Path, min_free_bytes: int) -> None:
        self.root = root
        self.staging = root / ".staging"
        self.links = threading.Lock()
        self._min_free = min_free_bytes

    def clear_staging(self) -> None:
        """At start nobody writes: all that lies there is left over from a killed process."""
        if self.staging.is_symlink():
            self.staging.unlink()
        shutil.rmtree(self.staging, ignore_errors=True)
        self.staging.mkdir(mode=0o700)

    def guard_space(self, size: int) -> None:
        if self._min_free == 0:
            return
        disk = os.statvfs(self.root)
        if disk.f_bavail * disk.f_frsize - size < self._min_free:
            raise _disk_full()

    def info(self, key: str) -> BlobInfo:
        names = keys.encode(key)
        try:
            with beneath.folder(self.root, names[:-1]) as folder:
                found = _stat_file(names[-1], folder)
            sidecar = self._read_sidecar(names)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise NotFound(Code.REFERENCE_NOT_FOUND, f"no object {key!r}") from error
        try:
            info = msgspec.json.decode(sidecar, type=BlobInfo)
        except msgspec.DecodeError as error:
            raise Internal(Code.REFERENCE_CORRUPT, f"the sidecar of {key!r} is damaged") from error
        return msgspec.structs.replace(info, size=found.st_size, modified_at=found.st_mtime)

    def _read_sidecar(self, names: tuple[str, ...]) -> bytes:
        fd = beneath.open_file(self.root, (*names[:-1], _sidecar(names[-1])))
        with os.fdopen(fd, "rb") as file:
            return file.read()

    def keys(self, prefix: str, after: str) -> list[str]:
        found: list[str] = []
        for folder, folders, files in os.walk(self.root):
            folders[:] = [name for name in folders if not name.startswith(".")]
            parts = Path(folder).relative_to(self.root).parts
            found.extend(keys.decode((*parts, f)) for f in files if not f.startswith("."))
        return sorted(key for key in found if key.startswith(prefix) and key > after)

    def infos(self, wanted: list[str]) -> list[BlobInfo]:
        infos: list[BlobInfo] = []
        for key in wanted:
            with contextlib.suppress(NotFound, Internal):  # deleted meanwhile, or damaged
                infos.append(self.info(key))
        return infos

    def remove(self, names: tuple[str, ...]) -> None:
        with self.links, contextlib.suppress(FileNotFoundError, NotADirectoryError):
            with beneath.folder(self.root, names[:-1]) as folder:
                for name in (names[-1], _sidecar(names[-1])):
                    with contextlib.suppress(FileNotFoundError):
                        os.unlink(name, dir_fd=folder)
            self._prune(names[:-1])

    def tidy(self, before: float) -> None:
        """Sidecars whose bytes never came. (Staged files go when the store is opened.)"""
        with self.links:
            for sidecar in self.root.rglob(".*.meta"):
                data = sidecar.with_name(sidecar.name[1 : -len(".meta")])
                if not data.exists() and sidecar.lstat().st_mtime < before:
                    sidecar.unlink()

    def _prune(self, names: tuple[str, ...]) -> None:
        """Remove the folders that became empty."""
        for depth in range(len(names), 0, -1):
            try:
                self.root.joinpath(*names[:depth]).rmdir()
            except OSError:
                return


class _Staged:
    """One put as the pool's threads see it. The lock lets `abort` wait for a write under way."""

    def __init__(
        self, tree: _Tree, names: tuple[str, ...], hash_: ContentHash, durability: Durability
    ) -> None:
        self._tree = tree
        self._names = names
        self._hash = hash_
        self._durability = durability
        self._lock = threading.Lock()
        self._path = tree.staging / uuid.uuid4().hex
        self._sidecar = self._path.with_suffix(".meta")
        self._fd = -1
        self._size = 0
        self._published = False

    def write(self, batch: list[bytes]) -> None:
        with self._lock:
            size = sum(map(len, batch))
            self._tree.guard_space(size)
            self._write_all(batch, size)
            for piece in batch:
                self._hash.update(piece)
            self._size += size

    def publish(self, key: str, content_type: str, meta: dict[str, Any]) -> BlobInfo:
        with self._lock:
            blake3, sha256 = self._hash.finish()
            info = BlobInfo(
                key=key,
                size=self._size,
                blake3=blake3,
                sha256=sha256,
                content_type=content_type,
                meta=meta,
                modified_at=time.time(),
            )
            self._sync(self._open(), needed=self._durability != "none")
            self._write_sidecar(info)
            self._link()
            return info

    def abort(self) -> None:
        with self._lock:
            if self._fd >= 0:
                os.close(self._fd)
                self._fd = -1
            self._unlink_staged()
            if self._published:
                self._tree.remove(self._names)

    def _open(self) -> int:
        if self._fd < 0:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            self._fd = os.open(self._path, flags, 0o400)
        return self._fd

    def _write_all(self, batch: list[bytes], size: int) -> None:
        fd = self._open()
        written = os.writev(fd, batch)
        if written < size:  # a disk that fills up writes a part first, then says why
            rest = memoryview(b"".join(batch))
            while written < size:
                written += os.write(fd, rest[written:])

    def _sync(self, fd: int, *, needed: bool) -> None:
        if needed:
            _sync_data(fd)

    def _write_sidecar(self, info: BlobInfo) -> None:
        fd = os.open(self._sidecar, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            os.write(fd, msgspec.json.encode(info))
            self._sync(fd, needed=self._durability == "full")
        finally:
            os.close(fd)

    def _link(self) -> None:
        *folders, name = self._names
        try:
            with contextlib.ExitStack() as opened:
                with self._tree.links:
                    way = beneath.folder(self._tree.root, folders, create=True)
                    folder = opened.enter_context(way)
                    if _exists(name, folder):
                        raise FileExistsError(name)
                    os.replace(self._sidecar, _sidecar(name), dst_dir_fd=folder)
                    os.link(self._path, name, dst_dir_fd=folder)
                    self._published = True
                self._sync(folder, needed=self._durability == "full")  # others need not wait
        except (FileExistsError, NotADirectoryError) as error:
            raise _taken("/".join(self._names)) from error
        os.close(self._fd)
        self._fd = -1
        self._unlink_staged()

    def _unlink_staged(self) -> None:
        self._path.unlink(missing_ok=True)
        self._sidecar.unlink(missing_ok=True)


class _LocalReader:
    def __init__(
        self, submit: Callable[..., Any], fd: int, info: BlobInfo, span: ByteRange
    ) -> None:
        self.info = info
        self._submit = submit
        self._span = span
        self._fd = fd
        self._lock = threading.Lock()  # the descriptor is not closed under a running read

    async def __aiter__(self) -> AsyncIterator[bytes]:
        offset, stop = self._span
        while offset < stop:
            chunk = await self._submit(self._read, offset, min(_CHUNK, stop - offset))
            offset += len(chunk)
            yield chunk

    async def aclose(self) -> None:
        await asyncio.shield(self._submit(self.close))

    def _read(self, offset: int, size: int) -> bytes:
        with self._lock:
            chunk = os.pread(self._fd, size, offset)
        if not chunk:
            raise Internal(Code.REFERENCE_CORRUPT, f"{self.info.key!r} ends before its size")
        return chunk

    def close(self) -> None:
        with self._lock:
            if self._fd >= 0:
                os.close(self._fd)
                self._fd = -1


def _close_unclaimed(opening: "asyncio.Future[_LocalReader]") -> None:
    if opening.exception() is None:
        opening.result().close()


def _translated(work: Callable[..., T]) -> Callable[..., T]:
    """A full disk is `OutOfSpace`, whatever call met it."""

    def run(*args: Any) -> T:
        try:
            return work(*args)
        except OSError as error:
            if error.errno in _FULL:
                raise _disk_full() from error
            raise

    return run


def _disk_full() -> OutOfSpace:
    return OutOfSpace(
        Code.DISK_FULL, "the disk is full", hint="free some space; nothing was half written"
    )


def _taken(key: str) -> Conflict:
    return Conflict(Code.KEY_EXISTS, f"{key!r} exists already, or something stands in its way")


def _sidecar(name: str) -> str:
    return f".{name}.meta"


def _stat_file(name: str, folder: int) -> os.stat_result:
    """`FileNotFoundError` for anything but a regular file."""
    found = os.stat(name, dir_fd=folder, follow_symlinks=False)
    if not stat.S_ISREG(found.st_mode):
        raise FileNotFoundError(errno.ENOENT, "not a regular file", name)
    return found


def _exists(name: str, folder: int) -> bool:
    try:
        os.stat(name, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True
