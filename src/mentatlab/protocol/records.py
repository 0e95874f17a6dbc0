"""Stream records: the four types that are logged, and the cursor that names a place among them.

JSON form (WebSocket text frame, SSE `data`, NDJSON log): `StreamChunk.to_dict()`. Ingest also accepts
`event_type` for `type` and `data` / `agent_id` of the old gateway; output always says `type`.
"""

from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, Literal, NamedTuple

import msgspec

from mentatlab.protocol.errors import Code, Invalid


class RecordType(StrEnum):
    START = "stream_start"
    DATA = "stream_data"
    END = "stream_end"
    ERROR = "stream_error"


TERMINAL = frozenset({RecordType.END, RecordType.ERROR})

EndReason = Literal["complete", "cancelled", "aborted", "expired"]
Durability = Literal["commit", "memory", "relaxed"]

MAX_RECORD_BYTES = 1 << 20


class StreamChunk(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True, gc=False):
    """One record. `sequence` is dense from 1 in its lane, `rseq` dense from 1 in its run (commit lanes).

    `payload` of data holds exactly one of `data` (inline JSON) and `ref` (media reference), beside
    `metadata`. `timestamp` is RFC 3339 UTC with ms; `pts_us`, `dur_us` are media time in µs.
    """

    type: RecordType
    stream_id: str
    run_id: str
    node_id: str
    pin_name: str
    sequence: int
    timestamp: str
    payload: dict[str, Any]
    rseq: int | None = None
    pts_us: int | None = None
    dur_us: int | None = None
    attempt: int | None = None
    item: int | None = None

    def to_dict(self) -> dict[str, Any]:
        return msgspec.to_builtins(self)

    @property
    def terminal(self) -> bool:
        return self.type in TERMINAL


class Draft(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True, gc=False):
    """A record before the log gives it its sequence: what a publisher says."""

    type: RecordType = RecordType.DATA
    payload: dict[str, Any] = {}
    pts_us: int | None = None
    dur_us: int | None = None
    attempt: int | None = None
    item: int | None = None


class Producer(msgspec.Struct, frozen=True, kw_only=True):
    """Who appends, for exactly-once: an older epoch is fenced, seq ≤ last is a duplicate, last+1 is appended,
    anything later is a hole; a higher epoch starts again at seq 1. `seq` is that of the batch's first draft."""

    id: str
    epoch: int
    seq: int


class Cursor(NamedTuple):
    """`epoch:sequence`; opaque to users; a position *after* that sequence."""

    epoch: int
    sequence: int

    def __str__(self) -> str:
        return f"{self.epoch}:{self.sequence}"


def parse_cursor(text: str) -> Cursor:
    epoch, colon, sequence = text.partition(":")
    if colon and epoch.isascii() and epoch.isdigit() and sequence.isascii() and sequence.isdigit():
        if len(epoch) <= 18 and len(sequence) <= 18:
            return Cursor(int(epoch), int(sequence))
    raise Invalid(
        Code.STREAM_CURSOR_INVALID,
        f"{text[:60]!r} is not a cursor",
        hint="use the id of the last event you got, unchanged",
    )


def timestamp(time_s: float) -> str:
    """RFC 3339, UTC, milliseconds."""
    return (
        datetime.fromtimestamp(time_s, UTC)
        .isoformat(timespec="milliseconds")
        .replace("+00:00", "Z")
    )


def start_draft(
    *,
    mime_type: str = "application/json",
    durability: Durability = "commit",
    attempt: int = 1,
    resume_from: int = 0,
    **more: Any,
) -> Draft:
    """`stream_start`; records up to `resume_from` stand, later ones of older attempts are void."""
    meta = {
        "mime_type": mime_type,
        "durability": durability,
        "attempt": attempt,
        "resume_from": resume_from,
        **more,
    }
    return Draft(type=RecordType.START, payload={"metadata": meta}, attempt=attempt)


def end_draft(reason: EndReason, *, chunks: int, bytes_: int = 0, duration_ms: int = 0) -> Draft:
    """`stream_end`; `chunks` counts the standing data records."""
    payload = {"reason": reason, "chunks": chunks, "bytes": bytes_, "duration_ms": duration_ms}
    return Draft(type=RecordType.END, payload=payload)


def error_draft(
    code: str, message: str, *, retryable: bool = False, partial: bool = True, details: Any = None
) -> Draft:
    """`stream_error` with one of: agent_error publisher_lost timeout invalid_payload quota_exceeded
    storage_failed cancelled_upstream internal."""
    error = {
        "code": code,
        "message": message,
        "retryable": retryable,
        "partial": partial,
        "details": details or {},
    }
    return Draft(type=RecordType.ERROR, payload={"error": error})


def data_draft(
    value: Any = None,
    *,
    ref: dict[str, Any] | None = None,
    mime_type: str = "application/json",
    pts_us: int | None = None,
    dur_us: int | None = None,
    attempt: int | None = None,
    item: int | None = None,
) -> Draft:
    body: dict[str, Any] = {"ref": ref} if ref is not None else {"data": value}
    return Draft(
        payload={**body, "metadata": {"mime_type": mime_type}},
        pts_us=pts_us,
        dur_us=dur_us,
        attempt=attempt,
        item=item,
    )


def parse_draft(message: object) -> Draft:
    """A publisher's JSON record (`{"type": "stream_data", "payload": {…}}`, old forms included) → Draft.

    A message that is an object without `type`/`payload`/`data` raises; only data, end and error may be
    published from outside.
    """
    if not isinstance(message, dict):
        raise _invalid("a record is a JSON object")
    kind = message.get("type", message.get("event_type", RecordType.DATA))
    if kind not in (RecordType.DATA, RecordType.END, RecordType.ERROR):
        raise _invalid(f"type {kind!r} cannot be published")
    payload = message.get("payload")
    if payload is None and "data" in message:
        payload = {"data": message["data"]}
    if payload is None and kind == RecordType.END:
        payload = {"reason": "complete"}
    if not isinstance(payload, dict):
        raise _invalid("`payload` must be an object")
    if kind == RecordType.DATA and ("data" in payload) == ("ref" in payload):
        raise _invalid("a data payload holds exactly one of `data` and `ref`")
    if kind == RecordType.END and payload.get("reason", "complete") not in (
        "complete",
        "cancelled",
        "aborted",
    ):
        raise _invalid("`reason` is complete, cancelled or aborted")
    times = {k: message.get(k) for k in ("pts_us", "dur_us", "item", "attempt")}
    for name, number in times.items():
        if number is not None and (not isinstance(number, int) or isinstance(number, bool)):
            raise _invalid(f"`{name}` must be an integer")
    return Draft(type=RecordType(kind), payload=payload, **times)


def _invalid(message: str) -> Invalid:
    return Invalid(
        Code.STREAM_RECORD_INVALID,
        message,
        hint='send {"type": "stream_data", "payload": {"data": …}}',
    )
