"""The HTTP server below any route, over real sockets."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import suppress

import pytest
from starlette.responses import PlainTextResponse

from mentatlab.gateway.server import MAX_HEAD_BYTES, MAX_URL_BYTES, serving

START = b"GET / HTTP/1.1\r\nHost: x\r\n"


async def nothing() -> None:
    pass


@pytest.fixture
async def port() -> AsyncIterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        async with serving(PlainTextResponse("here"), listener, drain=nothing):
            yield listener.getsockname()[1]


async def answer(port: int, *pieces: bytes) -> bytes:
    """Its first line, as soon as it comes; what cannot be sent any more is left. Empty when the
    server's close overtakes its answer."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)

    async def send() -> None:
        with suppress(ConnectionError):
            for piece in pieces:
                writer.write(piece)
                await writer.drain()

    sending = asyncio.create_task(send())
    try:
        async with asyncio.timeout(20):
            return await reader.readline()
    except ConnectionError:
        return b""
    finally:
        sending.cancel()
        writer.transport.abort()
        await asyncio.wait([sending])
        with suppress(ConnectionError):
            await writer.wait_closed()


def refused(line: bytes) -> bool:
    return not line or line.startswith(b"HTTP/1.1 431 ")


async def test_headers_up_to_the_limit_are_taken(port: int) -> None:
    cookie = b"Cookie: " + b"x" * (MAX_HEAD_BYTES - 100) + b"\r\n\r\n"
    assert await answer(port, START, cookie) == b"HTTP/1.1 200 OK\r\n"


@pytest.mark.parametrize(
    "head",
    [
        b"Cookie: " + b"x" * MAX_HEAD_BYTES + b"\r\n\r\n",
        b"".join(b"X-%d: %s\r\n" % (n, b"x" * 1000) for n in range(80)) + b"\r\n",
    ],
    ids=["one", "many"],
)
async def test_larger_ones_are_refused(port: int, head: bytes) -> None:
    assert refused(await answer(port, START + head))


async def test_endless_ones_are_cut(port: int) -> None:
    """No blank line ever comes, so only a limit ends the reading; the last read may go over it."""
    pieces = [b"x" * MAX_HEAD_BYTES] * 16
    assert refused(await answer(port, START + b"X: ", *pieces))


UPGRADE = b"Connection: Upgrade\r\nUpgrade: websocket\r\n"


@pytest.mark.parametrize("more", [b"", UPGRADE])
async def test_a_long_address_is_refused(port: int, more: bytes) -> None:
    head = b"GET /?" + b"x" * MAX_URL_BYTES + b" HTTP/1.1\r\nHost: x\r\n" + more + b"\r\n"
    assert (await answer(port, head)).startswith(b"HTTP/1.1 414 ")


async def test_what_is_not_http_is_told_so(port: int) -> None:
    assert await answer(port, b"HELO there\r\n\r\n") == b"HTTP/1.1 400 Bad Request\r\n"


async def test_every_request_of_a_connection_has_its_own_limit(port: int) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    async with asyncio.timeout(20):
        for _ in range(3):
            writer.write(START + b"X: " + b"x" * (MAX_HEAD_BYTES // 2) + b"\r\n\r\n")
            assert await reader.readline() == b"HTTP/1.1 200 OK\r\n"
            await reader.readuntil(b"\r\n\r\nhere")
    writer.close()
    await writer.wait_closed()
