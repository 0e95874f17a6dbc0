"""Both logs keep the contract; what is special to each."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from msgspec import structs

from mentatlab.protocol.errors import Code, Conflict, Fenced, OutOfSpace
from mentatlab.protocol.records import Producer, data_draft, end_draft, start_draft
from mentatlab.streams import MemoryStreamLog, StreamLog
from mentatlab.streams.routed import RoutedLog
from mentatlab.streams.sqlite import open_sqlite
from mentatlab.testing.stream_log_contract import NOW, StreamLogContract, append, lane, opened


@pytest.mark.parametrize("external", [True, False])
@pytest.mark.parametrize("kind", ["memory", "sqlite"])
async def test_a_clients_lane_forgets_who_published_longest_ago(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kind: str, external: bool
) -> None:
    monkeypatch.setattr(f"mentatlab.streams.{'rows' if kind == 'sqlite' else kind}.PRODUCERS", 4)
    log = MemoryStreamLog() if kind == "memory" else await open_sqlite(tmp_path / "s.db")
    stream_id = await opened(log, structs.replace(lane(), external=external))

    async def publish(name: str, seq: int = 1, epoch: int = 0) -> None:
        producer = Producer(id=name, epoch=epoch, seq=seq)
        await append(log, stream_id, data_draft(name), producer=producer)

    async def known(names: str) -> str:
        return "".join([name for name in names if await log.producer(stream_id, name)])

    await publish("a")  # its server gave it up
    await log.fence(stream_id, "a")
    await publish("b", epoch=1)  # has taken over from another
    for name in "cd":
        await publish(name)
    await publish("c", seq=2)
    assert await known("abcd") == "abcd"
    await publish("e")
    await publish("f")
    assert await known("abcdef") == ("abef" if external else "abcdef")
    for name in "ab":
        with pytest.raises(Fenced):
            await publish(name, seq=2)
    await publish("e", epoch=1)
    await publish("f", epoch=1)
    await publish("g")  # a newcomer is not sent away, and who is fenced out goes last
    await publish("g", seq=2)
    assert await known("abefg") == ("befg" if external else "abefg")
    await log.aclose()


class TestMemory(StreamLogContract):
    @pytest.fixture
    async def log(self) -> AsyncIterator[StreamLog]:
        log = MemoryStreamLog()
        yield log
        await log.aclose()

    async def test_a_live_stream_goes_on_in_a_full_log(self) -> None:
        """Its own oldest data make room, and its readers see a gap; a smaller one keeps its own."""
        log = MemoryStreamLog(max_bytes=1_000_000)
        small, live = (
            structs.replace(lane(name, durability="memory"), external=True) for name in "ab"
        )
        for each in (small, live):
            await opened(log, each)
        await append(log, small.stream_id, data_draft("mine"))
        for number in range(400):
            await append(log, live.stream_id, data_draft([number, "x" * 10_000]))
        now = await log.get(live.stream_id)
        assert (now.head, now.state) == (401, "open")
        assert now.floor > 300
        assert now.kept < 1_000_000
        first, next_, *_ = await log.read(live.stream_id, 0)
        assert (first.sequence, next_.sequence) == (1, now.floor)
        assert len(await log.read(small.stream_id, 0)) == 2

    async def test_ended_runs_make_room_and_open_ones_do_not(self) -> None:
        log = MemoryStreamLog(max_bytes=3000)
        done = await opened(log, lane(run_id="rn_1", durability="memory"))
        await append(log, done, data_draft("x" * 1000), end_draft("complete", chunks=0))
        live = await opened(log, lane(run_id="rn_2", durability="memory"))
        await append(log, live, data_draft("x" * 1000))
        assert done not in log
        with pytest.raises(OutOfSpace) as caught:
            await append(log, live, data_draft("x" * 2000))
        assert caught.value.code is Code.STREAM_BUFFER_EXCEEDED
        assert (await log.get(live)).head == 2

    async def test_a_stream_can_end_when_there_is_no_room(self) -> None:
        log = MemoryStreamLog(max_bytes=2000)
        live = await opened(log, lane(durability="memory"))

        async def fill() -> None:
            while True:
                await append(log, live, data_draft(1))

        with pytest.raises(OutOfSpace):
            await fill()
        await append(log, live, end_draft("complete", chunks=0))
        assert (await log.get(live)).state == "ended"
        other = await opened(log, lane(run_id="rn_2", durability="memory"))
        assert other in log
        assert live not in log

    async def test_lanes_are_bounded(self) -> None:
        log = MemoryStreamLog(max_lanes=2)
        done = await opened(log, lane("a", run_id="rn_1"))
        await append(log, done, end_draft("complete", chunks=0))
        await opened(log, lane("b", run_id="rn_2"))
        again = await opened(log, lane("c", run_id="rn_1"))  # the very run that has to go
        assert done not in log
        assert [each.stream_id for each in await log.lanes("rn_1")] == [again]
        with pytest.raises(OutOfSpace):
            await opened(log, lane("d", run_id="rn_3"))


class TestSqlite(StreamLogContract):
    @pytest.fixture
    async def log(self, tmp_path: Path) -> AsyncIterator[StreamLog]:
        log = await open_sqlite(tmp_path / "streams.db")
        yield log
        await log.aclose()

    async def test_everything_is_there_after_a_restart(self, tmp_path: Path) -> None:
        path, producer = tmp_path / "again.db", Producer(id="p", epoch=1, seq=1)
        log = await open_sqlite(path)
        stream_id = await opened(log)
        await append(log, stream_id, data_draft(1), producer=producer)
        before = (await log.get(stream_id), await log.read(stream_id, 0), await log.run("rn_1"))
        await log.aclose()
        log = await open_sqlite(path)
        try:
            after = (await log.get(stream_id), await log.read(stream_id, 0), await log.run("rn_1"))
            assert after == before
            assert (await append(log, stream_id, data_draft(1), producer=producer)).duplicate
        finally:
            await log.aclose()


class TestRouted(StreamLogContract):
    @pytest.fixture
    async def log(self, tmp_path: Path) -> AsyncIterator[StreamLog]:
        log = RoutedLog(await open_sqlite(tmp_path / "streams.db"), MemoryStreamLog(epoch=7))
        yield log
        await log.aclose()

    async def test_a_run_with_memory_lanes_only_has_an_empty_order(self, tmp_path: Path) -> None:
        log = RoutedLog(await open_sqlite(tmp_path / "one.db"), MemoryStreamLog(epoch=7))
        try:
            await opened(log, lane(durability="memory"))
            assert ((await log.run("rn_1")).epoch, (await log.run("rn_1")).head) == (1, 0)
            assert await log.read_run("rn_1", 0) == []
        finally:
            await log.aclose()


async def test_a_start_with_an_identity_is_no_free_repeat() -> None:
    log = MemoryStreamLog()
    stream_id = await opened(log)
    producer = Producer(id="p", epoch=0, seq=1)
    with pytest.raises(Conflict):
        await log.append(stream_id, [start_draft()], now=NOW, producer=producer)
