"""What every conversation on a WebSocket shares: JSON text frames, patience, and how it ends.

Writing waits for the client: a slow one costs one batch, and is cut after `stall_s` without
progress.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Coroutine
from typing import Any, NamedTuple, Protocol

import msgspec
from starlette.websockets import WebSocket, WebSocketDisconnect

from mentatlab.gateway.problems import status_of
from mentatlab.gateway.stream_access import expiry, first_of
from mentatlab.protocol import errors
from mentatlab.protocol.errors import Code, Invalid, MentatError
from mentatlab.protocol.records import MAX_RECORD_BYTES
from mentatlab.protocol.values import is_object
from mentatlab.streams import StreamingConnectionManager, Subscription

MAX_MESSAGE_BYTES = MAX_RECORD_BYTES + 64 * 1024
_CLOSE_REASON_BYTES = 120


class Timing(NamedTuple):
    """Seconds: idle until a `mark`; taking nothing until a client is cut."""

    mark_s: float = 15.0
    stall_s: float = 10.0


class Close(NamedTuple):
    """How a connection ends. 1000, 1012 and 40xx: come back and resume; 41xx: stop and raise."""

    code: int
    reason: str = ""


DONE = Close(1000, "the stream has ended")
DRAINING = Close(1012, "the server is restarting; resume from your last record")
STALLED = Close(4000, "too slow; resume from your last record")
EXPIRED = Close(4003, "the token has expired; reconnect with a new one")


def close_for(error: MentatError) -> Close:
    match error:
        case errors.Conflict():
            code = 4109
        case errors.OutOfSpace() | errors.Internal():
            code = 1011
        case errors.Unavailable():
            code = 1013
        case _:
            code = 3700 + status_of(error)  # 4100 bad, 4101, 4103, 4104, 4110, 4113, 4129
    reason = f"{error}".encode()[:_CLOSE_REASON_BYTES].decode(errors="ignore")
    return Close(code, reason)


class StalledError(Exception):
    pass


class Wire:
    """Text frames out, one at a time; JSON messages in."""

    def __init__(self, websocket: WebSocket, stall_s: float) -> None:
        self._websocket, self._stall_s, self._gone = websocket, stall_s, False
        self._writing = asyncio.Lock()

    async def send(self, text: bytes) -> None:
        """`StalledError` when the client takes nothing; to one that is gone nothing is said."""
        try:
            async with self._writing, asyncio.timeout(self._stall_s):
                if not self._gone:
                    await self._websocket.send_text(text.decode())
        except TimeoutError as error:
            raise StalledError from error
        except WebSocketDisconnect:
            self._gone = True

    async def deliver(self, text: bytes) -> None:
        """As `send`; when the client is gone, waits to be cancelled by whoever reads."""
        await self.send(text)
        if self._gone:
            await asyncio.Event().wait()

    async def receive(self) -> tuple[dict[str, Any], int] | None:
        """A JSON object and its size in bytes; None when the client has gone."""
        message = await self._websocket.receive()
        if message["type"] == "websocket.disconnect":
            return None
        if (text := message.get("text")) is None:
            raise bad_frame("send JSON in text frames; binary frames are not spoken here")
        size = len(text.encode())
        if size > MAX_MESSAGE_BYTES:
            raise errors.TooLarge(
                Code.STREAM_RECORD_TOO_LARGE, f"a message has at most {MAX_MESSAGE_BYTES} bytes"
            )
        return _object(text), size

    async def close(self, close: Close) -> None:
        with contextlib.suppress(TimeoutError, WebSocketDisconnect, RuntimeError):
            async with asyncio.timeout(1):  # a stalled client may never take it
                await self._websocket.close(close.code, close.reason)


def _object(text: str) -> dict[str, Any]:
    try:
        value = msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError) as error:
        raise bad_frame(f"not JSON: {error}") from error
    if not is_object(value):
        raise bad_frame("a message is a JSON object")
    return value


def bad_frame(message: str) -> Invalid:
    return Invalid(Code.STREAM_RECORD_INVALID, message)


class Conversation(Protocol):
    """What is said on one accepted WebSocket, until somebody ends it."""

    hub: StreamingConnectionManager
    websocket: WebSocket
    wire: Wire

    async def run(self) -> Close: ...


async def serve(conversation: Conversation, *, subprotocol: str | None = None) -> None:
    await conversation.websocket.accept(subprotocol)
    close = await first_of(
        _closing(conversation.run()),
        _after(conversation.hub.draining.wait(), DRAINING),
        _after(expiry(conversation.websocket), EXPIRED),
    )
    await conversation.wire.close(close)


async def _closing(run: Coroutine[Any, Any, Close]) -> Close:
    try:
        return await run
    except MentatError as error:
        return close_for(error)
    except StalledError:
        return STALLED


async def _after(event: Awaitable[object], close: Close) -> Close:
    await event
    return close


def gap_message(id_: str, subscription: Subscription) -> bytes:
    gap = msgspec.to_builtins(subscription.gap)
    return msgspec.json.encode({"type": "gap", "id": id_, **gap})
