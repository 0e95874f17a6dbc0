"""uvicorn with our choices: httptools, the sans-IO WebSocket, no access log of its own."""

import asyncio
import contextlib
import logging
import socket
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from mentatlab.gateway.stream_access import first_of

MAX_WS_MESSAGE_BYTES = 2 << 20  # records over their 1 MiB are refused with a reason
MAX_HEAD_BYTES = 64 * 1024
DRAIN_S = 5

log = logging.getLogger("mentatlab.gateway")


class _Server(uvicorn.Server):
    """Signals belong to whoever owns the process."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.listening = asyncio.Event()

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.listening.set()


class _Http(HttpToolsProtocol):
    """Bounds a request's headers: the parser would keep whatever comes, for as long as it comes."""

    _in_head = False
    _received = 0
    _kept = 0

    def on_message_begin(self) -> None:
        self._in_head, self._received, self._kept = True, 0, 0
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        self._kept += len(name) + len(value)
        if self._kept > MAX_HEAD_BYTES:
            raise ValueError("the headers are too large")  # answered as any broken request: 400
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._in_head = False
        super().on_headers_complete()

    def data_received(self, data: bytes) -> None:
        self._received += len(data)
        super().data_received(data)
        if self._in_head and self._received > MAX_HEAD_BYTES and not self.transport.is_closing():
            self.send_400_response("The headers of a request have at most 64 KiB.")


@contextlib.asynccontextmanager
async def serving(
    app: ASGIApp, listener: socket.socket, *, drain: Callable[[], Awaitable[None]]
) -> AsyncGenerator[None]:
    """Answers on `listener` from entry on.

    On exit: no new connections, `drain` ends the endless answers (streams say where to resume),
    what is left after 5 s is cut.
    """
    server = _Server(_config(app))
    # not a task group: the body's errors must leave as they are
    running = asyncio.create_task(server.serve(sockets=[listener]), name="server")
    try:
        await first_of(server.listening.wait(), _ended(running))
        yield
    finally:
        server.should_exit = True
        await drain()
        await running


async def _ended(task: asyncio.Task[None]) -> None:
    await asyncio.shield(task)


def _config(app: ASGIApp) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        http=_Http,
        ws="websockets-sansio",
        ws_max_size=MAX_WS_MESSAGE_BYTES,
        ws_per_message_deflate=False,
        ws_ping_interval=15,
        ws_ping_timeout=15,
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=DRAIN_S,
    )
