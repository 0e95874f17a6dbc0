"""The log port: lanes of records with server-assigned, dense sequences.

A lane is `(run_id, node_id, pin_name)`, named by its stream id. `commit` lanes acknowledge and deliver
after the commit and carry `rseq`, the run-wide order; `memory` lanes acknowledge on append.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple, Protocol

import msgspec

from mentatlab.protocol.records import Draft, Durability, Producer, StreamChunk

LaneState = Literal["open", "ended", "errored"]


class Lane(msgspec.Struct, frozen=True, kw_only=True):
    """`head` is the last appended sequence, `chunks` the standing data records."""

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


class Appended(NamedTuple):
    """`first` to `last` are the batch's sequences; `duplicate` when the producer had sent it before."""

    first: int
    last: int
    duplicate: bool


class StreamLog(Protocol):
    """Promises: sequences of a lane are 1..n without holes; append and producer state are one
    transaction; a terminal record is the last (`Conflict(STREAM_ENDED)` after it); an older producer epoch is
    `Fenced(STREAM_FENCED)`, a hole in the producer's sequence `Conflict(STREAM_GAP_IN_PRODUCER)` with
    `details={"expected": n}`; an unknown lane is `NotFound(STREAM_UNKNOWN)`. Times are Unix seconds.
    """

    async def create(self, lane: Lane) -> Lane:
        """Idempotent by (run_id, node_id, pin_name): the existing lane is returned."""
        ...

    async def get(self, stream_id: str) -> Lane: ...

    async def lanes(self, run_id: str) -> list[Lane]: ...

    async def append(
        self,
        stream_id: str,
        drafts: Sequence[Draft],
        *,
        now: float,
        producer: Producer | None = None,
    ) -> Appended: ...

    async def read(
        self, stream_id: str, after: int, *, max_records: int = 256, max_bytes: int = 256 * 1024
    ) -> list[StreamChunk]:
        """Records with sequence > `after`, at least one when there is one, else within the limits."""
        ...

    async def read_run(
        self, run_id: str, after: int, *, max_records: int = 256, max_bytes: int = 256 * 1024
    ) -> list[StreamChunk]:
        """Records of the run's commit lanes with rseq > `after`, in that order."""
        ...

    async def delete_run(self, run_id: str) -> None: ...

    async def aclose(self) -> None: ...
