"""What the server says on `msp.v1+json`, as values. Pure.

A text frame holds a control message, or records joined by newlines; a binary frame is one binary
record of a lane that `subscribed` named.
"""

from collections.abc import Iterator
from datetime import datetime
from typing import Any, NamedTuple

import msgspec

from mentatlab.protocol import frames
from mentatlab.protocol.records import RecordType, StreamChunk, timestamp


class _Control(msgspec.Struct, tag_field="type", gc=False):
    pass


class Pong(_Control, tag="pong"):
    """`left`: as the ping said it."""

    left: str = ""


class Subscribed(_Control, tag="subscribed"):
    """`start` is the cursor after which reading begins; `lane` names it in binary frames.

    The other facts are those of a stream (not of a run); `started` is the timestamp of its first
    record.
    """

    id: str
    lane: int
    start: str
    run_id: str = ""
    node_id: str = ""
    pin_name: str = ""
    started: str = ""


class Publishing(_Control, tag="publishing"):
    """`producer_seq`: what the log has of this producer; `sequence`: its place in the stream, whose
    epoch is another one when the stream has begun anew.
    """

    id: str
    lane: int
    max_bytes: int
    producer_seq: int = 0
    sequence: int = 0
    epoch: int = 0


class Published(_Control, tag="published"):
    """Everything up to `producer_seq` is appended."""

    id: str
    producer_seq: int | None = None
    sequence: int = 0


class Credit(_Control, tag="credit"):
    id: str
    max_bytes: int


class Mark(_Control, tag="mark"):
    id: str
    cursor: str
    state: str


class Missing(_Control, tag="gap"):
    id: str
    reason: str
    next: str


class Throttle(_Control, tag="throttle"):
    retry_after_ms: int


class Failed(_Control, tag="error"):
    """One stream's trouble; the connection goes on."""

    id: str
    code: str
    close: int
    message: str = ""
    hint: str = ""
    details: dict[str, Any] = {}


Control = Pong | Subscribed | Publishing | Published | Credit | Mark | Missing | Throttle | Failed


class MediaChunk(StreamChunk, frozen=True, kw_only=True, gc=False):
    """A binary record: `payload["bytes"]`.

    `key`: it can be decoded without those before it; `index`: its number within its item;
    `end_of_item`: the item's last one; `discardable`: nothing needs it.
    """

    key: bool = False
    end_of_item: bool = False
    discardable: bool = False
    index: int = 0


class Arrived(NamedTuple):
    """`size`: the bytes that credit pays for."""

    record: StreamChunk
    size: int


class _Kind(msgspec.Struct, gc=False):
    type: str = ""


_kind = msgspec.json.Decoder(_Kind).decode
_control = msgspec.json.Decoder(Control).decode
_record = msgspec.json.Decoder(StreamChunk).decode
_CONTROL = {kind.__struct_config__.tag for kind in Control.__args__}


def parse_text(text: str) -> Iterator[Control | Arrived]:
    """What a text frame says; what a newer server may say beside it is left out.

    `msgspec.DecodeError` for what is not of the protocol.
    """
    for line in text.encode().split(b"\n"):
        kind = _kind(line).type
        if kind.startswith("stream_"):
            yield Arrived(_record(line), len(line))
        elif kind in _CONTROL:
            yield _control(line)


class Lane(NamedTuple):
    """What binary frames leave out because it is the same for all of a stream.

    `started`: the timestamp of its first record (RFC 3339).
    """

    stream_id: str
    run_id: str = ""
    node_id: str = ""
    pin_name: str = ""
    started: str = ""


def media_chunk(frame: frames.Frame, lane: Lane) -> MediaChunk:
    """The record that a binary frame of that lane is."""
    extension = frame.extension
    payload: dict[str, Any] = {"bytes": frame.body, "metadata": extension.metadata}
    return MediaChunk(
        type=RecordType.DATA,
        stream_id=lane.stream_id,
        run_id=lane.run_id,
        node_id=lane.node_id,
        pin_name=lane.pin_name,
        sequence=frame.sequence,
        timestamp=_later(lane.started, frame.delta_ms),
        payload=payload,
        rseq=extension.rseq,
        pts_us=frame.pts_us,
        dur_us=frame.dur_us or None,
        attempt=extension.attempt,
        item=extension.item,
        key=bool(frame.flags & frames.KEY),
        end_of_item=bool(frame.flags & frames.END_OF_ITEM),
        discardable=bool(frame.flags & frames.DISCARDABLE),
        index=frame.index,
    )


def _later(started: str, delta_ms: int) -> str:
    if not started:
        return ""
    return timestamp(datetime.fromisoformat(started).timestamp() + delta_ms / 1000)
