"""Binary frames: one binary record on a WebSocket. Pure.

Big-endian, 40 bytes of header, then the extension (UTF-8 JSON), then the payload:

    u8 version · u8 flags · u16 lane · u32 payload length · u64 sequence · i64 pts_us · u32 dur_us ·
    u16 extension length · u16 chunk index · u32 reserved (0) · u32 ms since the lane's first start

`lane` is an alias of the connection. From a publisher `sequence` is its own (0 = it has none).
"""

import struct
from typing import Any

import msgspec

from mentatlab.protocol.errors import Code, TooLarge
from mentatlab.protocol.records import MAX_RECORD_BYTES, malformed

VERSION = 1
KEY, END_OF_ITEM, DISCARDABLE = 1, 2, 16
FLAGS = KEY | END_OF_ITEM | DISCARDABLE
HEADER_BYTES = 40
MAX_EXTENSION_BYTES = 4096
MAX_FRAME_BYTES = HEADER_BYTES + MAX_EXTENSION_BYTES + MAX_RECORD_BYTES
NO_PTS = -(1 << 63)

_HEADER = struct.Struct(">BBHIQqIHHII")
_LANE = struct.Struct(">BBH")
assert _HEADER.size == HEADER_BYTES


class Extension(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True, gc=False):
    """`rseq` only from the server."""

    attempt: int | None = None
    item: int | None = None
    rseq: int | None = None
    metadata: dict[str, Any] = {}


_extension = msgspec.json.Decoder(Extension).decode
_PLAIN = Extension()


class Frame(msgspec.Struct, frozen=True, gc=False):
    """`pts_us`, `dur_us` in µs; `delta_ms` since the lane's first `stream_start`."""

    lane: int
    sequence: int
    body: bytes
    flags: int = 0
    pts_us: int | None = None
    dur_us: int = 0
    index: int = 0
    delta_ms: int = 0
    extension: Extension = _PLAIN


def encode(frame: Frame) -> bytes:
    """`TooLarge` or `Invalid(STREAM_RECORD_INVALID)` for what does not fit the header."""
    extension = b"" if frame.extension == _PLAIN else msgspec.json.encode(frame.extension)
    if len(extension) > MAX_EXTENSION_BYTES:
        raise TooLarge(
            Code.STREAM_RECORD_TOO_LARGE,
            f"the metadata of a binary record has {len(extension)} bytes of at most 4096",
            hint="put what is large into a record of its own",
        )
    try:
        header = _HEADER.pack(
            VERSION,
            frame.flags,
            frame.lane,
            len(frame.body),
            frame.sequence,
            NO_PTS if frame.pts_us is None else frame.pts_us,
            frame.dur_us,
            len(extension),
            frame.index,
            0,
            min(frame.delta_ms, 0xFFFFFFFF),
        )
    except struct.error as error:
        raise malformed(f"a binary record's {error}") from error
    return b"".join((header, extension, frame.body))


def decode(data: bytes | memoryview) -> Frame:
    """`Invalid(STREAM_RECORD_INVALID)` for anything malformed, `TooLarge` over the limits."""
    if len(data) < HEADER_BYTES:
        raise malformed(f"a binary frame has at least {HEADER_BYTES} bytes, this one {len(data)}")
    version, flags, lane, size, sequence, pts, dur, ext, index, reserved, delta = (
        _HEADER.unpack_from(data)
    )
    if version != VERSION:
        raise malformed(f"binary frame version {version} is not spoken here")
    if flags & ~FLAGS or reserved:
        raise malformed("a reserved flag or field of the binary frame is set")
    if ext > MAX_EXTENSION_BYTES or size > MAX_RECORD_BYTES:
        raise TooLarge(
            Code.STREAM_RECORD_TOO_LARGE,
            f"a payload of {size} bytes; at most {MAX_RECORD_BYTES} (extension 4096)",
            hint="send smaller chunks, or store it and publish the reference",
        )
    if len(data) != HEADER_BYTES + ext + size:
        raise malformed(
            f"the frame has {len(data)} bytes, its header says {HEADER_BYTES + ext + size}"
        )
    return Frame(
        lane=lane,
        sequence=sequence,
        body=bytes(data[HEADER_BYTES + ext :]),
        flags=flags,
        pts_us=None if pts == NO_PTS else pts,
        dur_us=dur,
        index=index,
        delta_ms=delta,
        extension=_decode_extension(data[HEADER_BYTES : HEADER_BYTES + ext]) if ext else _PLAIN,
    )


def _decode_extension(text: bytes | memoryview) -> Extension:
    try:
        return _extension(str(text, "utf-8"))
    except (UnicodeDecodeError, msgspec.DecodeError, RecursionError) as error:
        raise malformed(f"the extension of the binary frame: {error}") from error


def body_of(frame: bytes) -> memoryview:
    """The payload of an encoded frame, without a copy."""
    (size,) = struct.unpack_from(">I", frame, 4)
    return memoryview(frame)[len(frame) - size :]


def lane_head(frame: bytes, lane: int) -> bytes:
    """The first 4 bytes of an encoded frame for another lane; the rest of it is shared."""
    return _LANE.pack(VERSION, frame[1], lane)
