"""Finished runs in one file each: everything reads on as before."""

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest

from mentatlab.protocol.errors import Code, Gone, NotFound
from mentatlab.protocol.records import Producer, data_draft, end_draft
from mentatlab.streams import SqliteStreamLog, StreamingConnectionManager
from mentatlab.streams.port import Entry, Lane, Retention, Run
from mentatlab.streams.sealed import MAGIC
from mentatlab.streams.sealing import Limits
from mentatlab.streams.segment_folder import SegmentFolder
from mentatlab.streams.sqlite import open_sqlite
from mentatlab.testing.stream_log_contract import NOW, append, binary, lane, opened, sequences

LATER = NOW + 1000
END = end_draft("complete", chunks=0)


@pytest.fixture
async def log(tmp_path: Path) -> AsyncIterator[SqliteStreamLog]:
    log = await open_sqlite(tmp_path / "streams.db", limits=Limits(age_s=60, min_bytes=0))
    yield log
    await log.aclose()


def sealed(tmp_path: Path) -> list[Path]:
    folder = tmp_path / "streams-sealed"
    return sorted(folder.iterdir()) if folder.exists() else []


async def finished_run(log: SqliteStreamLog, run_id: str = "rn_1") -> list[str]:
    """Three lanes, interleaved: text, media, and one that keeps its newest bytes only."""
    keep = Retention(max_bytes=2500)
    wanted = (lane("a", run_id=run_id), lane("b", run_id=run_id))
    ids = [await opened(log, each) for each in wanted]
    ids.append(await opened(log, lane("c", run_id=run_id, retention=keep)))
    for number in range(30):
        await append(log, ids[0], data_draft(number), at=NOW + 2 + number)
        await append(log, ids[1], binary(bytes([number]) * 20_000), at=NOW + 2 + number)
        await append(log, ids[2], data_draft("x" * 200), at=NOW + 2 + number)
    for stream_id in ids:
        await append(log, stream_id, END, at=NOW + 40)
    return ids


Reading = tuple[list[Lane], Run, list[list[Entry]], list[Entry], list[int]]


async def order_of(log: SqliteStreamLog, run_id: str = "rn_1", after: int = 0) -> list[Entry]:
    found = list[Entry]()
    while more := await log.read_run(run_id, after):
        found += more
        after = more[-1].rseq or 0
    return found


async def everything(log: SqliteStreamLog, ids: Sequence[str]) -> Reading:
    """All that a reader can ask for, in small steps from everywhere."""
    lanes = await log.lanes("rn_1")
    assert lanes == [await log.get(stream_id) for stream_id in ids]
    by_lane = [await log.read(id_, at, max_records=3) for id_ in ids for at in range(34)]
    by_lane += [
        await log.read(id_, at, max_bytes=50_000) for id_ in ids for at in (0, 1, 7, 31, 99)
    ]
    order = await order_of(log)
    for entry in order:
        assert (await log.read_run("rn_1", (entry.rseq or 0) - 1, max_records=1)) == [entry]
    times = [NOW, NOW + 1.5, NOW + 2, NOW + 9.5, NOW + 31, NOW + 40, NOW + 41]
    positions = [await log.at_time(id_, int(t * 1000)) for id_ in (*ids, "rn_1") for t in times]
    return lanes, await log.run("rn_1"), by_lane, order, positions


async def test_a_sealed_run_reads_as_before(log: SqliteStreamLog, tmp_path: Path) -> None:
    ids = await finished_run(log)
    before = await everything(log, ids)
    await log.tidy(NOW + 99)
    assert sealed(tmp_path) == []
    await log.tidy(NOW + 100)
    (path,) = sealed(tmp_path)
    assert path.read_bytes().startswith(MAGIC)
    assert list((tmp_path / "streams-segments").glob("*.new")) == []
    assert await everything(log, ids) == before
    await log.aclose()
    again = await open_sqlite(tmp_path / "streams.db")
    assert list((tmp_path / "streams-segments").iterdir()) == []
    assert await everything(again, ids) == before
    await again.aclose()


async def test_producers_and_ends_are_remembered(log: SqliteStreamLog) -> None:
    stream_id, producer = await opened(log), Producer(id="p", epoch=1, seq=1)
    await append(log, stream_id, data_draft(1), END, producer=producer)
    await log.tidy(LATER)
    assert (await append(log, stream_id, data_draft(1), END, producer=producer))[:3] == (2, 3, True)


async def test_small_young_and_open_runs_stay_in_the_database(tmp_path: Path) -> None:
    log = await open_sqlite(tmp_path / "streams.db", limits=Limits(age_s=60, min_bytes=5000))
    try:
        small = await opened(log, lane(run_id="rn_small"))
        await append(log, small, END)
        live = await opened(log, lane("b", run_id="rn_live"))
        done = await opened(log, lane("a", run_id="rn_live"))
        await append(log, done, data_draft("x" * 9000), END)
        memory = await opened(log, lane("c", run_id="rn_done", durability="memory"))
        large = await opened(log, lane("a", run_id="rn_done"))
        await append(log, large, data_draft("x" * 9000), END)
        await log.tidy(LATER)
        assert len(sealed(tmp_path)) == 1
        assert sequences(await log.read(memory, 0)) == [1]
        await append(log, memory, data_draft(1))
        assert sequences(await log.read(memory, 0)) == [1, 2]
        await append(log, live, END)
        await log.tidy(LATER)
        assert len(sealed(tmp_path)) == 2
    finally:
        await log.aclose()


