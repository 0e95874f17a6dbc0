"""The log on a real Redis, and what is true of it when several processes share it."""

import asyncio
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing, suppress
from pathlib import Path

import msgspec
import pytest
from tests.support.cutting import cutting
from tests.support.redis import DURABLE, RedisProcess, redis_server

from mentatlab.protocol.errors import (
    Code,
    Fenced,
    Internal,
    Invalid,
    MentatError,
    NotFound,
    OutOfSpace,
    Unavailable,
)
from mentatlab.protocol.records import Producer, data_draft, end_draft, start_draft
from mentatlab.streams import StreamingConnectionManager, redis_writer
from mentatlab.streams import redis as redis_log
from mentatlab.streams.leases import Lease
from mentatlab.streams.port import Audience, Entry, Retention
from mentatlab.streams.redis import RedisStreamLog, open_redis_log
from mentatlab.streams.redis_scripts import NEWS_BYTES
from mentatlab.streams.redis_server import Answers, Command, RedisServer
from mentatlab.testing.stream_log_contract import (
    NOW,
    StreamLogContract,
    append,
    binary,
    lane,
    numbers,
    opened,
    sequences,
    values,
)

Open = Callable[..., Awaitable[RedisStreamLog]]


@pytest.fixture
def prefix(tmp_path: Path) -> str:
    return f"{tmp_path.name}:"


@pytest.fixture
async def another(redis: RedisProcess, prefix: str) -> AsyncIterator[Open]:
    """Opens the log as one more process would."""
    logs: list[RedisStreamLog] = []

    async def open_(url: str = redis.url, **options: float | bool | bytes) -> RedisStreamLog:
        logs.append(await open_redis_log(url, prefix=prefix, **options))  # type: ignore[arg-type]
        return logs[-1]

    yield open_
    for log in logs:
        await log.aclose()


@pytest.fixture
async def log(another: Open) -> RedisStreamLog:
    return await another()


class TestRedisLog(StreamLogContract):
    pass


# ---------------------------------------------------------------------- two processes


async def test_two_processes_append_to_one_run_without_holes(another: Open) -> None:
    logs = [await another(), await another()]
    ids = [await opened(logs[0], lane(name)) for name in "ab"]

    async def publish(name: int, log: RedisStreamLog) -> None:
        for seq in range(1, 41):
            producer = Producer(id=f"p{name}", epoch=0, seq=seq)
            await append(log, ids[seq % 2], *numbers(seq), producer=producer)

    async def publish_one_lane(name: int, log: RedisStreamLog) -> None:
        for seq in range(1, 41):
            producer = Producer(id=f"q{name}", epoch=0, seq=seq)
            await append(log, ids[0], *numbers(seq), producer=producer)

    with pytest.raises(MentatError):  # each lane sees every other number only
        await publish(0, logs[0])
    await asyncio.gather(*(publish_one_lane(n, logs[n % 2]) for n in range(6)))
    for log in logs:
        records = await log.read(ids[0], 0, max_records=1000)
        assert sequences(records) == list(range(1, len(records) + 1))
        assert len(records) == 1 + 6 * 40
        order = await log.read_run("rn_1", 0, max_records=1000)
        assert [r.rseq for r in order] == list(range(1, len(order) + 1))


async def test_what_one_process_did_binds_the_other(another: Open) -> None:
    one, two = await another(), await another()
    stream_id = await opened(one)

    async def send(log: RedisStreamLog, seq: int, epoch: int = 0) -> tuple[int, int, bool]:
        producer = Producer(id="p", epoch=epoch, seq=seq)
        return (await append(log, stream_id, *numbers(seq), producer=producer))[:3]

    assert await send(one, 1) == (2, 2, False)
    assert await send(two, 1) == (2, 2, True)
    assert await send(two, 2) == (3, 3, False)
    assert await send(one, 3) == (4, 4, False)  # what it believed was old: no hole for it
    await two.fence(stream_id, "p")
    with pytest.raises(Fenced):
        await send(one, 4)
    assert await send(one, 1, epoch=1) == (5, 5, False)
    await append(two, stream_id, end_draft("complete", chunks=0))
    with pytest.raises(MentatError) as caught:
        await append(one, stream_id, *numbers(9))
    assert caught.value.code is Code.STREAM_ENDED
    await one.delete_run("rn_1")
    with pytest.raises(NotFound):
        await append(two, stream_id, *numbers(9))
    await opened(one)
    assert (await append(two, stream_id, *numbers(9))).first == 2


