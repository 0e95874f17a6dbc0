"""A server that is killed again and again under publishers and readers whose lines are cut.

    report = await chaos(home, records=100_000, streams=4, kill_every_s=2.0, seed=7)

Everything is real: `mentatlab up` as a process, SIGKILL, TCP connections through a proxy that drops
them, the SDK's clients, and a prober outside that opens a stream and reads back what it published.
"""

import asyncio
import contextlib
import os
import random
import socket
import time
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import httpx2
from tests.support.server import COMMAND, environment

from mentatlab.protocol.errors import MentatError
from mentatlab.protocol.records import StreamChunk
from mentatlab.sdk.client import AsyncClient

READY_S = 20.0
PORTION = 100
"""Records between two rests."""
PROBE_S = 1.0
"""A probe that takes longer has failed."""


@dataclass
class Report:
    """`lost`, `doubled`, `reordered`: records as the readers got them, against what was published.

    `availability`: percent of the probes that succeeded within 1 s; `restarts`: seconds from each
    SIGKILL to the first answer of `/readyz`.
    """

    seed: int
    records: int = 0
    read: int = 0
    lost: int = 0
    doubled: int = 0
    reordered: int = 0
    cuts: int = 0
    probes: int = 0
    answered: int = 0
    seconds: float = 0.0
    restarts: list[float] = field(default_factory=list[float])

    @property
    def availability(self) -> float:
        return 100 * self.answered / max(1, self.probes)


class Plan(NamedTuple):
    """`count` records in each of the streams; seconds."""

    count: int
    streams: int
    kill_every_s: float
    cut_every_s: float
    at_least_s: float


class Victim:
    """One home's server, always started again on the same port."""

    def __init__(self, home: Path) -> None:
        self._home = home
        with socket.create_server(("127.0.0.1", 0)) as listener:
            self.port: int = listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        self._process = await asyncio.create_subprocess_exec(
            *COMMAND,
            *("up", "--json", "--port", str(self.port)),
            env=environment(self._home, MENTATLAB_RATE="0"),
            stdout=asyncio.subprocess.DEVNULL,
        )
        async with asyncio.timeout(READY_S), httpx2.AsyncClient() as http:
            while True:
                with contextlib.suppress(httpx2.TransportError):
                    if (await http.get(f"{self.url}/readyz")).status_code == 200:
                        return
                await asyncio.sleep(0.01)

    async def kill(self) -> None:
        if self._process is not None and self._process.returncode is None:
            self._process.kill()
            await self._process.wait()


class Proxy:
    """Forwards TCP to a port; `cut` drops connections without a word."""

    def __init__(self, port: int, chance: random.Random) -> None:
        self._port, self._chance = port, chance
        self._open: set[asyncio.StreamWriter] = set()
        self.cuts = 0

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncGenerator[str]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        async with server:
            yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
            self.cut(1.0)

    def cut(self, share: float) -> None:
        for writer in list(self._open):
            if self._chance.random() < share:
                writer.transport.abort()
                self.cuts += 1

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            onward = await asyncio.open_connection("127.0.0.1", self._port)
        except OSError:
            writer.transport.abort()
            return
        self._open.add(writer)
        try:
            await asyncio.gather(_pump(reader, onward[1]), _pump(onward[0], writer))
        finally:
            self._open.discard(writer)


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Until either side is gone; then so is the other."""
    with contextlib.suppress(OSError):
        while block := await reader.read(64 * 1024):
            writer.write(block)
            await writer.drain()
    writer.transport.abort()


async def chaos(
    home: Path,
    *,
    records: int,
    streams: int = 4,
    kill_every_s: float = 2.0,
    cut_every_s: float = 0.3,
    at_least_s: float = 10.0,
    seed: int | None = None,
) -> Report:
    """`records` in all, over so many commit lanes, each read by a WebSocket and an SSE client.

    The publishers rest now and then, so that it takes `at_least_s` on the fastest machine.
    """
    report = Report(seed=random.randrange(1 << 32) if seed is None else seed)
    chance = random.Random(report.seed)
    victim = Victim(home)
    proxy = Proxy(victim.port, chance)
    await victim.start()
    began = time.monotonic()
    try:
        async with proxy.running() as url:
            plan = Plan(records // streams, streams, kill_every_s, cut_every_s, at_least_s)
            await _storm(report, victim, proxy, url, plan)
    finally:
        await victim.kill()
    report.cuts, report.seconds = proxy.cuts, time.monotonic() - began
    return report


async def _storm(
    report: Report,
    victim: Victim,
    proxy: Proxy,
    url: str,
    plan: Plan,
) -> None:
    async with asyncio.TaskGroup() as group, AsyncClient(url) as client:
        trouble = [
            group.create_task(_kill_again_and_again(victim, plan.kill_every_s, report)),
            group.create_task(_cut_again_and_again(proxy, plan.cut_every_s)),
            group.create_task(_probe(victim.url, report)),
        ]
        async with asyncio.TaskGroup() as work:
            for number in range(plan.streams):
                opened = await _opened(client, f"chaos-{number}")
                work.create_task(_publish(client, opened, plan, report))
                work.create_task(_read_socket(client, opened, plan.count, report))
                work.create_task(_read_events(client, opened, plan.count, report))
        for task in trouble:
            task.cancel()


async def _opened(client: AsyncClient, pin: str) -> str:
    """Again until it is answered: the place is the stream's name."""
    while True:
        with contextlib.suppress(MentatError):
            return (await client.open_stream("chaos", pin, run_id="chaos-run"))["stream_id"]
        await asyncio.sleep(0.05)