async def test_a_run_that_goes_on_is_sealed_again_as_one(
    log: SqliteStreamLog, tmp_path: Path
) -> None:
    ids = await finished_run(log)
    await log.tidy(LATER)
    (first,) = sealed(tmp_path)
    ids.append(await opened(log, lane("d")))
    await append(log, ids[3], data_draft("more"), at=NOW + 50)
    before = await everything(log, ids)
    await log.tidy(LATER)
    assert sealed(tmp_path) == [first]
    await append(log, ids[3], END, at=NOW + 60)
    before = await everything(log, ids)
    await log.tidy(LATER)
    (second,) = sealed(tmp_path)
    assert second != first
    assert await everything(log, ids) == before


async def test_what_expires_leaves_the_segment(log: SqliteStreamLog, tmp_path: Path) -> None:
    ids = await finished_run(log)
    order = await order_of(log)
    await log.tidy(LATER)
    (first,) = sealed(tmp_path)
    size = first.stat().st_size
    await log.expire(ids[1])
    left = [entry for entry in order if entry.stream_id != ids[1]]
    for _ in range(2):
        with pytest.raises(Gone) as caught:
            await log.read(ids[1], 0)
        assert caught.value.code is Code.STREAM_EXPIRED
        assert await order_of(log) == left
        await log.tidy(LATER)
    (second,) = sealed(tmp_path)
    assert second.stat().st_size < size - 500_000
    await log.expire(ids[0])
    await log.expire(ids[2])
    await log.tidy(LATER)
    assert sealed(tmp_path) == []
    assert await log.read_run("rn_1", 0) == []


async def test_a_deleted_run_takes_its_segment_along(log: SqliteStreamLog, tmp_path: Path) -> None:
    ids = await finished_run(log)
    other = await finished_run(log, "rn_2")
    await log.tidy(LATER)
    assert len(sealed(tmp_path)) == 2
    await log.delete_run("rn_1")
    assert len(sealed(tmp_path)) == 1
    with pytest.raises(NotFound):
        await log.read(ids[0], 0)
    assert len(await log.read(other[0], 0)) == 32


@pytest.mark.parametrize("lost", [0, 45, 64])
async def test_damage_costs_the_record_that_it_hit(
    log: SqliteStreamLog, tmp_path: Path, lost: int
) -> None:
    """The order has no holes here: it tells which record it is."""
    one, two = await opened(log, lane("a")), await opened(log, lane("b"))
    for number in range(31):
        await append(log, one, data_draft(number))
        await append(log, two, binary(bytes([number]) * 20_000))
    for stream_id in (one, two):
        await append(log, stream_id, END)
    order = await log.read_run("rn_1", 0, max_bytes=1 << 24)
    victim = order[lost]
    await log.tidy(LATER)
    (path,) = sealed(tmp_path)
    data = path.read_bytes()
    at = data.index(victim.json) + len(victim.json) // 2
    path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
    for entry in order:
        after = (entry.rseq or 0) - 1
        if entry != victim:
            assert await log.read_run("rn_1", after, max_records=1) == [entry]
            continue
        with pytest.raises(Gone) as caught:
            await log.read_run("rn_1", after)
        assert caught.value.code is Code.STREAM_LOST
        with pytest.raises(Gone) as caught:
            await log.read(entry.stream_id, entry.sequence - 1)
        place = {"stream_id": entry.stream_id, "sequence": entry.sequence}
        assert (caught.value.code, caught.value.details) == (Code.STREAM_LOST, place)
    if lost:
        assert await log.read_run("rn_1", 0, max_bytes=1 << 24) == order[:lost]


async def test_a_missing_or_cut_segment_is_lost(log: SqliteStreamLog, tmp_path: Path) -> None:
    ids = await finished_run(log)
    await log.tidy(LATER)
    (path,) = sealed(tmp_path)
    os.truncate(path, 500_000)
    for call in (log.read(ids[0], 20), log.read_run("rn_1", 80), log.at_time(ids[0], 0)):
        with pytest.raises(Gone) as caught:
            await call
        assert caught.value.code is Code.STREAM_LOST
    path.unlink()
    with pytest.raises(Gone):
        await log.read(ids[0], 0)
    assert (await log.get(ids[0])).head == 32


