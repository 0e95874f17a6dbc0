"""What an append does to a lane: pure rules that every log follows.

    created → open → ended | errored

Sequences are dense from 1; the first record is a `stream_start`, the last a terminal one. A later
`stream_start{attempt, resume_from: k}` voids the data after k of the attempts before it.
A producer's batch is appended exactly once: what the log has of it already is skipped.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import msgspec

from mentatlab.protocol.errors import Code, Conflict, Fenced, Invalid, TooLarge
from mentatlab.protocol.records import (
    MAX_RECORD_BYTES,
    TERMINAL,
    Draft,
    Producer,
    RecordType,
    StreamChunk,
    timestamp,
)
from mentatlab.streams.port import Lane

Measure = Callable[[int, int], int]
"""The payload bytes of a lane's data records with first ≤ sequence ≤ last."""


class Known(NamedTuple):
    """A producer as the log knows it: its epoch, and its own last sequence that is appended."""

    epoch: int
    seq: int


class Entry(NamedTuple):
    """A record as it is stored: its JSON, and the bytes of its payload's JSON."""

    record: StreamChunk
    json: bytes
    size: int


class Step(NamedTuple):
    """`skipped` drafts were in the log already, `entries` are new, `lane` is the lane afterwards.

    `repeated`: nothing is new.
    """

    lane: Lane
    entries: tuple[Entry, ...]
    skipped: int

    @property
    def repeated(self) -> bool:
        return not self.entries


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

    Raises `Fenced`, `Conflict` (STREAM_ENDED, STREAM_GAP_IN_PRODUCER), `Invalid`, `TooLarge`.
    """
    if not drafts:
        raise _invalid("there is no record to append")
    skipped = 0 if producer is None else already_there(producer, known, len(drafts))
    fresh = drafts[skipped:]
    if not fresh or (producer is None and _repeats_start(lane, fresh)):
        return Step(lane, (), len(drafts))
    _check_order(lane, fresh)
    entries: list[Entry] = []
    for draft in fresh:
        lane, entry = _append_one(lane, draft, now, rseq + len(entries) + 1, measure)
        entries.append(entry)
    return Step(lane, tuple(entries), skipped)


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
        raise _invalid("a lane begins with stream_start")
    if any(draft.type is RecordType.START for draft in drafts[1:]):
        raise _invalid("stream_start is the first record of its batch")
    if any(draft.type in TERMINAL for draft in drafts[:-1]):
        raise _invalid("nothing follows a terminal record")


def _append_one(
    lane: Lane, draft: Draft, now: float, rseq: int, measure: Measure
) -> tuple[Lane, Entry]:
    sequence = lane.head + 1
    payload = _payload(lane, draft, now)
    encoded = _encode(payload)
    record = StreamChunk(
        type=draft.type,
        stream_id=lane.stream_id,
        run_id=lane.run_id,
        node_id=lane.node_id,
        pin_name=lane.pin_name,
        sequence=sequence,
        timestamp=timestamp(now),
        payload=payload,
        rseq=rseq if lane.durability == "commit" else None,
        pts_us=draft.pts_us,
        dur_us=draft.dur_us,
        attempt=draft.attempt,
        item=draft.item,
    )
    entry = Entry(record, msgspec.json.encode(record), len(encoded))
    return _advance(lane, entry, measure), entry


def _payload(lane: Lane, draft: Draft, now: float) -> dict[str, Any]:
    """The log itself counts what `stream_end` says: chunks and bytes that stand, duration in ms."""
    if draft.type is not RecordType.END:
        return draft.payload
    counted = {
        "chunks": lane.chunks,
        "bytes": lane.bytes,
        "duration_ms": max(0, round((now - lane.created_at) * 1000)),
    }
    return {"reason": "complete", **draft.payload, **counted}


def _encode(payload: dict[str, Any]) -> bytes:
    try:
        encoded = msgspec.json.encode(payload)
    except (TypeError, ValueError, RecursionError) as error:
        raise _invalid(f"the payload is not JSON: {error}") from error
    if len(encoded) > MAX_RECORD_BYTES:
        raise TooLarge(
            Code.STREAM_RECORD_TOO_LARGE,
            f"the payload has {len(encoded)} bytes, the limit is {MAX_RECORD_BYTES}",
            hint="store it and publish the reference, or send smaller chunks",
        )
    return encoded


def _advance(lane: Lane, entry: Entry, measure: Measure) -> Lane:
    sequence = entry.record.sequence
    match entry.record.type:
        case RecordType.START:
            return _restart(lane, entry.record, measure)
        case RecordType.DATA:
            *before, (first, _) = lane.standing
            return msgspec.structs.replace(
                lane,
                head=sequence,
                chunks=lane.chunks + 1,
                bytes=lane.bytes + entry.size,
                standing=(*before, (first, sequence)),
            )
        case RecordType.END:
            return msgspec.structs.replace(lane, head=sequence, state="ended")
        case RecordType.ERROR:
            return msgspec.structs.replace(lane, head=sequence, state="errored")


def _restart(lane: Lane, start: StreamChunk, measure: Measure) -> Lane:
    """Ranges are cut at `resume_from`; the new attempt's own range begins empty after its start."""
    attempt, keep = start.attempt or 1, _resume_from(start.payload)
    if attempt <= lane.attempt:
        raise Fenced(Code.STREAM_FENCED, f"attempt {lane.attempt} of this lane has started")
    if not 0 <= keep <= lane.head:
        raise _invalid(f"resume_from {keep} lies outside the lane's 0 to {lane.head}")
    kept = [(first, min(last, keep)) for first, last in lane.standing if first <= keep]
    void = [(max(first, keep + 1), last) for first, last in lane.standing if last > keep]
    kept = [(first, last) for first, last in kept if first <= last]
    return msgspec.structs.replace(
        lane,
        head=start.sequence,
        attempt=attempt,
        chunks=sum(last - first + 1 for first, last in kept),
        bytes=lane.bytes - sum(measure(first, last) for first, last in void if first <= last),
        standing=(*kept, (start.sequence + 1, start.sequence)),
    )


def _resume_from(payload: dict[str, Any]) -> int:
    return payload.get("metadata", {}).get("resume_from", 0)


def _invalid(message: str) -> Invalid:
    return Invalid(
        Code.STREAM_RECORD_INVALID, message, hint="docs/reference/streams-protocol.md has the form"
    )
