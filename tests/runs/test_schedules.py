"""Schedules under a clock that the test turns, two schedulers on one database."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from mentatlab.protocol.errors import Code, Invalid, MentatError, NotFound, Unavailable
from mentatlab.runs.schedules import Schedule, Scheduler, ScheduleStore, due_after
from mentatlab.runs.schema import SCHEMA
from mentatlab.sqlite import Database

NOON = 1_700_049_600.0  # 2023-11-15 12:00:00 UTC


class World:
    """Runs by their idempotency key, as an engine would make them."""

    def __init__(self, store: ScheduleStore) -> None:
        self.store, self.now = store, NOON
        self.runs: dict[str, str] = {}
        self.live: set[str] = set()
        self.error: MentatError | None = None

    def scheduler(self) -> Scheduler:
        return Scheduler(self.store, self.submit, self.active, clock=lambda: self.now)

    async def submit(self, schedule: Schedule, key: str) -> str:
        if self.error is not None:
            raise self.error
        run_id = self.runs.setdefault(key, f"rn_{len(self.runs) + 1}")
        self.live.add(run_id)
        return run_id

    async def active(self, schedule: Schedule) -> set[str]:
        return set(self.live)

    async def add(self, **more: Any) -> Schedule:
        asked: dict[str, Any] = {
            "workspace": "default",
            "flow_id": "f",
            "inputs": {},
            "cron": "* * * * *",
            "timezone": "UTC",
            "overlap": "skip",
            "paused": False,
            **more,
        }
        return await self.store.create(now=self.now, **asked)

    async def states(self, schedule: Schedule) -> list[str]:
        return [tick.state for tick in reversed(await self.store.ticks(schedule.id))]


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with Database(tmp_path / "runs.db", SCHEMA) as database:
        yield World(ScheduleStore(database))


async def test_a_tick_makes_one_run_whoever_looks(world: World):
    schedule = await world.add(overlap="allow")
    replicas = [world.scheduler(), world.scheduler()]
    for _ in range(5):
        world.now += 60
        await asyncio.gather(*(replica.look() for replica in replicas * 2))
    assert len(world.runs) == 5
    assert await world.states(schedule) == ["made"] * 5
    assert (await world.store.get(schedule.id)).next_at == NOON + 360


async def test_a_replica_that_dies_with_a_tick_has_it_made_once_by_another(world: World):
    schedule = await world.add()
    world.now += 60
    await world.store.advance(schedule, world.now)
    (tick,) = await world.store.lease(world.now)
    await world.submit(schedule, f"schedule/{tick.key}")  # and then it dies
    await world.scheduler().look()
    assert await world.states(schedule) == ["due"]
    world.now += 31
    await world.scheduler().look()
    assert (await world.states(schedule), len(world.runs)) == (["made"], 1)


async def test_of_missed_ticks_the_last_one_is_made_up_for_if_it_is_young(world: World):
    often, daily = await world.add(overlap="allow"), await world.add(cron="0 13 * * *")
    world.now += 5 * 3600 + 30
    await world.scheduler().look()
    assert [t.at for t in await world.store.ticks(often.id)] == [NOON + 5 * 3600]
    assert await world.store.ticks(daily.id) == []
    assert (await world.store.get(daily.id)).next_at == NOON + 25 * 3600


@pytest.mark.parametrize(
    ("overlap", "first", "later"),
    [
        ("skip", ["made", "skipped"], ["made", "skipped", "made"]),
        ("queue", ["made", "due"], ["made", "made", "due"]),
        ("allow", ["made", "made"], ["made", "made", "made"]),
    ],
)
async def test_overlaps(world: World, overlap: str, first: list[str], later: list[str]):
    schedule, scheduler = await world.add(overlap=overlap), world.scheduler()
    for _ in range(2):
        world.now += 60
        await scheduler.look()
    assert await world.states(schedule) == first
    world.live.clear()
    world.now += 60
    await scheduler.look()
    assert await world.states(schedule) == later


async def test_what_cannot_be_submitted_is_told_what_may_be_later_waits(world: World):
    schedule, scheduler = await world.add(), world.scheduler()
    world.now += 60
    world.error = Unavailable(Code.TOO_MANY_RUNS, "full")
    await scheduler.look()
    assert await world.states(schedule) == ["due"]
    world.error = NotFound(Code.NOT_FOUND, "there is no flow f")
    await scheduler.look()
    (tick,) = await world.store.ticks(schedule.id)
    assert (tick.state, tick.error) == ("failed", "NOT_FOUND: there is no flow f")


async def test_a_paused_schedule_makes_nothing_and_makes_up_for_nothing(world: World):
    schedule, scheduler = await world.add(paused=True), world.scheduler()
    world.now += 90
    await scheduler.look()
    await world.store.pause(schedule, False, now=world.now)
    await scheduler.look()
    assert await world.states(schedule) == []
    world.now += 30
    await scheduler.look()
    assert await world.states(schedule) == ["made"]
    await world.store.delete(schedule.id)
    with pytest.raises(NotFound):
        await world.store.get(schedule.id)


def test_times_follow_the_zone_over_the_change_of_the_clock():
    sunday = 1_711_846_800.0  # 2024-03-31 01:00 UTC: Berlin goes from 02:00 to 03:00
    assert due_after("30 7 * * *", "Europe/Berlin", sunday) == sunday + 4.5 * 3600
    assert due_after("30 7 * * *", "Europe/Berlin", sunday - 86400) == sunday - 86400 + 5.5 * 3600


@pytest.mark.parametrize(
    ("cron", "zone"),
    [("often", "UTC"), ("0 0 31 2 *", "UTC"), ("* * * * *", "Mars/Base"), ("* * * * *", "../etc")],
)
def test_what_is_no_schedule(cron: str, zone: str):
    with pytest.raises(Invalid) as refused:
        due_after(cron, zone, NOON)
    assert refused.value.code is Code.SCHEDULE_INVALID