async def test_a_lane_is_made_once(another: Open) -> None:
    logs = [await another(), await another()]
    made = await asyncio.gather(
        *(
            log.open(msgspec.structs.replace(lane(), stream_id=f"st_{n}"), start_draft(), now=NOW)
            for n in range(4)
            for log in logs
        )
    )
    assert len({one.lane.stream_id for one in made}) == 1
    assert sum(len(one.entries) for one in made) == 1
    (kept,) = await logs[0].lanes("rn_1")
    for n in range(4):
        if f"st_{n}" != kept.stream_id:
            with pytest.raises(NotFound):
                await logs[0].get(f"st_{n}")


async def test_an_id_of_another_run_is_taken(log: RedisStreamLog) -> None:
    await log.create(lane())
    with pytest.raises(MentatError) as caught:
        await log.create(msgspec.structs.replace(lane(run_id="rn_2"), stream_id="st_rn_1_a"))
    assert caught.value.code is Code.CONFLICT
    assert await log.lanes("rn_2") == []


async def test_an_attempt_after_many_records_and_a_short_lane_elsewhere(another: Open) -> None:
    """What is void is measured, and what goes is chosen, by who did not write it."""
    one, two = await another(), await another()
    stream_id = await opened(one, lane(retention=Retention(max_bytes=10_000)))
    await append(one, stream_id, *numbers(*range(1500)))
    await append(one, stream_id, *numbers(1, 2, 3))
    before = await two.get(stream_id)
    await append(two, stream_id, start_draft(attempt=2, resume_from=before.head - 2))
    after = await two.get(stream_id)
    assert before.chunks - after.chunks == 2
    assert before.bytes - after.bytes == sum(
        len(msgspec.json.encode(draft.payload)) for draft in numbers(2, 3)
    )
    assert after.kept <= 10_000
    held = await one.read(stream_id, 0, max_records=1000)
    assert sequences(held) == [1, *range(after.floor, after.head + 1)]
    assert await one.read_run("rn_1", 0, max_records=1000) == held


# ---------------------------------------------------------------------- telling


class Ears:
    def __init__(self, log: RedisStreamLog) -> None:
        self.entries: list[Entry] = []
        self.missed: list[str] = []
        self.epochs: list[int] = []
        self._changed = asyncio.Condition()
        self._tasks: list[asyncio.Task[None]] = []
        log.tell(Audience(self._appended, self._missed, self._lost))

    def _appended(self, entries: Sequence[Entry]) -> None:
        self.entries += entries
        self._notify()

    def _missed(self, key: str) -> None:
        self.missed.append(key)
        self._notify()

    def _lost(self, epoch: int) -> None:
        self.epochs.append(epoch)
        self._notify()

    def _notify(self) -> None:
        async def notify() -> None:
            async with self._changed:
                self._changed.notify_all()

        self._tasks.append(asyncio.create_task(notify()))

    async def until(self, told: Callable[[], object]) -> None:
        async with self._changed, asyncio.timeout(20):
            await self._changed.wait_for(told)


