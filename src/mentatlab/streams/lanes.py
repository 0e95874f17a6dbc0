"""What an append does to a lane: pure rules that every log follows.

    created → open → ended | errored

Sequences are dense from 1; the first record is a `stream_start`, the last a terminal one. A later
`stream_start{attempt, resume_from: k}` voids the data after k of the attempts before it.
A producer's batch is appended exactly once: what the log has of it already is skipped.
"""

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import msgspec

from mentatlab.protocol import frames
from mentatlab.protocol.errors import Code, Conflict, Fenced, TooLarge
from mentatlab.protocol.records import (
    MAX_RECORD_BYTES,
    TERMINAL,
    Draft,
    Producer,
    RecordType,
    StreamChunk,
    malformed,
    timestamp,
)
from mentatlab.streams.port import Appended, Entry, Known, Lane, LaneState, check_kept

PLACES = 256
"""Runs of a producer's records whose places are remembered."""

Measure = Callable[[int, int], int]
"""The payload bytes of a lane's data records with first ≤ sequence ≤ last."""

_encode_json = msgspec.json.Encoder().encode


class Step(msgspec.Struct, frozen=True, gc=False):
    """What an append does: `skipped` drafts were in the log already, `entries` are new, `lane` and
    `known` are the lane and its producer afterwards.
    """

    lane: Lane
    entries: tuple[Entry, ...]
    skipped: int
    known: Known | None = None

    def answer(self, producer: Producer | None, count: int) -> Appended:
        """What the publisher of these `count` drafts is told."""
        if producer is None or self.known is None:
            last = self.lane.head
            return Appended(
                last + 1 - max(1, len(self.entries)), last, not self.entries, self.entries
            )
        return Appended(
            self.known.sequence_of(producer.seq),
            self.known.sequence_of(producer.seq + count - 1),
            not self.entries,
            self.entries,
        )


def append(
    lane: Lane,
    drafts: Sequence[Draft],
    *,
    now: float,
    measure: Measure,
    producer: Producer | None = None,
    known: Known | None = None,
    rseq: int = 0,
) -> Step:
    """`known` is the producer's state in this lane, `rseq` the run's last one. All or nothing.

    Raises `Fenced`, `Conflict` (STREAM_ENDED, STREAM_GAP_IN_PRODUCER), `Gone`, `Invalid`,
    `TooLarge`.
    """
    if not drafts:
        raise malformed("there is no record to append")
    check_kept(lane)
    skipped = 0 if producer is None else already_there(producer, known, len(drafts))
    fresh = drafts[skipped:] if skipped else drafts
    if not fresh or (producer is None and _repeats_start(lane, fresh)):
        return Step(lane, (), len(drafts), known)
    _check_order(lane, fresh)
    batch = _Batch(lane, now, rseq if lane.durability == "commit" else None)
    batch.add(fresh, measure)
    if producer is not None:
        known = _remember(producer, known, skipped, lane.head + 1, len(fresh))
    return Step(batch.lane, tuple(batch.entries), skipped, known)


def already_there(producer: Producer, known: Known | None, count: int) -> int:
    """How many of the batch's first records are in the log. `Fenced` or a hole raise."""
    if known is not None and producer.epoch < known.epoch:
        raise Fenced(
            Code.STREAM_FENCED,
            f"producer {producer.id!r} has gone on in epoch {known.epoch}",
            hint="another attempt has taken over; stop publishing",
        )
    last = known.seq if known is not None and producer.epoch == known.epoch else 0
    if not 1 <= producer.seq <= last + 1:
        raise Conflict(
            Code.STREAM_GAP_IN_PRODUCER,
            f"producer {producer.id!r} sent {producer.seq}, expected is {last + 1}",
            hint="send the missing records again",
            details={"expected": last + 1},
        )
    return min(count, last + 1 - producer.seq)


def fenced(known: Known) -> Known:
    """The producer after it was given up: it goes on under a higher epoch only."""
    return Known(known.epoch + 1, 0)


def trimmed(lane: Lane, lengths: Iterable[tuple[int, int]], *, to_bytes: int | None = None) -> Lane:
    """The lane within its `max_bytes`, or `to_bytes`: the oldest data go, the start and the last
    record stay.

    `lengths` are (sequence, bytes in the log) of what it holds from `floor` on, oldest first.
    """
    limit = lane.retention.max_bytes if to_bytes is None else to_bytes
    kept, floor = lane.kept, lane.floor
    if limit is None or kept <= limit:
        return lane
    for sequence, length in lengths:
        if kept <= limit or sequence >= lane.head:
            break
        kept, floor = kept - length, sequence + 1
    return msgspec.structs.replace(lane, kept=kept, floor=floor)


def standing(records: Iterable[StreamChunk]) -> list[StreamChunk]:
    """The data records of a whole lane that no later attempt has voided, in order."""
    found: list[StreamChunk] = []
    for record in records:
        if record.type is RecordType.START:
            keep = _resume_from(record.payload)
            found = [chunk for chunk in found if chunk.sequence <= keep]
        elif record.type is RecordType.DATA:
            found.append(record)
    return found


