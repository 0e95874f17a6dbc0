"""Readers that hold their publisher back, and the rule that lets a run go on all the same."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from msgspec import structs

from mentatlab.protocol.errors import Code, Invalid, OutOfSpace, Unavailable
from mentatlab.protocol.records import data_draft
from mentatlab.streams import StreamingConnectionManager, StreamSession, Subscription, backpressure
from mentatlab.streams.subscription import Filter, Options

BLOCK = Options(policy="block", reader="d")


@pytest.fixture
async def hub() -> AsyncIterator[StreamingConnectionManager]:
    hub = StreamingConnectionManager()
    yield hub
    await hub.aclose()


async def lane(hub: StreamingConnectionManager, pin: str, node: str = "a") -> StreamSession:
    return await hub.create_stream("agent", pin, run_id="rn_1", node_id=node)


async def publish(session: StreamSession, count: int, size: int = 1) -> None:
    for n in range(count):
        await session.publish(data_draft([n, "x" * size]))


async def settled() -> None:
    """Everything that can go on without the outside has."""
    for _ in range(200):
        await asyncio.sleep(0)


async def head(hub: StreamingConnectionManager, session: StreamSession) -> int:
    return (await hub.lane(session.stream_id)).head


@pytest.mark.parametrize(("size", "most"), [(1, 260), (64 * 1024, 20)])
async def test_a_publisher_waits_for_a_reader_that_lags(
    hub: StreamingConnectionManager, size: int, most: int
) -> None:
    """At most 256 records or 1 MiB ahead; everything comes through in order."""
    session, got = await lane(hub, "x"), list[int]()
    with hub.working("rn_1", "d"):  # it computes: the window does not grow
        async with hub.subscribe(session.stream_id, from_=2, options=BLOCK) as records:
            publishing = asyncio.create_task(publish(session, 600, size))
            await settled()
            assert await head(hub, session) <= most
            while len(got) < 600:
                got.append((await anext(records)).payload["data"][0])
                assert await head(hub, session) <= len(got) + most
            await publishing
    assert got == list(range(600))


async def test_without_a_blocking_reader_nobody_waits(hub: StreamingConnectionManager) -> None:
    session = await lane(hub, "x")
    async with hub.subscribe(session.stream_id):
        await publish(session, 600)
    reader = hub.subscribe(session.stream_id, options=BLOCK)
    await reader.__aenter__()
    publishing = asyncio.create_task(publish(session, 1))
    with hub.working("rn_1", "d"):
        await settled()
        assert not publishing.done()
        await reader.__aexit__(None, None, None)  # who leaves holds nobody
    await publishing


async def test_who_took_all_there_was_and_has_no_credit_holds_its_publisher(
    hub: StreamingConnectionManager,
) -> None:
    """A reader that waits for credit does not wait for input, also when it did before."""
    session = await lane(hub, "x")
    options = Options(policy="block", reader="d", credit=1)
    async with hub.subscribe(session.stream_id, from_=2, options=options) as records:
        await publish(session, 1)
        assert (await anext(records)).sequence == 2
        after = asyncio.create_task(anext(records))
        await settled()  # it waits for input
        publishing = asyncio.create_task(publish(session, 600))
        for _ in range(20):
            await settled()
        assert await head(hub, session) < 300
        assert not publishing.done()
        records.grant(1 << 20)
        assert (await after).sequence == 3
        for sequence in range(4, 603):
            assert (await anext(records)).sequence == sequence
        await publishing


async def test_the_end_never_waits(hub: StreamingConnectionManager) -> None:
    session = await lane(hub, "x")
    await publish(session, 300)
    with hub.working("rn_1", "d"):
        async with hub.subscribe(session.stream_id, options=BLOCK):
            await session.end()
    assert (await hub.lane(session.stream_id)).state == "ended"


async def test_a_publisher_may_have_had_enough(hub: StreamingConnectionManager) -> None:
    session = await lane(hub, "x")
    await publish(session, 300)
    async with hub.subscribe(session.stream_id, options=BLOCK):
        with hub.working("rn_1", "d"), pytest.raises(Unavailable):
            await hub.publish(session.stream_id, [data_draft(1)], patience_s=0.01)
    assert await head(hub, session) == 301
    await hub.publish(session.stream_id, [data_draft(1)], patience_s=0.01)


async def test_a_waiting_publisher_may_be_cancelled(hub: StreamingConnectionManager) -> None:
    session = await lane(hub, "x")
    await publish(session, 300)
    async with hub.subscribe(session.stream_id, options=BLOCK):
        with hub.working("rn_1", "d"):
            publishing = asyncio.create_task(publish(session, 1))
            await settled()
            publishing.cancel()
            with pytest.raises(asyncio.CancelledError):
                await publishing
    assert await head(hub, session) == 301


async def test_a_reader_of_one_input_after_the_other(hub: StreamingConnectionManager) -> None:
    """The diamond: `a` sends on both by turns, `d` reads all of x before it looks at y."""
    x, y = await lane(hub, "x"), await lane(hub, "y")

    async def produce() -> None:
        with hub.working("rn_1", "a"):
            for n in range(2000):
                await x.publish(data_draft(n))
                await y.publish(data_draft(n))
            await x.end()
            await y.end()

    async def consume() -> list[list[int]]:
        with hub.working("rn_1", "d"):
            options = BLOCK
            async with (
                hub.subscribe(x.stream_id, from_=2, options=options) as first,
                hub.subscribe(y.stream_id, from_=2, options=options) as second,
            ):
                return [
                    [r.payload["data"] async for r in each if "data" in r.payload]
                    for each in (first, second)
                ]

    async with asyncio.TaskGroup() as group:
        group.create_task(produce())
        got = group.create_task(consume())
    assert got.result() == [list(range(2000))] * 2


async def test_a_node_that_computes_keeps_all_windows_as_they_are(
    hub: StreamingConnectionManager,
) -> None:
    x, y = await lane(hub, "x"), await lane(hub, "y")
    async with (
        hub.subscribe(x.stream_id, from_="latest", options=BLOCK) as starved,
        hub.subscribe(y.stream_id, from_="latest", options=BLOCK),
    ):
        with hub.working("rn_1", "b"):  # may still give x something
            waiting = asyncio.create_task(anext(starved))
            publishing = asyncio.create_task(publish(y, 600))
            await settled()
            held = await head(hub, y)
            assert held < 300
        await publishing  # nobody is left who could: now y's window grows
        waiting.cancel()


async def test_a_buffer_has_an_end(
    hub: StreamingConnectionManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backpressure, "MOST_BYTES", 2 << 20)
    x, y = await lane(hub, "x"), await lane(hub, "y")
    async with (
        hub.subscribe(x.stream_id, from_="latest", options=BLOCK) as starved,
        hub.subscribe(y.stream_id, from_="latest", options=BLOCK),
    ):
        waiting = asyncio.create_task(anext(starved))
        with pytest.raises(OutOfSpace) as caught:
            await publish(y, 100, 64 * 1024)
        waiting.cancel()
    assert caught.value.code is Code.STREAM_BUFFER_EXCEEDED
    assert (await hub.lane(y.stream_id)).kept < 3 << 20


async def test_a_run_is_nobodys_to_hold_back(hub: StreamingConnectionManager) -> None:
    await lane(hub, "x")
    with pytest.raises(Invalid):
        await hub.attach("rn_1", options=BLOCK)


async def test_what_a_reader_filters_out_holds_nobody(hub: StreamingConnectionManager) -> None:
    session = await lane(hub, "x")
    only_end = Options(policy="block", reader="d", filter=Filter(type=("stream_end",)))
    with hub.working("rn_1", "d"):
        async with hub.subscribe(session.stream_id, options=only_end) as records:
            reading = asyncio.create_task(_read(records))
            await publish(session, 600)
            await session.end()
            assert await reading == [1, 602]


async def _read(records: Subscription) -> list[int]:
    return [record.sequence async for record in records]


async def test_what_was_consumed_in_another_epoch_does_not_count(
    hub: StreamingConnectionManager,
) -> None:
    """After a loss the lane is shorter than what its reader had to catch up with."""
    session = await lane(hub, "x")
    held, lost = backpressure.Backpressure(), structs.replace(session.lane, head=500)
    hold = held.hold(lost, "d", 200)
    gate = held.gates[session.stream_id]
    assert gate.full
    hold.begin_again()
    assert not gate.full
    entries = await hub.publish(session.stream_id, [data_draft(n) for n in range(256)])
    gate.appended(entries.entries)
    assert gate.full
