"""What clients say, as bytes made beforehand, and how a conversation begins. Pure."""

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

MARK = b"~MARK~"
"""Stands in every message once: counting it counts messages, whatever they are wrapped in."""
TEXT, BINARY = 1, 2
_MASK = bytes.fromhex("37fa213d")


class Step(NamedTuple):
    """Say this, then listen until that is heard."""

    say: bytes
    hear: bytes


Dialogue = Sequence[Step]


class Channel(NamedTuple):
    """A stream: who publishes, who listens, and one message as the publisher sends it."""

    publisher: Dialogue
    subscribers: Sequence[Dialogue]
    message: bytes


def upgrade(path: str, *, protocol: str = "", bearer: str = "") -> bytes:
    """A WebSocket's opening request."""
    lines = [
        f"GET {path} HTTP/1.1",
        "Host: 127.0.0.1",
        "Connection: Upgrade",
        "Upgrade: websocket",
        "Sec-WebSocket-Version: 13",
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
    ]
    if protocol:
        lines.append(f"Sec-WebSocket-Protocol: {protocol}")
    if bearer:
        lines.append(f"Authorization: Bearer {bearer}")
    return _head(lines)


def get(path: str) -> bytes:
    return _head([f"GET {path} HTTP/1.1", "Host: 127.0.0.1"])


def post(path: str, body: Any) -> bytes:
    data = json.dumps(body).encode()
    head = [f"POST {path} HTTP/1.1", "Host: 127.0.0.1", "Content-Type: application/json"]
    return _head([*head, f"Content-Length: {len(data)}"]) + data


def frame(payload: bytes, opcode: int = TEXT) -> bytes:
    """A masked client frame of one whole message."""
    size = len(payload)
    if size < 126:
        length = bytes([0x80 | size])
    elif size < 1 << 16:
        length = b"\xfe" + size.to_bytes(2, "big")
    else:
        length = b"\xff" + size.to_bytes(8, "big")
    return bytes([0x80 | opcode]) + length + _MASK + _masked(payload)


def say(**message: Any) -> bytes:
    """A JSON message in a frame."""
    return frame(json.dumps(message).encode())


def payload(size: int) -> bytes:
    """ASCII with the mark at its end."""
    return b"x" * (size - len(MARK)) + MARK


def record(size: int) -> bytes:
    """A record to publish; its data is a string of `size` bytes."""
    data = {"text": payload(size).decode()}
    return json.dumps({"type": "stream_data", "payload": {"data": data}}).encode()


def _head(lines: list[str]) -> bytes:
    return "\r\n".join([*lines, "", ""]).encode()


def _masked(data: bytes) -> bytes:
    key = (_MASK * (len(data) // 4 + 1))[: len(data)]
    return (int.from_bytes(data, "big") ^ int.from_bytes(key, "big")).to_bytes(len(data), "big")
