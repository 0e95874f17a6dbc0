"""A world of streams in virtual time: the server's own conversations and the SDK's own client, on a
network and a disk that fail by a seed.

Nothing here decides anything about streams: the hub, the conversations, the pumps and the SDK's
`StreamConnection` are those that run in production; only sockets, disk and clock are replaced.
"""

import asyncio
import contextlib
import random
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from tests.support import virtual_time
from websockets.exceptions import ConnectionClosedError
from websockets.frames import Close

from mentatlab.gateway.credentials import Credentials
from mentatlab.gateway.identity import LOOPBACK_USER
from mentatlab.gateway.limits import Buckets
from mentatlab.gateway.stream_access import Authority, Shared
from mentatlab.gateway.stream_connections import Connections
from mentatlab.gateway.stream_conversation import Conversation
from mentatlab.gateway.stream_msp import PROTOCOL
from mentatlab.gateway.stream_wire import Timing
from mentatlab.protocol.errors import Code, MentatError, Unavailable
from mentatlab.sdk.streaming.connection import StreamConnection
from mentatlab.sdk.streaming.endings import error_of_close
from mentatlab.streams import MemoryStreamLog, StreamingConnectionManager
from mentatlab.streams.buffer import Item
from mentatlab.streams.port import StreamLog

HIGH_WATER = 64 * 1024
START = 1_700_000_000.0


class World:
    """The seed's chance, the clock, the disk, and one server at a time."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self.disk = MemoryStreamLog(epoch=1)
        self.server: Server | None = None
        self.links: dict[Link, None] = {}  # in the order of their making
        self.story: list[str] = []

    def clock(self) -> float:
        return START + asyncio.get_running_loop().time()

    def tell(self, what: str) -> None:
        self.story.append(f"{asyncio.get_running_loop().time():.6f} {what}")

    def latency(self) -> float:
        """Seconds; now and then it takes long."""
        return self.chance.expovariate(500) + (0.2 if self.chance.random() < 0.01 else 0)

    def start(self) -> None:
        self.tell("start")
        self.server = Server(self)

    def crash(self) -> None:
        """What the disk has stays; what was on its way, and every task, is gone."""
        self.tell("crash")
        if self.server is not None:
            self.server.end()
        self.server = None
        for link in list(self.links):
            link.drop()

    def cut(self) -> None:
        if self.links:
            link = self.chance.choice(list(self.links))
            self.tell(f"cut {link.number}")
            link.cut()


class SlowDisk:
    """The log of one server's life. What it has asked for may be done, and the answer be lost."""

    def __init__(self, world: World) -> None:
        self._world = world

    def __getattr__(self, name: str) -> Any:
        if name not in dir(StreamLog):  # what else memory can do, a disk cannot
            raise AttributeError(name)
        return lambda *given, **named: self._slowly(getattr(self._world.disk, name), given, named)

    async def _slowly(
        self, call: Callable[..., Any], given: Sequence[Any], named: dict[str, Any]
    ) -> Any:
        await asyncio.sleep(self._world.latency())
        answer = await call(*given, **named)
        await asyncio.sleep(self._world.latency())
        return answer

    async def aclose(self) -> None:
        """The disk outlives the server."""


class Server:
    def __init__(self, world: World) -> None:
        log: Any = SlowDisk(world)
        self.hub = StreamingConnectionManager(log, clock=world.clock)
        timing = Timing(mark_s=15, stall_s=10)
        self.connections = Connections(self.hub, timing=timing, clock=world.clock)
        credentials = Credentials("k" * 32, b"s" * 32, _nobody)
        free = Buckets(0, 0)
        self._authority = Authority(Shared(self.hub, credentials, free, free), LOOPBACK_USER)

    def converse(self, stream_id: str) -> Conversation:
        return self.connections.converse(stream_id, {}, [PROTOCOL], self._authority).conversation

    def end(self) -> None:
        _cancel(self.hub._appending)


def _cancel(tasks: set[asyncio.Task[Any]]) -> None:
    """In the order in which they were made: a set has another one each time."""
    for task in sorted(tasks, key=lambda task: int(task.get_name().partition("-")[2])):
        task.cancel()


async def _nobody(_: str) -> None:
    return None


