"""Files from the page cache to the socket: ASGI's `http.response.zerocopysend` on uvicorn.

uvloop has no `sendfile`, so the answer's head is written by the transport, and when that has left
its buffer, threads of a small pool push the file into a second descriptor of the same socket. A
thread never waits for the client (the socket does not block): the event loop does, as it waits for
any writable socket, and then asks a thread to go on. So a slow client costs neither a thread nor
memory, and a slow disk does not hold up the loop.
"""

import asyncio
import contextlib
import os
from concurrent.futures import Executor
from typing import TypeVar

from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

T = TypeVar("T")

EXTENSION = "http.response.zerocopysend"
AVAILABLE = hasattr(os, "sendfile")
TURN = 8 << 20
"""Bytes that one thread sends before it lets another transfer go on."""


class ZeroCopy:
    """`app` for one request, with the extension. Not with TLS, which has to see the bytes."""

    def __init__(
        self,
        app: ASGIApp,
        cycle: RequestResponseCycle,
        flow: FlowControl,
        threads: Executor,
    ) -> None:
        self._app, self._cycle, self._flow, self._threads = app, cycle, flow, threads
        self._waiting: asyncio.Future[None] | None = None
        self._lost = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope["extensions"] = {EXTENSION: {}}  # uvicorn has none of its own

        async def sending(message: Message) -> None:
            if message["type"] == EXTENSION:
                await self._send_file(message)
                message = {"type": "http.response.body", "more_body": message.get("more_body")}
            await send(message)

        await self._app(scope, receive, sending)

    def connection_lost(self) -> None:
        self._lost = True
        self._wake()

    async def _send_file(self, message: Message) -> None:
        """All that is asked for; less only when the client has left."""
        cycle, file = self._cycle, message["file"].fileno()
        offset, count = message.get("offset"), message.get("count")
        if offset is None:
            offset = os.lseek(file, 0, os.SEEK_CUR)
        if count is None:
            count = os.fstat(file).st_size - offset
        if cycle.chunked_encoding or count > cycle.expected_content_length:
            raise RuntimeError("a file is sent within the answer's Content-Length")
        if cycle.scope["method"] == "HEAD":
            return
        if not cycle.transport.is_closing():
            await self._flushed()
            await self._push(file, offset, count)
        cycle.expected_content_length -= count

    async def _flushed(self) -> None:
        """Until the transport has written everything before."""
        transport = self._cycle.transport
        transport.set_write_buffer_limits(high=0)
        await self._flow.drain()
        if not transport.is_closing():
            transport.set_write_buffer_limits()

    async def _push(self, file: int, offset: int, count: int) -> None:
        if self._lost:
            return
        loop = asyncio.get_running_loop()
        socket = os.dup(self._cycle.transport.get_extra_info("socket").fileno())
        try:
            stop = offset + count
            while offset < stop and not self._lost:
                turn = min(TURN, stop - offset)
                sent = await _finished(
                    loop.run_in_executor(self._threads, _send, socket, file, offset, turn)
                )
                offset += sent
                if sent < turn:
                    await self._writable(loop, socket)
        except ConnectionError:
            self._lost = True  # as any other write to a client that has left
        finally:
            os.close(socket)

    async def _writable(self, loop: asyncio.AbstractEventLoop, socket: int) -> None:
        if self._lost:
            return
        self._waiting = loop.create_future()
        loop.add_writer(socket, self._wake)
        try:
            await self._waiting
        finally:
            loop.remove_writer(socket)
            self._waiting = None

    def _wake(self) -> None:
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)


def _send(socket: int, file: int, offset: int, count: int) -> int:
    """How many bytes the socket took; in a thread."""
    sent = 0
    with contextlib.suppress(BlockingIOError):
        while sent < count:
            taken = os.sendfile(socket, file, offset + sent, count - sent)
            if not taken:
                raise EOFError("a file ended before the answer did")
            sent += taken
    return sent


async def _finished(future: "asyncio.Future[T]") -> T:
    """Its result. Also when cancelled it waits: the thread works on descriptors that the caller
    closes next."""
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        await asyncio.wait([future])
        raise
