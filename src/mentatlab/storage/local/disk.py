"""Full disks, and syncing."""

import errno
import os
from collections.abc import Callable
from typing import Any, TypeVar

from mentatlab.protocol.errors import Code, OutOfSpace

T = TypeVar("T")
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
sync_data: Callable[[int], None] = getattr(os, "fdatasync", os.fsync)  # macOS has only fsync


def translated(work: Callable[..., T]) -> Callable[..., T]:
    """A full disk is `OutOfSpace`, whatever call met it."""

    def run(*args: Any) -> T:
        try:
            return work(*args)
        except OSError as error:
            if error.errno in _FULL:
                raise disk_full() from error
            raise

    return run


def disk_full() -> OutOfSpace:
    return OutOfSpace(
        Code.DISK_FULL, "the disk is full", hint="free some space; nothing was half written"
    )


def append(fd: int, pieces: list[bytes], offset: int) -> None:
    """All of `pieces` at `offset`; when that fails the file ends at `offset` again."""
    size = sum(map(len, pieces))
    try:
        written = os.pwritev(fd, pieces, offset)
        if written < size:  # a disk that fills up writes a part first, then says why
            overwrite(fd, memoryview(b"".join(pieces))[written:], offset + written)
    except OSError:
        os.ftruncate(fd, offset)
        raise


def overwrite(fd: int, content: bytes | memoryview, offset: int = 0) -> None:
    written = 0
    while written < len(content):
        written += os.pwrite(fd, content[written:], offset + written)
