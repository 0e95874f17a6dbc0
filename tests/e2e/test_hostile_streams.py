"""Clients that want to do harm, many of each kind at once, on both transports: others do not
notice, memory stays bounded, and nothing is left when they have gone."""

import asyncio
import json
import os
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from tests.support.server import Up, up

from mentatlab.protocol.records import StreamChunk
from mentatlab.sdk.client import AsyncClient

EACH = 10
RECORDS = 400
HEAD = (
    "GET /ws/streams/{id} HTTP/1.1\r\nHost: 127.0.0.1\r\n"
    "Connection: Upgrade\r\nUpgrade: websocket\r\n"
)
KEY = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
V13 = "Sec-WebSocket-Version: 13\r\n"
MSP = "Sec-WebSocket-Protocol: msp.v1+json\r\n"
PAD = "x" * 4000


def frame(opcode: int, payload: bytes, *, fin: bool = True, masked: bool = True) -> bytes:
    """A client's frame; the mask is zero, which changes nothing."""
    first, mask = (0x80 if fin else 0) | opcode, 0x80 if masked else 0
    size = len(payload)
    if size < 126:
        head = struct.pack(">BB", first, mask | size)
    elif size < 1 << 16:
        head = struct.pack(">BBH", first, mask | 126, size)
    else:
        head = struct.pack(">BBQ", first, mask | 127, size)
    return head + (bytes(4) if masked else b"") + payload


