"""uvicorn with our choices: httptools, the sans-IO WebSocket, no access log of its own."""

import asyncio
import contextlib
import logging
import socket
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator

import uvicorn
from starlette.types import ASGIApp

from mentatlab.gateway.stream_access import first_of

MAX_WS_MESSAGE_BYTES = 2 << 20  # records over their 1 MiB are refused with a reason
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
        http="httptools",
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
