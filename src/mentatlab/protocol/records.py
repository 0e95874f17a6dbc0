"""Stream records: the four types that are logged, and the cursor that names a place among them.

JSON form (WebSocket text frame, SSE `data`, NDJSON log): `StreamChunk.to_dict()`. Ingest also
accepts `event_type` for `type` and `data` / `agent_id` of the old gateway; output says `type`.
"""

import re
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, Literal, NamedTuple

import msgspec

from mentatlab.protocol.errors import Code, Invalid
from mentatlab.protocol.values import is_object


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
    """One record. `sequence` is dense from 1 in its lane, `rseq` in its run (commit lanes only).

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
    """Who appends, for exactly-once; `seq` is that of the batch's first draft.

    An older epoch is fenced, seq ≤ last is a duplicate, last+1 is appended, anything later is a
    hole; a higher epoch starts again at seq 1.
    """

    id: str
    epoch: int
    seq: int


class Cursor(NamedTuple):
    """`epoch:sequence`; opaque to users; a position *after* that sequence."""

    epoch: int
    sequence: int

    def __str__(self) -> str:
        return f"{self.epoch}:{self.sequence}"


_CURSOR = re.compile(r"([0-9]{1,18}):([0-9]{1,18})")


def parse_cursor(text: str) -> Cursor:
    match = _CURSOR.fullmatch(text)
    if match is not None:
        return Cursor(int(match[1]), int(match[2]))
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
    error: dict[str, Any] = {
        "code": code,
        "message": message,
        "retryable": retryable,
        "partial": partial,
        "details": {} if details is None else details,
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


_PUBLISHED = (RecordType.DATA, RecordType.END, RecordType.ERROR)
_PUBLISHED_REASONS = ("complete", "cancelled", "aborted")
_INT64 = range(-(1 << 63), 1 << 63)


def parse_draft(message: object) -> Draft:
    """A publisher's JSON record (`{"type": "stream_data", "payload": {…}}`, old forms included).

    Only data, end and error may be published from outside; everything else raises
    `Invalid(STREAM_RECORD_INVALID)`.
    """
    if not is_object(message):
        raise _invalid("a record is a JSON object")
    kind = message.get("type", message.get("event_type", RecordType.DATA))
    if kind not in _PUBLISHED:
        raise _invalid(f"type {str(kind)[:40]!r} cannot be published")
    kind = RecordType(kind)
    return Draft(
        type=kind,
        payload=_published_payload(kind, message),
        pts_us=_integer(message, "pts_us"),
        dur_us=_integer(message, "dur_us"),
        attempt=_integer(message, "attempt"),
        item=_integer(message, "item"),
    )


def _published_payload(kind: RecordType, message: dict[str, Any]) -> dict[str, Any]:
    payload = message.get("payload")
    if payload is None and "data" in message:
        payload = {"data": message["data"]} if kind is RecordType.DATA else message["data"]
    if payload is None and kind is RecordType.END:
        payload = {"reason": "complete"}
    if not is_object(payload):
        raise _invalid("`payload` must be an object")
    if kind is RecordType.DATA and ("data" in payload) == ("ref" in payload):
        raise _invalid("a data payload holds exactly one of `data` and `ref`")
    if kind is RecordType.END and payload.get("reason", "complete") not in _PUBLISHED_REASONS:
        raise _invalid("`reason` is complete, cancelled or aborted")
    if kind is RecordType.ERROR and not _is_error(payload.get("error")):
        raise _invalid("`payload.error` must be an object with the texts `code` and `message`")
    return payload


def _is_error(error: object) -> bool:
    return is_object(error) and all(isinstance(error.get(k), str) for k in ("code", "message"))


def _integer(message: dict[str, Any], name: str) -> int | None:
    number = message.get(name)
    if number is None or (type(number) is int and number in _INT64):
        return number
    raise _invalid(f"`{name}` must be a 64-bit integer")


def _invalid(message: str) -> Invalid:
    return Invalid(
        Code.STREAM_RECORD_INVALID,
        message,
        hint='send {"type": "stream_data", "payload": {"data": …}}',
    )
