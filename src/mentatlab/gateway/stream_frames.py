"""WebSocket's message layer: frames out as bytes, fragments in as messages. Pure.

RFC 6455 5.2 (frames), 5.4 (fragments), 8.1 (UTF-8). What a peer does wrong is a `WebSocketError`.
"""

import struct
from collections.abc import Sequence

from mentatlab.streams.buffer import Item

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10

MAX_MESSAGE_BYTES = 2 << 20
"""More is not read; conversations refuse less, with a reason."""
MAX_FRAGMENTS = 4096
JOINED_BYTES = 64 * 1024
"""Records that are joined by newlines share a frame up to this size."""

_FIN = 0x80
_HEADER_16, _HEADER_64 = struct.Struct(">BBH"), struct.Struct(">BBQ")


class WebSocketError(Exception):
    """What ends the connection: a close code of RFC 6455 7.4.1 and the reason that is told."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code, self.reason = code, reason


class Fragments:
    """A message that comes in pieces, under limits; `kind` is `TEXT` or `BINARY`."""

    __slots__ = ("_parts", "kind", "size")

    def __init__(self, first: bytes, kind: int) -> None:
        self.kind, self.size = kind, 0
        self._parts: list[bytes] = []
        self.add(first)

    def add(self, part: bytes) -> None:
        self.size += len(part)
        self._parts.append(part)
        if self.size > MAX_MESSAGE_BYTES or len(self._parts) > MAX_FRAGMENTS:
            raise WebSocketError(1009, f"a message has at most {MAX_MESSAGE_BYTES} bytes")

    @property
    def message(self) -> bytes:
        return b"".join(self._parts)


def utf8(text: bytes) -> bytes:
    """The text itself, checked."""
    if not text.isascii():
        try:
            text.decode()
        except UnicodeDecodeError as error:
            raise WebSocketError(1007, "text is not UTF-8") from error
    return text


def header(opcode: int, size: int) -> bytes:
    """Of a final, unmasked frame."""
    if size < 126:
        return bytes((_FIN | opcode, size))
    if size < 1 << 16:
        return _HEADER_16.pack(_FIN | opcode, 126, size)
    return _HEADER_64.pack(_FIN | opcode, 127, size)


def text_frame(text: bytes) -> bytes:
    return header(TEXT, len(text)) + text


def texts_of(items: Sequence[Item]) -> list[bytes]:
    """Records joined by newlines into texts of at most 64 KiB, or one record."""
    texts: list[list[bytes]] = []
    room = 0
    for item in items:
        room -= len(item.json) + 1
        if room < 0:
            texts.append([])
            room = JOINED_BYTES - len(item.json)
        texts[-1].append(item.json)
    return [b"\n".join(text) for text in texts]


def frames_of(items: Sequence[Item], joined: bool) -> bytes:
    """The records as text frames, one behind the other."""
    if len(items) == 1:
        return text_frame(items[0].entry.json)
    parts: list[bytes] = []
    for text in texts_of(items) if joined else [item.entry.json for item in items]:
        parts.append(header(TEXT, len(text)))
        parts.append(text)
    return b"".join(parts)
