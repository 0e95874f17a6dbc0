"""WebSockets on picows, on uvicorn's port: its `ws=` hook hands every upgrade over.

    Upgrade   the request: admission, with reading paused, then the 101 or a refusal
    _Frames   picows: bytes → frames
    Socket    frames → messages → the conversation; what it says → whole frames, encoded once

A socket whose peer does not read holds what was written before the write limit was passed; the rest
stays in the log, behind the conversation's cursor.
"""

import asyncio
import base64
import binascii
import logging
from collections.abc import Coroutine, Sequence
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import unquote

from picows.common import WSUpgradeResponse, WSUpgradeResponseWithListener
from picows.picows import WSAutoPingStrategy, WSFrame, WSListener, WSTransport
from uvicorn.server import ServerState

from mentatlab.gateway.admission import Visit
from mentatlab.gateway.head import SOCKETS_PATH, Head
from mentatlab.gateway.problems import bytes_of, unexpected
from mentatlab.gateway.stream_conversation import Accepted, Conversation
from mentatlab.gateway.stream_frames import (
    BINARY,
    CLOSE,
    CONTINUATION,
    MAX_MESSAGE_BYTES,
    PING,
    TEXT,
    Fragments,
    WebSocketError,
    frames_of,
    header,
    text_frame,
    utf8,
)
from mentatlab.gateway.stream_tasks import Tasks
from mentatlab.gateway.streams import CLOSE_S, WRITE_LIMIT, Streams, peer_of
from mentatlab.protocol.errors import Code, Invalid, MentatError, NotFound
from mentatlab.streams.buffer import Item

if TYPE_CHECKING:

    class WSProtocol(asyncio.BufferedProtocol):
        """picows' stub leaves it out."""

        transport: WSTransport

        def __init__(self, *args: Any, **options: Any) -> None: ...

        def get_buffer(self, sizehint: int) -> memoryview: ...

else:
    from picows.picows import WSProtocol

READ_BYTES = 128 * 1024
"""Of one read: what bounds picows' buffer, which else doubles as long as reads fill it."""

log = logging.getLogger("mentatlab.gateway")


class Upgrade(asyncio.Protocol):
    """A connection between its upgrade request and the 101. uvicorn makes it and feeds it once."""

    def __init__(self, streams: Streams, *, server_state: ServerState, **_: object) -> None:
        self._streams, self._state = streams, server_state

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """The whole head, as uvicorn puts it together again."""
        self._transport.pause_reading()
        self._deciding = Tasks(self._transport.abort)
        self._deciding.start(self._decide(_head(data)))

    def connection_lost(self, exc: Exception | None) -> None:
        self._deciding.cancel()

    async def _decide(self, head: Head) -> None:
        try:
            accepted, key = await self._accept(head)
        except MentatError as error:
            cors = self._streams.admission.cors(head)
            self._refuse(bytes_of(error, [*cors, ("sec-websocket-version", "13")]))
        except Exception as error:  # noqa: BLE001  a bug: told as one
            self._refuse(bytes_of(unexpected(error)))
        else:
            socket = Socket(accepted.conversation, self._streams, self._state)
            socket.begin(self._transport, key, accepted.subprotocol)

    def _refuse(self, answer: bytes) -> None:
        self._transport.write(answer)
        self._transport.close()

    async def _accept(self, head: Head) -> tuple[Accepted, str]:
        admission = self._streams.admission
        visit = admission.admit(head, peer_of(self._transport))
        id_, key = _checked(visit, head)
        authority = await admission.authorise(visit)
        visit.over(101)
        offered = head.listed(b"sec-websocket-protocol")
        return self._streams.connections.converse(id_, head.asked, offered, authority), key


def _head(data: bytes) -> Head:
    request, *lines = data.removesuffix(b"\r\n\r\n").split(b"\r\n")
    method, url, _ = request.split(b" ", 2)
    path, _, query = url.partition(b"?")
    fields = (line.partition(b": ") for line in lines)
    headers = [(name, value) for name, _, value in fields]
    return Head(True, method.decode(), unquote(path.decode("latin-1")), query, headers)


def _checked(visit: Visit, head: Head) -> tuple[str, str]:
    """The stream or run, and the handshake's key."""
    try:
        if not head.path.startswith(SOCKETS_PATH) or head.followed is None:
            raise NotFound(
                Code.NOT_FOUND, "no WebSocket lives here", hint=f"connect to {SOCKETS_PATH}<id>"
            )
        return head.followed, _key(head)
    except MentatError as error:
        visit.refused(error)
        raise


