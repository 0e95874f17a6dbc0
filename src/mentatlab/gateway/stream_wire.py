"""What all conversations on a WebSocket share: their limits, their patience, and how they end."""

from typing import Any, NamedTuple

import msgspec

from mentatlab.gateway.problems import status_of
from mentatlab.protocol import errors
from mentatlab.protocol.errors import Code, MentatError, TooLarge
from mentatlab.protocol.frames import HEADER_BYTES, MAX_EXTENSION_BYTES
from mentatlab.protocol.records import MAX_RECORD_BYTES
from mentatlab.streams.port import READ_BYTES
from mentatlab.streams.positions import Gap

MAX_MESSAGE_BYTES = MAX_RECORD_BYTES + 64 * 1024
MAX_BINARY_BYTES = MAX_RECORD_BYTES + HEADER_BYTES + MAX_EXTENSION_BYTES
MAX_CONTROL_BYTES = 64 * 1024
MAX_STREAMS = 128
LIMITS = {
    "record_bytes": MAX_RECORD_BYTES,
    "control_bytes": MAX_CONTROL_BYTES,
    "message_bytes": MAX_MESSAGE_BYTES,
    "streams": MAX_STREAMS,
    "in_flight_bytes": READ_BYTES,
}
"""As `welcome` tells them."""
_CLOSE_REASON_BYTES = 120


class Timing(NamedTuple):
    """Seconds.

    `mark_s`: idle until a `mark`. `stall_s`: a full link until it is cut. `ping_s`: nothing heard
    until a ping, and `pong_s` more until the connection counts as dead. `hello_s`: for strangers to
    name themselves. `silent_s`, `lost_s`: nothing heard of a publisher until its streams are
    stalled, and until they end.
    """

    mark_s: float = 15.0
    stall_s: float = 10.0
    ping_s: float = 15.0
    pong_s: float = 15.0
    hello_s: float = 5.0
    silent_s: float = 10.0
    lost_s: float = 60.0

    @property
    def sweep_s(self) -> float:
        """How often all connections are looked at."""
        return min(1.0, *(limit / 4 for limit in self))


class Close(NamedTuple):
    """How a connection ends. 1000, 1012 and 40xx: come back and resume; 41xx: stop and raise."""

    code: int
    reason: str = ""


DONE = Close(1000, "the stream has ended")
DRAINING = Close(1012, "the server is restarting; resume from your last record")
STALLED = Close(4000, "too slow; resume from your last record")
SILENT = Close(4001, "no pong; resume from your last record")
EXPIRED = Close(4003, "the token has expired; reconnect with a new one")
THROTTLED = Close(4005, "too many control messages; come back later")
STRANGER = Close(4101, f"{Code.UNAUTHENTICATED}: say hello with a token first")


def close_for(error: MentatError) -> Close:
    match error:
        case errors.Conflict():
            code = 4109
        case errors.CredentialEnded():
            code = EXPIRED.code
        case errors.OutOfSpace() | errors.Internal():
            code = 1011
        case errors.Unavailable():
            code = 1013
        case _:
            code = 3700 + status_of(error)  # 4100 bad, 4101, 4103, 4104, 4110, 4113, 4129
    reason = f"{error}".encode()[:_CLOSE_REASON_BYTES].decode(errors="ignore")
    return Close(code, reason)


def check_size(size: int, limit: int, what: str) -> None:
    """`TooLarge(STREAM_RECORD_TOO_LARGE)`"""
    if size > limit:
        raise TooLarge(
            Code.STREAM_RECORD_TOO_LARGE,
            f"{what} has at most {limit} bytes, this one {size}",
            hint="send smaller chunks, or store it and publish the reference",
        )


_encode = msgspec.json.Encoder().encode


def message(type_: str, **fields: Any) -> bytes:
    return _encode({"type": type_, **fields})


def gap_message(id_: str, gap: Gap) -> bytes:
    return message("gap", id=id_, **msgspec.to_builtins(gap))


def error_message(id_: str, error: MentatError) -> bytes:
    """One stream's trouble."""
    return message(
        "error",
        id=id_,
        code=error.code,
        close=close_for(error).code,
        message=error.message,
        hint=error.hint,
        details=error.details,
    )


class Marks:
    """When a reader who gets no records is told where it is."""

    __slots__ = ("_idle_at", "_stalled", "fresh")

    def __init__(self, *, stalled: bool) -> None:
        self._stalled = stalled  # as it was told
        self.fresh = True  # it got something since the last look
        self._idle_at = 0.0

    def due(self, now: float, mark_s: float, *, stalled: bool) -> str | None:
        """The state to be told, after `mark_s` or when the publisher's has changed."""
        if self.fresh:
            self.fresh, self._idle_at = False, now
        if stalled == self._stalled and now - self._idle_at < mark_s:
            return None
        self._stalled, self._idle_at = stalled, now
        return "stalled" if stalled else "open"
