"""uvicorn with our choices: httptools, WebSockets on picows, no access log of its own.

Where picows cannot be had WebSockets are uvicorn's own (sans-IO), with the same conversations.
"""

import asyncio
import contextlib
import functools
import logging
import socket
import ssl
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast
from urllib.parse import unquote

import httptools
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from mentatlab.gateway.admission import headers_too_large, too_long
from mentatlab.gateway.head import STREAMS_PATH, Head
from mentatlab.gateway.problems import bytes_of
from mentatlab.gateway.stream_access import first_of
from mentatlab.gateway.stream_frames import MAX_MESSAGE_BYTES
from mentatlab.gateway.stream_sse_raw import RawEvents, is_ours
from mentatlab.gateway.streams import CLOSE_S, Streams, peer_of
from mentatlab.gateway.zero_copy import AVAILABLE, ZeroCopy
from mentatlab.protocol.errors import Code, Invalid, MentatError

try:
    from mentatlab.gateway.stream_picows import Upgrade
except ImportError:  # no wheel of picows for this platform
    Upgrade = None

Transport = Literal["auto", "picows", "portable"]
MAX_HEAD_BYTES = 64 * 1024
MAX_URL_BYTES = 8000
"""Encoded; admission has closer limits. uvicorn's own WebSockets stop at 8192 without a word."""
DRAIN_S = 5
_LOOK_S = 0.005
"""How often a server that stops looks whether all have gone."""
_THREADS = 4
_STREAMS_PATH = STREAMS_PATH.encode()

log = logging.getLogger("mentatlab.gateway")

_FAULTS_OF_CLIENTS = ("Invalid UTF-8 sequence", "Invalid HTTP request")


def _is_ours(record: logging.LogRecord) -> bool:
    """What a client does wrong is answered to it; it must not be able to fill the log."""
    return not record.getMessage().startswith(_FAULTS_OF_CLIENTS)


logging.getLogger("uvicorn.error").addFilter(_is_ours)


class _Server(uvicorn.Server):
    """Signals belong to whoever owns the process. It stops when told: uvicorn's own sleeps a tenth
    of a second before it sees that, and one or more before it has."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.listening = asyncio.Event()
        self._told_to_stop = asyncio.Event()

    def stop(self) -> None:
        self.should_exit = True
        self._told_to_stop.set()

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.listening.set()

    async def main_loop(self) -> None:
        while not await self.on_tick(0):  # of 0 renews the Date header
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(1):
                    await self._told_to_stop.wait()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        for listener in (*self.servers, *(sockets or ())):
            listener.close()
        for connection in list(self.server_state.connections):
            connection.shutdown()
        try:
            async with asyncio.timeout(DRAIN_S):
                # uvicorn's sets, which tell nobody that they are empty
                while self.server_state.connections or self.server_state.tasks:  # noqa: ASYNC110
                    await asyncio.sleep(_LOOK_S)
                for server in self.servers:
                    await server.wait_closed()
        except TimeoutError:
            log.warning("requests under way are cut: %d", len(self.server_state.tasks))
            for task in self.server_state.tasks:
                task.cancel()


class _WebSocket(WebSocketsSansIOProtocol):
    """uvicorn's own, which would hold what its peer does not answer for ten seconds."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.close_timeout = CLOSE_S


