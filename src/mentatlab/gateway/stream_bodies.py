"""Bodies of `POST /api/v1/streams/{id}/records`: JSON, a record a line, one binary record."""

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, TypeVar

import msgspec
from pydantic import BaseModel, ConfigDict, Field

from mentatlab.protocol import frames
from mentatlab.protocol.errors import Code, TooLarge, UnsupportedMedia
from mentatlab.protocol.records import Draft, Message, Producer, draft_of, malformed
from mentatlab.streams.port import Lane
from mentatlab.streams.publishing import BATCH_RECORDS, Batch, checked_producer

T = TypeVar("T")

JSON = "application/json"
LINES = ("application/x-ndjson", "application/ndjson", "application/jsonl")
UNKNOWN = "application/octet-stream"
_FORMS = ("application/x-www-form-urlencoded", "multipart/form-data")
_MAX_MIME_CHARS = 200
_INT64 = 1 << 63


class MediaFacts(BaseModel):
    """What the query tells of a binary record; times in µs."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    pts_us: Annotated[int, Field(ge=-_INT64 + 1, lt=_INT64)] | None = None
    dur_us: Annotated[int, Field(ge=0, lt=1 << 32)] | None = None
    item: Annotated[int, Field(ge=-_INT64, lt=_INT64)] | None = None
    index: Annotated[int, Field(ge=0, lt=1 << 16, description="of the chunk in its item")] = 0
    key: bool = False
    end_of_item: bool = False

    @property
    def flags(self) -> int:
        return self.key * frames.KEY | self.end_of_item * frames.END_OF_ITEM


def media_type(content_type: str | None) -> str:
    """Lower case, without parameters; JSON when nothing is said."""
    return (content_type or JSON).partition(";")[0].strip().lower()


def parse_body(
    body: bytes,
    content_type: str | None,
    *,
    lane: Lane,
    facts: MediaFacts,
    headers: Mapping[str, str],
) -> Batch:
    """`Invalid(STREAM_RECORD_INVALID)`, or `TooLarge` for more than 256 records.

    Where the body names no producer, `headers` may: `Producer-Id`, `-Epoch`, `-Seq`.
    """
    kind = media_type(content_type)
    if kind in _FORMS:
        raise UnsupportedMedia(
            Code.STREAM_RECORD_INVALID,
            f"{kind} is not a record",
            hint="send `Content-Type: application/json`, or the type of the bytes",
        )
    if kind == JSON:
        batch = parse_records(body, stream_id=lane.stream_id)
    elif kind in LINES:
        batch = parse_lines(body, stream_id=lane.stream_id)
    else:
        draft = binary_draft(body, (content_type or "").strip(), lane.mime_type, facts)
        batch = Batch(lane.stream_id, (draft,), None, len(body))
    return batch._replace(producer=batch.producer or producer_of(headers))


class _Body(Message):
    """`records`: several, appended together; else it is one record itself."""

    records: list[Message] | None = None


_decode_body = msgspec.json.Decoder(_Body).decode
_decode_list = msgspec.json.Decoder(list[Message]).decode
_decode_lines = msgspec.json.Decoder(Message).decode_lines


def parse_records(body: bytes, *, stream_id: str) -> Batch:
    """JSON: `{"records": […], "producer": {…}}`, a list of records, or one with its `producer`."""
    if body.lstrip()[:1] == b"[":
        return _batch(stream_id, _decoded(body, _decode_list), None, len(body))
    said = _decoded(body, _decode_body)
    records = [said] if said.records is None else said.records
    return _batch(stream_id, records, said.producer, len(body))


def parse_lines(body: bytes, *, stream_id: str) -> Batch:
    """NDJSON: a record a line; the first one's `producer` counts."""
    records = _decoded(body, _decode_lines)
    return _batch(stream_id, records, records[0].producer if records else None, len(body))


def _batch(
    stream_id: str, records: Sequence[Message], producer: Producer | None, size: int
) -> Batch:
    if len(records) > BATCH_RECORDS:
        raise TooLarge(
            Code.STREAM_RECORD_TOO_LARGE,
            f"a batch has at most {BATCH_RECORDS} records, this one has {len(records)}",
            hint="send several batches; a producer's `seq` goes on over all of them",
        )
    checked = None if producer is None else checked_producer(producer)
    return Batch(stream_id, tuple(draft_of(record) for record in records), checked, size)


def _decoded(body: bytes, decode: Callable[[str], T]) -> T:
    try:
        return decode(str(body, "utf-8"))  # what is kept as it came must be UTF-8
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise malformed(f"not records: {error}") from error


def binary_draft(body: bytes, mime: str, lane_mime: str, facts: MediaFacts) -> Draft:
    """The record says its type where it is not the lane's."""
    if len(mime) > _MAX_MIME_CHARS or not mime.isascii() or not mime.isprintable():
        raise malformed("the Content-Type is not a MIME type")
    unsaid = mime.lower() == UNKNOWN and lane_mime != JSON
    return Draft(
        payload={} if unsaid or mime == lane_mime else {"metadata": {"mime_type": mime}},
        body=body,
        pts_us=facts.pts_us,
        dur_us=facts.dur_us,
        item=facts.item,
        flags=facts.flags,
        index=facts.index,
    )


def producer_of(headers: Mapping[str, str]) -> Producer | None:
    """The producer that the headers name, if any. A number without its name is `Invalid`."""
    id_ = headers.get("producer-id")
    if id_ is None:
        if "producer-epoch" in headers or "producer-seq" in headers:
            raise malformed("Producer-Epoch and Producer-Seq need a Producer-Id")
        return None
    try:
        epoch = int(headers.get("producer-epoch", "0"))
        seq = int(headers.get("producer-seq", ""))
    except ValueError as error:
        raise malformed("Producer-Epoch and Producer-Seq are numbers") from error
    return checked_producer(Producer(id=id_, epoch=epoch, seq=seq))
