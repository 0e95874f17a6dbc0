import asyncio
import threading
from collections.abc import Generator
from contextlib import aclosing

import pytest

from mentatlab.sdk.media.background import in_thread


async def test_items_come_from_another_thread_in_order() -> None:
    def items() -> Generator[tuple[int, bool]]:
        for i in range(5):
            yield i, threading.current_thread() is threading.main_thread()

    assert [i async for i in in_thread(items())] == [(i, False) for i in range(5)]


async def test_an_error_reaches_the_reader() -> None:
    def items() -> Generator[int]:
        yield 1
        raise ValueError("broken")

    reader = in_thread(items())
    assert await anext(reader) == 1
    with pytest.raises(ValueError, match="broken"):
        await anext(reader)


async def test_a_reader_that_leaves_closes_the_generator() -> None:
    closed = threading.Event()

    def items() -> Generator[int]:
        try:
            yield 1
            yield 2
        finally:
            closed.set()

    async with aclosing(in_thread(items())) as reader:
        assert await anext(reader) == 1
    assert closed.is_set()


async def test_a_cancelled_reader_waits_for_the_step_that_runs() -> None:
    started, go_on, closed = threading.Event(), threading.Event(), threading.Event()

    def items() -> Generator[int]:
        try:
            started.set()
            go_on.wait()
            yield 1
        finally:
            closed.set()

    async def read() -> None:
        async with aclosing(in_thread(items())) as reader:
            async for _ in reader:
                pass

    task = asyncio.create_task(read())
    await asyncio.to_thread(started.wait)
    task.cancel()
    await asyncio.sleep(0)
    assert not task.done()
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert closed.is_set()
