"""The two kinds of frames, as a tester writes them: any field may be wrong.

Written from the protocol's text and apart from the server's own code, so that the two check each
other. WebSocket frames: RFC 6455 §5.2. Media frames: `msp.v1+json`, 40 bytes, big-endian.
"""

import json
import os
import struct
from collections.abc import Mapping
from typing import Any, NamedTuple

TEXT, BINARY, CLOSE, PING, PONG = 1, 2, 8, 9, 10
FIN = 0x80

_MEDIA = struct.Struct(">BBHIQqIHHII")
_FIELDS = (
    "version", "flags", "lane", "length", "sequence", "pts_us", "dur_us",
    "ext_length", "index", "crc", "time_ms",
)  # fmt: skip


class WebSocketFrame(NamedTuple):
    fin: bool
    opcode: int
    data: bytes


def websocket_frame(
    opcode: int,
    data: bytes,
    *,
    fin: bool = True,
    rsv: int = 0,
    mask: bool = True,
    length: int | None = None,
) -> bytes:
    """`rsv`: the three reserved bits as a number; `length`: what the header says instead."""
    count = len(data) if length is None else length
    marked = 0x80 if mask else 0
    if count < 126:
        size = struct.pack(">B", marked | count)
    elif count < 1 << 16:
        size = struct.pack(">BH", marked | 126, count)
    else:
        size = struct.pack(">BQ", marked | 127, count)
    head = bytes([(FIN if fin else 0) | rsv << 4 | opcode]) + size
    if not mask:
        return head + data
    key = os.urandom(4)
    return head + key + masked(data, key)


def masked(data: bytes, key: bytes) -> bytes:
    """XOR with the repeated four bytes of `key`, as one large number: fast without a library."""
    whole = (key * (len(data) // 4 + 1))[: len(data)]
    number = int.from_bytes(data, "big") ^ int.from_bytes(whole, "big")
    return number.to_bytes(len(data), "big")


def media_frame(fields: Mapping[str, Any]) -> bytes:
    """`_FIELDS` by name, `ext` (an object, or text as it stands), `payload` (bytes).

    What is not told is right: version 1, zeros, the true lengths.
    """
    payload: bytes = fields.get("payload", b"")
    ext = fields.get("ext")
    extension = b"" if ext is None else (ext if isinstance(ext, str) else json.dumps(ext)).encode()
    right = {"version": 1, "length": len(payload), "ext_length": len(extension)}
    values = [fields.get(name, right.get(name, 0)) for name in _FIELDS]
    return _MEDIA.pack(*values) + extension + payload


def read_media_frame(frame: bytes) -> dict[str, Any]:
    """Header fields, `ext` (absent when empty), `size` and `hex` of the payload."""
    if len(frame) < _MEDIA.size:
        return {"broken": frame.hex()}
    found: dict[str, Any] = dict(zip(_FIELDS, _MEDIA.unpack_from(frame), strict=True))
    end = _MEDIA.size + found["ext_length"]
    if found["ext_length"]:
        found["ext"] = json.loads(frame[_MEDIA.size : end])
    payload = frame[end:]
    return {**found, "size": len(payload), "hex": payload.hex()}