async def _publish(client: AsyncClient, stream_id: str, plan: Plan, report: Report) -> None:
    async with (
        client.connect_streams() as connection,
        connection.publisher(stream_id, id="publisher") as publisher,
    ):
        for number in range(plan.count):
            await publisher.send(number)
            if number % PORTION == 0:
                await asyncio.sleep(plan.at_least_s * PORTION / plan.count)
    report.records += plan.count


async def _read_socket(client: AsyncClient, stream_id: str, count: int, report: Report) -> None:
    got: list[int] = []
    async with client.connect_streams() as connection:
        async for record in connection.subscribe(stream_id):
            assert isinstance(record, StreamChunk), record
            got.append(record.payload["data"])
    _compare(got, count, report)


async def _read_events(client: AsyncClient, stream_id: str, count: int, report: Report) -> None:
    got: list[int] = []
    async for record in client.stream(stream_id):
        assert isinstance(record, StreamChunk), record
        got.append(record.payload["data"])
    _compare(got, count, report)


def _compare(got: list[int], count: int, report: Report) -> None:
    report.read += len(got)
    report.lost += len(set(range(count)) - set(got))
    report.doubled += len(got) - len(set(got))
    report.reordered += sum(a > b for a, b in pairwise(got))


async def _kill_again_and_again(victim: Victim, every_s: float, report: Report) -> None:
    while True:
        await asyncio.sleep(every_s)
        began = time.monotonic()
        await victim.kill()
        await victim.start()
        report.restarts.append(time.monotonic() - began)


async def _cut_again_and_again(proxy: Proxy, every_s: float) -> None:
    while True:
        await asyncio.sleep(every_s)
        proxy.cut(0.3)


async def _probe(url: str, report: Report) -> None:
    """Straight to the server, ten times a second."""
    async with httpx2.AsyncClient(base_url=url, timeout=PROBE_S) as http:
        while True:
            report.probes += 1
            report.answered += await _answers(http)
            await asyncio.sleep(0.1)


async def _answers(http: httpx2.AsyncClient) -> bool:
    """A new stream, one record, and that record back, within `PROBE_S`."""
    word = os.urandom(8).hex()
    body = {"agent_id": "probe", "pin_name": "out"}
    records = {"records": [{"data": word}, {"type": "stream_end"}]}
    try:
        async with asyncio.timeout(PROBE_S):
            opened = (await http.post("/api/v1/streams/init", json=body)).raise_for_status().json()
            path = f"/api/v1/streams/{opened['stream_id']}"
            (await http.post(f"{path}/records", json=records)).raise_for_status()
            return word in (await http.get(f"{path}/sse")).raise_for_status().text
    except (TimeoutError, httpx2.HTTPError):
        return False