def _key(head: Head) -> str:
    key = head.header(b"sec-websocket-key") or ""
    if head.method != "GET" or head.header(b"sec-websocket-version") != "13" or not _is_key(key):
        raise Invalid(
            Code.INVALID_REQUEST,
            "not a WebSocket handshake of version 13 with a key of 16 bytes",
            hint="RFC 6455 4.1 says what a client sends",
        )
    return key


def _is_key(key: str) -> bool:
    try:
        return len(base64.b64decode(key, validate=True)) == 16
    except (binascii.Error, ValueError):
        return False


class _Log(logging.LoggerAdapter[logging.Logger]):
    """One for all connections (picows makes a logger for each); faults of clients are no errors."""

    def error(self, msg: object, *args: object, **more: Any) -> None:
        self.debug(msg, *args, **more)

    def info(self, msg: object, *args: object, **more: Any) -> None:
        self.debug(msg, *args, **more)


_picows_log = _Log(log, {})


class _Frames(WSProtocol):
    """picows' parser, with bounded reads; after a fault what still comes is dropped."""

    __slots__ = ("_socket",)

    def __init__(self, socket: "Socket", subprotocol: str | None) -> None:
        chosen = {} if subprotocol is None else {"Sec-WebSocket-Protocol": subprotocol}
        response = WSUpgradeResponse.create_101_response(chosen)

        def accept(_: object) -> WSUpgradeResponseWithListener:
            return WSUpgradeResponseWithListener(response, socket)

        super().__init__(
            None,
            None,
            False,
            accept,
            _picows_log,
            disconnect_on_exception=True,
            websocket_handshake_timeout=None,
            enable_auto_ping=False,
            auto_ping_idle_timeout=0,
            auto_ping_reply_timeout=0,
            auto_ping_strategy=WSAutoPingStrategy.PING_WHEN_IDLE,
            enable_auto_pong=False,
            max_frame_size=MAX_MESSAGE_BYTES,
            extra_headers=None,
            read_buffer_init_size=0,  # its least: 2 KiB
        )
        self._socket = socket

    def shake_hands(self, transport: asyncio.Transport, key: str) -> None:
        """picows answers 101 to a request that is known to be fine."""
        self.connection_made(transport)
        request = _REQUEST % key.encode()
        super().get_buffer(-1)[: len(request)] = request
        super().buffer_updated(len(request))
        # picows would keep them as long as the connection
        self.transport.request.headers.clear()
        self.transport.response.headers.clear()

    def get_buffer(self, sizehint: int) -> memoryview:
        return WSProtocol.get_buffer(self, sizehint)[:READ_BYTES]

    def buffer_updated(self, nbytes: int) -> None:
        if self._socket.failed:
            return
        WSProtocol.buffer_updated(self, nbytes)
        if self.transport.is_close_frame_sent and not self._socket.closing:
            self._socket.fail()


_REQUEST = (
    b"GET / HTTP/1.1\r\nConnection: upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: %b\r\n\r\n"
)


