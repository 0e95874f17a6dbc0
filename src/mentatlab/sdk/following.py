"""Following one lane: which of its records stand, and whether the end is whole. Pure."""

from typing import Any, NamedTuple

from mentatlab.protocol.errors import AgentFailed, Code, MentatError
from mentatlab.protocol.records import RecordType, StreamChunk


class Reset(NamedTuple):
    """A new attempt: of what was delivered, records up to `sequence` stand, later ones are void."""

    sequence: int


class Gap(NamedTuple):
    """Records that cannot be had any more; the stream goes on after `next`."""

    reason: str
    next: str


class TruncatedStream(MentatError):  # noqa: N818 — a public name
    """The stream ended, or could not be followed, before its complete end."""

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(Code.STREAM_TRUNCATED, message, hint=hint)


class StreamFailed(AgentFailed):
    """The producer failed; `details` is the `error` of its `stream_error` record."""


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

    def _join(self) -> None:
        if len(self._standing) > 1 and self._standing[-2][1] + 1 == self._standing[-1][0]:
            (_, last), (first, _) = self._standing.pop(), self._standing.pop()
            self._standing.append((first, last))

    def _start(self, record: StreamChunk) -> Reset | None:
        again, self._attempt = self._attempt, max(self._attempt, record.attempt or 1)
        if again in (0, self._attempt):
            return None
        keep: int = record.payload.get("metadata", {}).get("resume_from", 0)
        kept = [(first, min(last, keep)) for first, last in self._standing if first <= keep]
        self._standing = kept
        return Reset(keep)

    def _check_end(self, payload: dict[str, Any]) -> None:
        reason = payload.get("reason")
        if reason != "complete":
            raise TruncatedStream(f"the stream ended: {reason}")
        standing = sum(last - first + 1 for first, last in self._standing)
        if self._whole and standing != payload.get("chunks"):
            raise TruncatedStream(f"{standing} of {payload.get('chunks')} records came")


def _failure(record: StreamChunk) -> StreamFailed:
    error: dict[str, Any] = record.payload.get("error", {})
    return StreamFailed(
        Code.UPSTREAM_FAILED, f"{error.get('code')}: {error.get('message')}", details=error
    )
