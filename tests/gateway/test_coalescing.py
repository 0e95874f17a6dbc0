"""When the loop waits between its rounds, on a clock of the test's own."""

import asyncio

import pytest

from mentatlab.gateway import coalescing
from mentatlab.gateway.coalescing import BACK_OFF_S, BUSY_READS, TICK_S, Coalescing

SAMPLE = 64


class Clock:
    def __init__(self) -> None:
        self.now, self.rested = 100.0, 0.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.rested += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(coalescing, "time", clock)
    return clock


def reads(found: Coalescing, clock: Clock, count: int, per_second: float) -> None:
    for _ in range(count):
        clock.now += 1 / per_second
        found.read()


async def rounds(found: Coalescing, clock: Clock, count: int, each: int, takes_s: float) -> None:
    for _ in range(count):
        for _ in range(each):
            found.read()
        clock.now += takes_s
        await asyncio.sleep(0)


async def test_few_reads_are_answered_at_once(clock: Clock) -> None:
    found = Coalescing()
    reads(found, clock, 10 * SAMPLE, BUSY_READS / 2)
    assert not found.active


async def test_under_many_reads_rounds_fill_up(clock: Clock) -> None:
    found = Coalescing()
    reads(found, clock, 3 * SAMPLE, 2 * BUSY_READS)
    assert found.active
    await rounds(found, clock, 10, 10, TICK_S / 4)
    assert found.active
    assert clock.rested == pytest.approx(10 * TICK_S * 3 / 4, rel=0.2)


async def test_who_has_no_time_does_not_wait(clock: Clock) -> None:
    found = Coalescing()
    reads(found, clock, 3 * SAMPLE, 2 * BUSY_READS)
    await rounds(found, clock, 1, 10, TICK_S)
    rested = clock.rested
    await rounds(found, clock, 20, 100, 2 * TICK_S)
    assert clock.rested == rested
    assert found.active


async def test_one_fast_connection_is_not_slowed_down(clock: Clock) -> None:
    """It sends the next when it has got the last, so that waiting gathers nothing."""
    found = Coalescing()
    reads(found, clock, 3 * SAMPLE, 2 * BUSY_READS)
    await rounds(found, clock, SAMPLE + 1, 1, 0)
    assert not found.active
    rested = clock.rested
    reads(found, clock, 4 * SAMPLE, 2 * BUSY_READS)
    assert not found.active
    assert clock.rested == rested
    clock.now += BACK_OFF_S
    reads(found, clock, 3 * SAMPLE, 2 * BUSY_READS)
    assert found.active
