"""The portable transport: SSE and WebSocket by ASGI, on any server.

What waits for a slow client is bounded by the 64 KiB at which a link is full, and one batch. Pings
are the ASGI server's own.
"""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import suppress
from typing import Annotated, Any, Generic, TypeVar

from fastapi import APIRouter, Header, Query, Request, Response, WebSocket
from starlette.types import Receive, Scope, Send
from starlette.websockets import WebSocketDisconnect

from mentatlab.gateway.compress import compressing
from mentatlab.gateway.stream_access import authority
from mentatlab.gateway.stream_connections import Connections
from mentatlab.gateway.stream_conversation import Conversation
from mentatlab.gateway.stream_frames import texts_of
from mentatlab.gateway.stream_log import From, Ticket
from mentatlab.gateway.stream_sse import HEADERS, EventFeed, event_of, follow
from mentatlab.gateway.stream_tasks import Tasks
from mentatlab.gateway.stream_wire import Close
from mentatlab.gateway.streams import CLOSE_S, WRITE_LIMIT
from mentatlab.streams.buffer import Item

T = TypeVar("T")
Rate = Annotated[str | None, Query(description="max, or a factor of recorded time")]


class Outbox(Generic[T]):
    """What is on its way to a client. Who puts looks at `writable` first."""

    def __init__(self) -> None:
        self._waiting: list[tuple[T, int]] = []
        self._bytes = 0
        self._closed = False
        self._changed = asyncio.Event()

    @property
    def writable(self) -> bool:
        return self._bytes < WRITE_LIMIT

    @property
    def bytes(self) -> int:
        return self._bytes

    def put(self, piece: T, size: int) -> None:
        if not self._closed:
            self._waiting.append((piece, size))
            self._bytes += size
            self._changed.set()

    def close(self) -> None:
        """Nothing comes behind what is in it."""
        self._closed = True
        self._changed.set()

    async def take(self) -> list[tuple[T, int]]:
        """Everything, in order; [] at the end. `sent` tells when it has gone."""
        while not self._waiting and not self._closed:
            self._changed.clear()
            await self._changed.wait()
        taken, self._waiting = self._waiting, []
        return taken

    def sent(self, size: int) -> bool:
        """Whether it was full until now."""
        full = not self.writable
        self._bytes -= size
        return full and self.writable


