"""The promises of `streams.port.StreamLog` as a test class: subclass it and give a `log` fixture.

    class TestMyLog(StreamLogContract):
        @pytest.fixture
        async def log(self): ...

Needs pytest and pytest-asyncio in auto mode.
"""

import asyncio
from collections.abc import Sequence
from typing import Any

import msgspec
import pytest

from mentatlab.protocol.errors import (
    Code,
    Conflict,
    Fenced,
    Forbidden,
    Invalid,
    MentatError,
    NotFound,
    TooLarge,
)
from mentatlab.protocol.records import (
    MAX_RECORD_BYTES,
    Draft,
    Durability,
    Producer,
    RecordType,
    data_draft,
    end_draft,
    error_draft,
    start_draft,
)
from mentatlab.streams.port import Appended, Entry, Lane, StreamLog

NOW = 1_700_000_000.0


def lane(name: str = "a", *, durability: Durability = "commit", run_id: str = "rn_1") -> Lane:
    return Lane(
        stream_id=f"st_{run_id}_{name}",
        run_id=run_id,
        node_id=name,
        pin_name="out",
        workspace="default",
        durability=durability,
        created_at=NOW,
    )


async def opened(log: StreamLog, wanted: Lane | None = None) -> str:
    """A lane with its `stream_start`; its id."""
    made = await log.create(wanted or lane())
    await append(log, made.stream_id, start_draft(durability=made.durability))
    return made.stream_id


async def append(
    log: StreamLog, stream_id: str, *drafts: Draft, producer: Producer | None = None
) -> Appended:
    return await log.append(stream_id, drafts, now=NOW + 1.5, producer=producer)


def values(records: Sequence[Entry]) -> list[Any]:
    return [entry.record.payload.get("data") for entry in records]


def numbers(*values: int) -> list[Draft]:
    return [data_draft(value) for value in values]


