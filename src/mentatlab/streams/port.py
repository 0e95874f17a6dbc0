"""The log port: lanes of records with server-assigned, dense sequences.

A lane is `(run_id, node_id, pin_name)`, named by its stream id. `commit` lanes acknowledge and
deliver after the commit and carry `rseq`, the run-wide order; `memory` lanes acknowledge on append.
"""

from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple, Protocol

import msgspec

from mentatlab.protocol.errors import Code, Forbidden, NotFound
from mentatlab.protocol.records import Cursor, Draft, Durability, Producer, StreamChunk

LaneState = Literal["open", "ended", "errored"]

READ_RECORDS = 256
READ_BYTES = 256 * 1024


class Lane(msgspec.Struct, frozen=True, kw_only=True):
    """`head` is the last sequence; `chunks` and `bytes` (of payload JSON) count what stands.

    `standing` are the sequence ranges (first, last) whose data records stand: a later attempt voids
    what an earlier one sent after `resume_from`. `external` lanes were opened by a client and may
    be published to from outside; the others belong to the engine.
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
    attempt: int = 0
    standing: tuple[tuple[int, int], ...] = ()
    external: bool = False

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


class Appended(NamedTuple):
    """`first` to `last` are the batch's sequences; `duplicate`: the log had all of it before.

    `records` are those that this call added, in order.
    """

    first: int
    last: int
    duplicate: bool
    records: tuple[StreamChunk, ...] = ()


class Opened(NamedTuple):
    """`records`: those that the call added."""

    lane: Lane
    records: tuple[StreamChunk, ...] = ()


class StreamLog(Protocol):
    """Promises: sequences of a lane are 1..n without holes; append and producer state are one
    transaction; a terminal record is the last (`Conflict(STREAM_ENDED)` after it); an older
    producer epoch is `Fenced(STREAM_FENCED)`, a hole in the producer's sequence
    `Conflict(STREAM_GAP_IN_PRODUCER)` with `details={"expected": n}`; an unknown lane or run is
    `NotFound(STREAM_UNKNOWN)`. The rules themselves are `lanes.append`. Times are Unix seconds.
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

    async def append(
        self,
        stream_id: str,
        drafts: Sequence[Draft],
        *,
        now: float,
        producer: Producer | None = None,
    ) -> Appended: ...

    async def read(
        self,
        stream_id: str,
        after: int,
        *,
        max_records: int = READ_RECORDS,
        max_bytes: int = READ_BYTES,
    ) -> list[StreamChunk]:
        """Records with sequence > `after` within the limits, at least one when there is one."""
        ...

    async def read_run(
        self,
        run_id: str,
        after: int,
        *,
        max_records: int = READ_RECORDS,
        max_bytes: int = READ_BYTES,
    ) -> list[StreamChunk]:
        """Records of the run's commit lanes with rseq > `after`, in that order."""
        ...

    async def delete_run(self, run_id: str) -> None: ...

    async def aclose(self) -> None: ...


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


def unknown(stream_id: str) -> NotFound:
    return NotFound(
        Code.STREAM_UNKNOWN,
        f"there is no stream {stream_id[:80]!r}",
        hint="streams with durability memory end with the server; open a new one",
    )