def _repeats_start(lane: Lane, drafts: Sequence[Draft]) -> bool:
    """A host that takes over may say again that the attempt started."""
    first = drafts[0]
    return (
        len(drafts) == 1
        and first.type is RecordType.START
        and lane.head > 0
        and first.attempt == lane.attempt
    )


def _check_order(lane: Lane, drafts: Sequence[Draft]) -> None:
    if lane.state != "open":
        raise Conflict(
            Code.STREAM_ENDED,
            f"the stream {lane.stream_id} has {lane.state}",
            hint="open a new stream",
        )
    if lane.head == 0 and drafts[0].type is not RecordType.START:
        raise malformed("a lane begins with stream_start")
    if len(drafts) == 1:
        return
    for draft in drafts[1:]:
        if draft.type is RecordType.START:
            raise malformed("stream_start is the first record of its batch")
    for draft in drafts[:-1]:
        if draft.type in TERMINAL:
            raise malformed("nothing follows a terminal record")


def _remember(
    producer: Producer, known: Known | None, skipped: int, sequence: int, count: int
) -> Known:
    """The producer after `count` new records from `sequence` on."""
    first = producer.seq + skipped
    places = known.places if known is not None and known.epoch == producer.epoch else ()
    if places:
        *before, (seq, at, length) = places
        if seq + length == first and at + length == sequence:
            return Known(producer.epoch, first + count - 1, (*before, (seq, at, length + count)))
    return Known(producer.epoch, first + count - 1, (*places, (first, sequence, count))[-PLACES:])


class _Batch:
    """The new entries, and what of the lane they change."""

    __slots__ = (
        "_bytes", "_chunks", "_key", "_lane", "_middle", "_names", "_now", "_rseq", "_time_ms",
        "entries", "head", "kept",
    )  # fmt: skip

    def __init__(self, lane: Lane, now: float, rseq: int | None) -> None:
        now = max(now, lane.changed_at)  # the times of a lane never go back, whatever clocks do
        self._lane, self.entries = lane, list[Entry]()
        self.head, self.kept = lane.head, lane.kept
        self._chunks, self._bytes, self._key = lane.chunks, lane.bytes, lane.key
        self._now, self._time_ms, self._rseq = now, int(now * 1000), rseq
        self._names = _names(lane.stream_id, lane.run_id, lane.node_id, lane.pin_name)
        self._middle = _middle(self._time_ms)

    def add(self, drafts: Sequence[Draft], measure: Measure) -> None:
        lane, rseq, time_ms = self._lane, self._rseq, self._time_ms
        names, middle, entries = self._names, self._middle, self.entries
        for draft in drafts:
            self.head = sequence = self.head + 1
            kind = draft.type
            if rseq is not None:
                rseq = self._rseq = rseq + 1
            payload, frame, size = self._encoded(draft, sequence)
            text = b"".join(
                (_HEAD[kind], names, b"%d" % sequence, middle, payload, _end(draft, rseq))
            )
            entry = Entry(
                lane.stream_id, lane.run_id, kind, sequence, rseq, time_ms, size, text, frame
            )
            entries.append(entry)
            self.kept += len(text) if frame is None else entry.length
            if kind is _DATA:
                self._chunks += 1
                self._bytes += size
                if frame is not None and entry.key:
                    self._key = sequence
            elif kind is _START:
                lane = self._lane = _restart(lane, draft, entry, measure)
                self._chunks, self._bytes = lane.chunks, lane.bytes

    @property
    def lane(self) -> Lane:
        """After the entries."""
        lane, standing = self._lane, self._lane.standing
        last = self.entries[-1]
        if self._chunks > lane.chunks:  # data extend the last range that stands
            newest = self.head - (last.type in TERMINAL)
            standing = (*standing[:-1], (standing[-1][0], newest))
        return msgspec.structs.replace(
            lane,
            head=self.head,
            chunks=self._chunks,
            bytes=self._bytes,
            standing=standing,
            kept=self.kept,
            key=self._key,
            changed_at=self._now,
            state=_STATE_AFTER[last.type],
        )

    def _encoded(self, draft: Draft, sequence: int) -> tuple[bytes, bytes | None, int]:
        """The payload's JSON, the binary record's frame, and the bytes that count."""
        if draft.body is not None:
            return self._encoded_binary(draft, draft.body, sequence)
        if draft.type is _STREAM_END:
            encoded = _encode(self._counted(draft))
        elif isinstance(payload := draft.payload, msgspec.Raw):
            encoded = bytes(payload)
        else:
            encoded = _encode(payload)
        size = len(encoded)
        if size > MAX_RECORD_BYTES:
            raise too_large(size)
        return encoded, None, size

    def _encoded_binary(self, draft: Draft, body: bytes, sequence: int) -> tuple[bytes, bytes, int]:
        if len(body) > MAX_RECORD_BYTES:
            raise too_large(len(body))
        metadata: dict[str, Any] = draft.values.get("metadata", {})
        frame = frames.encode(
            frames.Frame(
                lane=0,
                sequence=sequence,
                body=body,
                flags=draft.flags,
                pts_us=draft.pts_us,
                dur_us=draft.dur_us or 0,
                index=draft.index,
                delta_ms=self._time_ms - self._lane.started_ms,
                extension=frames.Extension(
                    attempt=draft.attempt, item=draft.item, rseq=self._rseq, metadata=metadata
                ),
            )
        )
        ref = {
            "url": f"/api/v1/streams/{self._lane.stream_id}/records/{sequence}",
            "size": len(body),
            "metadata": {"mimeType": metadata.get("mime_type", self._lane.mime_type)},
        }
        return _encode({"ref": ref, "metadata": metadata}), frame, len(body)

    def _counted(self, draft: Draft) -> dict[str, Any]:
        """The log itself counts what `stream_end` says: what stands, and the duration in ms."""
        counted = {
            "chunks": self._chunks,
            "bytes": self._bytes,
            "duration_ms": max(0, round((self._now - self._lane.created_at) * 1000)),
        }
        return {"reason": "complete", **draft.values, **counted}