class StreamLogContract:
    """Every log, the same answers."""

    async def test_create_is_idempotent_by_place(self, log: StreamLog) -> None:
        first = await log.create(lane())
        again = await log.create(msgspec.structs.replace(lane(), stream_id="st_other"))
        assert again == first == await log.get(first.stream_id)
        assert await log.lanes("rn_1") == [first]

    async def test_an_id_names_one_lane(self, log: StreamLog) -> None:
        await log.create(lane())
        with pytest.raises(Conflict):
            await log.create(msgspec.structs.replace(lane("b"), stream_id=lane().stream_id))
        assert len(await log.lanes("rn_1")) == 1

    async def test_open_is_create_and_its_first_record_at_once(self, log: StreamLog) -> None:
        made, records = await log.open(lane(), start_draft(), now=NOW)
        assert [(r.type, r.sequence) for r in records] == [(RecordType.START, 1)]
        assert (made.head, made.attempt) == (1, 1)
        assert await log.get(made.stream_id) == made
        again = await log.open(lane(), start_draft(attempt=2), now=NOW)
        assert (again.lane, again.entries) == (made, ())

    async def test_a_run_is_one_workspaces(self, log: StreamLog) -> None:
        await log.create(lane())
        for durability in ("commit", "memory"):
            foreign = msgspec.structs.replace(
                lane("b"), stream_id="st_b", workspace="other", durability=durability
            )
            with pytest.raises(Forbidden):
                await log.open(foreign, start_draft(), now=NOW)
        assert len(await log.lanes("rn_1")) == 1

    async def test_what_is_unknown_is_not_found(self, log: StreamLog) -> None:
        for call in (
            log.get("st_x"),
            log.run("rn_x"),
            log.read("st_x", 0),
            log.read_run("rn_x", 0),
            append(log, "st_x", data_draft(1)),
        ):
            with pytest.raises(NotFound) as caught:
                await call
            assert caught.value.code is Code.STREAM_UNKNOWN
        assert await log.lanes("rn_x") == []
        await log.delete_run("rn_x")

    async def test_sequences_are_dense_and_records_come_back(self, log: StreamLog) -> None:
        stream_id = await opened(log)
        appended = await append(log, stream_id, *numbers(7, 8))
        assert (appended.first, appended.last, appended.duplicate) == (2, 3, False)
        records = await log.read(stream_id, 0)
        assert [r.sequence for r in records] == [1, 2, 3]
        assert tuple(records[1:]) == appended.entries
        assert records[1].record.timestamp == "2023-11-14T22:13:21.500Z"
        assert (records[1].record.node_id, records[1].record.pin_name, records[1].run_id) == (
            "a",
            "out",
            "rn_1",
        )

    async def test_read_keeps_its_limits_and_gives_at_least_one(self, log: StreamLog) -> None:
        stream_id = await opened(log)
        await append(log, stream_id, *[data_draft("x" * 1000) for _ in range(10)])
        assert len(await log.read(stream_id, 0, max_records=3)) == 3
        assert len(await log.read(stream_id, 1, max_bytes=3000)) == 2
        assert len(await log.read(stream_id, 1, max_bytes=1)) == 1
        assert await log.read(stream_id, 11) == []
        assert await log.read(stream_id, 99) == []
        assert len(await log.read_run("rn_1", 2, max_records=4)) == 4
        assert len(await log.read_run("rn_1", 2, max_bytes=1)) == 1

    async def test_a_terminal_record_is_the_last_and_counts_what_stands(
        self, log: StreamLog
    ) -> None:
        stream_id = await opened(log)
        await append(log, stream_id, *numbers(1, 2))
        await append(log, stream_id, end_draft("complete", chunks=99))
        end = (await log.read(stream_id, 3))[0]
        sizes = sum(len(msgspec.json.encode(d.payload)) for d in numbers(1, 2))
        expected = {"reason": "complete", "chunks": 2, "bytes": sizes, "duration_ms": 1500}
        assert end.record.payload == expected
        assert (await log.get(stream_id)).state == "ended"
        for late in (data_draft(3), end_draft("complete", chunks=0), start_draft(attempt=2)):
            with pytest.raises(Conflict) as caught:
                await append(log, stream_id, late)
            assert caught.value.code is Code.STREAM_ENDED

    async def test_an_error_is_terminal_too(self, log: StreamLog) -> None:
        stream_id = await opened(log)
        await append(log, stream_id, data_draft(1), error_draft("agent_error", "no"))
        assert (await log.get(stream_id)).state == "errored"

    @pytest.mark.parametrize(
        ("drafts", "kind"),
        [
            ([], Invalid),
            ([data_draft(1), start_draft(attempt=2)], Invalid),
            ([end_draft("complete", chunks=0), data_draft(1)], Invalid),
            ([start_draft(attempt=2, resume_from=9)], Invalid),
            ([start_draft(attempt=2, resume_from=-1)], Invalid),
            ([data_draft(1), data_draft("x" * MAX_RECORD_BYTES)], TooLarge),
            ([data_draft(object())], Invalid),
        ],
    )
    async def test_a_bad_batch_changes_nothing(
        self, log: StreamLog, drafts: list[Draft], kind: type[MentatError]
    ) -> None:
        stream_id = await opened(log)
        before = await log.get(stream_id)
        with pytest.raises(kind):
            await append(log, stream_id, *drafts)
        assert await log.get(stream_id) == before
        assert len(await log.read(stream_id, 0)) == 1

    async def test_a_lane_begins_with_its_start(self, log: StreamLog) -> None:
        made = await log.create(lane())
        with pytest.raises(Invalid):
            await append(log, made.stream_id, data_draft(1))

    async def test_a_later_attempt_voids_what_came_after_its_checkpoint(
        self, log: StreamLog
    ) -> None:
        stream_id = await opened(log)
        await append(log, stream_id, *numbers(1, 2, 3))  # sequences 2 to 4
        await append(log, stream_id, start_draft(attempt=2, resume_from=3))
        await append(log, stream_id, *numbers(30, 40))  # 6, 7
        assert (await log.get(stream_id)).chunks == 4
        await append(log, stream_id, start_draft(attempt=3, resume_from=6))
        await append(log, stream_id, end_draft("complete", chunks=0))
        end = (await log.read(stream_id, 8))[0]
        kept = sum(len(msgspec.json.encode(d.payload)) for d in numbers(1, 2, 30))
        assert (end.record.payload["chunks"], end.record.payload["bytes"]) == (3, kept)

    async def test_an_attempt_starts_once_and_an_older_one_is_fenced(self, log: StreamLog) -> None:
        stream_id = await opened(log)
        started = await append(log, stream_id, start_draft(attempt=2))
        again = await append(log, stream_id, start_draft(attempt=2))
        assert (started.last, again.last, again.duplicate) == (2, 2, True)
        with pytest.raises(Fenced):
            await append(log, stream_id, start_draft(attempt=1))

    async def test_a_producer_appends_exactly_once(self, log: StreamLog) -> None:
        stream_id = await opened(log)

        async def send(seq: int, *sent: int, epoch: int = 0) -> Appended:
            producer = Producer(id="p", epoch=epoch, seq=seq)
            return await append(log, stream_id, *numbers(*sent), producer=producer)

        assert (await send(1, 10, 11))[:3] == (2, 3, False)
        await append(log, stream_id, data_draft(0))  # somebody else between
        assert (await send(1, 10, 11))[:3] == (2, 3, True)
        assert (await send(2, 11, 12))[:3] == (3, 5, False)
        assert (await send(1, 10, 11, 12))[:3] == (2, 5, True)
        with pytest.raises(Conflict) as hole:
            await send(5, 0)
        assert hole.value.code is Code.STREAM_GAP_IN_PRODUCER
        assert hole.value.details == {"expected": 4}
        assert (await send(1, 20, epoch=3))[:3] == (6, 6, False)
        with pytest.raises(Fenced):
            await send(4, 13)
        await send(1, 30, epoch=4)
        with pytest.raises(Conflict):
            await send(3, 31, epoch=4)
        assert values(await log.read(stream_id, 1)) == [10, 11, 0, 12, 20, 30]

    async def test_a_duplicate_is_acknowledged_after_the_end(self, log: StreamLog) -> None:
        stream_id = await opened(log)
        producer = Producer(id="p", epoch=1, seq=1)
        last = end_draft("complete", chunks=0)
        await append(log, stream_id, data_draft(1), last, producer=producer)
        again = await append(log, stream_id, data_draft(1), last, producer=producer)
        assert again[:3] == (2, 3, True)

    async def test_a_run_orders_its_commit_lanes(self, log: StreamLog) -> None:
        a, b = await opened(log, lane("a")), await opened(log, lane("b"))
        other = await opened(log, lane("c", durability="memory"))
        elsewhere = await opened(log, lane("a", run_id="rn_2"))
        for stream_id in (b, other, a, elsewhere, b):
            await append(log, stream_id, data_draft(stream_id))
        records = await log.read_run("rn_1", 0)
        assert [record.rseq for record in records] == [1, 2, 3, 4, 5]
        assert values(records)[2:] == [b, a, b]
        assert (await log.run("rn_1")).head == 5
        assert {record.rseq for record in await log.read(other, 0)} == {None}
        assert [each.stream_id for each in await log.lanes("rn_1")] == [a, b, other]

    async def test_a_deleted_run_is_gone_with_its_producers(self, log: StreamLog) -> None:
        producer = Producer(id="p", epoch=5, seq=1)
        kept = await opened(log, lane(run_id="rn_2"))
        stream_id = await opened(log)
        await append(log, stream_id, data_draft(1), producer=producer)
        await log.delete_run("rn_1")
        with pytest.raises(NotFound):
            await log.get(stream_id)
        assert (await log.get(kept)).head == 1
        await opened(log)
        fresh = Producer(id="p", epoch=0, seq=1)
        assert (await append(log, stream_id, data_draft(2), producer=fresh)).first == 2

    async def test_what_is_stored_is_a_copy(self, log: StreamLog) -> None:
        stream_id = await opened(log)
        payload = {"n": [1]}
        await append(log, stream_id, data_draft(payload))
        payload["n"].append(2)
        assert values(await log.read(stream_id, 1)) == [{"n": [1]}]

    async def test_concurrent_appends_leave_no_hole(self, log: StreamLog) -> None:
        stream_id = await opened(log)
        answers = await asyncio.gather(*(append(log, stream_id, *numbers(n, n)) for n in range(50)))
        assert sorted(a.first for a in answers) == list(range(2, 102, 2))
        records = await log.read(stream_id, 0)
        assert [r.sequence for r in records] == list(range(1, 102))
