"""The folders of an embedded store: what is published, found, listed and removed. All blocks."""

import contextlib
import os
import shutil
import stat
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec

from mentatlab.protocol.errors import Code, Conflict, Internal, NotFound, Unavailable
from mentatlab.storage import beneath, keys
from mentatlab.storage.local.disk import disk_full
from mentatlab.storage.port import BlobInfo

STAGING = ".staging"
RECORD = ".upload"  # suffix of a resumable upload's record in the staging folder


class Sidecar(BlobInfo, frozen=True, kw_only=True):
    """`upload` is the id of the upload that the object came by, "" for a put."""

    upload: str = ""

    def info(self) -> BlobInfo:
        return BlobInfo(**{name: getattr(self, name) for name in BlobInfo.__struct_fields__})


class Tree:
    """`links` serialises what changes folders."""

    def __init__(self, root: Path, min_free_bytes: int) -> None:
        self.root = root
        self.staging = root / STAGING
        self.writing: set[str] = set()  # names of puts under way in the staging folder
        self.flushers = ThreadPoolExecutor(2, thread_name_prefix="flush")
        self._links = threading.Lock()
        self._min_free = min_free_bytes

    # --- found

    def info(self, key: str) -> BlobInfo:
        return self.sidecar(key).info()

    def sidecar(self, key: str) -> Sidecar:
        """Of an object whose bytes are there."""
        fd, sidecar = self.open(key)
        os.close(fd)
        return sidecar

    def open(self, key: str) -> tuple[int, Sidecar]:
        """A descriptor of the bytes, which the caller closes."""
        *folders, name = keys.encode(key)
        try:
            with beneath.folder(self.root, folders) as folder:
                raw = _read_all(beneath.open_in(folder, _sidecar_name(name)))
                fd = beneath.open_in(folder, name)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise NotFound(Code.REFERENCE_NOT_FOUND, f"no object {key!r}") from error
        try:
            return fd, _of_file(fd, raw, key)
        except BaseException:
            os.close(fd)
            raise

    def exists(self, key: str) -> bool:
        *folders, name = keys.encode(key)
        try:
            with beneath.folder(self.root, folders) as folder:
                return _stat_or_none(name, folder) is not None
        except (FileNotFoundError, NotADirectoryError):
            return False

    def keys(self, prefix: str, after: str) -> Iterator[str]:
        """In order, of one folder after the other."""
        return _walk(self.root, "", prefix, after)

    def infos(self, found: Iterator[str], limit: int) -> list[BlobInfo]:
        """Of the next keys; [] at the end."""
        infos: list[BlobInfo] = []
        for key in found:
            # deleted meanwhile, damaged, or not to be read now: one file does not end the list
            with contextlib.suppress(NotFound, Internal, OSError):
                infos.append(self.info(key))
            if len(infos) == limit:
                break
        return infos

    # --- changed

    def publish(self, data: Path, sidecar: Path, key: str, *, sync: bool) -> None:
        """Give both files of the staging folder their names; `Conflict(KEY_EXISTS)`.

        May be repeated when it was interrupted: `data` that stands there already is well.
        """
        *folders, name = keys.encode(key)
        try:
            with contextlib.ExitStack() as opened:
                with self._links:
                    way = beneath.folder(self.root, folders, create=True)
                    folder = opened.enter_context(way)
                    if not _is_same(data, name, folder):
                        os.replace(sidecar, _sidecar_name(name), dst_dir_fd=folder)
                        os.link(data, name, dst_dir_fd=folder)
                if sync:
                    os.fsync(folder)  # others need not wait
        except (FileExistsError, NotADirectoryError) as error:
            raise taken(key) from error

    def has_published(self, data: Path, key: str) -> bool:
        """Whether the staged file `data` is the object already."""
        *folders, name = keys.encode(key)
        try:
            with beneath.folder(self.root, folders) as folder:
                return _is_same(data, name, folder)
        except (FileNotFoundError, NotADirectoryError, FileExistsError):
            return False

    def remove(self, key: str) -> None:
        *folders, name = keys.encode(key)
        with self._links, contextlib.suppress(FileNotFoundError, NotADirectoryError):
            with beneath.folder(self.root, folders) as folder:
                for file in (name, _sidecar_name(name)):
                    with contextlib.suppress(FileNotFoundError, IsADirectoryError):
                        os.unlink(file, dir_fd=folder)
            self._prune(folders)

    def _prune(self, names: list[str]) -> None:
        """Remove the folders that became empty."""
        for depth in range(len(names), 0, -1):
            try:
                self.root.joinpath(*names[:depth]).rmdir()
            except OSError:
                return

    # --- kept in order

    def clear_staging(self) -> None:
        """At start nobody writes: all that lies there and is no open upload is left over from a
        killed process."""
        if self.staging.is_symlink():
            self.staging.unlink()
        self.staging.mkdir(mode=0o700, exist_ok=True)
        for litter in self._litter():
            _remove_any(litter)

    def tidy(self, before: float) -> None:
        """Sidecars whose bytes never came, and what a put could not take away."""
        for sidecar in self.root.rglob(".*.meta"):
            data = sidecar.with_name(sidecar.name[1 : -len(".meta")])
            if not data.exists() and _is_older(sidecar, before):
                with self._links:  # a put publishes both under this lock
                    if not data.exists():
                        sidecar.unlink(missing_ok=True)
        for litter in self._litter():
            if litter.stem not in self.writing and _is_older(litter, before):
                with contextlib.suppress(FileNotFoundError):
                    _remove_any(litter)

    def _litter(self) -> list[Path]:
        staged = list(self.staging.iterdir())
        uploads = {path.stem for path in staged if path.suffix == RECORD}
        return [
            path for path in staged if path.suffix not in ("", RECORD) or path.stem not in uploads
        ]

    def sync_staging(self) -> None:
        """The names in the staging folder are on disk."""
        self._sync((STAGING,))

    def sync_folder(self, key: str) -> None:
        """The object's name is on disk."""
        self._sync(keys.encode(key)[:-1])

    def _sync(self, names: tuple[str, ...]) -> None:
        with beneath.folder(self.root, names) as folder:
            os.fsync(folder)

    def guard_space(self, size: int) -> None:
        """`OutOfSpace` when `size` more bytes would leave too little."""
        if self._min_free == 0:
            return
        disk = os.statvfs(self.root)
        if disk.f_bavail * disk.f_frsize - size < self._min_free:
            raise disk_full()

    def check(self) -> None:
        probe = self.staging / ".check"
        try:
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise Unavailable(
                Code.STORE_UNAVAILABLE,
                f"the folder of stored bytes cannot be written: {error.strerror}",
                hint="look at the disk of the home folder: is it mounted, writable, failing?",
            ) from error


