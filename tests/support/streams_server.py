"""A real server with only the stream routes: in this process, or as a program that can be killed.

python streams_server.py DATABASE PORT_FILE [lost_s=60 …]
"""

import asyncio
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from starlette.types import ASGIApp

from mentatlab.gateway import problems
from mentatlab.gateway.admission import Admission, Rules
from mentatlab.gateway.asgi import AdmissionMiddleware
from mentatlab.gateway.server import Tls, Transport, serving
from mentatlab.gateway.stream_connections import Connections
from mentatlab.gateway.stream_portable import portable_router
from mentatlab.gateway.stream_routes import stream_router
from mentatlab.gateway.stream_wire import Timing
from mentatlab.gateway.streams import Streams
from mentatlab.streams import StreamingConnectionManager, open_hub

SECRET = b"s" * 32


async def _no_keys(_: str) -> None:
    return None


def make_streams(hub: StreamingConnectionManager, **timing: float) -> Streams:
    rules = Rules(loopback=True, home_key="k" * 32, token_secret=SECRET)
    connections = Connections(hub, timing=Timing(**timing))
    return Streams(Admission(rules, _no_keys, hub), connections)


def make_app(streams: Streams) -> ASGIApp:
    app = FastAPI()
    problems.install(app)
    app.include_router(stream_router(streams.connections.hub, streams.admission))
    app.include_router(portable_router(streams.connections))
    return AdmissionMiddleware(app, streams.admission)


@asynccontextmanager
async def stream_server(
    hub: StreamingConnectionManager,
    *,
    port: int = 0,
    transport: Transport = "auto",
    tls: Tls | None = None,
    streams: Streams | None = None,
    **timing: float,
) -> AsyncIterator[int]:
    """Its port."""
    streams = streams or make_streams(hub, **timing)
    with socket.create_server(("127.0.0.1", port)) as listener:
        async with serving(
            make_app(streams),
            listener,
            drain=hub.drain,
            streams=streams,
            transport=transport,
            tls=tls,
        ):
            adopting = asyncio.create_task(streams.connections.adopt_forever())
            try:
                yield listener.getsockname()[1]
            finally:
                adopting.cancel()
                await asyncio.gather(adopting, return_exceptions=True)


async def _main(database: Path, port_file: Path, **timing: float) -> None:
    hub = await open_hub(database)
    async with stream_server(hub, **timing) as port:
        _write(port_file, str(port))
        await asyncio.Event().wait()


def _write(path: Path, text: str) -> None:
    part = path.with_suffix(".part")
    part.write_text(text)
    part.rename(path)


class SseReader:
    """Events of one raw HTTP/1.1 connection, as `(name, id, data)`."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self._rest = b""
        self.status = 0
        self.headers: dict[str, str] = {}

    @classmethod
    async def open(cls, port: int, path: str, *, last_event_id: str | None = None) -> "SseReader":
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        extra = "" if last_event_id is None else f"Last-Event-ID: {last_event_id}\r\n"
        writer.write(
            f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n{extra}"
            "Accept: text/event-stream\r\nConnection: close\r\n\r\n".encode()
        )
        self = cls(reader, writer)
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        except (OSError, asyncio.IncompleteReadError):
            await self.aclose()
            raise
        self.status = int(head[0].split()[1])
        self.headers = {
            name.lower(): value.strip()
            for name, _, value in (line.partition(":") for line in head[1:] if line)
        }
        return self

    async def body(self) -> bytes:
        text = await self._reader.read()
        await self.aclose()
        return text

    async def event(self) -> tuple[str, str | None, str] | None:
        """The next event; None when the server has closed."""
        while b"\n\n" not in self._rest:
            try:
                size = int(await self._reader.readline(), 16)  # HTTP chunk
                chunk = await self._reader.readexactly(size + 2)
            except (ValueError, asyncio.IncompleteReadError, ConnectionError):
                size = 0
            if size == 0:
                await self.aclose()
                return None
            self._rest += chunk[:-2]
        block, _, self._rest = self._rest.partition(b"\n\n")
        fields: dict[str, str] = {}
        for line in block.decode().split("\n"):
            name, _, value = line.partition(": ")
            fields[name] = value
        return fields["event"], fields.get("id"), fields["data"]

    async def events(self) -> list[tuple[str, str | None, str]]:
        found: list[Any] = []
        while (event := await self.event()) is not None:
            found.append(event)
        return found

    async def aclose(self) -> None:
        self._writer.close()
        with suppress(ConnectionError):
            await self._writer.wait_closed()


if __name__ == "__main__":
    _timing = {name: float(value) for name, _, value in (a.partition("=") for a in sys.argv[3:])}
    asyncio.run(_main(Path(sys.argv[1]), Path(sys.argv[2]), **_timing))