async def test_what_is_watched_is_told(another: Open) -> None:
    one, two = await another(), await another()
    ears = Ears(two)
    a, b = await opened(one, lane("a")), await opened(one, lane("b"))
    elsewhere = await opened(one, lane(run_id="rn_2"))
    await two.watch(a)
    await two.watch("rn_1")
    await append(one, elsewhere, *numbers(0))
    sent = (await append(one, a, *numbers(1, 2))).entries
    sent += (await append(one, b, *numbers(3))).entries
    sent += (await append(two, a, *numbers(4))).entries
    await ears.until(lambda: len(ears.entries) == 4)
    assert tuple(ears.entries) == sent
    await append(one, a, *[binary(b"x" * NEWS_BYTES) for _ in range(2)])
    await ears.until(lambda: ears.missed)
    assert ears.missed == [a, "rn_1"]
    two.unwatch("rn_1")
    await append(one, a, *numbers(5))
    await ears.until(lambda: len(ears.entries) == 5)
    two.unwatch(a)
    two.unwatch(a)
    await two.watch(elsewhere)
    await append(one, a, *numbers(6))
    await append(one, elsewhere, *numbers(7))
    await ears.until(lambda: len(ears.entries) == 6)
    assert values(ears.entries[-1:]) == [7]


async def test_who_watches_hears_of_deletion_and_expiry(another: Open) -> None:
    one, two = await another(), await another()
    ears = Ears(two)
    a = await opened(one, lane(retention=Retention(retain_s=1)))
    await append(one, a, end_draft("complete", chunks=0))
    await two.watch(a)
    await one.expire(a)
    await ears.until(lambda: a in ears.missed)
    ears.missed.clear()
    await one.delete_run("rn_1")
    await ears.until(lambda: "rn_1" in ears.missed and a in ears.missed)


async def test_after_a_lost_connection_the_log_is_asked(
    redis: RedisProcess, another: Open, prefix: str
) -> None:
    log = await another()
    ears = Ears(log)
    stream_id = await opened(log)
    await log.watch(stream_id)
    redis.command("CLIENT", "KILL", "TYPE", "pubsub")
    async with asyncio.timeout(20):
        while f"{prefix}{{rn_1}}".encode() not in redis.command("PUBSUB", "CHANNELS"):
            await asyncio.sleep(0.01)
    await append(log, stream_id, *numbers(1))
    await ears.until(lambda: ears.entries and stream_id in ears.missed)
    assert not ears.epochs


async def test_readers_in_two_processes_get_the_same(another: Open) -> None:
    async with (
        aclosing(StreamingConnectionManager(await another())) as one,
        aclosing(StreamingConnectionManager(await another())) as two,
    ):
        session = await one.create_stream("me", "out")
        async with (
            two.subscribe(session.stream_id) as lane_reader,
            two.subscribe(session.run_id) as run_reader,
            asyncio.timeout(20),
        ):
            got: list[int] = []
            for number in range(1, 30):
                hub = (one, two)[number % 2]
                await hub.publish(session.stream_id, numbers(number))
                while len(got) < number:
                    items = await lane_reader.batch()
                    got += values([i.entry for i in items if i.entry.type == "stream_data"])
            await one.end_stream(session.stream_id)
            assert got == list(range(1, 30))
            assert [r.sequence async for r in run_reader] == list(range(1, 32))
            assert [r.type async for r in lane_reader] == ["stream_end"]


# ---------------------------------------------------------------------- a bad network


class Mute:
    """A line to Redis on which answers can get lost."""

    def __init__(self, redis: RedisProcess) -> None:
        self._redis, self.muted, self._lines = redis, False, list[asyncio.StreamWriter]()
        self._server: asyncio.Server

    async def __aenter__(self) -> str:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return f"redis://127.0.0.1:{self._server.sockets[0].getsockname()[1]}/0"

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        self.cut()

    def cut(self) -> None:
        """The lines that there are; new ones are whole."""
        self.muted = False
        for line in self._lines:
            line.transport.abort()
        self._lines.clear()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        upstream, sink = await asyncio.open_connection("127.0.0.1", self._redis.port)
        self._lines += (writer, sink)
        await asyncio.gather(self._pass(reader, sink, False), self._pass(upstream, writer, True))

    async def _pass(
        self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, answers: bool
    ) -> None:
        with suppress(ConnectionError):
            while block := await source.read(65_536):
                if not (answers and self.muted):
                    sink.write(block)


