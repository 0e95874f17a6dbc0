"""Lanes that are not committed keep their names over a restart, and nothing else."""

import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from mentatlab.protocol.errors import Code, Gone, NotFound
from mentatlab.protocol.records import RecordType, data_draft, end_draft, start_draft
from mentatlab.streams import MemoryStreamLog, StreamingConnectionManager
from mentatlab.streams.port import Lane, Retention
from mentatlab.streams.routed import AWAITED_S, RoutedLog
from mentatlab.streams.sqlite import open_sqlite
from mentatlab.testing.stream_log_contract import NOW, append, lane, opened, sequences

END = end_draft("complete", chunks=0)
Boot = Callable[[int], contextlib.AbstractAsyncContextManager[RoutedLog]]


@pytest.fixture
def boot(tmp_path: Path) -> Boot:
    """A server's log from its start in that epoch to its end."""

    @contextlib.asynccontextmanager
    async def booted(epoch: int) -> AsyncGenerator[RoutedLog]:
        memory = MemoryStreamLog(epoch=epoch, max_bytes=5000)
        log = RoutedLog(await open_sqlite(tmp_path / "s.db"), memory, clock=lambda: NOW + 5)
        yield log
        await log.aclose()

    return booted


def external(name: str = "b", *, retention: Retention | None = None) -> Lane:
    return Lane(
        stream_id=f"st_{name}",
        run_id="rs_1",
        node_id=name,
        pin_name="out",
        workspace="default",
        durability="memory",
        created_at=NOW,
        external=True,
        retention=retention or Retention(),
    )


async def types(log: RoutedLog, stream_id: str) -> list[RecordType]:
    return [entry.type for entry in await log.read(stream_id, 0)]


async def test_a_lane_is_there_again_empty_and_under_a_new_epoch(boot: Boot) -> None:
    async with boot(7) as log:
        kept, gone = await opened(log), await opened(log, lane("b", durability="memory"))
        await append(log, gone, data_draft(1))
        assert ((await log.get(kept)).epoch, (await log.get(gone)).cursor) == (1, (7, 2))
    async with boot(8) as log:
        assert [each.stream_id for each in await log.lanes("rn_1")] == [kept, gone]
        assert (await log.get(gone)).cursor == (8, 1)
        assert await types(log, gone) == [RecordType.START]
        await append(log, gone, data_draft(2))
        assert sequences(await log.read(gone, 0)) == [1, 2]
        assert await log.producer(gone, "p") is None


async def test_what_was_said_of_it_stands_in_its_new_start(boot: Boot) -> None:
    said: dict[str, Any] = {"codec": "opus", "timebase": "1/48000"}
    async with boot(7) as log:
        wanted = msgspec.structs.replace(external(), facts=said)
        await log.open(wanted, start_draft(durability="memory", **said), now=NOW)
    async with boot(8) as log:
        (start,) = await log.read("st_b", 0)
        assert said.items() <= start.record.payload["metadata"].items()


TOUCHES: list[Callable[[RoutedLog], Awaitable[object]]] = [
    lambda log: log.get("st_b"),
    lambda log: log.lanes("rs_1"),
    lambda log: log.read("st_b", 0),
    lambda log: log.producer("st_b", "p"),
    lambda log: log.fence("st_b", "p"),
    lambda log: log.at_time("st_b", 0),
    lambda log: append(log, "st_b", data_draft(1)),
]


@pytest.mark.parametrize("touch", TOUCHES)
async def test_whoever_asks_first_finds_it(
    boot: Boot, touch: Callable[[RoutedLog], Awaitable[object]]
) -> None:
    async with boot(7) as log:
        await log.open(external(), start_draft(durability="memory"), now=NOW)
    async with boot(8) as log:
        assert log.append_now("st_b", [data_draft(1)], now=NOW) is None
        await touch(log)
        assert (await log.get("st_b")).epoch == 8
        assert (await types(log, "st_b"))[0] is RecordType.START
        assert log.append_now("st_b", [data_draft(1)], now=NOW) is not None


