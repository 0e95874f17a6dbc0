"""What an `msp.v1+json` connection publishes: lane aliases, credit, and acknowledgements.

Credit is the absolute number of bytes that a publisher may have sent to a stream: what was taken
from it, and a window more. One that overdraws is not read on.
"""

from collections.abc import Callable

import msgspec

from mentatlab.gateway.stream_messages import ProducerName
from mentatlab.gateway.stream_wire import MAX_STREAMS, message
from mentatlab.protocol.errors import RateLimited
from mentatlab.protocol.frames import Frame
from mentatlab.protocol.records import Message, Producer, malformed
from mentatlab.streams.lanes import already_there
from mentatlab.streams.port import Appended, Known, Lane
from mentatlab.streams.publishing import (
    INBOX_BYTES,
    Batch,
    Publication,
    checked_producer,
    frame_draft,
    publication_of,
)

_encode = msgspec.json.Encoder().encode
WINDOW_BYTES = INBOX_BYTES


class Outlet:
    """A stream that the connection has announced to publish to."""

    __slots__ = ("_granted", "_taken", "id", "lane", "producer")

    def __init__(self, id_: str, lane: int) -> None:
        self.id, self.lane = id_, lane
        self.producer: ProducerName | None = None
        self._taken, self._granted = 0, WINDOW_BYTES

    def begin(self, lane: Lane, known: Known | None) -> bytes:
        """`publishing`: what the log has of the producer. `Fenced` for an older epoch of it."""
        seq = 0
        if self.producer is not None:
            already_there(self._at(1), known, 0)
            seq = known.seq if known is not None and known.epoch == self.producer.epoch else 0
        sequence = known.sequence_of(seq) if known is not None and seq else lane.head
        return message(
            "publishing",
            id=self.id,
            lane=self.lane,
            producer_seq=seq,
            sequence=sequence,
            epoch=lane.epoch,
            max_bytes=self._granted,
            durable=lane.durability == "commit",
        )

    def publication_of(self, frame: Frame) -> Publication:
        """Of a binary record; `Invalid(STREAM_RECORD_INVALID)`."""
        producer = self.producer_at(frame.sequence) if frame.sequence else None
        return Publication(self.id, frame_draft(frame), producer, len(frame.body))

    def producer_at(self, seq: int) -> Producer:
        """`Invalid(STREAM_RECORD_INVALID)`"""
        if self.producer is None:
            raise malformed("say `publish` with a `producer` before you number records")
        return checked_producer(self._at(seq))

    def taken(self, size: int) -> bytes | None:
        """So many bytes have left the connection; `credit` when it is worth to be told."""
        self._taken += size
        if self._taken + WINDOW_BYTES - self._granted < WINDOW_BYTES // 2:
            return None
        self._granted = self._taken + WINDOW_BYTES
        return message("credit", id=self.id, max_bytes=self._granted)

    def _at(self, seq: int) -> Producer:
        assert self.producer is not None
        return Producer(id=self.producer.id, epoch=self.producer.epoch, seq=seq)


class _Ack(msgspec.Struct, frozen=True, gc=False):
    producer_seq: int | None
    sequence: int
    durable: bool


class Outlets:
    """Those of one connection, and what its publisher is to be told next."""

    __slots__ = ("_acks", "_by_id", "_by_lane", "_credits")

    def __init__(self) -> None:
        self._by_id: dict[str, Outlet] = {}
        self._by_lane: dict[int, Outlet] = {}
        self._acks: dict[str, _Ack] = {}
        self._credits: dict[str, bytes] = {}

    def by_lane(self, lane: int) -> Outlet | None:
        return self._by_lane.get(lane)

    def open(self, id_: str, producer: ProducerName | None, new_lane: Callable[[], int]) -> Outlet:
        """The same outlet for the same stream, with its new producer.

        `Invalid(STREAM_RECORD_INVALID)`, or `RateLimited` for the 129th stream.
        """
        if producer is not None:
            checked_producer(Producer(id=producer.id, epoch=producer.epoch, seq=1))
        outlet = self._by_id.get(id_)
        if outlet is None:
            if len(self._by_id) >= MAX_STREAMS:
                raise RateLimited(1.0)
            outlet = self._by_id[id_] = Outlet(id_, new_lane())
            self._by_lane[outlet.lane] = outlet
        outlet.producer = producer
        return outlet

    def close(self, id_: str) -> None:
        """Idempotent."""
        if (outlet := self._by_id.pop(id_, None)) is not None:
            del self._by_lane[outlet.lane]

    def publication_of(self, said: Message, id_: str, size: int) -> Publication:
        """Of a JSON record for that stream; `Invalid(STREAM_RECORD_INVALID)`."""
        outlet = self._by_id.get(id_)
        if outlet is not None and said.producer_seq is not None and said.producer is None:
            said = msgspec.structs.replace(said, producer=outlet.producer_at(said.producer_seq))
        return publication_of(said, stream_id=id_, size=size)

    def appended(self, batch: Batch, lane: Lane, appended: Appended) -> None:
        """Acknowledgements are cumulative: what was told of a producer is not taken back."""
        seq, before = batch.producer_seq, self._acks.get(batch.stream_id)
        if (
            before is None
            or seq is None
            or before.producer_seq is None
            or (seq >= before.producer_seq)
        ):
            durable = lane.durability == "commit"
            self._acks[batch.stream_id] = _Ack(seq, appended.last, durable)
        self.consumed(batch)
        if batch.terminal:
            self.close(batch.stream_id)

    def consumed(self, batch: Batch) -> None:
        outlet = self._by_id.get(batch.stream_id)
        if outlet is not None and (credit := outlet.taken(batch.size)) is not None:
            self._credits[outlet.id] = credit

    def news(self) -> list[bytes]:
        """What the publisher is to be told: one message for all that was appended."""
        if not self._acks and not self._credits:
            return []
        told = [_published(id_, ack) for id_, ack in self._acks.items()]
        told += self._credits.values()
        self._acks.clear()
        self._credits.clear()
        return told


def _published(id_: str, ack: _Ack) -> bytes:
    seq = b"null" if ack.producer_seq is None else b"%d" % ack.producer_seq
    durable = b"true" if ack.durable else b"false"
    return b'{"type":"published","id":%b,"producer_seq":%b,"sequence":%d,"durable":%b}' % (
        _encode(id_), seq, ack.sequence, durable,
    )  # fmt: skip
