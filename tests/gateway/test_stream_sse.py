"""Event streams, spoken to a link that keeps what it is told."""

import json
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
from tests.support.links import SECRET, authority, events

from mentatlab.gateway.stream_connections import Connections
from mentatlab.gateway.stream_sse import EventFeed, chunk, event_of, follow
from mentatlab.gateway.stream_wire import Timing
from mentatlab.protocol.errors import Forbidden, Invalid, NotFound
from mentatlab.protocol.records import Draft, data_draft
from mentatlab.protocol.tokens import Claims, mint
from mentatlab.streams import StreamingConnectionManager, open_hub
from mentatlab.streams.buffer import by_sequence


@pytest.fixture
async def hub() -> AsyncIterator[StreamingConnectionManager]:
    hub = await open_hub(None)
    yield hub
    await hub.aclose()


async def feed(
    hub: StreamingConnectionManager, id_: str, *, token: str | None = None, **asked: Any
) -> EventFeed | None:
    connections = Connections(hub, timing=Timing(silent_s=1e9))
    who = await authority(hub, token)
    options = {"from_": None, "rate": None, "last_event_id": None, **asked}
    return await follow(connections, id_, who, **options)


async def test_hello_start_records_and_the_end(hub: StreamingConnectionManager) -> None:
    session = await hub.create_stream("me", "out")
    await hub.publish(session.stream_id, [data_draft("a")])
    epoch = (await hub.lane(session.stream_id)).epoch
    found = await feed(hub, session.stream_id)
    assert found is not None
    async with events(found) as link:
        hello = await link.event()
        assert (hello["retry"], hello["event"], hello["id"]) == ("1500", "hello", f"{epoch}:0")
        names = [(await link.event())["event"] for _ in range(2)]
        assert names == ["stream_start", "stream_data"]
        await hub.publish(session.stream_id, [data_draft("b"), Draft(body=b"xy")])
        assert json.loads((await link.event())["data"])["payload"]["data"] == "b"
        binary = await link.event()
        assert (binary["id"], json.loads(binary["data"])["payload"]["ref"]["size"]) == (
            f"{epoch}:4",
            2,
        )
        await session.end()
        assert (await link.event())["event"] == "stream_end"
        assert await link.closed == 1000
    assert await feed(hub, session.stream_id, last_event_id=f"{epoch}:5") is None
    assert hub.statistics().subscriptions == 0


async def test_a_gap_and_a_start_of_its_own(hub: StreamingConnectionManager) -> None:
    stream_id = (await hub.create_stream("me", "out")).stream_id
    await hub.publish(stream_id, [data_draft(n) for n in range(3)])
    epoch = (await hub.lane(stream_id)).epoch
    found = await feed(hub, stream_id, from_="4", last_event_id=f"{epoch + 1}:2")
    assert found is not None
    async with events(found) as link:
        told = [await link.event() for _ in range(3)]
        assert [e["event"] for e in told] == ["hello", "gap", "stream_start"]
        gap = json.loads(told[1]["data"])
        assert (gap["id"], gap["from"], gap["reason"]) == (stream_id, f"{epoch + 1}:2", "epoch")
        assert told[1]["id"] == gap["next"]
    found = await feed(hub, stream_id, from_="4", rate="1000")
    assert found is not None
    async with events(found) as link:
        told = [await link.event() for _ in range(3)]
        assert [e["event"] for e in told] == ["hello", "stream_start", "stream_data"]
        assert [e["id"] for e in told] == [f"{epoch}:{n}" for n in (3, 3, 4)]


async def test_marks(hub: StreamingConnectionManager) -> None:
    stream_id = (await hub.create_stream("me", "out")).stream_id
    found = await feed(hub, stream_id)
    assert found is not None
    async with events(found) as link:
        for _ in range(2):
            await link.event()
        for now in (100, 114):
            found.tick(now, 0)
        assert link.said.empty()
        link.writable = False
        found.tick(116, 0)
        assert link.said.empty()
        link.writable = True
        found.tick(116, 0)
        mark = await link.event()
        assert (mark["event"], "id" in mark) == ("mark", False)
        assert json.loads(mark["data"])["state"] == "open"


async def test_a_full_link_gets_the_rest_later(hub: StreamingConnectionManager) -> None:
    stream_id = (await hub.create_stream("me", "out", durability="memory")).stream_id
    found = await feed(hub, stream_id)
    assert found is not None
    async with events(found) as link:
        for _ in range(2):
            await link.event()
        link.writable = False
        await hub.publish(stream_id, [data_draft(1)])
        assert link.said.empty()
        link.writable = True
        found.writable()
        assert (await link.event())["event"] == "stream_data"


async def test_it_ends_with_its_token_and_with_the_server(hub: StreamingConnectionManager) -> None:
    stream_id, now = (await hub.create_stream("me", "out")).stream_id, int(time.time())
    claims = Claims(
        subject=stream_id, capabilities=("sub",), workspace="default", expires=now + 100
    )
    found = await feed(hub, stream_id, token=mint(claims, SECRET))
    assert found is not None
    async with events(found) as link:
        found.tick(1, now + 99)
        assert not link.closed.done()
        found.tick(2, now + 100)
        found.tick(3, now + 200)
        assert await link.closed == 1000
    found = await feed(hub, stream_id)
    assert found is not None
    async with events(found) as link:
        await hub.drain()
        assert await link.closed == 1000


async def test_a_deleted_run_ends_it(hub: StreamingConnectionManager) -> None:
    session = await hub.create_stream("me", "out")
    found = await feed(hub, session.stream_id)
    assert found is not None
    async with events(found) as link:
        await hub.delete_run(session.run_id)
        assert await link.closed == 1000


async def test_refusals_come_before_the_answer(hub: StreamingConnectionManager) -> None:
    stream_id = (await hub.create_stream("me", "out")).stream_id
    epoch = (await hub.lane(stream_id)).epoch
    with pytest.raises(NotFound):
        await feed(hub, "st_nobody")
    for wrong in ({"from_": "x"}, {"rate": "fast"}, {"last_event_id": f"{epoch}:99"}):
        with pytest.raises(Invalid):
            await feed(hub, stream_id, **wrong)
    claims = Claims(subject=stream_id, capabilities=("pub",), workspace="default", expires=2**31)
    with pytest.raises(Forbidden):
        await feed(hub, stream_id, token=mint(claims, SECRET))
    assert hub.statistics().subscriptions == 0
    never = await feed(hub, stream_id)
    assert never is not None
    never.lost()  # gone before the answer began
    assert hub.statistics().subscriptions == 0


async def test_an_event_is_a_record_with_its_cursor(hub: StreamingConnectionManager) -> None:
    session = await hub.create_stream("me", "out")
    appended = await session.publish(data_draft("é\n"))
    item = by_sequence(appended.entries[0])
    event = event_of(item, 7)
    assert event.startswith(b"id: 7:2\nevent: stream_data\ndata: {")
    assert event.count(b"\n") == 4
    assert chunk(event) == b"%x\r\n%b\r\n" % (len(event), event)
