"""What a case talks through: a WebSocket client that can break every rule, and an SSE reader.

Both give what they hear as JSON-like messages (`Message`), one at a time, and hold nothing that was
not asked for: who does not read is a slow reader.
"""

import asyncio
import base64
import contextlib
import hashlib
import json
import os
import socket
import ssl
import struct
from collections import deque
from collections.abc import AsyncIterator, Mapping
from typing import Any, Protocol
from urllib.parse import urlsplit

import httpx2

from mentatlab.conformance import frames
from mentatlab.conformance.frames import WebSocketFrame, read_media_frame, websocket_frame

Message = dict[str, Any]
"""JSON as it came; `{"binary": {…}}` for a media frame; `{"closed": {"code", "reason"}}` at the
end, with code 1006 when nobody said goodbye."""

_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"


class Client(Protocol):
    async def next(self) -> Message: ...

    async def cut(self) -> None:
        """Gone without a word."""
        ...


def closed(code: int, reason: str = "") -> Message:
    return {"closed": {"code": code, "reason": reason}}


class WebSocket:
    """`status` and `headers` are the handshake's answer; without 101 nothing else will come."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self._heard: deque[Message] = deque()
        self._pongs = True
        self.status = 0
        self.headers: dict[str, str] = {}

    @classmethod
    async def open(
        cls, url: str, headers: Mapping[str, str], *, window: int | None = None, pong: bool = True
    ) -> "WebSocket":
        """`url` http(s); `window`: of the receive buffer, in bytes; `pong`: pings are answered."""
        at = urlsplit(url)
        self = cls(*await _dial(at.scheme, at.hostname or "", at.port, window))
        self._pongs = pong
        key = base64.b64encode(os.urandom(16)).decode()
        standard = {
            "Host": at.netloc,
            "Upgrade": "websocket",
            "Connection": "Upgrade",
            "Sec-WebSocket-Key": key,
            "Sec-WebSocket-Version": "13",
        }
        target = at.path + (f"?{at.query}" if at.query else "")
        lines = [f"{name}: {value}" for name, value in {**standard, **headers}.items() if value]
        self._writer.write("\r\n".join([f"GET {target} HTTP/1.1", *lines, "", ""]).encode())
        try:
            await self._read_head(key)
        except BaseException:
            await self.cut()
            raise
        return self

    async def _read_head(self, key: str) -> None:
        head = (await self._reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        self.status = int(head[0].split()[1])
        pairs = (line.partition(":") for line in head[1:] if line)
        self.headers = {name.lower(): value.strip() for name, _, value in pairs}
        if self.status == 101:
            accept = base64.b64encode(hashlib.sha1(key.encode() + _GUID).digest()).decode()
            if self.headers.get("sec-websocket-accept") != accept:
                raise ConnectionError("Sec-WebSocket-Accept does not answer the key")

    def send(self, opcode: int, data: bytes) -> None:
        self.write(websocket_frame(opcode, data))

    def write(self, raw: bytes) -> None:
        """What the other side does not take yet waits here, never in the case."""
        self._writer.write(raw)

    async def next(self) -> Message:
        if self.status != 101:
            return closed(1006)
        while not self._heard:
            try:
                self._heard.extend(self._read(await self._message()))
            except (ConnectionError, asyncio.IncompleteReadError):
                return closed(1006)
        return self._heard.popleft()

    async def _message(self) -> WebSocketFrame:
        """A whole data message, or a control frame."""
        frame = await self._frame()
        while not frame.fin:
            more = await self._frame()
            if more.opcode >= frames.CLOSE:
                self._heard.extend(self._read(more))
            else:
                frame = WebSocketFrame(more.fin, frame.opcode, frame.data + more.data)
        return frame

    async def _frame(self) -> WebSocketFrame:
        first, second = await self._reader.readexactly(2)
        size = second & 0x7F
        if size >= 126:
            width = 2 if size == 126 else 8
            size = int.from_bytes(await self._reader.readexactly(width), "big")
        data = await self._reader.readexactly(size)
        return WebSocketFrame(bool(first & 0x80), first & 0x0F, data)

    def _read(self, frame: WebSocketFrame) -> list[Message]:
        match frame.opcode:
            case frames.CLOSE:
                code = struct.unpack(">H", frame.data[:2])[0] if frame.data else 1005
                with contextlib.suppress(ConnectionError):
                    self.send(frames.CLOSE, frame.data[:2])
                return [closed(code, frame.data[2:].decode())]
            case frames.PING:
                if self._pongs:
                    self.send(frames.PONG, frame.data)
                return []
            case frames.PONG:
                return [{"websocket_pong": frame.data.decode()}]
            case frames.BINARY:
                return [{"binary": read_media_frame(frame.data)}]
            case _:
                return [json.loads(line) for line in frame.data.split(b"\n")]

    async def cut(self) -> None:
        self._writer.transport.abort()
        with contextlib.suppress(ConnectionError):
            await self._writer.wait_closed()


async def _dial(
    scheme: str, host: str, port: int | None, window: int | None
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """With `window` the kernel holds little more than that for us: not to read is then felt."""
    secure = scheme == "https"
    port = port or (443 if secure else 80)
    context = ssl.create_default_context() if secure else None
    if window is None:
        return await asyncio.open_connection(host, port, ssl=context, limit=1 << 21)
    family, kind, number, _, address = (
        await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    )[0]
    raw = socket.socket(family, kind, number)
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, window)
    raw.setblocking(False)
    await asyncio.get_running_loop().sock_connect(raw, address)
    name = host if secure else None
    return await asyncio.open_connection(
        sock=raw, ssl=context, server_hostname=name, limit=max(window, 1 << 12)
    )


class EventSource:
    """An answer of `text/event-stream`; an end in order is code 1000, a cut one 1006."""

    def __init__(self, response: httpx2.Response) -> None:
        self._response = response
        self._parts: AsyncIterator[bytes] = response.aiter_bytes()
        self._rest = b""

    async def next(self) -> Message:
        try:
            while b"\n\n" not in self._rest:
                self._rest += await anext(self._parts)
        except StopAsyncIteration:
            return closed(1006 if self._rest else 1000)
        except httpx2.TransportError:
            return closed(1006)
        block, _, self._rest = self._rest.partition(b"\n\n")
        return _event(block.decode())

    async def cut(self) -> None:
        await self._response.aclose()


def _event(block: str) -> Message:
    """Fields by name; not `splitlines`: JSON may hold U+2028 as it is."""
    pairs = (line.partition(":") for line in block.split("\n"))
    return {name: _value(name, value.removeprefix(" ")) for name, _, value in pairs if name}


def _value(name: str, text: str) -> Any:
    return json.loads(text) if name in ("data", "retry") else text
