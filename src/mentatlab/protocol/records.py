"""Stream records: the four types that are logged, and the cursor that names a place among them.

JSON form (WebSocket text frame, SSE `data`, NDJSON log): `StreamChunk.to_dict()`. Ingest also
accepts `event_type` for `type` and `data` / `agent_id` of the old gateway; output says `type`.
"""

import re
from collections.abc import Callable
from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated, Any, Literal, NamedTuple, TypeVar

import msgspec

from mentatlab.protocol.errors import Code, Invalid

T = TypeVar("T")


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

    `payload` of data holds exactly one of `data` (inline JSON), `ref` (media reference) and `bytes`
    (a binary record; in JSON a `ref` to it), beside `metadata`. `timestamp` is RFC 3339 UTC with
    ms; `pts_us`, `dur_us` are media time in µs.
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
    """A record before the log gives it its sequence: what a publisher says.

    `payload` may be JSON text that was checked already (`msgspec.Raw`). `body` is the payload of a
    binary record; `payload` then holds its `metadata` only. `flags` (`frames.KEY` …) and `index`
    (the chunk's number in its item) belong to media.
    """

    type: RecordType = RecordType.DATA
    payload: dict[str, Any] | msgspec.Raw = {}
    body: bytes | None = None
    pts_us: int | None = None
    dur_us: int | None = None
    attempt: int | None = None
    item: int | None = None
    flags: int = 0
    index: int = 0

    @property
    def values(self) -> dict[str, Any]:
        """The payload as values, when it came as text too."""
        if isinstance(self.payload, msgspec.Raw):
            return msgspec.json.decode(self.payload)
        return self.payload


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


_ABSENT = msgspec.Raw()
_Int64 = Annotated[int, msgspec.Meta(ge=-(1 << 63), le=(1 << 63) - 1)]


class Message(msgspec.Struct, kw_only=True, gc=False):
    """A publisher's JSON message as it comes, old forms included: a record, or control."""

    type: str | None = None
    event_type: str | None = None
    stream_id: str | None = None
    payload: msgspec.Raw = _ABSENT
    data: msgspec.Raw = _ABSENT
    pts_us: _Int64 | None = None
    dur_us: _Int64 | None = None
    attempt: _Int64 | None = None
    item: _Int64 | None = None
    producer: Producer | None = None
    producer_seq: int | None = None

    @property
    def kind(self) -> str:
        return self.type or self.event_type or "stream_data"


class _DataPayload(msgspec.Struct, gc=False):
    data: msgspec.Raw = _ABSENT
    ref: msgspec.Raw = _ABSENT


class _ErrorOf(msgspec.Struct):
    code: str
    message: str


class _ErrorPayload(msgspec.Struct):
    error: _ErrorOf


class _EndPayload(msgspec.Struct):
    reason: Literal["complete", "cancelled", "aborted"] = "complete"


_message = msgspec.json.Decoder(Message).decode
_data_payload = msgspec.json.Decoder(_DataPayload).decode
_error_payload = msgspec.json.Decoder(_ErrorPayload).decode
_end_payload = msgspec.json.Decoder(_EndPayload).decode
_COMPLETE = msgspec.Raw(b'{"reason":"complete"}')
_MISSING = (_ABSENT, msgspec.Raw(b"null"))
_DATA = RecordType.DATA
_SEND_DATA = 'send {"type": "stream_data", "payload": {"data": …}}'
_SEND_END = (
    'send {"type": "stream_end", "payload": {"reason": "complete"}}; or cancelled, or aborted'
)
_SEND_ERROR = 'send {"type": "stream_error", "payload": {"error": {"code": "…", "message": "…"}}}'


def parse_message(text: bytes | str) -> Message:
    """One JSON object; `text` is valid UTF-8. `Invalid(STREAM_RECORD_INVALID)`."""
    try:
        return _message(text)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise _invalid(f"not a message: {error}") from error


def draft_of(message: Message) -> Draft:
    """The record that a message asks to append.

    Only data, end and error may be published from outside; everything else raises
    `Invalid(STREAM_RECORD_INVALID)`.
    """
    kind, type_ = message.kind, _DATA
    if kind == "stream_data":
        payload = _checked_data(message.payload, message.data)
    elif kind == "stream_end":
        payload = message.data if message.payload in _MISSING else message.payload
        payload = _COMPLETE if payload in _MISSING else payload
        _checked(payload, _end_payload, _SEND_END)
        type_ = RecordType.END
    elif kind == "stream_error":
        payload = message.data if message.payload in _MISSING else message.payload
        _checked(payload, _error_payload, _SEND_ERROR)
        type_ = RecordType.ERROR
    else:
        raise _invalid(f"type {kind[:40]!r} cannot be published")
    return Draft(
        type=type_,
        payload=payload,
        pts_us=message.pts_us,
        dur_us=message.dur_us,
        attempt=message.attempt,
        item=message.item,
    )


def _checked_data(payload: msgspec.Raw, data: msgspec.Raw) -> msgspec.Raw:
    if payload in _MISSING:
        if data is _ABSENT:
            raise _invalid("`payload` must be an object")
        return msgspec.Raw(b'{"data":%b}' % bytes(data))
    said = _checked(payload, _data_payload)
    if (said.data is _ABSENT) == (said.ref is _ABSENT):
        raise _invalid("a data payload holds exactly one of `data` and `ref`")
    return payload


def _checked(payload: msgspec.Raw, decode: Callable[[msgspec.Raw], T], hint: str = _SEND_DATA) -> T:
    try:
        return decode(payload)
    except (msgspec.DecodeError, RecursionError) as error:
        raise _invalid(f"`payload`: {error}", hint) from error


def _invalid(message: str, hint: str = _SEND_DATA) -> Invalid:
    return Invalid(Code.STREAM_RECORD_INVALID, message, hint=hint)


def malformed(message: str) -> Invalid:
    """For what is none of a stream's records, frames or messages."""
    return Invalid(
        Code.STREAM_RECORD_INVALID, message, hint="docs/reference/streams-protocol.md has the form"
    )
