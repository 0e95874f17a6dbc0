"""What clients publish: parsing, joining into batches, and the bounded inbox."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from mentatlab.protocol.errors import Code, Invalid, MentatError, TooLarge
from mentatlab.protocol.frames import KEY, Extension, Frame
from mentatlab.protocol.records import (
    MAX_RECORD_BYTES,
    Draft,
    Producer,
    RecordType,
    data_draft,
    end_draft,
    parse_message,
)
from mentatlab.streams import Appended, StreamingConnectionManager
from mentatlab.streams.port import Lane
from mentatlab.streams.publishing import (
    BATCH_RECORDS,
    INBOX_BYTES,
    Batch,
    Inbox,
    Publication,
    frame_draft,
    joined,
    publication_of,
)


def said(stream_id: str, value: int, seq: int | None = None, epoch: int = 0) -> Publication:
    producer = None if seq is None else Producer(id="p", epoch=epoch, seq=seq)
    return Publication(stream_id, data_draft(value), producer, 10)


def test_neighbours_join_as_long_as_the_sequence_goes_on() -> None:
    publications = [
        said("a", 1),
        said("a", 2),
        said("b", 3),
        said("a", 4),
        Publication("a", end_draft("complete", chunks=0), None, 10),
        said("a", 5),
        said("a", 6, seq=1),
        said("a", 7, seq=2),
        said("a", 8, seq=2),
        said("a", 9, seq=3, epoch=1),
    ]
    found: list[Batch] = []
    at = 0
    while at < len(publications):
        batch, at = joined(publications, at)
        found.append(batch)
    assert [(b.stream_id, len(b.drafts), b.producer_seq, b.size) for b in found] == [
        ("a", 2, None, 20),
        ("b", 1, None, 10),
        ("a", 2, None, 20),
        ("a", 1, None, 10),
        ("a", 2, 2, 20),
        ("a", 1, 2, 10),
        ("a", 1, 3, 10),
    ]
    assert [b.terminal for b in found[:4]] == [False, False, True, False]


@pytest.mark.parametrize(
    "producer",
    [
        '{"id": "", "epoch": 0, "seq": 1}',
        f'{{"id": "{"x" * 201}", "epoch": 0, "seq": 1}}',
        '{"id": "p", "epoch": -1, "seq": 1}',
        '{"id": "p", "epoch": 0, "seq": 0}',
        '{"id": "p", "epoch": 0, "seq": 1152921504606846976}',
        '{"id": "p", "epoch": 1152921504606846976, "seq": 1}',
    ],
)
def test_producers_that_are_none(producer: str) -> None:
    message = parse_message(f'{{"data": 1, "producer": {producer}}}')
    with pytest.raises(Invalid):
        publication_of(message, stream_id="st_1", size=9)


def test_a_message_is_a_publication() -> None:
    message = parse_message('{"data": 1, "producer": {"id": "p", "epoch": 0, "seq": 3}}')
    publication = publication_of(message, stream_id="st_1", size=44)
    assert publication.producer == Producer(id="p", epoch=0, seq=3)
    assert (publication.draft.type, publication.size) == (RecordType.DATA, 44)
    with pytest.raises(Invalid):
        publication_of(parse_message('{"data": 1, "producer_seq": 1}'), stream_id="s", size=9)
    long = parse_message(f'{{"data": "{"x" * MAX_RECORD_BYTES}"}}')
    with pytest.raises(TooLarge):
        publication_of(long, stream_id="s", size=9)


def test_a_frame_is_a_record() -> None:
    extension = Extension(attempt=2, item=5, metadata={"w": 1})
    frame = Frame(
        lane=1, sequence=7, body=b"ab", flags=KEY, pts_us=-3, index=4, extension=extension
    )
    draft = frame_draft(frame)
    assert (draft.body, draft.flags, draft.pts_us, draft.dur_us) == (b"ab", KEY, -3, None)
    assert (draft.attempt, draft.item, draft.index) == (2, 5, 4)
    assert draft.values == {"metadata": {"w": 1}}


class Owner:
    """A publisher that may publish everywhere but to `st_foreign`."""

    def __init__(self, hub: StreamingConnectionManager) -> None:
        self._hub = hub
        self.acknowledged: list[tuple[str, int]] = []
        self.failures: list[str] = []
        self.asked = 0
        self.changed = asyncio.Condition()
        self.inbox = Inbox(hub, self)

    async def admitted(self, stream_id: str) -> Lane:
        self.asked += 1
        return await self._hub.identity(stream_id)

    def published(self, batch: Batch, lane: Lane, appended: Appended) -> None:
        assert batch.stream_id == lane.stream_id
        self.acknowledged.append((batch.stream_id, appended.last))

    def refused(self, batch: Batch, error: MentatError) -> None:
        self.failures.append(error.code)

    def settled(self) -> None:
        self._news = asyncio.ensure_future(self._tell())

    def broken(self, error: Exception) -> None:
        self.failures.append(str(error))

    async def _tell(self) -> None:
        async with self.changed:
            self.changed.notify_all()

    async def until(self, stream_id: str, last: int) -> None:
        async with asyncio.timeout(10), self.changed:
            await self.changed.wait_for(lambda: (stream_id, last) in self.acknowledged)


@pytest.fixture
async def hub() -> AsyncIterator[StreamingConnectionManager]:
    hub = StreamingConnectionManager()
    yield hub
    await hub.aclose()


async def test_order_and_acknowledgements(hub: StreamingConnectionManager) -> None:
    stream_id = (await hub.create_stream("a", "p")).stream_id
    owner = Owner(hub)
    for n in range(1000):
        owner.inbox.put(said(stream_id, n))
        if n % 7 == 0:
            owner.inbox.flush()
            await asyncio.sleep(0)
    owner.inbox.put(said("st_nobody", 0))
    owner.inbox.flush()
    await owner.until(stream_id, 1001)
    await hub.drain()
    await hub.start(asyncio.sleep(0))
    async with hub.subscribe(stream_id, from_=2) as subscription:
        values = [(await anext(subscription)).payload["data"] for _ in range(1000)]
    assert values == list(range(1000))
    assert owner.asked == 2
    assert owner.failures == [Code.STREAM_UNKNOWN]
    assert len(owner.acknowledged) < 1000  # they were joined


async def test_memory_lanes_are_appended_to_at_once(hub: StreamingConnectionManager) -> None:
    stream_id = (await hub.create_stream("a", "p", durability="memory")).stream_id
    owner = Owner(hub)
    owner.inbox.put(said(stream_id, 0))
    owner.inbox.flush()
    await owner.until(stream_id, 2)  # it had to be asked about first
    for n in range(300):
        owner.inbox.put(said(stream_id, n))
    owner.inbox.flush()
    assert owner.acknowledged[-1] == (stream_id, 302)
    owner.inbox.put(said(stream_id, 0, seq=9))
    owner.inbox.flush()
    assert owner.failures == [Code.STREAM_GAP_IN_PRODUCER]
    owner.inbox.forget()
    owner.inbox.put(Publication(stream_id, end_draft("complete", chunks=0), None, 5))
    owner.inbox.flush()
    await owner.until(stream_id, 303)
    assert owner.asked == 2


async def test_a_full_inbox(hub: StreamingConnectionManager) -> None:
    stream_id = (await hub.create_stream("a", "p")).stream_id
    owner = Owner(hub)
    for n in range(BATCH_RECORDS):
        assert not owner.inbox.full
        owner.inbox.put(said(stream_id, n))
    assert owner.inbox.full
    owner.inbox.flush()
    await owner.until(stream_id, 257)
    assert not owner.inbox.full
    owner.inbox.put(Publication(stream_id, Draft(body=b""), None, INBOX_BYTES))
    assert owner.inbox.full
    owner.inbox.flush()
    await owner.until(stream_id, 258)
    assert not owner.inbox.full


async def test_steps_have_their_turn(hub: StreamingConnectionManager) -> None:
    stream_id = (await hub.create_stream("a", "p")).stream_id
    owner = Owner(hub)
    seen: list[int] = []

    async def step() -> None:
        seen.append((await hub.lane(stream_id)).head)

    for n in range(3):
        owner.inbox.put(said(stream_id, n))
        owner.inbox.then(step)
    owner.inbox.flush()
    owner.inbox.put(said(stream_id, 9))
    owner.inbox.flush()
    await owner.until(stream_id, 5)
    assert seen == [2, 3, 4]


async def test_lanes_of_one_connection_share_a_commit(hub: StreamingConnectionManager) -> None:
    ids = [(await hub.create_stream("a", f"p{n}")).stream_id for n in range(4)]
    owner = Owner(hub)
    for turn in range(2):
        for id_ in ids:
            owner.inbox.put(said(id_, turn))
        owner.inbox.flush()
        await owner.until(ids[-1], 2 + turn)
    assert owner.acknowledged == [(id_, 2 + turn) for turn in range(2) for id_ in ids]


async def test_what_waits_can_be_abandoned(hub: StreamingConnectionManager) -> None:
    stream_id = (await hub.create_stream("a", "p", durability="memory")).stream_id
    owner = Owner(hub)
    done = asyncio.Event()

    async def abandon() -> None:
        owner.inbox.abandon()

    async def finish() -> None:
        done.set()

    owner.inbox.put(said(stream_id, 1))
    owner.inbox.then(abandon)
    owner.inbox.put(said(stream_id, 2))
    owner.inbox.then(finish)
    owner.inbox.flush()
    await done.wait()
    assert (await hub.lane(stream_id)).chunks == 1


async def test_what_nobody_foresaw(hub: StreamingConnectionManager) -> None:
    owner = Owner(hub)
    told = asyncio.Event()
    owner.settled = told.set

    async def bug() -> None:
        told.clear()
        raise ValueError("a bug")

    owner.inbox.then(bug)
    owner.inbox.flush()
    async with asyncio.timeout(5):
        while not owner.failures:
            await asyncio.sleep(0)
    assert owner.failures == ["a bug"]
    stream_id = (await hub.create_stream("a", "p")).stream_id
    owner.inbox.put(said(stream_id, 1))
    owner.inbox.flush()
    async with hub.subscribe(stream_id, from_=2) as subscription:
        await anext(subscription)
