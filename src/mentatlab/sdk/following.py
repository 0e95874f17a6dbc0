"""Following lanes: which of their records stand, and whether the end is whole. Pure."""

from typing import Any, NamedTuple

from mentatlab.protocol.errors import AgentFailed, Code, MentatError
from mentatlab.protocol.records import RecordType, StreamChunk


class Reset(NamedTuple):
    """A new attempt: of what was delivered, records up to `sequence` stand, later ones are void."""

    sequence: int


class Gap(NamedTuple):
    """Records that cannot be had; the stream goes on after the cursor `next`.

    `reason`: `epoch` (the log begins again), `retention` (they were kept no longer), `dropped` (by
    the reader's own policy).
    """

    reason: str
    next: str


_PARTIAL = "what came before is right, but it is not all"
_AGAIN = "read it again from the start"

Element = StreamChunk | Reset | Gap
"""What a reader gets."""


class TruncatedStream(MentatError):  # noqa: N818 — a public name
    """The stream ended, or could not be followed, before its complete end."""

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(Code.STREAM_TRUNCATED, message, hint=hint)


class StreamFailed(AgentFailed):
    """The producer failed; `details` is the `error` of its `stream_error` record."""


class Following:
    """What is followed under one id: a lane, or all the lanes of a run.

    `whole`: reading begins at the start and nothing is left out, so that counts can be checked.
    """

    def __init__(self, id_: str, *, whole: bool) -> None:
        self._id, self._whole = id_, whole
        self._lanes: dict[str, Follower] = {}
        self.ended = False  # the lane of this id has had its complete end

    def feed(self, record: StreamChunk) -> StreamChunk | Reset | None:
        """As `Follower.feed`, whichever lane the record belongs to."""
        own = record.stream_id == self._id
        if (lane := self._lanes.get(record.stream_id)) is None:
            lane = self._lanes[record.stream_id] = Follower(whole=self._whole and own)
        told = lane.feed(record)
        self.ended = own and record.type is RecordType.END
        return told

    def miss(self, reason: str, next_: str) -> Gap:
        """Records are left out: what comes cannot be counted, unless all of it begins again."""
        if reason == "epoch":
            self._lanes.clear()
        else:
            self._whole = False
            for lane in self._lanes.values():
                lane.uncounted()
        return Gap(reason, next_)

    def finish(self) -> None:
        """The server has no more. `TruncatedStream` when the lane has begun and did not end."""
        if self._id in self._lanes and not self.ended:
            raise TruncatedStream("the server has no more, and the end did not come", hint=_AGAIN)


class Follower:
    """Feed records in order. `whole`: reading began at the start, so the count is checked."""

    def __init__(self, *, whole: bool) -> None:
        self._whole = whole
        self._attempt = 0
        self._standing: list[tuple[int, int]] = []  # ranges of data records, inclusive

    def feed(self, record: StreamChunk) -> StreamChunk | Reset | None:
        """What the application gets; None for a first start and for a complete end.

        `StreamFailed` for a `stream_error`, `TruncatedStream` for any other end, or a wrong count.
        """
        match record.type:
            case RecordType.DATA:
                self._standing.append((record.sequence, record.sequence))
                self._join()
                return record
            case RecordType.START:
                return self._start(record)
            case RecordType.ERROR:
                raise _failure(record)
            case RecordType.END:
                self._check_end(record.payload)
                return None

    def uncounted(self) -> None:
        """Not all of it comes."""
        self._whole = False

    def _join(self) -> None:
        if len(self._standing) > 1 and self._standing[-2][1] + 1 == self._standing[-1][0]:
            (_, last), (first, _) = self._standing.pop(), self._standing.pop()
            self._standing.append((first, last))

    def _start(self, record: StreamChunk) -> Reset | None:
        again, self._attempt = self._attempt, max(self._attempt, record.attempt or 1)
        if again == self._attempt or (again == 0 and not self._standing):
            return None
        keep: int = record.payload.get("metadata", {}).get("resume_from", 0)
        kept = [(first, min(last, keep)) for first, last in self._standing if first <= keep]
        self._standing = kept
        return Reset(keep)

    def _check_end(self, payload: dict[str, Any]) -> None:
        reason = payload.get("reason")
        if reason != "complete":
            raise TruncatedStream(f"the stream ended: {reason}", hint=_PARTIAL)
        standing = sum(last - first + 1 for first, last in self._standing)
        if self._whole and standing != payload.get("chunks"):
            raise TruncatedStream(
                f"{standing} of {payload.get('chunks')} records came", hint=_AGAIN
            )


def _failure(record: StreamChunk) -> StreamFailed:
    error: dict[str, Any] = record.payload.get("error", {})
    return StreamFailed(
        Code.UPSTREAM_FAILED,
        f"{error.get('code')}: {error.get('message')}",
        hint=_PARTIAL,
        details=error,
    )
