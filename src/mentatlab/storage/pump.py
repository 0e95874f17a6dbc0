"""From an asynchronous source to threads that write."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import TypeVar

BATCH = 4 << 20  # bytes handed to a thread at once
_PIECES = 512  # buffers in one writev; Linux takes 1024

T = TypeVar("T")
Write = Callable[[list[bytes]], "asyncio.Future[None]"]


async def pump(source: AsyncIterator[bytes], write: Write) -> list[bytes]:
    """Hand `source` to `write`, in order, one call at a time; the last batch is returned.

    Server messages (about 64 KiB) are joined to batches of about 4 MiB, so that a thread hop pays;
    one batch is written while the next arrives. What came before an error of the source, or before
    the caller was cancelled, is written too.
    """
    batch: list[bytes] = []
    size = 0
    writing = asyncio.get_running_loop().create_future()
    writing.set_result(None)
    try:
        async for piece in source:
            if piece:
                batch.append(piece)
                size += len(piece)
            if size >= BATCH or len(batch) >= _PIECES:
                await asyncio.shield(writing)
                writing, batch, size = write(batch), [], 0
        await asyncio.shield(writing)
    except BaseException:
        with contextlib.suppress(Exception):
            await asyncio.shield(_finish(writing, write, batch))
        raise
    return batch


async def to_its_end(work: "asyncio.Future[T]") -> T:
    """Waits for it also when the caller is cancelled meanwhile."""
    try:
        return await asyncio.shield(work)
    except asyncio.CancelledError:
        await asyncio.wait([work])
        raise


async def _finish(writing: "asyncio.Future[None]", write: Write, batch: list[bytes]) -> None:
    await writing
    if batch:
        await write(batch)