def taken(key: str) -> Conflict:
    return Conflict(Code.KEY_EXISTS, f"{key!r} exists already, or something stands in its way")


def _sidecar_name(name: str) -> str:
    return f".{name}.meta"


def _remove_any(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def _is_older(path: Path, before: float) -> bool:
    try:
        return path.lstat().st_mtime < before
    except FileNotFoundError:
        return False


def _walk(folder: Path, base: str, prefix: str, after: str) -> Iterator[str]:
    """Keys below `folder`, whose own key is `base`, in order; "a.b" is before "a/b"."""
    for key, name in sorted(_entries(folder, base)):
        if not key.endswith("/"):
            if key.startswith(prefix) and key > after:
                yield key
        elif key[: len(prefix)] == prefix[: len(key)] and (key > after or after.startswith(key)):
            yield from _walk(folder / name, key, prefix, after)


def _entries(folder: Path, base: str) -> Iterator[tuple[str, str]]:
    """(key, name) of what is in a folder; folders' keys end with a slash."""
    with contextlib.suppress(FileNotFoundError), os.scandir(folder) as entries:
        for entry in entries:
            if not entry.name.startswith("."):
                slash = "/" if entry.is_dir(follow_symlinks=False) else ""
                yield base + keys.decode((entry.name,)) + slash, entry.name


def _read_all(fd: int) -> bytes:
    """And close it."""
    with os.fdopen(fd, "rb", buffering=0) as file:
        return file.readall()


def _of_file(fd: int, sidecar: bytes, key: str) -> Sidecar:
    """`NotFound` when it is no regular file, `Internal(REFERENCE_CORRUPT)`"""
    found = os.fstat(fd)
    if not stat.S_ISREG(found.st_mode):
        raise NotFound(Code.REFERENCE_NOT_FOUND, f"no object {key!r}")
    try:
        read = msgspec.json.decode(sidecar, type=Sidecar)
    except msgspec.DecodeError as error:
        raise Internal(Code.REFERENCE_CORRUPT, f"the sidecar of {key!r} is damaged") from error
    return msgspec.structs.replace(read, size=found.st_size, modified_at=found.st_mtime)


def _stat_or_none(name: str, folder: int) -> os.stat_result | None:
    try:
        return os.stat(name, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return None


def _is_same(data: Path, name: str, folder: int) -> bool:
    """Whether `name` is `data` already; `FileExistsError` when it is something else."""
    found = _stat_or_none(name, folder)
    if found is None:
        return False
    if not os.path.samestat(found, data.lstat()):
        raise FileExistsError(name)
    return True
