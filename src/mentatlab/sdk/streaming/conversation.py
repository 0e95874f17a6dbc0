"""Everything that one client says on `msp.v1+json`, over any number of connections. Pure: messages
in, messages out; `connection` moves them.

    opened() → next_message() … received() … → lost() → opened()
"""

from collections import Counter, deque
from typing import Any, TypeVar

import msgspec

from mentatlab.protocol import frames
from mentatlab.protocol.errors import Code, Conflict, MentatError, Unavailable
from mentatlab.protocol.records import StreamChunk
from mentatlab.sdk.streaming.endings import error_of_stream
from mentatlab.sdk.streaming.messages import (
    Arrived,
    Control,
    Credit,
    Failed,
    Mark,
    Missing,
    Pong,
    Published,
    Publishing,
    Subscribed,
    Throttle,
    parse_text,
)
from mentatlab.sdk.streaming.publication import Publication
from mentatlab.sdk.streaming.reading import Reading

Outgoing = bytes | bytearray
"""A bytearray is a binary frame, bytes are text."""

_OF_ONE = frozenset({Code.STREAM_UNKNOWN, Code.STREAM_EXPIRED, Code.STREAM_FORBIDDEN})
_OF_PUBLISHING = frozenset(
    {
        Code.STREAM_ENDED,
        Code.STREAM_FENCED,
        Code.STREAM_GAP_IN_PRODUCER,
        Code.STREAM_RECORD_INVALID,
        Code.STREAM_RECORD_TOO_LARGE,
    }
)
_OF_READING = frozenset({Code.STREAM_CURSOR_INVALID})

Party = TypeVar("Party", Reading, Publication)

_encode = msgspec.json.Encoder().encode


class Interrupted(Exception):  # noqa: N818 — no error of the application's
    """The connection is of no use any more: reconnect and resume."""

    def __init__(self, error: MentatError) -> None:
        super().__init__(str(error))
        self.error = error