async def test_who_opens_it_again_says_how_it_starts(boot: Boot) -> None:
    async with boot(7) as log:
        await log.open(external(), start_draft(durability="memory"), now=NOW)
    async with boot(8) as log:
        again = await log.open(external(), start_draft(attempt=3, durability="memory"), now=NOW)
        assert (again.lane.attempt, again.lane.cursor, len(again.entries)) == (3, (8, 1), 1)
        assert (await log.open(external(), start_draft(), now=NOW)).entries == ()


async def test_a_place_is_one_lanes_whatever_its_durability(boot: Boot) -> None:
    async with boot(7) as log:
        first = await opened(log, lane("a", durability="memory"))
        second = await opened(log, lane("b"))
        for wanted in (lane("a"), lane("b", durability="memory")):
            there = await log.open(wanted, start_draft(), now=NOW)
            assert there.lane.stream_id in (first, second)
            assert there.lane.durability != wanted.durability
            assert await log.create(wanted) == there.lane
    async with boot(8) as log:
        there = await log.open(lane("a"), start_draft(), now=NOW)
        assert (there.lane.durability, there.lane.cursor) == ("memory", (8, 1))
        assert await log.read_run("rn_1", 1) == []


async def test_a_lane_of_a_finished_run_ends_with_an_error(boot: Boot) -> None:
    async with boot(7) as log:
        run, logs = await opened(log), await opened(log, lane("_log", durability="memory"))
        await append(log, logs, data_draft(1))
        await append(log, run, END)
    async with boot(8) as log:
        assert (await log.get(logs)).state == "errored"
        start, error = await log.read(logs, 0)
        assert start.type is RecordType.START
        assert error.record.payload["error"]["code"] == "storage_failed"
        hub = StreamingConnectionManager(log, clock=lambda: NOW)
        async with hub.subscribe(logs, from_="7:2") as reader:
            items = await reader.batch()
            assert reader.gap is not None
            assert (reader.gap.reason, reader.gap.from_, reader.gap.next) == ("epoch", "7:2", "8:0")
            assert [item.entry for item in items] == [start, error]
            assert reader.over


async def test_what_made_room_in_this_process_has_ended_too(boot: Boot) -> None:
    async with boot(7) as log:
        first = await opened(log, lane("a", durability="memory", run_id="rn_1"))
        await append(log, first, data_draft("x" * 2000), END)
        second = await opened(log, lane("a", durability="memory", run_id="rn_2"))
        await append(log, second, data_draft("x" * 2500))
        found = await log.get(first)
        assert (found.state, found.epoch, found.head) == ("errored", 8, 2)


async def test_a_publisher_that_does_not_come_back_is_given_up(boot: Boot) -> None:
    async with boot(7) as log:
        for name in "bcd":
            await log.open(external(name), start_draft(durability="memory"), now=NOW)
    async with boot(8) as log:
        await log.lanes("rs_1")
        await append(log, "st_c", data_draft(1))
        assert await log.due(NOW + 5 + AWAITED_S - 1) == []
        due = await log.due(NOW + 5 + AWAITED_S)
        assert [each.stream_id for each in due] == ["st_b", "st_d"]
        hub = StreamingConnectionManager(log, clock=lambda: NOW + 5 + AWAITED_S)
        assert await hub.sweep() == 2
        assert await hub.sweep() == 0
        (_, end) = await log.read("st_d", 0)
        assert end.record.payload["reason"] == "expired"


async def test_an_expired_lane_stays_expired(boot: Boot) -> None:
    async with boot(7) as log:
        keep = Retention(retain_s=9)
        await log.open(external(retention=keep), start_draft(durability="memory"), now=NOW)
        await append(log, "st_b", END)
        assert [each.stream_id for each in await log.due(NOW + 99)] == ["st_b"]
        await log.expire("st_b")
    async with boot(8) as log:
        assert (await log.get("st_b")).state == "expired"
        for call in (log.read("st_b", 0), append(log, "st_b", data_draft(1))):
            with pytest.raises(Gone) as caught:
                await call
            assert caught.value.code is Code.STREAM_EXPIRED
        assert await log.due(NOW + 999) == []


async def test_a_deleted_run_has_no_names(boot: Boot) -> None:
    async with boot(7) as log:
        stream_id = await opened(log, lane(durability="memory"))
        await log.delete_run("rn_1")
        for call in (log.get(stream_id), log.read(stream_id, 0), log.run("rn_1")):
            with pytest.raises(NotFound):
                await call