class Link:
    """Both ends of one connection. In order, late, with a window of 64 KiB each way."""

    _numbers = 0

    def __init__(self, world: World, server: Server, stream_id: str) -> None:
        Link._numbers += 1
        self.number, self._world = Link._numbers, world
        self._conversation = server.converse(stream_id)
        self._tasks: set[asyncio.Task[None]] = set()
        self._to_client: asyncio.Queue[str | bytes | Close | None] = asyncio.Queue()
        self._inbound: list[str | bytes] = []
        self._unread = asyncio.Event()
        self._on_the_way = 0  # bytes to the client
        self._arrival = [0.0, 0.0]  # of the last message, each way
        self._open, self._reading = True, True
        world.links[self] = None
        self._conversation.opened(self)

    # ------------------------------------------------------------------ as the conversation sees it

    @property
    def writable(self) -> bool:
        return self._on_the_way < HIGH_WATER

    @property
    def held(self) -> int:
        return self._on_the_way

    def send_text(self, text: bytes) -> None:
        self._send(text.decode())

    def send_items(self, items: Sequence[Item], *, joined: bool) -> None:
        if joined:
            self._send("\n".join(item.json.decode() for item in items))
            return
        for item in items:
            self._send(item.json.decode())

    def send_binary(self, parts: Sequence[bytes | memoryview]) -> None:
        self._send(b"".join(parts))

    def pause_reading(self) -> None:
        self._reading = False

    def resume_reading(self) -> None:
        self._reading = True
        asyncio.get_running_loop().call_soon(self._read)

    def ping(self) -> None:
        self._later(0, lambda: self._later(1, self._conversation.heard))

    def close(self, code: int, reason: str = "") -> None:
        self._later(0, lambda: self._closed(Close(code, reason)))

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # ------------------------------------------------------------------ the network

    def _later(self, way: int, what: Callable[[], None]) -> None:
        """After what is on its way already."""
        loop = asyncio.get_running_loop()
        # timers of the same time come in any order, hence the microsecond
        self._arrival[way] = max(self._arrival[way] + 1e-6, loop.time() + self._world.latency())
        loop.call_at(self._arrival[way], lambda: what() if self._open else None)

    def _send(self, message: str | bytes) -> None:
        if self._open:
            self._on_the_way += len(message)
            self._later(0, lambda: self._arrived(message))

    def _arrived(self, message: str | bytes) -> None:
        self._to_client.put_nowait(message)

    def _read(self) -> None:
        if not (self._open and self._reading and self._inbound):
            return
        self._conversation.heard()
        messages, self._inbound = self._inbound, []
        for message in messages:
            if isinstance(message, str):
                self._conversation.text(message.encode())
            else:
                self._conversation.binary(message)
        self._conversation.read_done()
        self._unread.set()

    def _closed(self, close: Close) -> None:
        self._to_client.put_nowait(close)
        self.drop()
        self._conversation.lost()

    def cut(self) -> None:
        """Each side learns of it; what was on its way never arrives."""
        self.drop()
        self._conversation.lost()

    def drop(self) -> None:
        self._open = False
        self._world.links.pop(self, None)
        _cancel(self._tasks)
        self._to_client.put_nowait(None)
        self._unread.set()

    # ------------------------------------------------------------------ as the client sees it

    async def recv(self) -> str | bytes:
        message = await self._to_client.get()
        if message is None or isinstance(message, Close):
            self._to_client.put_nowait(message)
            raise ConnectionClosedError(message, None)
        was_full = not self.writable
        self._on_the_way -= len(message)
        if was_full and self.writable and self._open:
            asyncio.get_running_loop().call_soon(self._conversation.writable)
        return message

    async def send(self, message: bytes | bytearray, *, text: bool) -> None:
        while self._open and sum(map(len, self._inbound)) >= HIGH_WATER:
            self._unread.clear()
            await self._unread.wait()
        if not self._open:
            raise ConnectionClosedError(None, None)
        said = message.decode() if text else bytes(message)
        self._later(1, lambda: self._received(said))

    def _received(self, message: str | bytes) -> None:
        self._inbound.append(message)
        self._read()

    def leave(self) -> None:
        if self._open:
            self.cut()


class SimulatedConnection(StreamConnection):
    """The SDK's connection; only how it reaches the server differs."""

    def __init__(self, world: World) -> None:
        super().__init__("http://simulated")
        self._world = world

    async def _connect(self, stream_id: str) -> MentatError:
        await asyncio.sleep(self._world.latency())
        if self._world.server is None:
            return Unavailable(Code.SERVER_UNREACHABLE, "it is down")
        link: Any = Link(self._world, self._world.server, stream_id)
        try:
            return await self._converse(link)
        except ConnectionClosedError:
            return error_of_close(1006)
        finally:
            link.leave()


def simulate(seed: int, scenario: Callable[[World], Coroutine[Any, Any, None]]) -> list[str]:
    """Run the scenario in a new world; what has happened in it."""
    random.seed(seed)  # the SDK's jitter
    Link._numbers = 0
    world = World(seed)
    with contextlib.closing(_Loud(world)):
        virtual_time.run(scenario(world))
    return world.story


class _Loud:
    def __init__(self, world: World) -> None:
        self._world = world

    def close(self) -> None:
        self._world.links.clear()