@pytest.mark.parametrize("overtaken", [False, True])
async def test_a_lost_answer(redis: RedisProcess, another: Open, overtaken: bool) -> None:
    """The append is found there; if others have written since, nobody can tell: it says so."""
    whole = await another()
    stream_id = await opened(whole)
    ears = Ears(whole)
    await whole.watch(stream_id)
    mute = Mute(redis)
    async with mute as url:
        log = await another(url)
        await append(log, stream_id, *numbers(1))
        mute.muted = True
        waiting = asyncio.create_task(append(log, stream_id, *numbers(2)))
        await ears.until(lambda: len(ears.entries) == 2)
        if overtaken:
            await append(whole, stream_id, *numbers(3))
        mute.cut()
        if overtaken:
            with pytest.raises(Unavailable):
                await waiting
        else:
            assert (await waiting)[:3] == (3, 3, False)
        assert (await append(log, stream_id, *numbers(4))).duplicate is False
        await log.aclose()
    found = values(await whole.read(stream_id, 1))
    assert found == ([1, 2, 3, 4] if overtaken else [1, 2, 4])


async def test_a_run_that_many_write_to_gives_way(
    another: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With one try only, whoever is late is told so, and can try again."""
    one, two = await another(), await another()
    stream_id = await opened(one)
    monkeypatch.setattr(redis_writer, "TRIES", 1)
    with pytest.raises(Unavailable):  # it has not met the lane yet
        await append(two, stream_id, *numbers(1))
    assert (await append(two, stream_id, *numbers(1))).first == 2


async def test_what_is_too_much_for_one_call_comes_in_several(
    another: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = await another()
    stream_id = await opened(log)
    monkeypatch.setattr(redis_writer, "CALL_BYTES", 100_000)
    drafts = [binary(bytes([n]) * 30_000) for n in range(20)]
    answers = await asyncio.gather(*(append(log, stream_id, draft) for draft in drafts))
    assert [answer.first for answer in answers] == list(range(2, 22))
    found = await log.read(stream_id, 1, max_bytes=1 << 20)
    assert [entry.record.payload["bytes"][0] for entry in found] == list(range(20))


async def test_runs_that_are_idle_are_forgotten(
    another: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = await another()
    monkeypatch.setattr(redis_writer, "RUNS", 2)
    monkeypatch.setattr(redis_log, "REMEMBERED", 3)
    ids = [await opened(log, lane(run_id=f"rn_{n}")) for n in range(8)]
    for stream_id in ids:
        assert (await append(log, stream_id, *numbers(1))).first == 2


@pytest.mark.parametrize("seed", range(4))
async def test_connections_that_break_cost_nothing(
    redis: RedisProcess, another: Open, seed: int
) -> None:
    """Whatever was asked or answered when the line was cut: each record is there once."""
    whole = await another()
    ids = [await opened(whole, lane("a", run_id=f"rn_{n}")) for n in range(4)]
    async with cutting(redis.url, seed=seed, most_bytes=60_000) as (url, cutter):
        cut = await another(url.replace("http:", "redis:"), patience_s=30)

        async def publish(stream_id: str, name: str) -> None:
            for seq in range(1, 101, 4):
                producer = Producer(id=name, epoch=0, seq=seq)
                drafts = numbers(*range(seq, seq + 4))
                while True:
                    try:
                        await append(cut, stream_id, *drafts, producer=producer)
                        break
                    except Unavailable:
                        pass

        await asyncio.gather(*(publish(id_, name) for id_ in ids for name in "pq"))
        assert cutter.cuts > 2
    for stream_id in ids:
        records = (await whole.read(stream_id, 0, max_records=1000))[1:]
        assert sequences(records) == list(range(2, 202))
        assert sorted(values(records)) == sorted([*range(1, 101)] * 2)


async def test_who_writes_on_while_all_flights_land_is_carried_too(
    another: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answers of all flights come at once, and only the first wakes who writes again."""
    log = await another()
    ids = [await opened(log, lane(run_id=f"rn_{n}")) for n in range(redis_writer.FLIGHTS)]
    up, landing = asyncio.Semaphore(0), asyncio.Event()
    ask = RedisServer.commands

    async def commands(self: RedisServer, *given: Command) -> Answers:
        answers = await ask(self, *given)
        up.release()
        await landing.wait()
        return answers

    async def publish(stream_id: str, count: int) -> None:
        for n in range(count):
            await append(log, stream_id, *numbers(n))

    monkeypatch.setattr(RedisServer, "commands", commands)
    async with asyncio.timeout(60), asyncio.TaskGroup() as publishers:
        for stream_id in ids:
            publishers.create_task(publish(stream_id, 3 if stream_id == ids[0] else 1))
            await up.acquire()
        landing.set()
    assert values(await log.read(ids[0], 1)) == [0, 1, 2]


async def test_it_closes_whatever_it_does_just_then(redis: RedisProcess, prefix: str) -> None:
    """It looks at its Redis once more when it has begun to listen; redis-py may keep a cancellation
    to itself meanwhile."""
    async with asyncio.timeout(60):
        for passes in range(60):
            async with aclosing(await open_redis_log(redis.url, prefix=prefix)):
                for _ in range(passes):
                    await asyncio.sleep(0)


async def test_a_redis_that_is_away_is_told(tmp_path: Path) -> None:
    with redis_server(tmp_path) as process:
        async with aclosing(await open_redis_log(process.url, prefix="p:", patience_s=0.2)) as log:
            stream_id = await opened(log)
            process.kill()
            for call in (
                append(log, stream_id, *numbers(1)),
                log.read(stream_id, 0),
                log.claim("t", 1),
                log.open(lane("b"), start_draft(), now=NOW),
            ):
                with pytest.raises(Unavailable):
                    await call
            with pytest.raises(Unavailable):
                await log.watch(stream_id)
            process.start()
            assert (await append(log, stream_id, *numbers(1))).first == 2
            await log.watch(stream_id)
    with pytest.raises(Unavailable):
        await open_redis_log(process.url, prefix="p:", patience_s=0.1)


async def test_a_short_absence_is_waited_for(tmp_path: Path) -> None:
    with redis_server(tmp_path) as process:
        async with aclosing(await open_redis_log(process.url, prefix="p:", patience_s=30)) as log:
            stream_id = await opened(log)
            process.kill()
            waiting = asyncio.create_task(append(log, stream_id, *numbers(1)))
            await asyncio.to_thread(process.start)
            assert (await waiting).first == 2
            assert (await log.get(stream_id)).epoch == (await log.run("rn_1")).epoch


# ---------------------------------------------------------------------- what a Redis promises


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (("--appendonly", "no"), "appendonly"),
        (("--appendonly", "yes", "--appendfsync", "everysec"), "everysec"),
        ((*DURABLE, "--maxmemory-policy", "allkeys-lru"), "allkeys-lru"),
        ((*DURABLE, "--rename-command", "CONFIG", ""), "CONFIG GET"),
    ],
)
async def test_without_durability_there_are_no_commit_lanes(
    tmp_path: Path, options: tuple[str, ...], word: str
) -> None:
    with redis_server(tmp_path, options) as process:
        async with aclosing(await open_redis_log(process.url, prefix="p:")) as log:
            with pytest.raises(Invalid) as caught:
                await log.open(lane(), start_draft(), now=NOW)
            assert caught.value.code is Code.STREAM_NOT_DURABLE
            assert word in caught.value.message
            assert await log.lanes("rn_1") == []
            stream_id = await opened(log, lane("b", durability="memory"))
            assert (await append(log, stream_id, *numbers(1))).first == 2
        relaxed = await open_redis_log(process.url, prefix="p:", allow_relaxed=True)
        async with aclosing(relaxed):
            await opened(relaxed)


