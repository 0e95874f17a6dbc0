"""What clients publish: their messages, and the order in which these are appended.

While records are being committed the next gather, within bounds: a fast publisher on a slow disk
gets group commits, and no more than `BATCH_RECORDS` and `INBOX_BYTES` ever wait.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import NamedTuple, Protocol

import msgspec

from mentatlab.protocol.errors import MentatError
from mentatlab.protocol.frames import Frame
from mentatlab.protocol.records import (
    MAX_RECORD_BYTES,
    TERMINAL,
    Draft,
    Message,
    Producer,
    draft_of,
    malformed,
)
from mentatlab.streams.hub import StreamingConnectionManager
from mentatlab.streams.lanes import too_large
from mentatlab.streams.port import Appended, Lane

BATCH_RECORDS = 256
"""In one POST, or waiting on one connection: who publishes more at once holds up all streams."""
INBOX_BYTES = 1 << 20
_LARGEST = 1 << 53


class Publication(msgspec.Struct, frozen=True, gc=False):
    """One record from outside, for `stream_id`; `size` in bytes as it came."""

    stream_id: str
    draft: Draft
    producer: Producer | None
    size: int


class Batch(NamedTuple):
    """Records of one stream that are appended together; `producer` is the first one's, `size` the
    bytes as they came.
    """

    stream_id: str
    drafts: tuple[Draft, ...]
    producer: Producer | None
    size: int = 0

    @property
    def producer_seq(self) -> int | None:
        """Of the last record."""
        return None if self.producer is None else self.producer.seq + len(self.drafts) - 1

    @property
    def terminal(self) -> bool:
        """Whether it ends the stream."""
        return self.drafts[-1].type in TERMINAL


def checked_producer(producer: Producer) -> Producer:
    """`Invalid(STREAM_RECORD_INVALID)`"""
    if not (0 < len(producer.id) <= 200 and 0 <= producer.epoch < _LARGEST):
        raise malformed("`producer` has an id of 1 to 200 characters and an epoch from 0")
    if not 1 <= producer.seq < _LARGEST:
        raise malformed("`producer.seq` counts from 1")
    return producer


def publication_of(message: Message, *, stream_id: str, size: int) -> Publication:
    """A record with its optional `producer{id, epoch, seq}`.

    `Invalid(STREAM_RECORD_INVALID)`, or `TooLarge`: later it would take its neighbours along.
    """
    producer = message.producer
    if producer is not None:
        checked_producer(producer)
    elif message.producer_seq is not None:
        raise malformed("`producer_seq` needs a `producer` that `publish` has told before")
    draft = draft_of(message)
    if isinstance(draft.payload, msgspec.Raw) and len(draft.payload) > MAX_RECORD_BYTES:
        raise too_large(len(draft.payload))
    return Publication(stream_id, draft, producer, size)


def frame_draft(frame: Frame) -> Draft:
    """The record of a binary frame."""
    extension = frame.extension
    return Draft(
        payload={"metadata": extension.metadata},
        body=frame.body,
        pts_us=frame.pts_us,
        dur_us=frame.dur_us or None,
        attempt=extension.attempt,
        item=extension.item,
        flags=frame.flags,
        index=frame.index,
    )


def joined(publications: Sequence[Publication], at: int = 0) -> tuple[Batch, int]:
    """The batch that begins there, and where the next one does.

    Neighbours of one stream join, as long as one producer's sequence goes on.
    """
    first, end = publications[at], at + 1
    drafts, size = [first.draft], first.size
    while end < len(publications) and _continues(first, publications, end, end - at):
        item = publications[end]
        drafts.append(item.draft)
        size += item.size
        end += 1
    return Batch(first.stream_id, tuple(drafts), first.producer, size), end


def _continues(first: Publication, publications: Sequence[Publication], at: int, nth: int) -> bool:
    item = publications[at]
    if item.stream_id != first.stream_id or publications[at - 1].draft.type in TERMINAL:
        return False
    if first.producer is None or item.producer is None:
        return first.producer is item.producer
    id_, epoch, seq = first.producer.id, first.producer.epoch, first.producer.seq
    return (item.producer.id, item.producer.epoch, item.producer.seq) == (id_, epoch, seq + nth)


Step = Callable[[], Awaitable[None]]


class _Group(list[Publication]):
    """Records without a step between them."""


class Publisher(Protocol):
    """Whose inbox it is. Only `admitted` may raise."""

    async def admitted(self, stream_id: str) -> Lane:
        """The lane, when it may publish there; else a `MentatError`."""
        ...

    def published(self, batch: Batch, lane: Lane, appended: Appended) -> None: ...

    def refused(self, batch: Batch, error: MentatError) -> None: ...

    def settled(self) -> None:
        """Some of it is done, or `full` has changed."""
        ...

    def broken(self, error: Exception) -> None:
        """Something failed that was not foreseen; what waited is gone."""
        ...


class Inbox:
    """What one connection asks for, in its order: records to append, and steps that must wait.

    Memory lanes are appended to at once; for everything else there is a task while there is
    something to do, which ends by itself, also when the connection is lost.
    """

    __slots__ = ("_bytes", "_hub", "_lanes", "_owner", "_queue", "_records", "_running")

    def __init__(self, hub: StreamingConnectionManager, owner: Publisher) -> None:
        self._hub, self._owner = hub, owner
        self._queue: list[_Group | Step] = []
        self._records = self._bytes = 0
        self._running = False
        self._lanes: dict[str, Lane] = {}

    @property
    def full(self) -> bool:
        """Then no more may be read from the connection."""
        return self._records >= BATCH_RECORDS or self._bytes >= INBOX_BYTES

    def put(self, publication: Publication) -> None:
        if self._queue and isinstance(last := self._queue[-1], _Group):
            last.append(publication)
        else:
            self._queue.append(_Group([publication]))
        self._records += 1
        self._bytes += publication.size

    def then(self, step: Step) -> None:
        """Done after what came before it, and before what comes later."""
        self._queue.append(step)
        self._records += 1

    def forget(self) -> None:
        """Where it may publish is asked anew."""
        self._lanes.clear()

    def abandon(self) -> None:
        """Records that wait are not appended any more."""
        for group in self._queue:
            if isinstance(group, _Group):
                group.clear()

    def flush(self) -> None:
        """Carry out what there is: now, as far as that goes."""
        if self._running:
            self._owner.settled()  # it may be full now
            return
        self._running = True  # what is appended may end the connection, which flushes
        self._at_once()
        self._running = bool(self._queue)
        if self._running:
            self._hub.start(self._run())
        self._owner.settled()

    async def _run(self) -> None:
        try:
            while self._queue:
                await self._next(self._queue[0])
                self._at_once()
                self._owner.settled()
        except Exception as error:  # noqa: BLE001  told to the client, and logged there
            self._queue.clear()
            self._owner.broken(error)
        finally:
            self._running = False

    def _at_once(self) -> None:
        while self._queue and isinstance(group := self._queue[0], _Group):
            while group and self._appended_now(group):
                pass
            if group:
                return
            del self._queue[0]

    def _appended_now(self, group: _Group) -> bool:
        lane = self._lanes.get(group[0].stream_id)
        if lane is None or lane.durability == "commit":
            return False
        batch, end = joined(group)
        try:
            appended = self._hub.publish_now(batch.stream_id, batch.drafts, producer=batch.producer)
        except MentatError as error:
            self._refused(batch, error)
        else:
            if appended is None:
                return False
            self._published(batch, lane, appended)
        self._take(group, end, batch.size)
        return True

    async def _next(self, first: _Group | Step) -> None:
        if isinstance(first, _Group):
            await self._append(self._together(first))
        else:
            del self._queue[0]
            self._records -= 1
            await first()

    def _together(self, group: _Group) -> list[Batch]:
        """The first batch, and those of other commit lanes behind it: they share a commit."""
        batch, end = joined(group)
        found = {batch.stream_id: batch}
        while (
            end < len(group)
            and self._commits(batch.stream_id)
            and self._commits(group[end].stream_id)
        ):
            batch, after = joined(group, end)
            if batch.stream_id in found:
                break
            found[batch.stream_id], end = batch, after
        self._take(group, end, sum(batch.size for batch in found.values()))
        if not group:
            del self._queue[0]
        return list(found.values())

    def _commits(self, stream_id: str) -> bool:
        lane = self._lanes.get(stream_id)
        return lane is not None and lane.durability == "commit"

    def _take(self, group: _Group, count: int, size: int) -> None:
        del group[:count]
        self._records -= count
        self._bytes -= size

    async def _append(self, batches: list[Batch]) -> None:
        async with asyncio.TaskGroup() as tasks:
            for batch in batches:
                tasks.create_task(self._publish(batch))

    async def _publish(self, batch: Batch) -> None:
        id_, drafts, producer = batch.stream_id, batch.drafts, batch.producer
        try:
            lane = self._lanes.get(id_) or await self._owner.admitted(id_)
            self._lanes[id_] = lane
            appended = await self._hub.publish(id_, drafts, producer=producer)
        except MentatError as error:
            self._refused(batch, error)
        else:
            self._published(batch, lane, appended)

    def _published(self, batch: Batch, lane: Lane, appended: Appended) -> None:
        if batch.terminal:
            self._lanes.pop(batch.stream_id, None)
        self._owner.published(batch, lane, appended)

    def _refused(self, batch: Batch, error: MentatError) -> None:
        self._lanes.pop(batch.stream_id, None)
        self._owner.refused(batch, error)
