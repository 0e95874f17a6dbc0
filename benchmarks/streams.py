"""Chunks through the real server, publisher to reader, beside what one commit costs on the disk.

    python -m benchmarks streams

The server runs in its own process on the portable transport; publisher and reader are WebSocket
clients that share another one. Nothing is asserted: the numbers depend on the machine.
"""

import asyncio
import json
import sqlite3
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

from tests.support.server import up
from websockets.asyncio.client import ClientConnection, connect
from websockets.typing import Subprotocol

from benchmarks.table import Row

SCATTERED = 300  # chunks sent one after the other
BURST = 5000  # chunks sent as fast as they are taken
TEXT = "x" * 200


async def run(folder: Path | None = None) -> list[Row]:
    """`folder` is on the disk to measure; else the system's temporary one."""
    with tempfile.TemporaryDirectory(dir=folder) as place:
        rows = _rows("one commit (SQLite, FULL)", _commits(Path(place)))
        with up(Path(place)) as server:
            for durability in ("memory", "commit"):
                rows += await _lane(server.url, durability)
        return rows


async def _lane(server: str, durability: str) -> list[Row]:
    async with (
        _Stream(server, durability) as one,
        _Stream(server, durability) as two,
    ):
        latencies = [await one.round_trip() for _ in range(SCATTERED)]
        begun = time.perf_counter()
        await two.burst()
        rate = BURST / (time.perf_counter() - begun)
    name = f"{durability} lane"
    return [*_rows(f"{name}, chunk to reader", latencies), Row(f"{name}, burst", rate, "chunks/s")]


class _Stream:
    """A new stream with a publisher and a reader."""

    def __init__(self, server: str, durability: str) -> None:
        body = {"agent_id": "bench", "pin_name": "out", "durability": durability}
        request = Request(
            f"{server}/api/v1/streams/init",
            json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )
        with urlopen(request) as answer:
            url = f"{server}{json.load(answer)['ws_url']}".replace("http", "ws", 1)
        self._connections = (
            connect(url, subprotocols=[Subprotocol("msp.v1+json")], compression=None),
            connect(url, compression=None),
        )
        self._publisher: ClientConnection
        self._reader: ClientConnection

    async def __aenter__(self) -> "_Stream":
        self._publisher, self._reader = [await each for each in self._connections]
        await self._publisher.recv()  # welcome
        await self._reader.recv()  # stream_start
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._publisher.close()
        await self._reader.close()

    async def round_trip(self) -> float:
        """Milliseconds from sending a chunk to reading it."""
        begun = time.perf_counter()
        await self._publisher.send(_chunk(0))
        await self._reader.recv()
        elapsed = (time.perf_counter() - begun) * 1000
        await self._publisher.recv()  # published
        return elapsed

    async def burst(self) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(self._send())
            acknowledged = group.create_task(self._acknowledged())
            for _ in range(BURST):
                await self._reader.recv()
            await acknowledged

    async def _send(self) -> None:
        for n in range(BURST):
            await self._publisher.send(_chunk(n))

    async def _acknowledged(self) -> None:
        while json.loads(await self._publisher.recv())["sequence"] <= BURST:
            pass


def _chunk(n: int) -> str:
    record: dict[str, Any] = {"type": "stream_data", "payload": {"data": {"n": n, "text": TEXT}}}
    return json.dumps(record)


def _commits(folder: Path) -> list[float]:
    """Milliseconds of 200 commits of one small row."""
    connection = sqlite3.connect(folder / "commits.db", isolation_level=None)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=FULL")
    connection.execute("CREATE TABLE t (x)")
    times: list[float] = []
    for _ in range(200):
        begun = time.perf_counter()
        connection.execute("INSERT INTO t VALUES (?)", (TEXT,))
        times.append((time.perf_counter() - begun) * 1000)
    connection.close()
    return times


def _rows(name: str, times: list[float]) -> list[Row]:
    p95 = statistics.quantiles(times, n=20)[-1]
    return [Row(name, statistics.median(times), "ms p50"), Row(name, p95, "ms p95")]
