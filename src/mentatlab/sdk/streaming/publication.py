"""What one producer sends to one stream: numbered, kept until the log has it, sent again after a
cut. Pure.

    announce() → publishing → add() → next() … → published, credit → connection lost → announce()

The server's answer to `announce` says what it has; what it lacks is sent again from the ring. When
the stream has begun anew under another epoch (one that is not `commit`, after the server's restart)
what was acknowledged is gone: an error, or with `on_reset` the ring is numbered anew from 1.
"""

from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple

import msgspec

from mentatlab.protocol import frames
from mentatlab.protocol.errors import Code, Conflict, Invalid, MentatError, TooLarge
from mentatlab.protocol.records import MAX_RECORD_BYTES, RecordType
from mentatlab.sdk.streaming.messages import Publishing

RING_RECORDS = 256
RING_BYTES = 1 << 20

Message = dict[str, Any]
OnReset = Callable[[int], None]
"""Told how many acknowledged records are gone; what follows is a new beginning."""

_encode = msgspec.json.Encoder().encode
_members = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


class _Unacknowledged(NamedTuple):
    """`data` of a binary frame is a bytearray, whose lane is that of the connection. `cost`: what
    credit pays for."""

    seq: int
    data: bytes | bytearray
    cost: int


class PublisherStatistics(NamedTuple):
    """Records and bytes that the log has not acknowledged; the last number given and acknowledged;
    bytes that may still be sent."""

    records: int
    bytes: int
    sent: int
    acknowledged: int
    credit: int


class Publication:
    """`wake` is called when there is room, an acknowledgement, or an `error`."""

    def __init__(
        self, id_: str, producer: str, epoch: int, *, on_reset: OnReset | None = None
    ) -> None:
        self.id, self._producer, self._epoch = id_, producer, epoch
        self._on_reset = on_reset
        self._of_stream: int = 0  # the stream's epoch
        self.wake: Callable[[], None] = _nobody
        self._ring: deque[_Unacknowledged] = deque()
        self._bytes = self._sent = 0  # of the ring; how many of it were sent on this connection
        self._last = self.acknowledged = 0  # producer's numbers
        self._lane = self._spent = self._credit = 0  # on this connection
        self._live = False
        self.already: int | None = None
        """Records that the log had of this producer at first; None until the server has said."""
        self.ended = False  # the terminal record is in the ring, or in the log
        self.error: MentatError | None = None

    # ------------------------------------------------------------------ from the application

    def has_room(self, size: int) -> bool:
        fits = len(self._ring) < RING_RECORDS and self._bytes + size <= RING_BYTES
        return fits or not self._ring

    @property
    def active(self) -> bool:
        """There may be more to send."""
        return self.error is None and not (self.ended and self.complete)

    @property
    def complete(self) -> bool:
        """The log has all of it."""
        return not self._ring

    def add(self, type_: RecordType, payload: bytes, **more: int | None) -> None:
        """A JSON record; `payload` as `payload_of` gives it, `more` its `pts_us`, `item` …"""
        message: Message = {
            "type": type_,
            "stream_id": self.id,
            "producer_seq": self._last + 1,
            "payload": msgspec.Raw(payload),
            **{name: value for name, value in more.items() if value is not None},
        }
        data = _encode(message)
        self._number(data, len(data))
        self.ended = type_ is not RecordType.DATA

    def add_frame(self, frame: frames.Frame) -> None:
        """A binary record; `Invalid` or `TooLarge` when it does not fit one."""
        frame = msgspec.structs.replace(frame, sequence=self._last + 1)
        self._number(bytearray(frames.encode(frame)), len(frame.body))

    def _number(self, data: bytes | bytearray, cost: int) -> None:
        if self.ended:
            raise Conflict(Code.STREAM_ENDED, f"{self.id} was ended here", hint="open a new stream")
        self._last += 1
        self._ring.append(_Unacknowledged(self._last, data, cost))
        self._bytes += len(data)

    # ------------------------------------------------------------------ to the server

    def announce(self) -> Message:
        """For a new connection."""
        producer = {"id": self._producer, "epoch": self._epoch}
        return {"type": "publish", "id": self.id, "producer": producer}

    def next(self) -> bytes | bytearray | None:
        """What to send now: the next record, while there is credit."""
        if not self._live or self._sent == len(self._ring) or self._spent >= self._credit:
            return None
        _, data, cost = self._ring[self._sent]
        if isinstance(data, bytearray):
            data[2:4] = self._lane.to_bytes(2, "big")
        self._sent += 1
        self._spent += cost
        return data

    def lost(self) -> None:
        self._live, self._sent, self._spent = False, 0, 0

    # ------------------------------------------------------------------ from the server

    def publishing(self, told: Publishing) -> None:
        """What the log has of this producer; the rest is sent again."""
        if self.already is None:
            self.already = self._last = self.acknowledged = told.producer_seq
        elif told.producer_seq < self.acknowledged:
            if self._on_reset is None or told.epoch == self._of_stream or told.producer_seq:
                self.failed(_lost(self.id, self.acknowledged, told.producer_seq))
            else:
                self._begin_anew(self._on_reset)
        elif told.producer_seq > self._last:
            self.failed(_taken_over(self._producer))
        self._of_stream = told.epoch
        self.published(told.producer_seq)
        self._lane, self._credit, self._live = told.lane, told.max_bytes, self.error is None

    def _begin_anew(self, on_reset: OnReset) -> None:
        gone, self.acknowledged, self.already = self.acknowledged, 0, 0
        self._ring = deque(
            each._replace(seq=seq, data=_numbered(each.data, seq))
            for seq, each in enumerate(self._ring, 1)
        )
        self._last = len(self._ring)
        self._bytes = sum(len(each.data) for each in self._ring)
        on_reset(gone)

    def published(self, producer_seq: int) -> None:
        """Everything up to there is in the log."""
        while self._ring and self._ring[0].seq <= producer_seq:
            self._bytes -= len(self._ring.popleft().data)
            self._sent = max(0, self._sent - 1)
        self.acknowledged = max(self.acknowledged, producer_seq)
        self.wake()

    def granted(self, max_bytes: int) -> None:
        self._credit = max(self._credit, max_bytes)

    def failed(self, error: MentatError) -> None:
        """It cannot go on."""
        self._live, self.error = False, self.error or error
        self.wake()

    def statistics(self) -> PublisherStatistics:
        credit = max(0, self._credit - self._spent)
        return PublisherStatistics(
            len(self._ring), self._bytes, self._last, self.acknowledged, credit
        )