class Socket(WSListener):
    """One WebSocket: the `Link` of its conversation. `failed`: picows has closed it for a fault."""

    __slots__ = (
        "_conversation",
        "_cutting",
        "_fragments",
        "_frames",
        "_reading",
        "_state",
        "_streams",
        "_tasks",
        "_transport",
        "closing",
        "failed",
        "writable",
    )

    def __init__(self, conversation: Conversation, streams: Streams, state: ServerState) -> None:
        self._conversation, self._streams, self._state = conversation, streams, state
        self._fragments: Fragments | None = None
        self._tasks = Tasks(self._broken)
        self._cutting: asyncio.TimerHandle | None = None
        self.closing = self.failed = False
        self.writable = self._reading = True

    def begin(self, transport: asyncio.Transport, key: str, subprotocol: str | None) -> None:
        """The 101, then the conversation. The transport does not read yet."""
        self._transport = transport
        transport.set_write_buffer_limits(high=WRITE_LIMIT)
        self._frames = _Frames(self, subprotocol)
        self._frames.shake_hands(transport, key)
        transport.set_protocol(self._frames)
        self._state.connections.add(self)  # pyright: ignore[reportArgumentType]  has `shutdown`
        self._conversation.opened(self)
        if self._reading:
            transport.resume_reading()

    # ------------------------------------------------------------------ what arrives

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        kind: int = frame.msg_type  # pyright: ignore[reportAssignmentType]  an IntEnum in truth
        if self.closing:
            if kind == CLOSE:
                self._transport.close()
            return
        try:
            if frame.rsv1 or frame.rsv2 or frame.rsv3:
                raise WebSocketError(1002, "a reserved bit is set")
            if kind > BINARY:
                self._control(kind, frame)
            elif kind == CONTINUATION or self._fragments is not None or not frame.fin:
                self._fragment(kind, frame)
            else:
                self._message(kind, frame.get_payload_as_bytes())
        except WebSocketError as fault:
            self.close(fault.code, fault.reason)
        if frame.last_in_buffer and not self.closing:
            self._conversation.heard()
            self._conversation.read_done()

    def _fragment(self, kind: int, frame: WSFrame) -> None:
        payload = frame.get_payload_as_bytes()
        if kind != CONTINUATION:
            if self._fragments is not None:
                raise WebSocketError(1002, "a message begins inside another")
            self._fragments = Fragments(payload, kind)
            return
        if self._fragments is None:
            raise WebSocketError(1002, "nothing to continue")
        self._fragments.add(payload)
        if frame.fin:
            whole, self._fragments = self._fragments, None
            self._message(whole.kind, whole.message)

    def _message(self, kind: int, data: bytes) -> None:
        if kind == TEXT:
            self._conversation.text(utf8(data))
        else:
            self._conversation.binary(data)

    def _control(self, kind: int, frame: WSFrame) -> None:
        if kind == PING:
            self._frames.transport.send_pong(frame.get_payload_as_bytes())
        elif kind == CLOSE:
            code = int.from_bytes(frame.get_payload_as_bytes()[:2], "big")
            self.close(code or 1000)
            self._transport.close()

    # ------------------------------------------------------------------ what is sent

    @property
    def held(self) -> int:
        fragments = 0 if self._fragments is None else self._fragments.size
        return self._transport.get_write_buffer_size() + fragments

    def send_text(self, text: bytes) -> None:
        if not self.closing:
            self._transport.write(text_frame(text))

    def send_items(self, items: Sequence[Item], *, joined: bool) -> None:
        if not self.closing:
            self._transport.write(self._streams.shared.of(joined, items, frames_of, joined))

    def send_binary(self, parts: Sequence[bytes | memoryview]) -> None:
        """The parts are not copied: the same payload goes to all readers."""
        if not self.closing:
            self._transport.writelines([header(BINARY, sum(map(len, parts))), *parts])

    def ping(self) -> None:
        if not self.closing:
            self._frames.transport.send_ping()

    def pause_writing(self) -> None:
        self.writable = False

    def resume_writing(self) -> None:
        self.writable = True
        if not self.closing:
            self._conversation.writable()

    # ------------------------------------------------------------------ its life

    def pause_reading(self) -> None:
        self._reading = False
        self._transport.pause_reading()

    def resume_reading(self) -> None:
        self._reading = True
        self._transport.resume_reading()

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        self._tasks.start(work)

    def _broken(self) -> None:
        self.close(1011, "an error in the server")

    def close(self, code: int, reason: str = "") -> None:
        """What was written before goes first; who does not answer in time is cut."""
        if self.closing:
            return
        self._frames.transport.send_close(code, reason)  # pyright: ignore[reportArgumentType]
        self.ending()

    def ending(self) -> None:
        """CLOSE was sent; the peer's is waited for."""
        self.closing = True
        self._fragments = None
        self._transport.resume_reading()
        self._cutting = asyncio.get_running_loop().call_later(CLOSE_S, self._transport.abort)

    def fail(self) -> None:
        """picows has closed it: a frame that it does not take, or an error in a conversation."""
        self.failed = True
        self.ending()

    def shutdown(self) -> None:
        """uvicorn stops. The hub's drain has closed it before, as a rule."""
        self.close(1012, "the server is restarting; resume from your last record")

    def on_ws_disconnected(self, transport: WSTransport) -> None:
        self.closing = True
        if self._cutting is not None:
            self._cutting.cancel()
        self._state.connections.discard(self)  # pyright: ignore[reportArgumentType]
        self._tasks.cancel()
        self._conversation.lost()
