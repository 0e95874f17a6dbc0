"""Files sent by the server itself, over real sockets, on both event loops."""

import asyncio
import os
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import trustme
import uvloop
from starlette.types import Receive, Scope, Send

from mentatlab.gateway import server
from mentatlab.gateway.server import Tls, serving
from mentatlab.gateway.zero_copy import EXTENSION

BODY = os.urandom(1 << 20) * 6 + b"end"
LOOPS: list[Callable[[], asyncio.AbstractEventLoop]] = [
    asyncio.new_event_loop,
    uvloop.new_event_loop,
]
Play = Callable[[Coroutine[Any, Any, None]], None]


@pytest.fixture(params=LOOPS, ids=["asyncio", "uvloop"])
def play(request: pytest.FixtureRequest) -> Play:
    """Run it to its end, on either loop."""

    def run(story: Coroutine[Any, Any, None]) -> None:
        with asyncio.Runner(loop_factory=request.param) as runner:
            runner.run(asyncio.wait_for(story, 60))

    return run


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_bytes(BODY)
    return path


class Files:
    """An ASGI application: `/START-STOP` is that part of the file, `/small` some text, the rest
    below. `extensions` are those of the last request."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.extensions: dict[str, Any] = {}
        self.ended = asyncio.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.extensions = scope.get("extensions", {})
        with self._path.open("rb", buffering=0) as file:
            what = {"type": EXTENSION, "file": file}
            match scope["path"].strip("/"):
                case "small":
                    await start(send, 5)
                    await send({"type": "http.response.body", "body": b"small"})
                case "from-its-position":
                    file.seek(len(BODY) - 3)
                    await start(send, 3)
                    await send(what)
                case "and-more":
                    await start(send, len(BODY) + 5)
                    await send({**what, "more_body": True})
                    await send({"type": "http.response.body", "body": b"small"})
                case "too-much":
                    await start(send, 10)
                    await send({**what, "offset": 0, "count": 11})
                case "beyond-its-end":
                    await start(send, len(BODY) + 1)
                    await send({**what, "offset": 0, "count": len(BODY) + 1})
                case "without-length":
                    await send({"type": "http.response.start", "status": 200, "headers": []})
                    await send(what)
                case part:
                    first, _, stop = part.partition("-")
                    count = int(stop) - int(first)
                    await start(send, count)
                    try:
                        await send({**what, "offset": int(first), "count": count})
                    finally:
                        self.ended.set()


async def start(send: Send, length: int) -> None:
    headers = [(b"content-length", str(length).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})


async def nothing() -> None:
    pass


@asynccontextmanager
async def served(app: Files, tls: Tls | None = None) -> AsyncIterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        async with serving(app, listener, drain=nothing, tls=tls):
            yield listener.getsockname()[1]


def request(target: str, method: str = "GET", *more: str) -> bytes:
    return "\r\n".join([f"{method} /{target} HTTP/1.1", "Host: x", *more, "", ""]).encode()


class Client:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self._writer = reader, writer

    def ask(self, *requests: bytes) -> None:
        self._writer.write(b"".join(requests))

    async def answer(self, *, head_only: bool = False) -> bytes:
        head = await self.reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 OK\r\n")
        length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
        return b"" if head_only else await self.reader.readexactly(length)

    async def is_cut(self) -> None:
        with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
            await self.answer()

    def abort(self) -> None:
        self._writer.transport.abort()


@asynccontextmanager
async def connected(port: int, **options: Any) -> AsyncIterator[Client]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port, **options)
    try:
        yield Client(reader, writer)
    finally:
        writer.transport.abort()
        with suppress(ConnectionError):
            await writer.wait_closed()


ALL = f"0-{len(BODY)}"


def test_parts_on_one_connection(play: Play, path: Path) -> None:
    async def story() -> None:
        async with served(Files(path)) as port, connected(port) as client:
            for first, stop in ((0, len(BODY)), (5, 6), (7, 7), (1_000_000, 3_000_000)):
                client.ask(request(f"{first}-{stop}"))
                assert await client.answer() == BODY[first:stop]
            client.ask(request("from-its-position"))
            assert await client.answer() == b"end"
            client.ask(request("and-more"))
            assert await client.answer() == BODY + b"small"

    play(story())


def test_pipelined_requests_are_answered_in_order(play: Play, path: Path) -> None:
    async def story() -> None:
        async with served(Files(path)) as port, connected(port) as client:
            asked = (ALL, "small", "3-9", "small", ALL)
            client.ask(*(request(target) for target in asked))
            wanted = (BODY, b"small", BODY[3:9], b"small", BODY)
            for body in wanted:
                assert await client.answer() == body

    play(story())


def test_head_has_no_body(play: Play, path: Path) -> None:
    async def story() -> None:
        async with served(Files(path)) as port, connected(port) as client:
            client.ask(request(ALL, "HEAD"), request("small"))
            assert await client.answer(head_only=True) == b""
            assert await client.answer() == b"small"

    play(story())


def test_close_ends_the_connection_behind_the_file(play: Play, path: Path) -> None:
    async def story() -> None:
        async with served(Files(path)) as port, connected(port) as client:
            client.ask(request(ALL, "GET", "Connection: close"))
            assert await client.answer() == BODY
            assert await client.reader.read() == b""

    play(story())


def test_who_does_not_read_holds_up_nobody(play: Play, path: Path) -> None:
    async def story() -> None:
        app = Files(path)
        async with served(app) as port, connected(port, limit=1024) as stalled:
            stalled.ask(request(ALL))
            await stalled.reader.readuntil(b"\r\n\r\n")
            for _ in range(3):
                async with connected(port) as other:
                    other.ask(request(ALL))
                    assert await other.answer() == BODY
            assert await stalled.reader.readexactly(len(BODY)) == BODY

    play(story())


def test_who_leaves_leaves_nothing_behind(play: Play, path: Path) -> None:
    async def story() -> None:
        app = Files(path)
        async with served(app) as port:
            before = descriptors()
            for _ in range(5):
                app.ended.clear()
                async with connected(port, limit=1024) as client:
                    client.ask(request(ALL))
                    await client.reader.readuntil(b"\r\n\r\n")
                    client.abort()
                    await app.ended.wait()
            async with asyncio.timeout(20):
                while descriptors() != before:
                    await asyncio.sleep(0.005)

    play(story())


def descriptors() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


@pytest.mark.parametrize("target", ["too-much", "beyond-its-end"])
def test_what_does_not_fit_its_length_is_cut(play: Play, path: Path, target: str) -> None:
    async def story() -> None:
        async with served(Files(path)) as port, connected(port) as client:
            client.ask(request(target))
            await client.is_cut()

    play(story())


def test_a_file_needs_a_length(play: Play, path: Path) -> None:
    async def story() -> None:
        async with served(Files(path)) as port, connected(port) as client:
            client.ask(request("without-length"))
            head, _, rest = (await client.reader.read()).partition(b"\r\n\r\n")
            assert (b"chunked" in head, rest) == (True, b"")  # without its last chunk

    play(story())


def test_nonsense_behind_a_request_never_gets_an_answer_into_the_file(
    play: Play, path: Path
) -> None:
    async def story() -> None:
        app = Files(path)
        async with served(app) as port, connected(port, limit=1024) as client:
            client.ask(request(ALL))
            await client.reader.readuntil(b"\r\n\r\n")
            client.ask(b"nonsense\r\n\r\n")
            with suppress(ConnectionError):
                rest = await client.reader.read(2 * len(BODY))
                while more := await client.reader.read(2 * len(BODY)):
                    rest += more
                assert BODY.startswith(rest)

    play(story())


def test_a_stalled_client_does_not_hold_up_the_servers_end(
    play: Play, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "DRAIN_S", 1)

    async def story() -> None:
        app = Files(path)
        async with asyncio.timeout(20), served(app) as port:
            reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1024)
            writer.write(request(ALL))
            await reader.readuntil(b"\r\n\r\n")
        assert app.ended.is_set()
        writer.transport.abort()

    play(story())


def test_a_file_is_finished_when_the_server_ends(play: Play, path: Path) -> None:
    async def story() -> None:
        async with served(Files(path)) as port:
            reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1024)
            client = Client(reader, writer)
            client.ask(request(ALL))
            await client.reader.readuntil(b"\r\n\r\n")
            reading = asyncio.create_task(client.reader.readexactly(len(BODY)))
        assert await reading == BODY
        assert await client.reader.read() == b""
        client.abort()

    play(story())


def test_with_tls_the_bytes_pass_through_the_server(play: Play, path: Path, tmp_path: Path) -> None:
    authority = trustme.CA()
    issued = authority.issue_cert("127.0.0.1")
    issued.cert_chain_pems[0].write_to_path(str(tmp_path / "cert.pem"))
    issued.private_key_pem.write_to_path(str(tmp_path / "key.pem"))
    context = ssl.create_default_context()
    authority.configure_trust(context)

    async def story() -> None:
        app = Files(path)
        tls = Tls(tmp_path / "cert.pem", tmp_path / "key.pem")
        async with served(app, tls) as port, connected(port, ssl=context) as client:
            client.ask(request("small"))
            assert await client.answer() == b"small"
            assert app.extensions == {}

    play(story())