class Conversation:
    """One subscription and one publisher a stream."""

    def __init__(self) -> None:
        self._readings: dict[str, Reading] = {}
        self._publications: dict[str, Publication] = {}
        self._lanes: dict[int, Reading] = {}
        self._left: Counter[str] = Counter()  # before they were answered; see `_is_late`
        self._control: deque[bytes] = deque()
        self._turns: deque[Publication] = deque()
        self._open = False
        self._progress = False

    # ------------------------------------------------------------------ from the application

    @property
    def wanted(self) -> str | None:
        """A stream that a connection is needed for."""
        parties = (*self._publications.values(), *self._readings.values())
        return next((party.id for party in parties if party.active), None)

    def add_reading(self, reading: Reading) -> None:
        """`Conflict` when the stream is subscribed to already."""
        _add(self._readings, reading)
        if self._open:
            self.say(reading.subscribe())

    def remove_reading(self, reading: Reading) -> None:
        """Idempotent."""
        if self._readings.get(reading.id) is reading:
            del self._readings[reading.id]
            self._lanes = {lane: each for lane, each in self._lanes.items() if each is not reading}
            if self._open and reading.active:
                self.say({"type": "unsubscribe", "id": reading.id})
                if not reading.live:
                    self._left[reading.id] += 1
                    self.say({"type": "ping", "left": reading.id})

    def add_publication(self, publication: Publication) -> None:
        """`Conflict` when the stream is published to already."""
        _add(self._publications, publication)
        self._turns.append(publication)
        if self._open:
            self.say(publication.announce())

    def remove_publication(self, publication: Publication) -> None:
        """Idempotent."""
        if self._publications.get(publication.id) is publication:
            del self._publications[publication.id]
            self._turns.remove(publication)

    def say(self, message: dict[str, Any]) -> None:
        """On this connection, as soon as it can be sent."""
        self._control.append(_encode(message))

    # ------------------------------------------------------------------ to the server

    def opened(self) -> None:
        """There is a new connection: take up everything where it stood."""
        self._open = True
        for reading in self._readings.values():
            if reading.active:
                self.say(reading.subscribe())
        for publication in self._publications.values():
            if publication.active:
                self.say(publication.announce())

    def lost(self) -> bool:
        """Whether something had come of the connection, if there was one."""
        progress, self._progress = self._progress, False
        self._open = False
        self._control.clear()
        self._lanes.clear()
        self._left.clear()
        for party in (*self._readings.values(), *self._publications.values()):
            party.lost()
        return progress

    def next_message(self) -> Outgoing | None:
        """Control first, then the publishers in turn, as far as their credit goes."""
        if self._control:
            return self._control.popleft()
        for _ in range(len(self._turns)):
            publication = self._turns[0]
            self._turns.rotate(-1)
            if (message := publication.next()) is not None:
                return message
        return None

    # ------------------------------------------------------------------ from the server

    def received(self, message: str | bytes) -> float:
        """Seconds that the server asks to be left alone. `Interrupted`: reconnect."""
        try:
            if isinstance(message, bytes):
                self._frame(message)
                return 0.0
            return max((self._told(told) for told in parse_text(message)), default=0.0)
        except (msgspec.DecodeError, MentatError) as error:
            raise Interrupted(
                Unavailable(Code.UNAVAILABLE, f"the server said what is not msp.v1+json: {error}")
            ) from error

    def _frame(self, message: bytes) -> None:
        frame = frames.decode(message)
        if (reading := self._lanes.get(frame.lane)) is not None:
            self._progress = True
            reading.frame(frame, len(message))

    def _told(self, told: Control | Arrived) -> float:
        match told:
            case Arrived(record, size):
                self._progress = True
                self._record(record, size)
            case Throttle(retry_after_ms=wait):
                return wait / 1000
            case Pong(left=id_):
                self._left -= Counter({id_: 1})  # without what is 0 then
            case Failed():
                self._failed(told)
            case Publishing() | Published() | Credit():
                self._told_publisher(told)
            case Subscribed() | Mark() | Missing():
                self._told_reader(told)
        return 0.0

    def _record(self, record: StreamChunk, size: int) -> None:
        own, run = self._readings.get(record.stream_id), self._readings.get(record.run_id)
        if own is not None and run is not None:
            run.failed(_ambiguous(run.id, own.id))
        if (reading := own or run) is not None:
            reading.record(record, size)

    def _told_publisher(self, told: Publishing | Published | Credit) -> None:
        if (publication := self._publications.get(told.id)) is None:
            return
        match told:
            case Publishing():
                publication.publishing(told)
            case Published():
                self._progress = True
                publication.published(told.producer_seq or 0)
            case Credit():
                publication.granted(told.max_bytes)

    def _told_reader(self, told: Subscribed | Mark | Missing) -> None:
        if isinstance(told, Subscribed) and self._is_late(told.id):
            return
        if (reading := self._readings.get(told.id)) is None:
            return
        match told:
            case Subscribed():
                self._lanes[told.lane] = reading
                reading.subscribed(told)
            case Mark():
                self._progress = True
                reading.mark(told)
            case Missing():
                reading.missing(told)

    def _is_late(self, id_: str) -> bool:
        """Whether this answers a subscription that was left: until the pong to what was said
        then."""
        return self._left[id_] > 0

    def _failed(self, told: Failed) -> None:
        if told.id not in self._publications and self._is_late(told.id):
            return
        error = error_of_stream(told.code, told.close, told.message, told.hint, told.details)
        if error.retryable:
            raise Interrupted(error)
        self._fail(told.id, error)

    def _fail(self, id_: str, error: MentatError) -> None:
        reading, publication = self._readings.get(id_), self._publications.get(id_)
        if reading and (publication is None or error.code not in _OF_PUBLISHING):
            reading.failed(error)
        if publication and error.code not in _OF_READING:
            publication.failed(error)

    def refused(self, id_: str, error: MentatError) -> None:
        """The connection, which was opened for that stream, is refused for good."""
        if error.code in _OF_ONE:
            self._fail(id_, error)
        else:
            self.fail(error)

    def fail(self, error: MentatError) -> None:
        """Nothing can go on."""
        for party in (*self._readings.values(), *self._publications.values()):
            party.failed(error)


def _ambiguous(run_id: str, stream_id: str) -> Conflict:
    return Conflict(
        Code.CONFLICT,
        f"{stream_id} is a stream of {run_id}: its records come once for both",
        hint="subscribe to a run and to one of its streams on two connections",
    )


def _add(parties: dict[str, Party], party: Party) -> None:
    if party.id in parties:
        raise Conflict(
            Code.CONFLICT,
            f"this connection has one for {party.id} already",
            hint="close that one first, or open a second connection",
        )
    parties[party.id] = party
