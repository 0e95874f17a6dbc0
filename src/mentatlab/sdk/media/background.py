"""Blocking work beside the event loop."""

import asyncio
from collections.abc import AsyncGenerator, Generator
from typing import TypeVar

T = TypeVar("T")


async def in_thread(items: Generator[T]) -> AsyncGenerator[T]:
    """The same items; each step runs in a thread, one at a time. Use it with `contextlib.aclosing`.

    When the reader is cancelled, the step that runs comes to its end, then the generator is closed.
    """
    try:
        while (step := await _step(items)) is not None:
            yield step[0]
    finally:
        items.close()


async def _step(items: Generator[T]) -> tuple[T] | None:
    running = asyncio.create_task(asyncio.to_thread(_next, items))
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        await asyncio.wait([running])
        raise


def _next(items: Generator[T]) -> tuple[T] | None:
    """StopIteration cannot cross a future, so an item comes wrapped and the end is None."""
    for item in items:
        return (item,)
    return None