class _Link(Generic[T]):
    """What both links are: an outbox, and tasks that end with the connection."""

    def __init__(self, on_writable: Callable[[], None]) -> None:
        self._outbox = Outbox[T]()
        self._on_writable = on_writable
        self._tasks = Tasks(self._outbox.close)

    @property
    def writable(self) -> bool:
        return self._outbox.writable

    @property
    def held(self) -> int:
        return self._outbox.bytes

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        self._tasks.start(work)

    async def _empty(self, send: Callable[[T], Awaitable[None]]) -> None:
        """The writer: one piece after the other, until the outbox is closed."""
        while pieces := await self._outbox.take():
            for piece, size in pieces:
                await send(piece)
                if self._outbox.sent(size):
                    self._on_writable()

    async def _until_one_is_over(self, *main: asyncio.Task[None]) -> None:
        try:
            await asyncio.wait(main, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._tasks.cancel()
            for task in main:
                task.cancel()
            await asyncio.gather(*main, return_exceptions=True)
        for task in main:
            if not task.cancelled():
                task.result()


class SocketLink(_Link[str | bytes]):
    """A `stream_conversation.Link` over ASGI."""

    def __init__(self, websocket: WebSocket, conversation: Conversation) -> None:
        super().__init__(conversation.writable)
        self._websocket, self._conversation = websocket, conversation
        self._read = asyncio.Event()
        self._read.set()
        self._close = Close(1011)  # when a task of its own fails
        self._sending: asyncio.Task[None]

    def send_text(self, text: bytes) -> None:
        self._outbox.put(text.decode(), len(text))

    def send_items(self, items: Sequence[Item], *, joined: bool) -> None:
        for text in texts_of(items) if joined else [item.json for item in items]:
            self.send_text(text)

    def send_binary(self, parts: Sequence[bytes | memoryview]) -> None:
        data = b"".join(parts)
        self._outbox.put(data, len(data))

    def pause_reading(self) -> None:
        self._read.clear()

    def resume_reading(self) -> None:
        self._read.set()

    def ping(self) -> None:
        """The ASGI server pings, and ends connections that do not answer."""
        self._conversation.heard()

    def close(self, code: int, reason: str = "") -> None:
        self._close = Close(code, reason)
        self._outbox.close()
        asyncio.get_running_loop().call_later(CLOSE_S, self._sending.cancel)

    async def run(self) -> None:
        """Until the connection is over."""
        self._sending = asyncio.create_task(self._send())
        self._conversation.opened(self)
        try:
            await self._until_one_is_over(self._sending, asyncio.create_task(self._receive()))
        finally:
            self._conversation.lost()

    async def _receive(self) -> None:
        while (message := await self._websocket.receive())["type"] == "websocket.receive":
            self._conversation.heard()
            if (text := message.get("text")) is not None:
                self._conversation.text(text.encode())
            else:
                self._conversation.binary(message["bytes"])
            self._conversation.read_done()
            await self._read.wait()

    async def _send(self) -> None:
        # the second: the ASGI server has closed by itself, for a fault of WebSocket
        with suppress(WebSocketDisconnect, RuntimeError):
            await self._empty(self._send_one)
            await self._websocket.close(*self._close)

    async def _send_one(self, piece: str | bytes) -> None:
        if isinstance(piece, str):
            await self._websocket.send_text(piece)
        else:
            await self._websocket.send_bytes(piece)


class AsgiEvents(_Link[bytes]):
    """A `stream_sse.EventLink` over ASGI."""

    def __init__(self, feed: EventFeed, receive: Receive, send: Send) -> None:
        super().__init__(feed.writable)
        self._feed, self._receive, self._send = feed, receive, send

    def send(self, events: bytes) -> None:
        self._outbox.put(events, len(events))

    def send_items(self, items: Sequence[Item], epoch: int) -> None:
        self.send(b"".join(event_of(item, epoch) for item in items))

    def finish(self) -> None:
        self._outbox.close()

    async def run(self) -> None:
        self._feed.opened(self)
        await self._until_one_is_over(
            asyncio.create_task(self._empty(self._send_one)),
            asyncio.create_task(self._disconnected()),
        )

    async def _send_one(self, events: bytes) -> None:
        await self._send({"type": "http.response.body", "body": events, "more_body": True})

    async def _disconnected(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass


class EventStream(Response):
    """The feed's answer."""

    def __init__(self, feed: EventFeed) -> None:
        super().__init__(headers=HEADERS)
        del self.headers["content-length"]
        self._feed = feed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        send = compressing(scope, send)
        try:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            await AsgiEvents(self._feed, receive, send).run()
        finally:
            self._feed.lost()
        with suppress(OSError):
            await send({"type": "http.response.body", "body": b"", "more_body": False})


def portable_router(connections: Connections) -> APIRouter:
    router = APIRouter(tags=["streams"])

    @router.get(
        "/api/v1/streams/{stream_id}/sse",
        status_code=200,  # said here: the response class has no default that OpenAPI could read
        response_class=EventStream,
        responses={
            200: {"content": {"text/event-stream": {}}, "description": "The records as events"},
            204: {"description": "The stream has ended and you have all of it: stop reconnecting"},
        },
    )
    async def sse(
        request: Request,
        stream_id: str,
        from_: From = None,
        rate: Rate = None,
        last_event_id: Annotated[str | None, Header()] = None,
        _: Ticket = None,
    ) -> Response:
        """Follow a stream or a run with EventSource. `Last-Event-ID` beats `from`."""
        feed = await follow(
            connections,
            stream_id,
            authority(request),
            from_=from_,
            rate=rate,
            last_event_id=last_event_id,
        )
        return Response(status_code=204) if feed is None else EventStream(feed)

    @router.websocket("/ws/streams/{stream_id}")
    async def socket(websocket: WebSocket, stream_id: str) -> None:
        conversation, subprotocol = connections.converse(
            stream_id,
            websocket.query_params,
            websocket.scope["subprotocols"],
            authority(websocket),
        )
        await websocket.accept(subprotocol)
        await SocketLink(websocket, conversation).run()

    return router
