"""The kit's own clients against servers that do odd things: scripts on real sockets."""

import asyncio
import base64
import contextlib
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import httpx2
import pytest

from mentatlab.conformance import frames
from mentatlab.conformance.cases import Case
from mentatlab.conformance.clients import EventSource, WebSocket
from mentatlab.conformance.frames import websocket_frame
from mentatlab.conformance.runner import play_cases
from mentatlab.conformance.steps import play
from mentatlab.conformance.world import FailedError, World

Script = Callable[[bytes, asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"


@contextlib.asynccontextmanager
async def serving(script: Script) -> AsyncIterator[str]:
    """Its URL; each connection reads one request's head and then follows the script."""

    talking: set[asyncio.Task[Any]] = set()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if task := asyncio.current_task():
            talking.add(task)
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            await script(await reader.readuntil(b"\r\n\r\n"), reader, writer)
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()

    async with await asyncio.start_server(accept, "127.0.0.1", 0) as server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        await asyncio.gather(*talking)


@contextlib.asynccontextmanager
async def connected(script: Script, **options: Any) -> AsyncIterator[WebSocket]:
    async with serving(script) as url:
        socket = await WebSocket.open(url, {}, **options)
        try:
            yield socket
        finally:
            await socket.cut()


def accepted(head: bytes, *, key: bytes | None = None) -> bytes:
    lines = dict(line.split(b": ", 1) for line in head.split(b"\r\n")[1:] if line)
    told = key or lines[b"Sec-WebSocket-Key"]
    accept = base64.b64encode(hashlib.sha1(told + GUID).digest())
    return b"HTTP/1.1 101 X\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: " + accept + b"\r\n\r\n"


def said(*parts: bytes) -> Script:
    """Accepts, says that, and waits for the client to leave."""

    async def script(
        head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        writer.write(accepted(head) + b"".join(parts))
        await reader.read()

    return script


def frame(opcode: int, data: bytes, *, fin: bool = True) -> bytes:
    return websocket_frame(opcode, data, fin=fin, mask=False)


async def test_messages_in_fragments_with_a_pong_between() -> None:
    script = said(
        frame(frames.TEXT, b'{"a":', fin=False),
        frame(frames.PONG, b"mid"),
        frame(0, b'1}\n{"b":2}'),
    )
    async with connected(script) as socket:
        heard = [await socket.next() for _ in range(3)]
    assert heard == [{"websocket_pong": "mid"}, {"a": 1}, {"b": 2}]


@pytest.mark.parametrize("pong", [True, False])
async def test_pings_are_answered_unless_told_otherwise(pong: bool) -> None:
    async def script(
        head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        writer.write(accepted(head) + frame(frames.PING, b"hey") + frame(frames.TEXT, b"{}"))
        first = await reader.readexactly(1)
        writer.write(frame(frames.TEXT, b'{"first": %d}' % first[0]))
        await reader.read()

    async with connected(script, pong=pong) as socket:
        assert await socket.next() == {}
        socket.send(frames.TEXT, b"x")
        first = await socket.next()
    assert first == {"first": 0x80 | (frames.PONG if pong else frames.TEXT)}


async def test_how_connections_end() -> None:
    async with connected(said(frame(frames.CLOSE, b"\x0f\xa0why"))) as socket:
        assert await socket.next() == {"closed": {"code": 4000, "reason": "why"}}
    async with connected(said(frame(frames.CLOSE, b""))) as socket:
        assert await socket.next() == {"closed": {"code": 1005, "reason": ""}}

    async def leaving(head: bytes, _: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(accepted(head) + frame(frames.TEXT, b"{}")[:2])

    async with connected(leaving, window=4096) as socket:
        assert await socket.next() == {"closed": {"code": 1006, "reason": ""}}


async def test_a_handshake_that_answers_another_key() -> None:
    async def script(head: bytes, _: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(accepted(head, key=b"another"))

    async with serving(script) as url:
        with pytest.raises(ConnectionError, match="Sec-WebSocket-Accept"):
            await WebSocket.open(url, {})


async def test_a_refused_handshake_is_closed() -> None:
    async with connected(answer(b"403 No", b"{}")) as socket:
        assert (socket.status, socket.headers["content-length"]) == (403, "2")
        assert await socket.next() == {"closed": {"code": 1006, "reason": ""}}


def answer(status: bytes, body: bytes, *headers: bytes) -> Script:
    async def script(_: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        length = b"Content-Length: %d" % len(body)
        writer.write(b"\r\n".join([b"HTTP/1.1 " + status, length, *headers, b"", body]))

    return script


def chunks(*parts: bytes) -> bytes:
    return b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts)


LAST = b"0\r\n\r\n"


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (chunks(b"event: a\nid:", b" 7\nx: y", b"\n\n") + LAST, 1000),
        (chunks(b"event: a\nid: 7\nx: y\n", b"\n", b"event") + LAST, 1006),
        (chunks(b"event: a\nid: 7\nx: y\n", b"\n"), 1006),
    ],
    ids=["in order", "in mid-event", "in mid-answer"],
)
async def test_event_streams_in_pieces_and_how_they_end(body: bytes, code: int) -> None:
    async def script(_: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + body)

    async with serving(script) as url, httpx2.AsyncClient() as http:
        response = await http.send(http.build_request("GET", url), stream=True)
        events = EventSource(response)
        assert await events.next() == {"event": "a", "id": "7", "x": "y"}
        assert (await events.next())["closed"]["code"] == code
        await events.cut()


async def test_the_pace_that_is_asked_for_is_kept() -> None:
    """Two answers of 429, then what was asked for: by HTTP, SSE and WebSocket."""
    heads: list[bytes] = []

    async def script(
        head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        heads.append(head)
        if len(heads) % 3:
            await answer(b"429 Slow", b"", b"Retry-After: 0", b"Connection: close")(
                head, reader, writer
            )
        elif b"Upgrade" in head:
            await said()(head, reader, writer)
        else:
            await answer(b"200 OK", b"{}", b"Connection: close")(head, reader, writer)

    async with serving(script) as url:
        await steps(url, {"http": "GET /a"}, {"sse": "st_1"}, {"connect": "/ws"})
    assert len(heads) == 9


async def steps(url: str, *told: dict[str, Any], **options: Any) -> None:
    settings: Any = {"key": None, "timeout_s": 5.0, "heard": lambda _: None, **options}
    async with httpx2.AsyncClient() as http, World(url, http, **settings) as world:
        await play(world, told)


async def test_credentials() -> None:
    seen: list[bytes] = []

    async def script(
        head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        line = [line for line in head.split(b"\r\n") if line.lower().startswith(b"authorization")]
        seen.append(line[0].partition(b" ")[2] if line else b"")
        await answer(b"200 OK", b"{}", b"Connection: close")(head, reader, writer)

    async with serving(script) as url:
        await steps(
            url,
            {"http": "GET /"},
            {"http": "GET /", "auth": "none"},
            {"let": {"token": "mine"}},
            {"http": "GET /", "auth": "$token"},
            key="the key",
        )
    assert seen == [b"Bearer the key", b"", b"Bearer mine"]


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ([{"expect": [{}]}], "there is no connection 'main'"),
        ([{"sse": "x"}, {"send": {}}], "'main' is not a WebSocket"),
        ([{"check": 1, "of": 2}], "expected 1, got 2"),
        ([{"http": "GET /", "expect": {"status": 201}}], "expected 201, got 200"),
    ],
)
async def test_steps_that_cannot_be(told: list[dict[str, Any]], message: str) -> None:
    async with serving(answer(b"200 OK", b"[]", b"Connection: close")) as url:
        with pytest.raises(FailedError, match=message):
            await steps(url, *told)


async def test_an_init_that_is_refused() -> None:
    async with serving(answer(b"403 No", b"no", b"Connection: close")) as url:
        with pytest.raises(FailedError, match="403: 'no'"):
            await steps(url, {"init": {}})


async def test_a_server_that_says_nothing() -> None:
    async def script(_: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    async with serving(script) as url:
        for step in ({"http": "GET /"}, {"sse": "x"}, {"connect": "/ws"}, {"init": {}}):
            with pytest.raises(FailedError, match="no answer"):
                await steps(url, step, timeout_s=0.05)


async def test_nonsense_from_a_server_is_a_failure() -> None:
    """What no step foresees ends its case only."""

    async def script(
        head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        other = answer(b"404 No", b"", b"Connection: close")
        nonsense = said(frame(frames.TEXT, b"{"))
        await (nonsense if b"Upgrade" in head else other)(head, reader, writer)

    broken = Case(id="a", rule="", section="", steps=[{"connect": "/ws"}, {"expect": [{}]}])
    async with serving(script) as url:
        (result,) = await play_cases([broken], url)
    assert (result.outcome, "Expecting" in result.message) == ("failed", True)
