import asyncio

from mentatlab.protocol.events import AgentEvent, Log
from mentatlab.runners.mailbox import LogBudget, Mailbox


def note(n: int) -> Log:
    return Log(message=str(n))


async def test_a_full_mailbox_holds_up_its_writer() -> None:
    box = Mailbox(10)
    await box.put(note(1), 10)
    writing = asyncio.create_task(box.put(note(2), 10))
    await asyncio.sleep(0)
    assert box.full
    assert not writing.done()
    reading = aiter(box)
    assert await anext(reading) == note(1)
    await writing
    box.close()
    assert [e async for e in reading] == [note(2)]
    assert box.waiting == 0


async def test_closing_lets_the_writer_go_and_drops_what_comes() -> None:
    box = Mailbox(1)
    box.push(note(1), 5)
    writing = asyncio.create_task(box.put(note(2), 1))
    await asyncio.sleep(0)
    box.close()
    await writing
    assert [e async for e in box] == [note(1)]


async def test_a_reader_may_wait_first_and_taking_is_told() -> None:
    taken: list[tuple[AgentEvent, int]] = []
    box = Mailbox(10, taken=lambda event, size: taken.append((event, size)))
    reading = asyncio.create_task(anext(aiter(box)))
    await asyncio.sleep(0)
    box.push(note(1), 3)
    assert await reading == note(1)
    assert taken == [(note(1), 3)]


def test_log_budget() -> None:
    budget = LogBudget(keep=10, flood=30)
    assert [budget.take(5) for _ in range(7)] == [
        *("keep", "keep", "notice", "drop", "drop", "drop", "flood")
    ]
    assert "10 bytes" in budget.notice().message
