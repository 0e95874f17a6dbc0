"""The hub in one process: joining, credits, cancelled publishers, runs, attempts."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest
from msgspec import structs
from tests.support.redis import RedisProcess

from mentatlab.protocol.errors import Code, Fenced, Forbidden, Gone, Invalid, NotFound, OutOfSpace
from mentatlab.protocol.records import Cursor, Draft, Producer, RecordType, data_draft
from mentatlab.streams import (
    Lane,
    MemoryStreamLog,
    StreamingConnectionManager,
    StreamRegistry,
    Subscription,
    open_hub,
)
from mentatlab.streams import registry as streams_registry
from mentatlab.streams.buffer import TAIL_BYTES
from mentatlab.streams.port import READ_BYTES, Appended, Retention
from mentatlab.streams.positions import Start, parse_from
from mentatlab.streams.redis import open_redis_log


@pytest.fixture(params=["memory", "sqlite", "redis"])
async def hub(
    request: pytest.FixtureRequest, tmp_path: Path
) -> AsyncIterator[StreamingConnectionManager]:
    if request.param == "redis":
        redis: RedisProcess = request.getfixturevalue("redis")
        log = await open_redis_log(redis.url, prefix=f"{tmp_path.name}:")
        hub = StreamingConnectionManager(log)
    else:
        hub = await open_hub(tmp_path / "streams.db" if request.param == "sqlite" else None)
    yield hub
    await hub.aclose()


async def rest(subscription: Subscription) -> list[int]:
    return [record.sequence async for record in subscription]


def test_the_registry_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams_registry, "MOST", 2)
    registry = StreamRegistry()
    for name in "abc":
        registry.register(
            Lane(stream_id=name, run_id="r", node_id=name, pin_name="p", workspace="w")
        )
    assert [registry.get(name) is not None for name in "abc"] == [False, True, True]
    assert registry.statistics() == {"commit": 2}


async def test_a_stream_from_end_to_end() -> None:
    hub = StreamingConnectionManager(clock=lambda: 1_700_000_000.0)
    session = await hub.create_stream("agent", "out")
    assert (session.agent_id, session.pin_name) == ("agent", "out")
    assert session.created_at == 1_700_000_000.0
    assert session.run_id.startswith("rs_")
    await session.publish(data_draft({"n": 1}), data_draft({"n": 2}))
    await session.end()
    async with hub.subscribe(session.stream_id) as subscription:
        records = [record async for record in subscription]
        assert subscription.over
    assert [r.type for r in records] == [
        RecordType.START,
        RecordType.DATA,
        RecordType.DATA,
        RecordType.END,
    ]
    assert records[1].to_dict()["payload"]["data"] == {"n": 1}
    await hub.aclose()


async def test_a_chunk_of_one_stream_is_published_to_another(
    hub: StreamingConnectionManager,
) -> None:
    one, two = await hub.create_stream("a", "p"), await hub.create_stream("b", "p")
    (entry,) = (await one.publish(Draft(payload={"data": 5}, pts_us=9, item=3))).entries
    await hub.stream_chunk(two.stream_id, entry.record)
    appended = await hub.stream_chunk(two.stream_id, data_draft(6))
    async with hub.subscribe(two.stream_id, from_=2) as subscription:
        copy = await anext(subscription)
    assert (copy.payload, copy.pts_us, copy.item, copy.sequence) == ({"data": 5}, 9, 3, 2)
    assert appended.last == 3


async def test_create_is_idempotent_and_runs_have_one_owner(
    hub: StreamingConnectionManager,
) -> None:
    first = await hub.create_stream("a", "p", run_id="rn_1", node_id="n")
    again = await hub.create_stream("a", "p", run_id="rn_1", node_id="n", attempt=2)
    assert again.stream_id == first.stream_id
    assert (await hub.lane(first.stream_id)).head == 1
    with pytest.raises(Forbidden) as caught:
        await hub.create_stream("a", "q", run_id="rn_1", workspace="other")
    assert caught.value.code is Code.STREAM_FORBIDDEN


async def test_attempts_share_a_lane(hub: StreamingConnectionManager) -> None:
    session = await hub.create_stream("a", "p", run_id="rn_1", node_id="n")
    await session.publish(data_draft(1), data_draft(2))
    await hub.start_attempt(session.stream_id, attempt=2, resume_from=2)
    await hub.start_attempt(session.stream_id, attempt=2, resume_from=2)
    with pytest.raises(Fenced):
        await hub.start_attempt(session.stream_id, attempt=1, resume_from=0)
    await session.publish(data_draft(3))
    ended = await hub.end_stream(session.stream_id)
    assert ended.entries[0].record.payload["chunks"] == 2
    assert (await hub.end_stream(session.stream_id, error=("internal", "late"))).duplicate
    assert (await hub.lane(session.stream_id)).state == "ended"


async def test_an_error_ends_a_stream(hub: StreamingConnectionManager) -> None:
    session = await hub.create_stream("a", "p")
    await hub.end_stream(session.stream_id, error=("agent_error", "it broke"))
    async with hub.subscribe(session.stream_id, from_="latest") as subscription:
        assert await rest(subscription) == []
    async with hub.subscribe(session.stream_id, from_=2) as subscription:
        (record,) = [record async for record in subscription]
    assert record.payload["error"]["message"] == "it broke"


@pytest.mark.parametrize("durability", ["commit", "memory", "relaxed"])
async def test_readers_who_join_at_any_time_miss_and_repeat_nothing(
    hub: StreamingConnectionManager, durability: str
) -> None:
    session = await hub.create_stream("a", "p", durability=durability)  # pyright: ignore[reportArgumentType] parametrized

    async def follow() -> list[int]:
        async with hub.subscribe(session.stream_id) as subscription:
            return await rest(subscription)

    async with asyncio.TaskGroup() as group:
        readers = [group.create_task(follow())]
        for n in range(100):
            await session.publish(data_draft(n))
            if n % 10 == 0:
                readers.append(group.create_task(follow()))
        await session.end()
    assert all(reader.result() == list(range(1, 103)) for reader in readers)
    assert hub.statistics().subscriptions == 0
    assert hub.statistics().buffers.tails == 0


async def test_a_run_ends_with_its_own_lane(hub: StreamingConnectionManager) -> None:
    node = await hub.create_stream("a", "p", run_id="rn_1", node_id="n")
    events = await hub.create_stream("", "events", run_id="rn_1", node_id="_run")
    hidden = await hub.create_stream("a", "q", run_id="rn_1", node_id="n", durability="memory")
    guest = await hub.create_stream("b", "r", run_id="rn_1", node_id="m", external=True)
    async with hub.subscribe("rn_1", from_=2) as subscription:
        assert [item.entry.stream_id for item in await subscription.batch()] == [
            events.stream_id,
            guest.stream_id,
        ]
        await node.end()
        await hidden.publish(data_draft(1))
        assert (await anext(subscription)).rseq == 4
        assert not subscription.over
        await events.end()
        assert [r.rseq async for r in subscription] == [5]
    assert await hub.finished("rn_1", f"{subscription.cursor}")


async def test_a_run_without_its_own_lane_goes_on(hub: StreamingConnectionManager) -> None:
    node = await hub.create_stream("a", "p", run_id="rn_1", node_id="n")
    await node.end()
    async with hub.subscribe("rn_1", from_="latest") as subscription:
        assert await subscription.batch(0.001) == []
        assert not subscription.over


async def test_without_credit_nothing_is_read(hub: StreamingConnectionManager) -> None:
    session = await hub.create_stream("a", "p")
    await session.publish(*[data_draft("x" * 100) for _ in range(10)])
    async with hub.subscribe(session.stream_id, credit=0) as subscription:
        assert await subscription.batch(0.001) == []
        assert subscription.statistics().held == 0
        subscription.grant(1)
        assert [item.position for item in await subscription.batch()] == [1]
        delivered = subscription.statistics().delivered
        subscription.grant(0)  # lower: harmless
        assert await subscription.batch(0.001) == []
        subscription.grant(delivered + 10_000)
        assert [item.position for item in await subscription.batch()] == list(range(2, 12))


async def test_a_grant_wakes_a_waiting_reader(hub: StreamingConnectionManager) -> None:
    session = await hub.create_stream("a", "p")
    async with hub.subscribe(session.stream_id, credit=0) as subscription:
        waiting = asyncio.create_task(subscription.batch())
        await asyncio.wait([waiting], timeout=0.01)
        assert not waiting.done()
        subscription.grant(1)
        assert len(await waiting) == 1


async def test_a_reader_holds_one_batch_and_the_tail_is_bounded(
    hub: StreamingConnectionManager,
) -> None:
    session = await hub.create_stream("a", "p", durability="memory")
    async with hub.subscribe(session.stream_id) as subscription:
        for _ in range(20):
            await session.publish(*[data_draft("x" * 30_000) for _ in range(2)])
            assert hub.statistics().buffers.bytes <= TAIL_BYTES
        first = await anext(subscription)
        assert first.sequence == 1
        assert 0 < hub.statistics().held_bytes <= READ_BYTES
        await session.end()
        assert await rest(subscription) == list(range(2, 43))
        assert hub.statistics().held_bytes == 0


async def test_a_cancelled_publisher_is_delivered(hub: StreamingConnectionManager) -> None:
    session = await hub.create_stream("a", "p")
    async with hub.subscribe(session.stream_id, from_="latest") as subscription:
        publishing = asyncio.create_task(session.publish(data_draft(1)))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        publishing.cancel()
        assert (await anext(subscription)).payload["data"] == 1


async def test_a_reader_that_gives_up_waiting_loses_nothing(
    hub: StreamingConnectionManager,
) -> None:
    session = await hub.create_stream("a", "p")
    async with hub.subscribe(session.stream_id) as subscription:
        for n in range(20):
            publishing = asyncio.create_task(session.publish(data_draft(n)))
            for _ in range(n):
                try:
                    await asyncio.wait_for(anext(subscription), 0)
                except TimeoutError:
                    await asyncio.sleep(0)
            await publishing
        await session.end()
        last = subscription.cursor.sequence
        assert await rest(subscription) == list(range(last + 1, 23))


async def test_a_run_ends_for_a_reader_although_a_guest_goes_on(
    hub: StreamingConnectionManager,
) -> None:
    """The guest's record comes behind the run's last one, before the reader has looked there."""
    own = await hub.create_stream("a", "p", run_id="rn_1", node_id="_run")
    guest = await hub.create_stream("b", "q", run_id="rn_1", external=True)
    async with hub.subscribe("rn_1", from_=3, credit=1) as subscription:
        await own.end()
        await guest.publish(data_draft(1))
        assert (await anext(subscription)).terminal
        subscription.grant(1 << 20)
        assert [r.payload["data"] async for r in subscription] == [1]


async def test_iteration_over_another_epoch_raises(hub: StreamingConnectionManager) -> None:
    session = await hub.create_stream("a", "p")
    cursor = str(Cursor(session.lane.epoch + 1, 1))
    assert not await hub.finished(session.stream_id, cursor)
    async with hub.subscribe(session.stream_id, from_=cursor) as subscription:
        with pytest.raises(Gone) as caught:
            await anext(subscription)
    assert caught.value.code is Code.STREAM_LOST


async def test_a_deleted_run_is_unknown_and_its_readers_hear_of_it(
    hub: StreamingConnectionManager,
) -> None:
    session = await hub.create_stream("a", "p", run_id="rn_1")
    async with hub.subscribe(session.stream_id) as subscription:
        assert (await anext(subscription)).sequence == 1
        await hub.delete_run("rn_1")
        with pytest.raises(NotFound):
            await session.publish(data_draft(1))
        with pytest.raises(NotFound):
            await anext(subscription)
    for id_ in (session.stream_id, "rn_1"):
        with pytest.raises(NotFound):
            await hub.find(id_)
    assert hub.statistics().open == {}


async def test_open_lanes_are_counted_and_known_after_a_restart(tmp_path: Path) -> None:
    hub = await open_hub(tmp_path / "streams.db")
    session = await hub.create_stream("a", "p")
    assert hub.statistics().open == {"commit": 1}
    await hub.aclose()
    hub = await open_hub(tmp_path / "streams.db")
    assert hub.statistics().open == {}
    assert (await hub.identity(session.stream_id)).workspace == "default"
    assert hub.statistics().open == {"commit": 1}
    await hub.end_stream(session.stream_id)
    assert hub.statistics().open == {}
    assert (await hub.identity(session.stream_id)).state == "ended"
    await hub.aclose()


def test_the_registry_knows_open_lanes_only() -> None:
    registry = StreamRegistry()
    lane = Lane(stream_id="st_1", run_id="rn_1", node_id="n", pin_name="p", workspace="default")
    registry.register(lane)
    registry.register(structs.replace(lane, stream_id="st_2", state="ended"))
    assert registry.get("st_1") == lane
    assert registry.get("st_2") is None
    assert registry.statistics() == {"commit": 1}
    registry.forget_run("rn_1")
    assert registry.get("st_1") is None


HEAD = Cursor(4, 10)


@pytest.mark.parametrize(
    ("from_", "position", "fresh"),
    [
        ("start", 0, True),
        ("latest", 10, True),
        (0, 0, True),
        ("1", 0, True),
        (7, 6, True),
        ("20", 19, True),
        ("4:0", 0, True),
        ("4:10", 10, False),
        ("4:3", 3, False),
        ("-1", 9, True),
        (-3, 7, True),
        ("-99", 0, True),
    ],
)
def test_where_reading_begins(from_: str | int, position: int, fresh: bool) -> None:
    assert parse_from(from_, HEAD) == Start(position, fresh)


def test_another_epoch_begins_again_with_a_gap() -> None:
    start = parse_from("3:5", HEAD)
    assert (start.position, start.fresh) == (0, True)
    assert start.gap is not None
    assert (start.gap.from_, start.gap.next) == ("3:5", "4:0")


@pytest.mark.parametrize(
    "from_",
    ["", "-", "x", "4:", "4:11", "4:1:1", 10**18, "9" * 30, "time:", "time:x", "time:9e999"],
)
def test_what_is_no_place(from_: str | int) -> None:
    with pytest.raises(Invalid) as caught:
        parse_from(from_, HEAD)
    assert caught.value.code is Code.STREAM_CURSOR_INVALID


async def test_a_lane_that_cannot_be_retired_keeps_no_other_from_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    now = 1000.0
    log = _Stubborn()
    hub = StreamingConnectionManager(log, clock=lambda: now)
    brief = Retention(ttl_s=5)
    first, second = [await hub.create_stream("a", pin, retention=brief) for pin in ("x", "y")]
    log.refused = first.stream_id
    now += 10
    assert await hub.sweep() == 1
    assert (await hub.lane(second.stream_id)).state == "ended"
    assert first.stream_id in caplog.text


async def test_all_that_is_due_is_done_at_once() -> None:
    now = 1000.0
    hub = StreamingConnectionManager(clock=lambda: now)
    for n in range(250):
        await hub.create_stream("a", f"{n}", retention=Retention(ttl_s=5))
    now += 10
    assert await hub.sweep() == 250
    assert await hub.sweep() == 0


class _Stubborn(MemoryStreamLog):
    """One of its lanes cannot be written to."""

    refused = ""

    async def append(
        self,
        stream_id: str,
        drafts: Sequence[Draft],
        *,
        now: float,
        producer: Producer | None = None,
    ) -> Appended:
        if stream_id == self.refused:
            raise OutOfSpace(Code.DISK_FULL, "the disk is full")
        return await super().append(stream_id, drafts, now=now, producer=producer)