async def test_a_bad_address_or_password_is_a_bad_setting(tmp_path: Path) -> None:
    with redis_server(tmp_path, (*DURABLE, "--requirepass", "secret")) as process:
        for url in (process.url, process.url.replace("//", "//:wrong@"), "redis://x:port/0"):
            with pytest.raises(Invalid) as caught:
                await open_redis_log(url, prefix="p:")
            assert caught.value.code is Code.BAD_SETTING
        log = await open_redis_log(process.url.replace("//", "//:secret@"), prefix="p:")
        await log.aclose()


async def test_a_full_redis_takes_nothing(tmp_path: Path) -> None:
    with redis_server(tmp_path, (*DURABLE, "--maxmemory", "8mb")) as process:
        async with aclosing(await open_redis_log(process.url, prefix="p:")) as log:
            stream_id = await opened(log)
            body = b"x" * 1_000_000

            async def fill() -> None:
                for _ in range(20):
                    await append(log, stream_id, binary(body))

            with pytest.raises(OutOfSpace) as caught:
                await fill()
            assert caught.value.code is Code.DISK_FULL
            head = (await log.get(stream_id)).head
            assert sequences(await log.read(stream_id, head - 1)) == [head]


async def test_what_is_no_log_is_a_fault(redis: RedisProcess, log: RedisStreamLog, prefix: str):
    stream_id = await opened(log)
    redis.command("SET", f"{prefix}{{rn_1}}:records:{stream_id}", "something else")
    with pytest.raises(Internal):
        await log.read(stream_id, 0)


