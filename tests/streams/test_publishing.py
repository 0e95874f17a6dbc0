"""What clients publish: parsing, joining into batches, and the bounded inbox."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from mentatlab.protocol.errors import Code, Invalid, MentatError
from mentatlab.protocol.records import Producer, RecordType, data_draft, end_draft
from mentatlab.streams import Appended, StreamingConnectionManager
from mentatlab.streams.publishing import (
    BATCH_RECORDS,
    Batch,
    Inbox,
    Publication,
    batches,
    parse_producer,
    parse_publication,
    parse_records,
)


def said(stream_id: str, value: int, seq: int | None = None, epoch: int = 0) -> Publication:
    producer = None if seq is None else Producer(id="p", epoch=epoch, seq=seq)
    return Publication(stream_id, data_draft(value), producer, 10)


def test_neighbours_join_as_long_as_the_sequence_goes_on() -> None:
    end = Publication("a", end_draft("complete", chunks=0), None, 10)
    found = batches(
        [
            said("a", 1),
            said("a", 2),
            said("b", 3),
            said("a", 4),
            end,
            said("a", 5),
            said("a", 6, seq=1),
            said("a", 7, seq=2),
            said("a", 8, seq=2),
            said("a", 9, seq=3, epoch=1),
        ]
    )
    assert [(b.stream_id, len(b.drafts), b.producer_seq) for b in found] == [
        ("a", 2, None),
        ("b", 1, None),
        ("a", 2, None),
        ("a", 1, None),
        ("a", 2, 2),
        ("a", 1, 2),
        ("a", 1, 3),
    ]


@pytest.mark.parametrize(
    ("body", "count", "producer"),
    [
        ({"data": 1}, 1, None),
        ([{"data": 1}, {"data": 2}], 2, None),
        ({"records": [{"data": 1}], "producer": {"id": "p", "epoch": 0, "seq": 4}}, 1, 4),
        ({"type": "stream_end", "producer": {"id": "p", "epoch": 2, "seq": 9}}, 1, 9),
    ],
)
def test_bodies_that_are_records(body: Any, count: int, producer: int | None) -> None:
    batch = parse_records(body, stream_id="st_1")
    assert (batch.stream_id, len(batch.drafts)) == ("st_1", count)
    assert (batch.producer.seq if batch.producer else None) == producer


@pytest.mark.parametrize("body", [None, 1, "x", {}, {"records": 1}, [1], {"records": [{}]}])
def test_bodies_that_are_not(body: Any) -> None:
    with pytest.raises(Invalid) as caught:
        parse_records(body, stream_id="st_1")
    assert caught.value.code is Code.STREAM_RECORD_INVALID


@pytest.mark.parametrize(
    "producer",
    [
        1,
        {},
        {"id": 1, "epoch": 0, "seq": 1},
        {"id": "x" * 201, "epoch": 0, "seq": 1},
        {"id": "p", "epoch": -1, "seq": 1},
        {"id": "p", "epoch": 0, "seq": 0},
        {"id": "p", "epoch": 0, "seq": 1 << 60},
        {"id": "p", "epoch": 1 << 60, "seq": 1},
    ],
)
def test_producers_that_are_none(producer: Any) -> None:
    with pytest.raises(Invalid):
        parse_producer(producer)


def test_a_message_names_its_producer() -> None:
    message = {"data": 1, "producer": {"id": "p", "epoch": 0, "seq": 3}}
    publication = parse_publication(message, stream_id="st_1", size=44)
    assert publication.producer == Producer(id="p", epoch=0, seq=3)
    assert publication.draft.type is RecordType.DATA
    with pytest.raises(Invalid):
        parse_publication([], stream_id="st_1", size=2)


class TestInbox:
    @pytest.fixture
    async def hub(self) -> AsyncIterator[StreamingConnectionManager]:
        hub = StreamingConnectionManager()
        yield hub
        await hub.aclose()

    async def test_order_and_acknowledgements(self, hub: StreamingConnectionManager) -> None:
        session = await hub.create_stream("a", "p")
        acknowledged: list[int] = []
        refused: list[Code] = []

        async def published(_: Batch, appended: Appended) -> None:
            acknowledged.append(appended.last)

        async def failed(_: Batch, error: MentatError) -> None:
            refused.append(error.code)

        inbox = Inbox(hub, published=published, failed=failed)
        running = asyncio.create_task(inbox.run())
        for n in range(1000):
            await inbox.put(said(session.stream_id, n))
        await inbox.put(said("st_nobody", 0))
        await inbox.flushed()
        running.cancel()
        assert acknowledged[-1] == 1001
        assert refused == [Code.STREAM_UNKNOWN]
        async with hub.subscribe(session.stream_id, from_=2) as subscription:
            values = [(await anext(subscription)).payload["data"] for _ in range(1000)]
        assert values == list(range(1000))

    async def test_a_full_inbox_waits(self, hub: StreamingConnectionManager) -> None:
        session = await hub.create_stream("a", "p")

        async def published(_: Batch, _appended: Appended) -> None: ...
        async def failed(_: Batch, error: MentatError) -> None:
            raise error

        inbox = Inbox(hub, published=published, failed=failed)
        for n in range(BATCH_RECORDS):
            await inbox.put(said(session.stream_id, n))
        waiting = asyncio.create_task(inbox.put(said(session.stream_id, 0)))
        await asyncio.wait([waiting], timeout=0.01)
        assert not waiting.done()
        running = asyncio.create_task(inbox.run())
        await waiting
        await inbox.flushed()
        running.cancel()
        assert (await hub.lane(session.stream_id)).chunks == BATCH_RECORDS + 1