async def test_a_run_with_damage_is_not_sealed(
    log: SqliteStreamLog, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ids = await finished_run(log)
    os.truncate(tmp_path / "streams-segments" / "00000001.seg", 30_000)
    await log.tidy(LATER)
    assert sealed(tmp_path) == []
    assert "damaged" in caplog.text
    assert len(await log.read(ids[0], 0)) == 32


async def test_a_read_asks_the_store_three_times_however_much_it_gets(tmp_path: Path) -> None:
    """Places, extents, records: what lies together is read together, over small holes too."""

    class Counting(SegmentFolder):
        reads = 0

        async def read(self, name: str, offset: int, length: int) -> bytes:
            self.reads += 1
            return await super().read(name, offset, length)

    store = Counting(tmp_path / "streams-sealed")
    log = await open_sqlite(tmp_path / "streams.db", store=store, limits=Limits(min_bytes=0))
    try:
        ids = [await opened(log, lane(name)) for name in "ab"]
        for number in range(200):
            await append(log, ids[number % 2], data_draft("x" * 300))
        for stream_id in ids:
            await append(log, stream_id, END)
        await log.tidy(LATER)
        store.reads = 0
        assert len(await log.read(ids[1], 0)) == 102
        assert store.reads == 3
        assert len(await log.read_run("rn_1", 3)) == 201
        assert store.reads == 5
    finally:
        await log.aclose()


class Failing(SegmentFolder):
    """A store that is away when something is put, or afterwards."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.fails: str | None = None

    async def put(self, name: str, path: Path) -> None:
        if self.fails == "before":
            raise ConnectionError("the store is away")
        await super().put(name, path)
        if self.fails == "after":
            raise ConnectionError("the store is away")

    async def read(self, name: str, offset: int, length: int) -> bytes:
        return b"" if self.fails == "kept" else await super().read(name, offset, length)


@pytest.mark.parametrize("when", ["before", "after", "kept"])
async def test_a_store_that_fails_costs_nothing(tmp_path: Path, when: str) -> None:
    store = Failing(tmp_path / "streams-sealed")
    log = await open_sqlite(tmp_path / "streams.db", store=store)
    try:
        ids = await finished_run(log)
        before = await everything(log, ids)
        store.fails = when
        with pytest.raises(Exception, match=r"away|kept"):
            await log.tidy(LATER)
        assert await everything(log, ids) == before
        store.fails = None
        await log.tidy(LATER)
        assert len(sealed(tmp_path)) == 1
        assert await everything(log, ids) == before
    finally:
        await log.aclose()


async def test_a_run_that_changes_while_it_is_sealed_is_left(tmp_path: Path) -> None:
    class Slow(SegmentFolder):
        async def put(self, name: str, path: Path) -> None:
            await super().put(name, path)
            await change()

    changes = 0

    async def change() -> None:
        nonlocal changes
        changes += 1
        if changes == 1:
            ids.append(await opened(log, lane("d")))
        if changes == 2:
            await log.expire(ids[3])
        if changes == 3:
            await log.delete_run("rn_1")

    log = await open_sqlite(tmp_path / "streams.db", store=Slow(tmp_path / "streams-sealed"))
    try:
        ids = await finished_run(log)
        await log.tidy(LATER)  # a lane is opened meanwhile
        assert sealed(tmp_path) == []
        await append(log, ids[3], END, at=NOW + 50)
        await log.tidy(LATER)  # a lane expires meanwhile; the second try has it
        assert changes == 3
        assert sealed(tmp_path) == []
        with pytest.raises(NotFound):
            await log.run("rn_1")
    finally:
        await log.aclose()


async def test_readers_do_not_notice(tmp_path: Path) -> None:
    """One that is in the middle of a lane, and one that comes later, of the run."""
    log = await open_sqlite(tmp_path / "streams.db")
    hub = StreamingConnectionManager(log, clock=lambda: LATER)
    async with contextlib.aclosing(hub):
        ids = await finished_run(log)
        order = await order_of(log)
        async with hub.subscribe(ids[1]) as reader:
            found = [item.entry for item in await reader.batch()]
            await hub.tidy()
            assert len(sealed(tmp_path)) == 1
            while not reader.over:
                found += [item.entry for item in await reader.batch()]
        assert found == [entry for entry in order if entry.stream_id == ids[1]]
        start = f"time:{NOW + 20}"
        async with hub.subscribe(ids[0], from_=start) as reader:
            assert [r.payload.get("data") async for r in reader] == [*range(18, 30), None]


async def test_housekeeping_goes_on_after_it_failed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Away(SegmentFolder):
        tries, kept = 0, asyncio.Event()

        async def put(self, name: str, path: Path) -> None:
            self.tries += 1
            if self.tries == 1:
                raise ConnectionError("the store is away")
            await super().put(name, path)

        async def read(self, name: str, offset: int, length: int) -> bytes:
            self.kept.set()
            return await super().read(name, offset, length)

    store = Away(tmp_path / "streams-sealed")
    log = await open_sqlite(tmp_path / "streams.db", store=store)
    hub = StreamingConnectionManager(log, clock=lambda: LATER)
    async with contextlib.aclosing(hub):
        await finished_run(log)
        housekeeping = asyncio.create_task(hub.tidy_forever(every_s=0.01))
        async with asyncio.timeout(30):
            await store.kept.wait()
        housekeeping.cancel()
        await asyncio.gather(housekeeping, return_exceptions=True)
    assert "the store is away" in caplog.text
