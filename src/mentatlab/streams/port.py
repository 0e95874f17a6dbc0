"""The log port: lanes of records with server-assigned, dense sequences.

A lane is `(run_id, node_id, pin_name)`, named by its stream id. `commit` lanes acknowledge and
deliver after the commit and carry `rseq`, the run-wide order; `memory` lanes acknowledge on append.
"""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import msgspec

from mentatlab.protocol import frames
from mentatlab.protocol.errors import Code, Forbidden, Gone, NotFound
from mentatlab.protocol.records import (
    TERMINAL,
    Cursor,
    Draft,
    Durability,
    Producer,
    RecordType,
    StreamChunk,
)

LaneState = Literal["open", "ended", "errored", "expired"]

PRODUCERS = 1024
"""That a client's lane remembers; a node's lane has no more than the node has items."""

READ_RECORDS = 256
READ_BYTES = 256 * 1024


class Retention(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Seconds and bytes; None = without limit.

    `ttl_s`: an open lane that gets no record for so long ends as expired. `retain_s`: how long
    after its end its records are kept. `max_bytes`: how much the lane keeps, newest first.
    """

    ttl_s: float | None = None
    retain_s: float | None = None
    max_bytes: int | None = None


KEEP = Retention()


class Lane(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """`head` is the last sequence; `chunks` and `bytes` (of payloads) count what stands.

    `standing` are the sequence ranges (first, last) whose data records stand: a later attempt voids
    what an earlier one sent after `resume_from`. `external` lanes were opened by a client and may
    be published to from outside; the others belong to the engine. Of the records 2 to `floor` - 1
    retention has taken the data; `kept` are the bytes of what is there. `key`: the last record
    with the key flag. Times are Unix seconds; `started_ms` (Unix) is that of the first record.
    `facts` are what the `stream_start` tells beside the MIME type and durability.
    """

    stream_id: str
    run_id: str
    node_id: str
    pin_name: str
    workspace: str
    agent_id: str = ""
    mime_type: str = "application/json"
    durability: Durability = "commit"
    epoch: int = 1
    head: int = 0
    chunks: int = 0
    bytes: int = 0
    state: LaneState = "open"
    created_at: float = 0.0
    changed_at: float = 0.0
    started_ms: int = 0
    attempt: int = 0
    standing: tuple[tuple[int, int], ...] = ()
    external: bool = False
    retention: Retention = KEEP
    floor: int = 2
    kept: int = 0
    key: int = 0
    facts: dict[str, Any] = {}

    @property
    def cursor(self) -> Cursor:
        """The position after the last record."""
        return Cursor(self.epoch, self.head)


class Run(msgspec.Struct, frozen=True, kw_only=True):
    """A run as a stream: `head` is the last rseq of its commit lanes."""

    run_id: str
    workspace: str
    epoch: int = 1
    head: int = 0

    @property
    def cursor(self) -> Cursor:
        return Cursor(self.epoch, self.head)


class Entry(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """A record as logs keep it and transports send it: encoded once.

    `json` is its JSON form, `size` the bytes of its payload. A binary record has its `frame`
    (`protocol.frames`, lane 0) too, and in `json` a `ref` to it.
    """

    stream_id: str
    run_id: str
    type: RecordType
    sequence: int
    rseq: int | None
    time_ms: int  # Unix
    size: int
    json: bytes
    frame: bytes | None = None

    @property
    def length(self) -> int:
        """Bytes that it takes in a log."""
        return len(self.json) if self.frame is None else len(self.json) + len(self.frame)

    @property
    def terminal(self) -> bool:
        return self.type in TERMINAL

    @property
    def key(self) -> bool:
        return self.frame is not None and bool(self.frame[1] & frames.KEY)

    @property
    def record(self) -> StreamChunk:
        """Decoded anew each time; a binary record has its `bytes` in the payload."""
        record = _decode(self.json)
        if self.frame is not None:
            del record.payload["ref"]
            record.payload["bytes"] = bytes(frames.body_of(self.frame))
        return record


_decode = msgspec.json.Decoder(StreamChunk).decode


class Appended(NamedTuple):
    """`first` to `last` are the batch's sequences; `duplicate`: the log had all of it before.

    `entries` are those that this call added, in order. Sequences of what a producer sent very long
    ago are 0: it is there, where is not known any more.
    """

    first: int
    last: int
    duplicate: bool
    entries: tuple[Entry, ...] = ()


class Opened(NamedTuple):
    """`entries`: those that the call added."""

    lane: Lane
    entries: tuple[Entry, ...] = ()


class Known(msgspec.Struct, frozen=True, array_like=True):
    """A producer as the log knows it: its epoch, its own last sequence that is appended, and where.

    `places` are runs (producer's sequence, lane's sequence, count), the latest ones.
    """

    epoch: int
    seq: int
    places: tuple[tuple[int, int, int], ...] = ()

    @property
    def age(self) -> tuple[bool, int]:
        """Who is forgotten first has the lowest: who appended longest ago, but later those whose
        epoch was raised, since that fences somebody out."""
        return self.epoch > 0, self.places[-1][1] if self.places else 0

    def sequence_of(self, seq: int) -> int:
        """The lane's sequence of the producer's; 0 = not known any more."""
        for first, sequence, count in reversed(self.places):
            if first <= seq < first + count:
                return sequence + seq - first
        return 0


class StreamLog(Protocol):
    """Promises: sequences of a lane are 1..n without holes; append and producer state are one
    transaction; a terminal record is the last (`Conflict(STREAM_ENDED)` after it); an older
    producer epoch is `Fenced(STREAM_FENCED)`, a hole in the producer's sequence
    `Conflict(STREAM_GAP_IN_PRODUCER)` with `details={"expected": n}`; an unknown lane or run is
    `NotFound(STREAM_UNKNOWN)`. The rules themselves are `lanes.append`. Times are Unix seconds.

    Of an external lane's producers the log need not know more than `PRODUCERS`: a new one takes the
    place of that with the lowest `Known.age`. A lane's retention is kept by the append that exceeds
    it. Of an expired lane nothing can be read or appended (`Gone(STREAM_EXPIRED)`), but `get` still
    tells it.
    """

    async def create(self, lane: Lane) -> Lane:
        """Idempotent by (run_id, node_id, pin_name): the existing lane is returned.

        `Conflict(CONFLICT)` when the stream id names another lane, `Forbidden(STREAM_FORBIDDEN)`
        when the run is another workspace's.
        """
        ...

    async def open(self, lane: Lane, start: Draft, *, now: float) -> Opened:
        """`create`, and in the same transaction `start` as its first record if it has none."""
        ...

    async def get(self, stream_id: str) -> Lane: ...

    async def lanes(self, run_id: str) -> list[Lane]:
        """In order of creation; empty for an unknown run."""
        ...

    async def run(self, run_id: str) -> Run: ...

    async def producer(self, stream_id: str, producer_id: str) -> Known | None: ...

    async def append(
        self,
        stream_id: str,
        drafts: Sequence[Draft],
        *,
        now: float,
        producer: Producer | None = None,
    ) -> Appended: ...

    async def fence(self, stream_id: str, producer_id: str) -> Known | None:
        """The producer's epoch is raised by one: what it still sends under the old one is refused.

        None for a producer that the lane does not know.
        """
        ...

    async def read(
        self,
        stream_id: str,
        after: int,
        *,
        max_records: int = READ_RECORDS,
        max_bytes: int = READ_BYTES,
    ) -> list[Entry]:
        """Records with sequence > `after` within the limits, at least one when there is one.

        Where retention took some, the next that is there comes first.
        """
        ...

    async def read_run(
        self,
        run_id: str,
        after: int,
        *,
        max_records: int = READ_RECORDS,
        max_bytes: int = READ_BYTES,
    ) -> list[Entry]:
        """Records of the run's commit lanes with rseq > `after`, in that order."""
        ...

    async def at_time(self, id_: str, time_ms: int) -> int:
        """The position (sequence; rseq of a run) before the first record at or after that time."""
        ...

    async def due(self, now: float, *, limit: int = 100) -> list[Lane]:
        """Open lanes whose `ttl_s` has passed and ended ones whose `retain_s` has."""
        ...

    async def expire(self, stream_id: str) -> Lane:
        """Its records go; its name is kept so that readers learn why."""
        ...

    async def delete_run(self, run_id: str) -> None: ...

    async def aclose(self) -> None: ...


@runtime_checkable
class ImmediateLog(Protocol):
    """A log that has lanes to which it can append without waiting."""

    def append_now(
        self,
        stream_id: str,
        drafts: Sequence[Draft],
        *,
        now: float,
        producer: Producer | None = None,
    ) -> Appended | None:
        """None: this lane is not one of them; use `append`."""
        ...


class Audience(NamedTuple):
    """Who wants to hear what comes into a log; none of it may raise.

    `appended`: records of one lane, in order, perhaps again or late. `missed`: to the stream or run
    with this id something has happened, ask the log. `lost`: the log goes on in this epoch, what
    was read before may be missing.
    """

    appended: Callable[[Sequence[Entry]], None]
    missed: Callable[[str], None]
    lost: Callable[[int], None]


@runtime_checkable
class LiveLog(Protocol):
    """A log to which other processes append too."""

    def tell(self, audience: Audience) -> None:
        """From now on, of what is watched."""
        ...

    async def watch(self, key: str) -> None:
        """Idempotent. Everything that comes to this stream or run after the return is told."""
        ...

    def unwatch(self, key: str) -> None: ...


@runtime_checkable
class HousekeptLog(Protocol):
    """A log that has something to put in order from time to time."""

    async def tidy(self, now: float) -> None: ...


class SegmentStore(Protocol):
    """Where sealed runs lie: whole files that never change, read by ranges.

    `put` takes or copies the file, is atomic, and durable when it returns; names are never used
    twice. `delete` of what is not there is fine.
    """

    async def put(self, name: str, path: Path) -> None: ...

    async def read(self, name: str, offset: int, length: int) -> bytes:
        """Less at the end of the file; `NotFound` without the file."""
        ...

    async def delete(self, name: str) -> None: ...


def due_at(lane: Lane) -> float | None:
    """When its retention asks for the next step: the end of an open lane, or expiry."""
    limit = lane.retention.ttl_s if lane.state == "open" else lane.retention.retain_s
    if lane.state == "expired" or lane.head == 0 or limit is None:
        return None
    return lane.changed_at + limit


def is_due(lane: Lane, now: float) -> bool:
    due = due_at(lane)
    return due is not None and due <= now


def find_place(lanes: Iterable[Lane], wanted: Lane) -> Lane | None:
    """The lane of the run that has `wanted`'s place. `Forbidden(STREAM_FORBIDDEN)`"""
    for lane in lanes:
        if lane.workspace != wanted.workspace:
            raise Forbidden(
                Code.STREAM_FORBIDDEN,
                f"the run {lane.run_id} is not yours",
                hint="leave `run_id` out to open a stream of your own",
            )
        if (lane.node_id, lane.pin_name) == (wanted.node_id, wanted.pin_name):
            return lane
    return None


def check_kept(lane: Lane) -> Lane:
    """The lane, unless `Gone(STREAM_EXPIRED)`."""
    if lane.state != "expired":
        return lane
    raise Gone(
        Code.STREAM_EXPIRED,
        f"the records of the stream {lane.stream_id} are not kept any more",
        hint="open streams with a longer `retain_s`, or without one",
    )


def unknown(stream_id: str) -> NotFound:
    return NotFound(
        Code.STREAM_UNKNOWN,
        f"there is no stream {stream_id[:80]!r}",
        hint="look at the run's `streams`, or open one with POST /api/v1/streams/init",
    )