class Enemy:
    """A raw connection with a tiny window."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    @classmethod
    async def connect(cls, port: int) -> "Enemy":
        connection = socket.socket()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.setblocking(False)
        await asyncio.get_running_loop().sock_connect(connection, ("127.0.0.1", port))
        return cls(*await asyncio.open_connection(sock=connection, limit=4096))

    async def say(self, data: bytes) -> None:
        with suppress(ConnectionError):
            self.writer.write(data)
            await self.writer.drain()

    async def upgrade(self, id_: str, more: str = "") -> None:
        await self.say((HEAD.format(id=id_) + KEY + V13 + more + "\r\n").encode())
        answer = await self.reader.readuntil(b"\r\n\r\n")
        assert b" 101 " in answer, answer

    async def ended(self) -> None:
        """The server has had enough."""
        with suppress(ConnectionError):
            while await self.reader.read(65536):
                pass


Attack = Callable[[Enemy, str], Awaitable[None]]
CUT: dict[str, Attack] = {}
"""What the server answers by ending the connection."""
STAYS: dict[str, Attack] = {}
"""What it must bear, bounded, for as long as it is there."""


def cut(attack: Attack) -> Attack:
    CUT[attack.__name__] = attack
    return attack


def stays(attack: Attack) -> Attack:
    STAYS[attack.__name__] = attack
    return attack


@cut
async def oversized_frame(enemy: Enemy, id_: str) -> None:
    await enemy.upgrade(id_)
    await enemy.say(struct.pack(">BBQ", 0x81, 0xFF, 1 << 40) + bytes(4))


@cut
async def oversized_record(enemy: Enemy, id_: str) -> None:
    await enemy.upgrade(id_)
    await enemy.say(frame(1, b'{"data":"' + b"x" * (1 << 20) + b'"}'))


@cut
async def endless_fragments(enemy: Enemy, id_: str) -> None:
    await enemy.upgrade(id_)
    await enemy.say(frame(1, b"x" * 1000, fin=False))
    for _ in range(4000):
        await enemy.say(frame(0, b"x" * 1000, fin=False))


@cut
async def empty_fragments(enemy: Enemy, id_: str) -> None:
    await enemy.upgrade(id_)
    await enemy.say(frame(1, b"", fin=False) + frame(0, b"", fin=False) * 20_000)


@cut
async def unmasked(enemy: Enemy, id_: str) -> None:
    await enemy.upgrade(id_)
    await enemy.say(frame(1, b"{}", masked=False))


@cut
async def reserved_bits(enemy: Enemy, id_: str) -> None:
    await enemy.upgrade(id_)
    await enemy.say(b"\xf1\x82\0\0\0\0{}")


@cut
async def no_utf8(enemy: Enemy, id_: str) -> None:
    await enemy.upgrade(id_)
    await enemy.say(frame(1, b'{"data":"\xff\xfe"}'))


@cut
async def not_json(enemy: Enemy, id_: str) -> None:
    await enemy.upgrade(id_, MSP)
    await enemy.say(frame(1, b"[" * 5000))


@cut
async def bad_binary_header(enemy: Enemy, id_: str) -> None:
    await enemy.upgrade(id_, MSP)
    await enemy.say(frame(2, os.urandom(64)))


@cut
async def wrong_version(enemy: Enemy, id_: str) -> None:
    await enemy.say((HEAD.format(id=id_) + KEY + "Sec-WebSocket-Version: 7\r\n\r\n").encode())
    assert b" 4" in await enemy.reader.readline()
    enemy.writer.close()


@cut
async def header_flood(enemy: Enemy, id_: str) -> None:
    await enemy.say(HEAD.format(id=id_).encode())
    for number in range(400):
        await enemy.say(f"X-{number}: {PAD}\r\n".encode())


@cut
async def too_many_streams(enemy: Enemy, id_: str) -> None:
    """Asked for 1,000 streams; then a frame that ends it."""
    await enemy.upgrade(id_, MSP)
    for number in range(1_000):
        said = json.dumps({"type": "subscribe", "id": f"st_{number}"}).encode()
        await enemy.say(frame(1, said))
    await enemy.say(frame(1, b"x"))


@stays
async def zero_credit(enemy: Enemy, id_: str) -> None:
    await enemy.upgrade(id_, MSP)
    said = json.dumps({"type": "subscribe", "id": id_, "from": "start", "max_bytes": 0}).encode()
    await enemy.say(frame(1, said))


@stays
async def reads_nothing(enemy: Enemy, id_: str) -> None:
    await enemy.upgrade(f"{id_}?from=start")


@stays
async def reads_no_events(enemy: Enemy, id_: str) -> None:
    path = f"/api/v1/streams/{id_}/sse?from=start"
    await enemy.say(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode())


@stays
async def never_finishes_its_head(enemy: Enemy, id_: str) -> None:
    await enemy.say(HEAD.format(id=id_).encode())


@stays
async def half_a_frame(enemy: Enemy, id_: str) -> None:
    await enemy.upgrade(id_)
    await enemy.say(struct.pack(">BBQ", 0x81, 0xFF, 1 << 20) + bytes(4) + b"{")


def memory(server: Up) -> int:
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) * 1024


def descriptors(server: Up) -> int:
    return len(list(Path(f"/proc/{server.process.pid}/fd").iterdir()))


@pytest.fixture(scope="module", params=["picows", "portable"])
def server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Up]:
    env = {"MENTATLAB_TRANSPORT": request.param}
    with up(tmp_path_factory.mktemp("home"), env=env) as server:
        yield server
        for bug in ("unexpected error", "Traceback", "never retrieved", "never awaited"):
            assert bug not in server.log()


@asynccontextmanager
async def opened(server: Up) -> AsyncIterator[tuple[AsyncClient, str, int]]:
    async with AsyncClient(server.url) as client:
        stream = await client.open_stream("victim", "out", durability="memory")
        yield client, stream["stream_id"], int(server.url.rpartition(":")[2])


async def everything_comes(client: AsyncClient, id_: str) -> None:
    """A publisher and a reader as there are always, with 4 KB records."""
    got: list[Any] = []
    async with client.connect_streams() as connection, connection.subscribe(id_, "latest") as read:
        publishing = asyncio.create_task(_publish(client, id_))
        async for record in read:
            assert isinstance(record, StreamChunk)
            got.append(record.payload["data"][0])
            if len(got) == RECORDS:
                break
        await publishing
    assert got == list(range(RECORDS))


async def _publish(client: AsyncClient, id_: str) -> None:
    async with client.connect_streams() as connection:
        publisher = connection.publisher(id_)
        async with publisher:
            for number in range(RECORDS):
                await publisher.send([number, PAD])
            await publisher.flush()


@pytest.mark.parametrize("name", CUT)
async def test_it_is_shown_the_door(server: Up, name: str) -> None:
    before = memory(server)
    async with opened(server) as (client, id_, port):
        enemies = [await Enemy.connect(port) for _ in range(EACH)]
        async with asyncio.TaskGroup() as group:
            for enemy in enemies:
                group.create_task(_attack(CUT[name], enemy, id_))
            group.create_task(everything_comes(client, id_))
    assert memory(server) < before + (96 << 20)


async def _attack(attack: Attack, enemy: Enemy, id_: str) -> None:
    await attack(enemy, id_)
    await enemy.ended()
    enemy.writer.close()


async def test_it_is_borne_and_holds_next_to_nothing(server: Up) -> None:
    """All kinds at once, while 1.6 MB go through the stream that they do not read."""
    before, files = memory(server), descriptors(server)
    async with opened(server) as (client, id_, port):
        enemies: list[Enemy] = []
        for attack in STAYS.values():
            for _ in range(EACH):
                enemies.append(enemy := await Enemy.connect(port))
                await attack(enemy, id_)
        await everything_comes(client, id_)
        assert memory(server) < before + (96 << 20)
        for enemy in enemies:
            enemy.writer.transport.abort()
    async with asyncio.timeout(30):
        while descriptors(server) > files + 8:
            await asyncio.sleep(0.05)
