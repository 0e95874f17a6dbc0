"""What clients publish: their messages, and the batches in which these are appended.

While one batch is being committed the next gathers, within bounds: a fast publisher on a slow disk
gets group commits, and no more than `BATCH_RECORDS` and `INBOX_BYTES` ever wait.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, NamedTuple, NoReturn, cast

import msgspec

from mentatlab.protocol.errors import Code, Invalid, MentatError, TooLarge
from mentatlab.protocol.records import TERMINAL, Draft, Producer, parse_draft
from mentatlab.protocol.values import is_object
from mentatlab.streams.hub import StreamingConnectionManager
from mentatlab.streams.port import Appended

BATCH_RECORDS = 256
"""In one POST, or waiting on one connection: who publishes more at once holds up all streams."""
INBOX_BYTES = 1 << 20
_LARGEST = 1 << 53


class Publication(NamedTuple):
    """One record from outside, for `stream_id`; `size` in bytes as it came."""

    stream_id: str
    draft: Draft
    producer: Producer | None
    size: int


class Batch(NamedTuple):
    """Records of one stream that are appended together; `producer` is the first one's."""

    stream_id: str
    drafts: tuple[Draft, ...]
    producer: Producer | None

    @property
    def producer_seq(self) -> int | None:
        """Of the last record."""
        return None if self.producer is None else self.producer.seq + len(self.drafts) - 1


def parse_publication(message: object, *, stream_id: str, size: int) -> Publication:
    """A record with an optional `producer{id, epoch, seq}`; `Invalid(STREAM_RECORD_INVALID)`."""
    draft = parse_draft(msgspec.json.encode(message))
    producer = message.get("producer") if is_object(message) else None
    return Publication(stream_id, draft, parse_producer(producer), size)


def parse_producer(value: object) -> Producer | None:
    if value is None:
        return None
    try:
        producer = msgspec.convert(value, Producer)
    except msgspec.ValidationError as error:
        raise _invalid(f"`producer`: {error}") from error
    if not (0 < len(producer.id) <= 200 and 0 <= producer.epoch < _LARGEST):
        raise _invalid("`producer` has an id of 1 to 200 characters and an epoch from 0")
    if not 1 <= producer.seq < _LARGEST:
        raise _invalid("`producer.seq` counts from 1")
    return producer


def parse_records(body: Any, *, stream_id: str) -> Batch:
    """The body of a POST: `{"records": […], "producer": {…}}`, a list of records, or one record.

    `Invalid(STREAM_RECORD_INVALID)`, or `TooLarge` for more than 256 records.
    """
    producer = parse_producer(body.get("producer")) if is_object(body) else None
    records: object = body.get("records", [body]) if is_object(body) else body
    if not isinstance(records, list):
        raise _invalid("send a record, a list of records, or an object with `records`")
    found = cast("list[object]", records)
    if len(found) > BATCH_RECORDS:
        raise TooLarge(
            Code.STREAM_RECORD_TOO_LARGE,
            f"a batch has at most {BATCH_RECORDS} records, this one has {len(found)}",
            hint="send several batches; a producer's `seq` goes on over all of them",
        )
    drafts = tuple(parse_draft(msgspec.json.encode(one)) for one in found)
    return Batch(stream_id, drafts, producer)


def batches(publications: Sequence[Publication]) -> list[Batch]:
    """Neighbours of one stream join, as long as one producer's sequence goes on. Order is kept."""
    found: list[Batch] = []
    for item in publications:
        if found and _continues(found[-1], item):
            found[-1] = found[-1]._replace(drafts=(*found[-1].drafts, item.draft))
        else:
            found.append(Batch(item.stream_id, (item.draft,), item.producer))
    return found


def _continues(batch: Batch, item: Publication) -> bool:
    if batch.stream_id != item.stream_id or batch.drafts[-1].type in TERMINAL:
        return False
    if batch.producer is None or item.producer is None:
        return batch.producer is item.producer
    expected = batch.producer.seq + len(batch.drafts)
    return item.producer == msgspec.structs.replace(batch.producer, seq=expected)


Published = Callable[[Batch, Appended], Awaitable[None]]
Failed = Callable[[Batch, MentatError], Awaitable[None]]


class Inbox:
    """One connection's records on their way into the log. `run` it beside those who `put`."""

    def __init__(
        self, hub: StreamingConnectionManager, *, published: Published, failed: Failed
    ) -> None:
        self._hub, self._published, self._failed = hub, published, failed
        self._waiting: list[Publication] = []
        self._bytes = 0
        self._busy = False
        self._changed = asyncio.Condition()

    async def put(self, publication: Publication) -> None:
        """Waits while the inbox is full: the connection is then not read."""
        async with self._changed:
            await self._changed.wait_for(self._has_room)
            self._waiting.append(publication)
            self._bytes += publication.size
            self._changed.notify_all()

    async def flushed(self) -> None:
        """Waits until everything that was put is appended or refused."""
        async with self._changed:
            await self._changed.wait_for(lambda: not self._waiting and not self._busy)

    async def run(self) -> NoReturn:
        while True:
            async with self._changed:
                await self._changed.wait_for(lambda: bool(self._waiting))
                taken, self._waiting, self._bytes, self._busy = self._waiting, [], 0, True
                self._changed.notify_all()
            for batch in batches(taken):
                await self._publish(batch)
            async with self._changed:
                self._busy = False
                self._changed.notify_all()

    def _has_room(self) -> bool:
        return len(self._waiting) < BATCH_RECORDS and self._bytes < INBOX_BYTES

    async def _publish(self, batch: Batch) -> None:
        try:
            appended = await self._hub.publish(
                batch.stream_id, batch.drafts, producer=batch.producer
            )
        except MentatError as error:
            await self._failed(batch, error)
        else:
            await self._published(batch, appended)


def _invalid(message: str) -> Invalid:
    return Invalid(
        Code.STREAM_RECORD_INVALID, message, hint="docs/reference/streams-protocol.md has the form"
    )
