"""What other processes write to Redis, as it comes: one connection for all readers of this process.

Nothing rests on it: who hears nothing reads late, never wrongly. After a lost connection all
channels are subscribed anew, and `restored` is awaited: what came in between was not heard.
"""

import asyncio
import logging
import math
from collections import Counter
from collections.abc import Awaitable, Callable

from redis import exceptions
from redis.asyncio import Connection

from mentatlab.protocol.errors import Code, MentatError, Unavailable
from mentatlab.streams.redis_server import PATIENCE_S, RedisServer

PING_S = 5.0
"""A connection that is silent for two pings is given up."""
_WAIT_S = 0.1
_logger = logging.getLogger(__name__)


class RedisNews:
    """`heard(channel, message)` is called in the order in which Redis was written to. `run` it."""

    def __init__(
        self,
        server: RedisServer,
        *,
        heard: Callable[[str, bytes], None],
        restored: Callable[[], Awaitable[None]],
        patience_s: float = PATIENCE_S,
    ) -> None:
        self._server, self._heard, self._restored = server, heard, restored
        self._patience_s, self._closed = patience_s, False
        self._channels: dict[str, asyncio.Event] = {}
        self._begin()

    def _begin(self) -> None:
        """Of one connection: what is to be sent, which answers are still to come, how long it has
        been silent (in pings)."""
        self._outbox: asyncio.Queue[tuple[str, ...]] = asyncio.Queue()
        self._unanswered: Counter[str] = Counter()
        self._complete = asyncio.Event()
        self._pings = 0
        if self._channels:
            self._subscribe(*self._channels)

    async def watch(self, channel: str) -> None:
        """Idempotent. Returns when all that is told from now on will be heard. `Unavailable`"""
        if (ready := self._channels.get(channel)) is None:
            ready = self._channels[channel] = asyncio.Event()
            self._subscribe(channel)
        try:
            async with asyncio.timeout(self._patience_s):
                await ready.wait()
        except TimeoutError as error:
            raise Unavailable(
                Code.UNAVAILABLE, "the log cannot be followed: Redis does not answer"
            ) from error

    def unwatch(self, channel: str) -> None:
        if self._channels.pop(channel, None) is not None:
            self._outbox.put_nowait(("UNSUBSCRIBE", channel))

    async def run(self) -> None:
        """Until it is cancelled after `close`: an error of the same moment may hide the former."""
        while not self._closed:
            try:
                await self._connected()
            except* (exceptions.RedisError, OSError, MentatError) as lost:
                _logger.info("Redis tells nothing: %s; trying again", lost.exceptions[0])
            await asyncio.sleep(_WAIT_S)
            self._begin()

    def close(self) -> None:
        self._closed = True

    async def _connected(self) -> None:
        await self._server.check()
        connection = self._server.connection()
        try:
            await connection.connect()
            async with asyncio.TaskGroup() as group:
                for work in (self._read, self._write, self._ping):
                    group.create_task(work(connection))
                await self._complete.wait()
                await self._restored()
                if self._closed:  # redis-py may have kept the cancellation to itself
                    raise asyncio.CancelledError
        finally:
            await connection.disconnect(nowait=True)

    def _subscribe(self, *channels: str) -> None:
        self._unanswered.update(channels)
        self._outbox.put_nowait(("SUBSCRIBE", *channels))

    async def _write(self, connection: Connection) -> None:
        while not _cancelled():
            await connection.send_command(*await self._outbox.get(), check_health=False)

    async def _ping(self, _: Connection) -> None:
        while self._pings < 2:
            self._pings += 1
            self._outbox.put_nowait(("PING",))
            await asyncio.sleep(PING_S)
        raise exceptions.ConnectionError("no answer")

    async def _read(self, connection: Connection) -> None:
        while not _cancelled():
            answer = await _answer(connection)
            self._pings = 0
            match answer:
                case [b"message", bytes() as channel, bytes() as message]:
                    self._heard(channel.decode(), message)
                case [b"subscribe", bytes() as channel, int()]:
                    self._answered(channel.decode())
                case _:  # a pong, or the end of a subscription
                    pass

    def _answered(self, channel: str) -> None:
        """The last of its subscriptions counts: others were ended again."""
        self._unanswered[channel] -= 1
        if not self._unanswered[channel]:
            del self._unanswered[channel]
            if (ready := self._channels.get(channel)) is not None:
                ready.set()
        if not self._unanswered:
            self._complete.set()


def _cancelled() -> bool:
    """Whether it is, though `wait_for` in redis-py (before Python 3.12) may have dropped it: it
    does when what it waits for is done.
    """
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


async def _answer(connection: Connection) -> object:
    return await connection.read_response(timeout=math.inf)  # pyright: ignore[reportUnknownVariableType]