class _Http(HttpToolsProtocol):
    """Bounds a request's head: the parser would keep whatever comes, for as long as it comes.

    With `streams` it hands SSE over when nothing else is under way. `threads` send files.
    """

    _in_head = False
    _received = 0
    _kept = 0
    _fault: MentatError | None = None  # what is wrong with the head, when it is not its form
    _followed: Head | None = None

    _running: RequestResponseCycle | None = None  # `cycle` may be one that waits behind it
    _sending: ZeroCopy | None = None

    def __init__(self, streams: Streams | None, threads: Executor, **options: Any) -> None:
        super().__init__(**options)
        self._streams, self._threads = streams, threads

    def on_message_begin(self) -> None:
        self._in_head, self._received, self._kept = True, 0, 0
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        super().on_url(url)
        if len(self.url) > MAX_URL_BYTES:
            self._fault = too_long()
            raise self._fault

    def on_header(self, name: bytes, value: bytes) -> None:
        self._kept += len(name) + len(value)
        if self._kept > MAX_HEAD_BYTES:
            self._fault = headers_too_large()
            raise self._fault
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._in_head = False
        if self._streams is None or not self._is_idle() or not self._follows():
            super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        if self._followed is None:
            super().on_body(body)

    def on_message_complete(self) -> None:
        if self._followed is None:
            super().on_message_complete()

    def data_received(self, data: bytes) -> None:
        self._received += len(data)
        super().data_received(data)
        if self._followed is not None and self._streams is not None:
            self.connections.discard(self)
            events = RawEvents(self._streams, self.transport, self.server_state)
            self.transport.set_protocol(events)
            events.answer(self._followed)
        elif self._in_head and self._received > MAX_HEAD_BYTES and not self.transport.is_closing():
            self._fault = headers_too_large()
            self.send_400_response("")

    # Any: uvicorn and Starlette have two types for the same ASGI application
    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._running = cycle
        if AVAILABLE and self.scheme == "http":
            app = self._sending = ZeroCopy(app, cycle, self.flow, self._threads)
        super()._start_asgi_task(cycle, app)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        if self._sending is not None:
            self._sending.connection_lost()

    def send_400_response(self, msg: str) -> None:
        """Of a head that cannot be read, or that is too large. Behind an answer that is under way
        nothing can be said any more."""
        error = self._fault or Invalid(
            Code.INVALID_REQUEST, "the request is not HTTP/1.1", hint="use an HTTP client"
        )
        if self._streams is not None:
            self._streams.admission.unreadable(error, peer_of(self.transport))
        running = self._running
        if running is None or running.response_complete or not running.response_started:
            self.transport.write(bytes_of(error))
        self.transport.close()

    def _is_idle(self) -> bool:
        """Without an answer under way."""
        cycle = cast("RequestResponseCycle | None", self.cycle)
        return cycle is None or cycle.response_complete

    def _follows(self) -> bool:
        """Whether `RawEvents` answers this. What comes behind it in the same read is dropped."""
        if self._followed is None and self.url.startswith(_STREAMS_PATH):
            url, parser = httptools.parse_url(self.url), self.parser
            assert parser is not None  # it is this one that calls
            path, method = unquote(url.path.decode("ascii")), parser.get_method().decode("ascii")
            head = Head(False, method, path, url.query or b"", self.headers)
            plain = parser.get_http_version() == "1.1" and not parser.should_upgrade()
            if plain and is_ours(head):
                self._followed = head
        return self._followed is not None


class Tls(NamedTuple):
    """PEM files: the certificate with its chain, and the private key."""

    certificate: Path
    key: Path


@contextlib.asynccontextmanager
async def serving(
    app: ASGIApp,
    listener: socket.socket,
    *,
    drain: Callable[[], Awaitable[None]],
    streams: Streams | None = None,
    transport: Transport = "auto",
    tls: Tls | None = None,
) -> AsyncGenerator[None]:
    """Answers on `listener` from entry on. `streams`: what picows needs; without, `app` has it all.

    On exit: no new connections, `drain` ends the endless answers (streams say where to resume),
    what is left after 5 s is cut. `Invalid(BAD_SETTING)`
    """
    if transport == "portable" or Upgrade is None:
        streams = None
    # what is accepted inherits it; without, an answer in two writes waits 40 ms for an ack
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="files")
    server = _Server(_config(app, streams, threads, tls))
    # not a task group: the body's errors must leave as they are
    running = asyncio.create_task(server.serve(sockets=[listener]), name="server")
    try:
        await first_of(server.listening.wait(), _ended(running))
        yield
    finally:
        server.stop()
        await drain()
        await running
        threads.shutdown(wait=False)


async def _ended(task: asyncio.Task[None]) -> None:
    await asyncio.shield(task)


def _config(
    app: ASGIApp, streams: Streams | None, threads: Executor, tls: Tls | None
) -> uvicorn.Config:
    http: Any = functools.partial(_Http, streams, threads)
    ws: Any = functools.partial(Upgrade, streams) if streams and Upgrade else _WebSocket
    config = uvicorn.Config(
        app,
        http=http,
        ws=ws,
        ws_max_size=MAX_MESSAGE_BYTES,
        ws_per_message_deflate=False,
        ws_ping_interval=15,  # of the portable transport
        ws_ping_timeout=15,
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        ssl_certfile=None if tls is None else tls.certificate,
        ssl_keyfile=None if tls is None else tls.key,
    )
    try:
        config.load()
    except (OSError, ssl.SSLError) as error:
        raise Invalid(
            Code.BAD_SETTING,
            f"the TLS certificate or key cannot be used: {error}",
            hint="give PEM files: --tls-cert with the chain, --tls-key with its private key",
        ) from error
    return config
