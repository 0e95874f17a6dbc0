"""Append-only files for large payloads, beside the database that says what lies where.

    <folder>/00000001.seg ...       one after the other, rolled at 64 MiB

The database's writer thread appends; `sync` comes before the commit that names the places, so that
what is named is on disk. What a crash or a rollback leaves unnamed is never read. A file is never
appended to again by a later process, and goes when nothing names it any more.
"""

import os
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from mentatlab.protocol.errors import Code, Gone

ROLL_BYTES = 64 << 20
_sync_data = getattr(os, "fdatasync", os.fsync)  # macOS has only fsync


class Place(NamedTuple):
    """Where bytes lie, and their CRC-32."""

    file: int
    offset: int
    length: int
    crc: int


class SegmentFiles:
    """`append` and `sync` are called by one thread, the rest by any."""

    def __init__(self, folder: Path, *, roll_bytes: int = ROLL_BYTES) -> None:
        self._folder, self._roll_bytes = folder, roll_bytes
        self._number, self._offset = 0, 0
        self._fd: int | None = None
        self._unsynced = False
        self._group = self._settled = 0

    def open(self, last: int) -> None:
        """`last` is the highest number that the database names."""
        self._folder.mkdir(parents=True, exist_ok=True)
        self._number = max([last, *self._numbers()])
        self._group = self._settled = self._number + 1

    def append(self, data: bytes) -> Place:
        """`OSError` when it cannot be written; nothing is named then."""
        if self._fd is None or self._offset >= self._roll_bytes:
            self._roll()
        assert self._fd is not None
        place = Place(self._number, self._offset, len(data), zlib.crc32(data))
        rest = memoryview(data)
        while rest:
            written = os.pwrite(self._fd, rest, place.offset + len(data) - len(rest))
            rest = rest[written:]
        self._offset += len(data)
        self._unsynced = True
        return place

    def sync(self) -> None:
        """All that was appended is on disk; the commit that names it follows.

        When this is called the group before has been committed, so its files are settled.
        """
        self._sync_current()
        self._settled, self._group = self._group, max(self._group, self._number)

    def read(self, place: Place) -> bytes:
        """`Gone(STREAM_LOST)` when the bytes are not those that were appended."""
        try:
            fd = os.open(self._path(place.file), os.O_RDONLY)
        except FileNotFoundError:
            data = b""
        else:
            try:
                data = os.pread(fd, place.length, place.offset)
            finally:
                os.close(fd)
        return checked(data, place.length, place.crc)

    def drop(self, is_named: Callable[[int], bool]) -> int:
        """Remove the files that nothing names; how many. `is_named` asks the last commit."""
        unnamed = [n for n in self._numbers() if n < self._settled and not is_named(n)]
        for number in unnamed:
            self._path(number).unlink(missing_ok=True)
        return len(unnamed)

    def close(self) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def _sync_current(self) -> None:
        if not self._unsynced or self._fd is None:
            return
        self._unsynced = False
        try:
            _sync_data(self._fd)
        except OSError:
            self.close()  # what this file holds is doubtful: the next append begins another
            raise

    def _roll(self) -> None:
        self._sync_current()
        self.close()
        self._number, self._offset = self._number + 1, 0
        self._fd = os.open(self._path(self._number), os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        sync_folder(self._folder)

    def _path(self, number: int) -> Path:
        return self._folder / f"{number:08}.seg"

    def _numbers(self) -> list[int]:
        return sorted(int(path.stem) for path in self._folder.glob("*.seg"))


def checked(data: bytes, length: int, crc: int) -> bytes:
    """The bytes, unless they are not those that were written: `Gone(STREAM_LOST)`."""
    if len(data) == length and zlib.crc32(data) == crc:
        return data
    raise lost()


def lost() -> Gone:
    return Gone(
        Code.STREAM_LOST,
        "the record's bytes are damaged or missing where they are kept",
        hint="the records after it can be read: go on from the next one",
    )


def sync_folder(folder: Path) -> None:
    """What was created or renamed in it stays there after a power cut."""
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
