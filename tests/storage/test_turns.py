import asyncio

import pytest

from mentatlab.storage.turns import Asked, Busy, Turn, Turns


async def test_one_at_a_time() -> None:
    turns, inside = Turns(), 0

    async def work() -> None:
        nonlocal inside
        async with turns.take("a", patience_s=20):
            inside += 1
            assert inside == 1
            await asyncio.sleep(0)
            inside -= 1

    await asyncio.gather(*(work() for _ in range(10)))


async def test_others_are_not_kept_waiting() -> None:
    turns = Turns()
    async with turns.take("a", patience_s=0), turns.take("b", patience_s=0):
        pass


async def test_who_does_not_let_go() -> None:
    turns = Turns()
    async with turns.take("a", patience_s=0):
        with pytest.raises(Busy):
            async with turns.take("a", patience_s=0):
                pass
    async with turns.take("a", patience_s=0):
        pass


async def test_who_waits_for_a_client_is_interrupted() -> None:
    turns, waits = Turns(), asyncio.Event()

    async def holder() -> None:
        async with turns.take("a", patience_s=0) as turn:
            with turn.interruptible():
                waits.set()
                await asyncio.Event().wait()

    held = asyncio.ensure_future(holder())
    await waits.wait()
    async with turns.take("a", patience_s=20):
        assert isinstance(held.exception(), Asked)
    assert not held.cancelled()


async def test_who_was_asked_before_does_not_begin_to_wait() -> None:
    turn = Turn()
    turn.ask()
    with pytest.raises(Asked), turn.interruptible():
        pytest.fail("it was not to begin")


async def test_a_cancellation_from_elsewhere_stays_one() -> None:
    turn, waits = Turn(), asyncio.Event()

    async def holder() -> None:
        with turn.interruptible():
            waits.set()
            await asyncio.Event().wait()

    held = asyncio.ensure_future(holder())
    await waits.wait()
    held.cancel()
    with pytest.raises(asyncio.CancelledError):
        await held


async def test_both_at_once_is_a_cancellation() -> None:
    turn, waits = Turn(), asyncio.Event()

    async def holder() -> None:
        with turn.interruptible():
            waits.set()
            await asyncio.Event().wait()

    held = asyncio.ensure_future(holder())
    await waits.wait()
    turn.ask()
    held.cancel()
    with pytest.raises(asyncio.CancelledError):
        await held