def payload_of(payload: Message) -> bytes:
    """Its JSON; `Invalid` for what is none, `TooLarge` for more than a record may hold."""
    try:
        encoded = _encode(payload)
    except (TypeError, ValueError, RecursionError) as error:
        raise Invalid(
            Code.STREAM_RECORD_INVALID,
            f"this is not JSON: {error}",
            hint="send text, numbers, lists and dicts; bytes with `send_bytes`",
        ) from error
    if len(encoded) > MAX_RECORD_BYTES:
        raise TooLarge(
            Code.STREAM_RECORD_TOO_LARGE,
            f"the record has {len(encoded)} bytes, the limit is {MAX_RECORD_BYTES}",
            hint="upload it and send the reference, or send smaller ones",
        )
    return encoded


def _numbered(data: bytes | bytearray, seq: int) -> bytes | bytearray:
    """The encoded record under another number."""
    if isinstance(data, bytearray):
        return bytearray(data[:8]) + seq.to_bytes(8, "big") + data[16:]
    return _encode({**_members(data), "producer_seq": seq})


def _lost(stream_id: str, acknowledged: int, there: int) -> Conflict:
    return Conflict(
        Code.STREAM_LOST,
        f"{stream_id} had {acknowledged} records of this producer, now it has {there}",
        hint="what is not `commit` ends with the server: begin again with a new publisher, or give "
        "this one `on_reset` to go on with what comes",
    )


def _taken_over(producer: str) -> Conflict:
    return Conflict(
        Code.CONFLICT,
        f"somebody else publishes as producer {producer!r}",
        hint="give each publisher an id of its own, or whoever takes over a higher epoch",
    )


def _nobody() -> None:
    """Nobody waits yet."""