async def test_a_fault_holds_up_nobody_who_waits(
    redis: RedisProcess, log: RedisStreamLog, prefix: str
):
    stream_id = await opened(log)
    redis.command("HSET", f"{prefix}{{rn_1}}", f"lane:{stream_id}", "0123456789abcdef{")
    first = asyncio.create_task(append(log, stream_id, *numbers(1)))
    while not first.done():
        waiting = asyncio.create_task(append(log, stream_id, *numbers(2)))
        await asyncio.sleep(0)
    async with asyncio.timeout(20):
        found = await asyncio.gather(first, waiting, return_exceptions=True)
    assert [type(error) for error in found] == [msgspec.DecodeError] * 2


async def test_news_that_cannot_be_understood_are_asked_for(
    redis: RedisProcess, log: RedisStreamLog, prefix: str
) -> None:
    stream_id, ears = await opened(log), Ears(log)
    await log.watch(stream_id)
    redis.command("PUBLISH", f"{prefix}{{rn_1}}:news", "of another version")
    await ears.until(lambda: ears.missed == [stream_id])
    await append(log, stream_id, *numbers(1))
    await ears.until(lambda: ears.entries)


async def test_what_is_remembered_of_a_run_is_bounded(
    log: RedisStreamLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_writer, "CACHED", 4)
    stream_id = await opened(log)
    for n in range(9):
        producer = Producer(id=f"p{n}", epoch=0, seq=1)
        await append(log, stream_id, *numbers(n), producer=producer)
        assert (await append(log, stream_id, *numbers(n), producer=producer)).duplicate
    assert sequences(await log.read(stream_id, 0)) == list(range(1, 11))


async def test_servers_that_share_a_log_share_a_secret(another: Open) -> None:
    await another(secret=b"one")
    await another(secret=b"one")
    with pytest.raises(Invalid) as caught:
        await another(secret=b"two")
    assert caught.value.code is Code.BAD_SETTING


async def test_who_is_alone_may_change_the_secret(redis: RedisProcess, prefix: str) -> None:
    for secret in (b"one", b"two", b"one"):
        await (await open_redis_log(redis.url, prefix=prefix, secret=secret)).aclose()


async def test_leases_are_known_to_all(another: Open) -> None:
    one, two = [(await another()).leases for _ in range(2)]
    leases = [Lease(f"st_{n}", "server", ("p", "q"), NOW + n) for n in range(3)]
    assert await two.run_out(NOW + 9) == []
    await one.renew(leases)
    assert await two.get("st_1") == leases[1]
    assert await two.run_out(NOW + 1) == leases[:2]
    await two.renew([msgspec.structs.replace(leases[0], until=NOW + 5)])
    await two.release("st_1")
    assert await one.get("st_1") is None
    assert await one.run_out(NOW + 2) == leases[2:]


async def test_a_name_is_claimed_once_by_all(another: Open) -> None:
    logs = [await another(), await another()]
    claims = await asyncio.gather(*(log.claim("ticket", 60) for log in logs * 5))
    assert sorted(claims) == [False] * 9 + [True]
    assert await logs[0].claim("other", 60)


