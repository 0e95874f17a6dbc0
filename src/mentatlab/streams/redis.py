"""The log in Redis: one that several gateways share.

The rules are `lanes.append` here, on what this process believes; `RedisWriter` has Redis carry a
decision out if that is still so. Reading asks Redis each time, in one call.
"""

import asyncio
import hashlib
import itertools
import logging
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, TypeVar

import msgspec

from mentatlab.protocol.errors import Code, Invalid, MentatError, NotFound, Unavailable
from mentatlab.protocol.records import Draft, Producer
from mentatlab.streams import redis_scripts as scripts
from mentatlab.streams.port import (
    READ_BYTES,
    READ_RECORDS,
    Appended,
    Audience,
    Entry,
    Known,
    Lane,
    Opened,
    Run,
    check_kept,
    is_due,
    unknown,
)
from mentatlab.streams.redis_leases import RedisLeases
from mentatlab.streams.redis_news import RedisNews
from mentatlab.streams.redis_server import PATIENCE_S, Command, RedisServer
from mentatlab.streams.redis_transaction import (
    VERSION,
    Transaction,
    decode_entry,
    decode_known,
    decode_news,
    lane_of,
    run_of,
    taken,
)
from mentatlab.streams.redis_writer import RedisWriter, RunKeys, keys_of

T = TypeVar("T")
_logger = logging.getLogger(__name__)

REMEMBERED = 65_536
"""Streams that this process knows something of."""


class _Met:
    """A stream as this process knows it: its run, and the last record that it saw."""

    __slots__ = ("head", "run_id")

    def __init__(self, run_id: str) -> None:
        self.run_id, self.head = run_id, 0


