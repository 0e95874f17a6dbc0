"""What a client says on `msp.v1+json` beside records: control messages. Pure."""

from typing import Annotated

import msgspec

from mentatlab.protocol.records import malformed
from mentatlab.streams.subscription import Filter, Policy

INITIAL_CREDIT = 1 << 20

Bytes = Annotated[int, msgspec.Meta(ge=0)]


class _Control(msgspec.Struct, tag_field="type", tag=str.lower):
    """Unknown members are ignored."""


class Hello(_Control):
    token: str | None = None


class Auth(_Control):
    token: str


class Subscribe(_Control, rename={"from_": "from"}):
    """`max_bytes`: how many bytes may be delivered until `credit` raises it."""

    id: str
    from_: str | int = "latest"
    rate: str | float = "max"
    filter: Filter | None = None
    policy: Policy = "log"
    max_bytes: Bytes = INITIAL_CREDIT


class Unsubscribe(_Control):
    id: str


class Credit(_Control):
    id: str
    max_bytes: Bytes


class Ack(_Control):
    """`cursor`: everything up to there is consumed."""

    id: str
    cursor: str


class Cancel(_Control):
    id: str


class ProducerName(msgspec.Struct):
    id: str
    epoch: int


class Publish(_Control):
    """From now on records may say `producer_seq` only, and come as binary frames."""

    id: str
    producer: ProducerName | None = None


class Ping(_Control):
    """Answered with all its members."""


class Pong(_Control):
    pass


Control = Hello | Auth | Subscribe | Unsubscribe | Credit | Ack | Cancel | Publish | Ping | Pong
KINDS = frozenset(
    {
        "hello",
        "auth",
        "subscribe",
        "unsubscribe",
        "credit",
        "ack",
        "cancel",
        "publish",
        "ping",
        "pong",
    }
)
FLOW = (Credit, Ack, Pong)
"""Bounded by what was delivered, so they do not count against a rate."""

_decode: msgspec.json.Decoder[Control] = msgspec.json.Decoder(Control)


class _Head(msgspec.Struct):
    type: object = None
    id: object = None
    stream_id: object = None


_head = msgspec.json.Decoder(_Head).decode


def parse_control(data: bytes) -> Control:
    """`Invalid(STREAM_RECORD_INVALID)`"""
    try:
        return _decode.decode(data)
    except (msgspec.DecodeError, RecursionError) as error:
        raise malformed(f"not a control message: {error}") from error


def head_of(data: bytes) -> tuple[str | None, str | None]:
    """The type and the stream that a message names, whatever else is wrong with it."""
    try:
        head = _head(data)
    except (msgspec.DecodeError, RecursionError):
        return None, None
    name = head.id if head.stream_id is None else head.stream_id
    return _text(head.type), _text(name)


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None