# ---------------------------------------------------------------------- epochs


async def restarted(process: RedisProcess, *, change: Callable[[], None] = lambda: None) -> None:
    process.kill()
    change()
    await asyncio.to_thread(process.start)


async def test_a_restart_that_loses_nothing_keeps_the_epoch(tmp_path: Path) -> None:
    with redis_server(tmp_path) as process:
        async with aclosing(await open_redis_log(process.url, prefix="p:")) as log:
            ears = Ears(log)
            stream_id = await opened(log)
            before = (await log.get(stream_id)).cursor
            await log.watch(stream_id)
            await restarted(process)
            await ears.until(lambda: ears.missed)
            assert (await log.get(stream_id)).cursor == before
            assert not ears.epochs


async def test_missing_records_begin_an_epoch(tmp_path: Path) -> None:
    """An older copy of the data is put in place: readers are told, and get what there is."""
    folder, copy = tmp_path / "data", tmp_path / "copy"
    folder.mkdir()
    with redis_server(folder) as process:
        log = await open_redis_log(process.url, prefix="p:")
        async with aclosing(StreamingConnectionManager(log)) as hub:
            session = await hub.create_stream("me", "out", stream_id="st_1")
            await session.publish(data_draft(1))
            before = await log.get("st_1")
            shutil.copytree(folder, copy)
            await session.publish(data_draft(2))
            async with hub.subscribe("st_1", from_="latest") as reader, asyncio.timeout(20):
                assert reader.cursor == (before.epoch, 3)

                def put_back() -> None:
                    shutil.rmtree(folder)
                    shutil.copytree(copy, folder)

                await restarted(process, change=put_back)
                items = await reader.batch()
                assert sequences([item.entry for item in items]) == [1, 2]
                assert reader.gap is not None
                assert (reader.gap.reason, reader.gap.from_) == ("epoch", f"{before.epoch}:3")
                assert reader.gap.next == f"{before.epoch + 1}:0"
                assert str(reader.cursor) == f"{before.epoch + 1}:2"
            assert (await session.publish(data_draft(3))).last == 3
            async with hub.subscribe("st_1", from_=f"{before.epoch}:3") as late:
                assert late.gap is not None
                assert late.gap.reason == "epoch"


async def test_a_restart_without_durability_begins_an_epoch(tmp_path: Path) -> None:
    with redis_server(tmp_path, ("--appendonly", "yes", "--appendfsync", "everysec")) as process:
        options = {"prefix": "p:", "allow_relaxed": True}
        async with aclosing(await open_redis_log(process.url, **options)) as log:  # type: ignore[arg-type]
            stream_id = await opened(log)
            before = await log.get(stream_id)
            process.command("SAVE")
            await restarted(process)
            assert (await log.get(stream_id)).cursor == (before.epoch + 1, before.head)


async def test_a_failover_begins_an_epoch_for_all(tmp_path: Path) -> None:
    (tmp_path / "1").mkdir()
    (tmp_path / "2").mkdir()
    with redis_server(tmp_path / "1") as first:
        async with aclosing(await open_redis_log(first.url, prefix="p:")) as log:
            stream_id = await opened(log)
            epoch = (await log.get(stream_id)).epoch
        follow = ("--replicaof", "127.0.0.1", str(first.port), "--repl-diskless-sync-delay", "0")
        with redis_server(tmp_path / "2", (*DURABLE, *follow)) as second:
            async with asyncio.timeout(30):
                while b"master_link_status:up" not in second.command("INFO", "replication"):
                    await asyncio.sleep(0.05)
            first.kill()
            second.command("REPLICAOF", "NO", "ONE")
            for _ in range(2):  # the second sees nothing new
                async with aclosing(await open_redis_log(second.url, prefix="p:")) as log:
                    assert (await log.get(stream_id)).epoch == epoch + 1
                    assert (await log.lanes("rn_1"))[0].epoch == epoch + 1
