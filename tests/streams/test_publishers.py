"""Whether publishers are still there: time is an argument, the logs are real."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
from tests.support.redis import RedisProcess

from mentatlab.protocol.errors import Fenced
from mentatlab.protocol.records import Producer, data_draft
from mentatlab.streams import StreamingConnectionManager, open_hub
from mentatlab.streams.leases import Lease, Leases
from mentatlab.streams.publishers import Publishers
from mentatlab.streams.redis import open_redis_log

ME = "a connection"


class Time:
    """The loop's and the wall's."""

    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def time() -> Time:
    return Time()


Open = Callable[[], Awaitable[StreamingConnectionManager]]


@pytest.fixture(params=["memory", "sqlite", "redis"])
async def restarted(
    request: pytest.FixtureRequest, tmp_path: Path, time: Time, redis: RedisProcess
) -> AsyncIterator[Open]:
    """Opens the hub; again: as a restarted server does (memory: the same one)."""
    hubs: list[StreamingConnectionManager] = []

    async def open_() -> StreamingConnectionManager:
        if request.param == "memory":
            hubs[:] = hubs or [await open_hub(None, clock=time)]
            return hubs[0]
        for hub in hubs:
            await hub.aclose()
        if request.param == "sqlite":
            hubs[:] = [await open_hub(tmp_path / "streams.db", clock=time)]
        else:
            log = await open_redis_log(redis.url, prefix=f"{tmp_path.name}:")
            hubs[:] = [StreamingConnectionManager(log, clock=time)]
        return hubs[0]

    yield open_
    for hub in hubs:
        await hub.aclose()


@pytest.fixture
async def hub(restarted: Open) -> StreamingConnectionManager:
    return await restarted()


def watching(hub: StreamingConnectionManager, time: Time) -> Publishers:
    return Publishers(hub, silent_s=10, lost_s=60, clock=time)


async def looked(publishers: Publishers, time: Time, seconds: float) -> None:
    """So much later, and everything has been done that follows."""
    time.now += seconds
    publishers.sweep(time.now)
    async with asyncio.timeout(10):
        while publishers.busy:
            await asyncio.sleep(0.001)


async def opened(hub: StreamingConnectionManager) -> str:
    return (await hub.create_stream("me", "out")).stream_id


async def test_a_silent_publisher_stalls_its_stream(
    hub: StreamingConnectionManager, time: Time
) -> None:
    publishers, stream_id = watching(hub, time), await opened(hub)
    publishers.joined(ME, stream_id, "p", time.now, durable=True)
    assert publishers.has(ME)
    await looked(publishers, time, 9)
    assert not publishers.stalled(stream_id)
    await looked(publishers, time, 1)
    assert publishers.stalled(stream_id)
    assert publishers.stalled_count == 1
    publishers.heard_from(ME, time.now)
    assert not publishers.stalled(stream_id)
    await looked(publishers, time, 9)
    assert not publishers.stalled(stream_id)
    assert (await hub.lane(stream_id)).state == "open"


async def test_a_lost_publisher_is_fenced_and_its_stream_ends(
    hub: StreamingConnectionManager, time: Time
) -> None:
    publishers, stream_id = watching(hub, time), await opened(hub)
    me = Producer(id="p", epoch=0, seq=1)
    await hub.publish(stream_id, [data_draft(1)], producer=me)
    publishers.joined(ME, stream_id, "p", time.now, durable=True)
    publishers.left(ME)
    assert not publishers.has(ME)
    for _ in range(6):
        await looked(publishers, time, 10)
    lane = await hub.lane(stream_id)
    assert (lane.state, len(publishers)) == ("errored", 0)
    async with hub.subscribe(stream_id, from_="start") as subscription:
        records = [record async for record in subscription]
    error = records[-1].payload["error"]
    assert (error["code"], error["retryable"]) == ("publisher_lost", True)
    with pytest.raises(Fenced):
        await hub.publish(stream_id, [data_draft(2)], producer=Producer(id="p", epoch=0, seq=2))


async def test_whoever_publishes_keeps_it_alive(
    hub: StreamingConnectionManager, time: Time
) -> None:
    """Also without a connection, such as by POST, at the latest when it would be lost."""
    publishers, stream_id = watching(hub, time), await opened(hub)
    publishers.joined(ME, stream_id, None, time.now, durable=True)
    publishers.left(ME)
    await looked(publishers, time, 55)
    assert publishers.stalled(stream_id)
    await hub.publish(stream_id, [data_draft(1)])
    await looked(publishers, time, 5)
    assert not publishers.stalled(stream_id)
    await looked(publishers, time, 50)
    assert publishers.stalled(stream_id)
    await looked(publishers, time, 5)
    assert (await hub.lane(stream_id)).state == "errored"


async def test_another_publisher_takes_over(hub: StreamingConnectionManager, time: Time) -> None:
    publishers, stream_id = watching(hub, time), await opened(hub)
    publishers.joined(ME, stream_id, "p", time.now, durable=True)
    publishers.left(ME)
    await looked(publishers, time, 50)
    publishers.joined("another", stream_id, "q", time.now, durable=True)
    await looked(publishers, time, 50)
    publishers.heard_from("another", time.now)
    await looked(publishers, time, 5)
    assert (await hub.lane(stream_id)).state == "open"


async def test_streams_that_have_ended_are_forgotten(
    hub: StreamingConnectionManager, time: Time
) -> None:
    publishers = watching(hub, time)
    told, found, gone = [await opened(hub) for _ in range(3)]
    for stream_id in (told, found, gone):
        publishers.joined(ME, stream_id, None, time.now, durable=True)
    publishers.ended(ME, told)
    await hub.end_stream(found)
    await hub.delete_run((await hub.lane(gone)).run_id)
    await looked(publishers, time, 10)
    assert len(publishers) == 0
    assert (await hub.lane(found)).state == "ended"


async def test_after_a_restart_a_publisher_has_as_long_again(restarted: Open, time: Time) -> None:
    hub = await restarted()
    if hub.leases is None:
        return  # what is in memory ends with the process
    before, stream_id = watching(hub, time), await opened(hub)
    before.joined(ME, stream_id, "p", time.now, durable=True)
    await looked(before, time, 5)
    hub = await restarted()
    time.now += 3600
    after = watching(hub, time)
    await after.adopt(time.now)
    assert len(after) == 1
    await looked(after, time, 55)
    await after.adopt(time.now)
    assert (await hub.lane(stream_id)).state == "open"
    await looked(after, time, 5)
    assert (await hub.lane(stream_id)).state == "errored"
    await after.adopt(time.now)
    assert len(after) == 0  # the lease has gone with it


async def test_what_another_process_hears_is_alive(
    hub: StreamingConnectionManager, time: Time
) -> None:
    if hub.leases is None:
        return
    here, there, stream_id = watching(hub, time), watching(hub, time), await opened(hub)
    here.joined(ME, stream_id, None, time.now, durable=True)
    here.left(ME)
    there.joined(ME, stream_id, None, time.now, durable=True)
    for _ in range(8):
        there.heard_from(ME, time.now + 10)
        await looked(there, time, 10)
        await looked(here, time, 0)
        await here.adopt(time.now)
    assert (await hub.lane(stream_id)).state == "open"
    assert not here.stalled(stream_id)
    time.now += 60  # the other one is gone
    await here.adopt(time.now)
    await looked(here, time, 0)
    assert (await hub.lane(stream_id)).state == "errored"


async def test_leases(hub: StreamingConnectionManager) -> None:
    if (leases := hub.leases) is None:
        return
    await _contract(leases)


async def _contract(leases: Leases) -> None:
    await leases.renew([Lease("a", "me", ("p", "q"), 10.5), Lease("b", "me", (), 20)])
    assert await leases.get("a") == Lease("a", "me", ("p", "q"), 10.5)
    assert await leases.get("c") is None
    assert await leases.run_out(10) == []
    assert [lease.stream_id for lease in await leases.run_out(10.5)] == ["a"]
    await leases.renew([Lease("a", "me", ("r",), 30)])
    assert [lease.stream_id for lease in await leases.run_out(29)] == ["b"]
    await leases.release("b")
    await leases.release("b")
    assert await leases.run_out(99) == [Lease("a", "me", ("r",), 30)]