class RedisStreamLog:
    """A `StreamLog`, `LiveLog` and `Claims` on a `RedisServer`; `open` it, `aclose` ends both."""

    def __init__(self, server: RedisServer) -> None:
        self._server, self._writer = server, RedisWriter(server)
        self.leases = RedisLeases(server)
        self._news = RedisNews(server, heard=self._heard, restored=self._restored)
        self._audience = Audience(_nothing, _nothing, _nothing)
        self._met: dict[str, _Met] = {}
        self._watched: dict[str, str] = {}  # stream or run id → channel
        self._watchers: Counter[str] = Counter()  # of a channel
        self._told_epoch = 0
        self._tasks: set[asyncio.Task[object]] = set()
        server.looked = self._looked

    async def start(self) -> None:
        """What Redis cannot be used for is known now: `Unavailable`, `Invalid(BAD_SETTING)`."""
        await self._server.ask("PING")
        self._spawn(self._news.run())
        await self._news.watch(self._server.channel)

    async def check_secret(self, secret: bytes) -> None:
        """`Invalid(BAD_SETTING)` when another process is up that has another one."""
        key, ours = f"{self._server.prefix}secret", hashlib.sha256(b"same?" + secret).hexdigest()
        await self._server.ask("SETNX", key, ours)
        theirs, ((_, here),) = (
            await self._server.commands(("GET", key), ("PUBSUB NUMSUB", self._server.channel))
        ).values
        if theirs != ours.encode() and here > 1:
            raise Invalid(
                Code.BAD_SETTING,
                "another server on this Redis signs its tokens with another secret",
                hint="start all of them with the same MENTATLAB_TOKEN_SECRET",
            )
        await self._server.ask("SET", key, ours)

    def _spawn(self, work: Coroutine[Any, Any, object]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # ------------------------------------------------------------------ lanes

    async def create(self, lane: Lane) -> Lane:
        return await self._make(lane, lambda t: t.create(lane), lambda made: made)

    async def open(self, lane: Lane, start: Draft, *, now: float) -> Opened:
        return await self._make(lane, lambda t: t.open(lane, start, now), lambda made: made.lane)

    async def _make(
        self, lane: Lane, work: Callable[[Transaction], T], made_by: Callable[[T], Lane]
    ) -> T:
        """The id is taken first, so that no crash leaves a lane that cannot be found by it."""
        key = self._id_key(lane.stream_id)
        new, run_id, *_ = (
            await self._server.commands(
                ("SETNX", key, lane.run_id), ("GET", key), *self._reminder(lane)
            )
        ).values
        if run_id != lane.run_id.encode():
            raise taken(lane.stream_id)
        try:
            made = await self._writer.write(lane.run_id, work)
        except MentatError as error:
            if new and not isinstance(error, Unavailable):
                await self._server.ask("DEL", key)
            raise
        if new and made_by(made).stream_id != lane.stream_id:
            await self._server.ask("DEL", key)
        return made

    async def get(self, stream_id: str) -> Lane:
        keys = await self._keys_of(stream_id)
        return self._lane(await self._server.ask("HGET", keys.hash, f"lane:{stream_id}"), stream_id)

    async def lanes(self, run_id: str) -> list[Lane]:
        keys = self._keys(run_id)
        found: list[bytes] = await self._server.call(scripts.LANES, (keys.hash, keys.lanes))
        return [lane_of(raw[VERSION:], self._epoch) for raw in found]

    async def run(self, run_id: str) -> Run:
        return self._run(await self._server.ask("HGET", self._keys(run_id).hash, "run"), run_id)

    async def producer(self, stream_id: str, producer_id: str) -> Known | None:
        keys = await self._keys_of(stream_id)
        lane, known = (
            await self._server.commands(
                ("HGET", keys.hash, f"lane:{stream_id}"),
                ("HGET", keys.producers(stream_id), producer_id),
            )
        ).values
        self._lane(lane, stream_id)
        return None if known is None else decode_known(known[VERSION:])

    # ------------------------------------------------------------------ writing

    async def append(
        self,
        stream_id: str,
        drafts: Sequence[Draft],
        *,
        now: float,
        producer: Producer | None = None,
    ) -> Appended:
        appended = await self._change(
            stream_id, lambda t: t.append(stream_id, drafts, now, producer)
        )
        self._seen(stream_id, appended.last)
        return appended

    async def fence(self, stream_id: str, producer_id: str) -> Known | None:
        return await self._change(stream_id, lambda t: t.fence(stream_id, producer_id))

    async def expire(self, stream_id: str) -> Lane:
        return await self._change(stream_id, lambda t: t.expire(stream_id))

    async def _change(self, stream_id: str, work: Callable[[Transaction], T]) -> T:
        run_id = await self._run_of(stream_id)
        try:
            return await self._writer.write(run_id, work)
        except NotFound:
            self._met.pop(stream_id, None)
            raise

    # ------------------------------------------------------------------ reading

    async def read(
        self,
        stream_id: str,
        after: int,
        *,
        max_records: int = READ_RECORDS,
        max_bytes: int = READ_BYTES,
    ) -> list[Entry]:
        keys = await self._keys_of(stream_id)
        lane, found = await self._server.call(
            scripts.READ,
            (keys.hash, keys.records(stream_id)),
            f"lane:{stream_id}",
            max(0, after) + 1,
            max_records,
            max_bytes,
        )
        check_kept(self._lane(lane, stream_id))
        return [decode_entry(each) for each in found]

    async def read_run(
        self,
        run_id: str,
        after: int,
        *,
        max_records: int = READ_RECORDS,
        max_bytes: int = READ_BYTES,
    ) -> list[Entry]:
        keys = self._keys(run_id)
        run, found = await self._server.call(
            scripts.READ_RUN,
            (keys.hash, keys.order),
            max(0, after) + 1,
            max_records,
            max_bytes,
        )
        self._run(run, run_id)
        return [decode_entry(each) for each in found]

    async def at_time(self, id_: str, time_ms: int) -> int:
        try:
            lane, word = await self.get(id_), 2
            key, head = self._keys(lane.run_id).records(id_), lane.head
        except NotFound:
            key, head, word = self._keys(id_).order, (await self.run(id_)).head, 3
        found: int = await self._server.call(scripts.AT_TIME, (key,), time_ms, word)
        return head if found < 0 else found

    # ------------------------------------------------------------------ retention

    async def due(self, now: float, *, limit: int = 100) -> list[Lane]:
        """Lanes are asked about at a time when they may be due; if not, at another one."""
        ids: list[bytes] = await self._server.ask(
            "ZRANGEBYSCORE", self._due_key, "-inf", now, "LIMIT", 0, limit
        )
        found: list[Lane] = []
        for stream_id in map(bytes.decode, ids):
            try:
                lane = await self.get(stream_id)
            except NotFound:
                lane = None
            if lane is not None and is_due(lane, now):
                found.append(lane)
            else:
                await self._remind(stream_id, lane)
        return found

    def _reminder(self, lane: Lane) -> list[Command]:
        if (at := _may_be_due(lane)) is None:
            return []
        return [("ZADD", self._due_key, "LT", at, lane.stream_id)]

    async def _remind(self, stream_id: str, lane: Lane | None) -> None:
        if lane is None or (at := _may_be_due(lane)) is None:
            await self._server.ask("ZREM", self._due_key, stream_id)
        else:
            await self._server.ask("ZADD", self._due_key, at, stream_id)

    async def delete_run(self, run_id: str) -> None:
        ids = await self._server.call(scripts.DELETE, self._keys(run_id).all, run_id)
        for stream_id in map(bytes.decode, ids[:-1]):
            self._met.pop(stream_id, None)
            await self._server.commands(
                ("DEL", self._id_key(stream_id)), ("ZREM", self._due_key, stream_id)
            )

    async def claim(self, name: str, ttl_s: float) -> bool:
        key = f"{self._server.prefix}claim:{name}"
        return bool(await self._server.ask("SET", key, 1, "NX", "PX", max(1, int(ttl_s * 1000))))

    async def aclose(self) -> None:
        await self._writer.aclose()
        self._news.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.aclose()

    # ------------------------------------------------------------------ what others write

    def tell(self, audience: Audience) -> None:
        self._audience = audience

    async def watch(self, key: str) -> None:
        try:
            run_id = await self._run_of(key)
        except NotFound:  # then it is a run's, or there will be nothing to hear
            run_id = key
        channel = self._keys(run_id).news
        if key not in self._watched:
            self._watched[key] = channel
            self._watchers[channel] += 1
        await self._news.watch(channel)

    def unwatch(self, key: str) -> None:
        if (channel := self._watched.pop(key, None)) is None:
            return
        self._watchers[channel] -= 1
        if not self._watchers[channel]:
            del self._watchers[channel]
            self._news.unwatch(channel)

    def _heard(self, channel: str, message: bytes) -> None:
        if channel == self._server.channel:
            self._spawn(self._look_again())
            return
        try:
            missed, entries = decode_news(message)
        except msgspec.DecodeError as error:
            _logger.warning("another server says what this one does not understand: %s", error)
            missed, entries = [key for key, on in self._watched.items() if on == channel], ()
        for key in missed:
            self._audience.missed(key)
        for _, group in itertools.groupby(entries, key=_stream_id):
            self._audience.appended(told := tuple(group))
            self._seen(told[-1].stream_id, told[-1].sequence)

    async def _restored(self) -> None:
        """Nothing was heard for a while."""
        await self._look_again()
        for key in tuple(self._watched):
            self._audience.missed(key)

    async def _look_again(self) -> None:
        self._server.doubt()
        await self._server.ask("PING")

    async def _looked(self) -> None:
        """After a loss: is all still there that this process has seen?"""
        met = [(stream_id, met) for stream_id, met in self._met.items() if met.head]
        if await self._shortened(met):
            await self._server.raise_epoch()
        if self._epoch != self._told_epoch:
            self._writer.forget()
            for _, seen in met:
                seen.head = 0
            if self._told_epoch:
                self._audience.lost(self._epoch)
            self._told_epoch = self._epoch

    async def _shortened(self, met: Sequence[tuple[str, _Met]]) -> bool:
        """Whether a lane has fewer records than were seen. Deleted ones do not count."""
        found = await self._server.send(
            *(("HGET", self._keys(m.run_id).hash, f"lane:{stream_id}") for stream_id, m in met)
        )
        return any(
            raw is not None and lane_of(raw[VERSION:], 0).head < m.head
            for raw, (_, m) in zip(found, met, strict=True)
        )

    # ------------------------------------------------------------------ names

    @property
    def _epoch(self) -> int:
        return self._server.rules.epoch

    @property
    def _due_key(self) -> str:
        return f"{self._server.prefix}due"

    def _id_key(self, stream_id: str) -> str:
        return f"{self._server.prefix}stream:{stream_id}"

    def _keys(self, run_id: str) -> RunKeys:
        return keys_of(self._server.prefix, run_id)

    async def _keys_of(self, stream_id: str) -> RunKeys:
        return self._keys(await self._run_of(stream_id))

    async def _run_of(self, stream_id: str) -> str:
        return (await self._meet(stream_id)).run_id

    async def _meet(self, stream_id: str) -> _Met:
        if (met := self._met.get(stream_id)) is not None:
            return met
        found: bytes | None = await self._server.ask("GET", self._id_key(stream_id))
        if found is None:
            raise unknown(stream_id)
        if len(self._met) >= REMEMBERED:
            del self._met[next(iter(self._met))]
        return self._met.setdefault(stream_id, _Met(found.decode()))

    def _seen(self, stream_id: str, head: int) -> None:
        if (met := self._met.get(stream_id)) is not None and head > met.head:
            met.head = head

    def _lane(self, raw: bytes | None, stream_id: str) -> Lane:
        if raw is None:
            self._met.pop(stream_id, None)
            raise unknown(stream_id)
        lane = lane_of(raw[VERSION:], self._epoch)
        self._seen(stream_id, lane.head)
        return lane

    def _run(self, raw: bytes | None, run_id: str) -> Run:
        if raw is None:
            raise unknown(run_id)
        return run_of(raw[VERSION:], self._epoch)


def _may_be_due(lane: Lane) -> float | None:
    """The earliest time at which its retention can ask for something; None = never."""
    since, keep = lane.changed_at or lane.created_at, lane.retention
    if lane.state == "expired":
        return None
    limits = (keep.ttl_s, keep.retain_s) if lane.state == "open" else (keep.retain_s,)
    return min((since + limit for limit in limits if limit is not None), default=None)


def _stream_id(entry: Entry) -> str:
    return entry.stream_id


def _nothing(_: object) -> None:
    """Nobody listens yet."""


async def open_redis_log(
    url: str,
    *,
    prefix: str,
    allow_relaxed: bool = False,
    patience_s: float = PATIENCE_S,
    secret: bytes | None = None,
) -> RedisStreamLog:
    """A log that is connected. `secret` is what this process signs tokens with: all that share the
    log must have the same. `Invalid(BAD_SETTING)`, `Unavailable(UNAVAILABLE)`.
    """
    log = RedisStreamLog(
        RedisServer(url, prefix=prefix, allow_relaxed=allow_relaxed, patience_s=patience_s)
    )
    try:
        await log.start()
        if secret is not None:
            await log.check_secret(secret)
    except BaseException:
        await log.aclose()
        raise
    return log