def _end(draft: Draft, rseq: int | None) -> bytes:
    """The optional members, each with its comma, and the brace."""
    more = b"" if rseq is None else b',"rseq":%d' % rseq
    if draft.pts_us is draft.dur_us is draft.attempt is draft.item is None:
        return more + b"}" if more else b"}"
    for name, value in (
        (b"pts_us", draft.pts_us),
        (b"dur_us", draft.dur_us),
        (b"attempt", draft.attempt),
        (b"item", draft.item),
    ):
        if value is not None:
            more += b',"%b":%d' % (name, value)
    return more + b"}"


def _encode(payload: dict[str, Any]) -> bytes:
    try:
        return _encode_json(payload)
    except (TypeError, ValueError, RecursionError) as error:
        raise malformed(f"the payload is not JSON: {error}") from error


def _restart(lane: Lane, draft: Draft, start: Entry, measure: Measure) -> Lane:
    """Ranges are cut at `resume_from`; the new attempt's own range begins empty after its start."""
    attempt, keep = draft.attempt or 1, _resume_from(draft.values)
    if attempt <= lane.attempt:
        raise Fenced(Code.STREAM_FENCED, f"attempt {lane.attempt} of this lane has started")
    if not 0 <= keep <= lane.head:
        raise malformed(f"resume_from {keep} lies outside the lane's 0 to {lane.head}")
    kept = [(first, min(last, keep)) for first, last in lane.standing if first <= keep]
    void = [(max(first, keep + 1), last) for first, last in lane.standing if last > keep]
    kept = [(first, last) for first, last in kept if first <= last]
    return msgspec.structs.replace(
        lane,
        attempt=attempt,
        started_ms=lane.started_ms or start.time_ms,
        chunks=sum(last - first + 1 for first, last in kept),
        bytes=lane.bytes - sum(measure(first, last) for first, last in void if first <= last),
        standing=(*kept, (start.sequence + 1, start.sequence)),
    )


def _resume_from(payload: dict[str, Any]) -> int:
    return payload.get("metadata", {}).get("resume_from", 0)


_DATA, _START, _STREAM_END = RecordType.DATA, RecordType.START, RecordType.END
_HEAD = {kind: b'{"type":"%b",' % kind.value.encode() for kind in RecordType}
_STATE_AFTER: dict[RecordType, LaneState] = {
    RecordType.START: "open",
    RecordType.DATA: "open",
    RecordType.END: "ended",
    RecordType.ERROR: "errored",
}


@functools.lru_cache(maxsize=4)
def _middle(time_ms: int) -> bytes:
    """Between the sequence and the payload."""
    second, ms = divmod(time_ms, 1000)
    return b',"timestamp":"%b.%03dZ","payload":' % (_to_the_second(second), ms)


@functools.lru_cache(maxsize=4)
def _to_the_second(time_s: int) -> bytes:
    return timestamp(time_s).removesuffix(".000Z").encode()


@functools.lru_cache(maxsize=4096)
def _names(stream_id: str, run_id: str, node_id: str, pin_name: str) -> bytes:
    """The members that all records of a lane share, up to the sequence."""
    names = {"stream_id": stream_id, "run_id": run_id, "node_id": node_id, "pin_name": pin_name}
    return _encode_json(names)[1:-1] + b',"sequence":'


def too_large(size: int) -> TooLarge:
    return TooLarge(
        Code.STREAM_RECORD_TOO_LARGE,
        f"the payload has {size} bytes, the limit is {MAX_RECORD_BYTES}",
        hint="store it and publish the reference, or send smaller chunks",
    )
