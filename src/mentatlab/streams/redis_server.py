"""A Redis as the log needs it: asked again while it is away, and known for what it promises.

Each time it may be another server or another state of the data (at the start, after every lost
connection) it is looked at anew before anything else is asked: does it keep what it acknowledges,
and is it still the data set that readers know? See docs/decisions/0010.
"""

import asyncio
import logging
import re
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, NamedTuple

from redis import exceptions
from redis.asyncio import BlockingConnectionPool, Connection, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from mentatlab.protocol.errors import Code, Internal, Invalid, MentatError, OutOfSpace, Unavailable
from mentatlab.streams import redis_scripts as scripts
from mentatlab.streams.redis_scripts import Script
from mentatlab.streams.redis_transaction import Rules

Argument = bytes | str | int | float
Command = tuple[Argument, ...]

CONNECTIONS = 16
PATIENCE_S = 5.0
_TIMEOUT_S = 5.0  # for one answer
_RUN_ID = re.compile(r"^run_id:(\w+)", re.MULTILINE)
_logger = logging.getLogger(__name__)

_REFUSED = (
    exceptions.AuthenticationError,
    exceptions.AuthorizationError,
    exceptions.NoPermissionError,
)
_PASSING = (
    exceptions.ConnectionError,
    exceptions.TimeoutError,
    exceptions.ReadOnlyError,
    exceptions.NoScriptError,
    exceptions.ClusterDownError,
    exceptions.TryAgainError,
)
"""What another try may cure: it restarts, loads its data, or another server takes its place."""


class Answers(NamedTuple):
    """`unsure`: a try before this one may have been carried out too."""

    values: list[Any]
    unsure: bool


