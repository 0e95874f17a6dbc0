"""Where bytes come from, and what is put in their way."""

import asyncio
import os
import stat
from collections.abc import AsyncIterator, Callable
from pathlib import Path

from mentatlab.protocol.errors import Code, Invalid, TooLarge
from mentatlab.storage import beneath

_CHUNK = 1 << 20


async def once(data: bytes) -> AsyncIterator[bytes]:
    yield data


async def chunks(read: Callable[[int], bytes]) -> AsyncIterator[bytes]:
    """What a blocking `read(size)` gives, in threads."""
    while chunk := await asyncio.to_thread(read, _CHUNK):
        yield chunk


async def bounded(source: AsyncIterator[bytes], limit: int | None) -> AsyncIterator[bytes]:
    """`TooLarge(PAYLOAD_TOO_LARGE)` as soon as more than `limit` bytes have come."""
    size = 0
    async for piece in source:
        size += len(piece)
        if limit is not None and size > limit:
            raise too_large(limit)
        yield piece


async def peek(source: AsyncIterator[bytes], wanted: int) -> tuple[bytes, AsyncIterator[bytes]]:
    """The first `wanted` bytes, and the whole source with them put back."""
    pieces: list[bytes] = []
    size = 0
    async for piece in source:
        pieces.append(piece)
        size += len(piece)
        if size >= wanted:
            break
    return b"".join(pieces)[:wanted], _chain(pieces, source)


async def _chain(pieces: list[bytes], rest: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    while pieces:
        yield pieces.pop(0)
    async for piece in rest:
        yield piece


def too_large(limit: int) -> TooLarge:
    return TooLarge(
        Code.PAYLOAD_TOO_LARGE,
        f"one object may have at most {limit} bytes",
        hint="send less, or start the server with a higher MENTATLAB_MAX_OBJECT",
    )


def open_output(path: Path, below: Path) -> int:
    """A descriptor of an agent's output; `Invalid(OUTPUT_FILE_INVALID)` for anything unsafe."""
    try:
        names = path.relative_to(below).parts
        if not names or ".." in names:
            raise _bad_output(path, "is not below the attempt's folder")
        fd = beneath.open_file(below, names)
    except (OSError, ValueError) as error:
        raise _bad_output(path, "is not a regular file below the attempt's folder") from error
    found = os.fstat(fd)
    if stat.S_ISREG(found.st_mode) and found.st_nlink == 1:
        return fd
    os.close(fd)
    raise _bad_output(path, "is not a regular file with one link")


def _bad_output(path: Path, why: str) -> Invalid:
    return Invalid(
        Code.OUTPUT_FILE_INVALID,
        f"{path.name!r} {why}",
        hint="write outputs as plain files below out_dir",
    )