class RedisServer:
    """`patience_s`: how long a call waits for a Redis that is away.

    `looked` is awaited whenever it was looked at, before anything else is asked; within it only
    `send` may be used.
    """

    def __init__(
        self,
        url: str,
        *,
        prefix: str,
        allow_relaxed: bool = False,
        patience_s: float = PATIENCE_S,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.prefix, self._patience_s, self._clock = prefix, patience_s, clock
        self._allow_relaxed = allow_relaxed
        self._pool = _pool(url, self._met)
        self._redis = Redis.from_pool(self._pool)
        self._checked, self._checking = False, asyncio.Lock()
        self._process = ""  # of the Redis, as it names itself
        self.rules = Rules(epoch=0)
        self.looked: Callable[[], Awaitable[None]] = _nothing

    @property
    def channel(self) -> str:
        """Where processes that share the data set tell each other of it."""
        return f"{self.prefix}news"

    def connection(self) -> Connection:
        """A connection of its own, for the caller to open and close."""
        return self._pool.make_connection()  # pyright: ignore  (redis-py leaves its types open)

    async def call(self, script: Script, keys: Sequence[str], *args: Argument) -> Any:
        return (await self.commands(command(script, keys, *args))).values[0]

    async def ask(self, *words: Argument) -> Any:
        return (await self.commands(words)).values[0]

    async def commands(self, *commands: Command) -> Answers:
        """In one go, in order. `Unavailable(UNAVAILABLE)`, `OutOfSpace(DISK_FULL)`, `Internal`."""
        loop, wait_s, unsure = asyncio.get_running_loop(), 0.01, False
        deadline = loop.time() + self._patience_s
        while True:
            sent = False
            try:
                await self.check()
                sent = True
                return Answers(await self.send(*commands), unsure)
            except exceptions.RedisError as error:
                if not _passes(error) or loop.time() + wait_s > deadline:
                    raise _translated(error) from error
                unsure = unsure or sent
                self._checked = False
            await asyncio.sleep(wait_s)
            wait_s = min(2 * wait_s, 0.5)

    async def send(self, *commands: Command) -> list[Any]:
        """At once, and once. What Redis raises."""
        values = await self._try(*commands)
        for value in values:
            if isinstance(value, exceptions.RedisError):
                raise value
        return values

    async def _try(self, *commands: Command) -> list[Any]:
        """Errors stand among the answers, but those of the connection."""
        pipeline = self._redis.pipeline(transaction=False)
        for words in commands:
            pipeline.execute_command(*words)  # pyright: ignore[reportUnknownMemberType]
        return await pipeline.execute(raise_on_error=False)

    def doubt(self) -> None:
        """A connection was lost: look again before the next call."""
        self._checked = False

    async def check(self) -> None:
        """Look at the server, once, however many wait. What Redis raises, and `looked`."""
        if self._checked:
            return
        async with self._checking:
            if not self._checked:
                self._process = ""
                await self._pool.disconnect(inuse_connections=False)
                self.rules = await self._look()
                await self.looked()
                self._checked = True

    async def _met(self, connection: Connection) -> None:
        """Every connection leads to the server that was looked at; redis-py makes new ones."""
        await connection.on_connect()
        await connection.send_command("INFO", "server")
        found = _RUN_ID.search(await _text(connection))
        process = "" if found is None else found[1]
        if self._process not in ("", process):
            self._checked = False
            raise exceptions.ConnectionError("another Redis answers there now")
        self._process = process

    async def _look(self) -> Rules:
        weakness = await self._weakness()
        replication, *_ = await self.send(
            ("INFO", "replication"), *(("SCRIPT LOAD", script.source) for script in scripts.ALL)
        )
        origin = str(replication.get("master_replid2", ""))  # zeros: it took over from nobody
        (epoch,) = await self.send(
            command(
                scripts.RECOGNISE,
                (f"{self.prefix}data", self.channel),
                self._process,
                origin if origin.strip("0") else "",
                int(bool(weakness)),
                int(self._clock() * 1000),
            )
        )
        if weakness and not self._allow_relaxed:
            _logger.warning("commit streams are refused: %s", weakness)
        return Rules(epoch, "" if self._allow_relaxed else weakness)

    async def _weakness(self) -> str:
        """Why an acknowledged record could be lost; "" when it could not."""
        names = ("appendonly", "appendfsync", "maxmemory-policy")
        found = await self._try(*(("CONFIG GET", name) for name in names))
        for answer in found:
            if isinstance(answer, exceptions.RedisError):
                if _passes(answer):
                    raise answer
                return f"its settings may not be read (CONFIG GET: {answer})"
        has = {name: answer.get(name, "") for name, answer in zip(names, found, strict=True)}
        if has["appendonly"] != "yes":
            return "`appendonly` is not `yes`"
        if has["appendfsync"] != "always":
            return f"`appendfsync` is `{has['appendfsync']}`, not `always`"
        if has["maxmemory-policy"].startswith("allkeys"):
            return f"`maxmemory-policy` is `{has['maxmemory-policy']}`, it may drop any key"
        return ""

    async def raise_epoch(self) -> None:
        """Records that somebody has seen are missing: all cursors of this data set are over."""
        keys = (f"{self.prefix}data", self.channel)
        epoch = (await self.send(command(scripts.RAISE, keys, self.rules.epoch)))[0]
        _logger.warning("records are missing in Redis: streams go on in epoch %s", epoch)
        self.rules = self.rules._replace(epoch=epoch)

    async def aclose(self) -> None:
        await self._redis.aclose()
        await self._pool.aclose()


def command(script: Script, keys: Sequence[str], *args: Argument) -> Command:
    return ("EVALSHA", script.sha, len(keys), *keys, *args)


async def _text(connection: Connection) -> str:
    answer: object = await connection.read_response()  # pyright: ignore[reportUnknownVariableType]
    return answer.decode() if isinstance(answer, bytes) else ""


def _pool(url: str, connected: Callable[[Connection], Awaitable[None]]) -> BlockingConnectionPool:
    """`Invalid(BAD_SETTING)`"""
    try:
        return BlockingConnectionPool.from_url(  # pyright: ignore[reportUnknownMemberType]
            url,
            max_connections=CONNECTIONS,
            timeout=_TIMEOUT_S,
            retry=Retry(NoBackoff(), 0),
            socket_timeout=_TIMEOUT_S,
            socket_connect_timeout=_TIMEOUT_S,
            protocol=2,
            redis_connect_func=connected,
        )
    except ValueError as error:
        raise Invalid(
            Code.BAD_SETTING,
            f"not the address of a Redis: {error}",
            hint="write redis://HOST:PORT/0, rediss://… for TLS, or unix://PATH",
        ) from error


def _passes(error: exceptions.RedisError) -> bool:
    return isinstance(error, _PASSING) and not isinstance(error, _REFUSED)


def _translated(error: exceptions.RedisError) -> MentatError:
    if isinstance(error, _REFUSED):
        return Invalid(
            Code.BAD_SETTING,
            f"Redis refuses this server: {error}",
            hint="look at the user and the password in MENTATLAB_LOG, and at what that user may do",
        )
    if isinstance(error, _PASSING):
        return Unavailable(
            Code.UNAVAILABLE,
            f"the log cannot be reached: {error}",
            hint="try again; a publisher with a `producer` sends nothing twice",
        )
    if _is_full(error):
        return OutOfSpace(
            Code.DISK_FULL,
            f"Redis takes no more records: {error}",
            hint="give it memory and disk, or let streams go with `retain_s` and `max_bytes`",
        )
    return Internal(Code.DATABASE_ERROR, f"Redis: {error}", hint="look at the log of the Redis")


def _is_full(error: exceptions.RedisError) -> bool:
    """No memory (said differently inside a script, and by Redis 7), or no disk."""
    said = str(error)
    return isinstance(error, exceptions.OutOfMemoryError) or "OOM" in said or "MISCONF" in said


async def _nothing() -> None:
    """Nobody wants to know."""
