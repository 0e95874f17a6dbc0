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

from mentatlab.protocol import frames
from mentatlab.protocol.errors import (
    Code,
    Conflict,
    Fenced,
    Forbidden,
    Gone,
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
from mentatlab.streams.lanes import PLACES
from mentatlab.streams.port import KEEP, Appended, Entry, Lane, Retention, StreamLog

NOW = 1_700_000_000.0


def lane(
    name: str = "a",
    *,
    durability: Durability = "commit",
    run_id: str = "rn_1",
    retention: Retention = KEEP,
) -> Lane:
    return Lane(
        stream_id=f"st_{run_id}_{name}",
        run_id=run_id,
        node_id=name,
        pin_name="out",
        workspace="default",
        durability=durability,
        created_at=NOW,
        retention=retention,
    )


async def opened(log: StreamLog, wanted: Lane | None = None) -> str:
    """A lane with its `stream_start`; its id."""
    made = await log.create(wanted or lane())
    await append(log, made.stream_id, start_draft(durability=made.durability))
    return made.stream_id


async def append(
    log: StreamLog,
    stream_id: str,
    *drafts: Draft,
    producer: Producer | None = None,
    at: float = NOW + 1.5,
) -> Appended:
    return await log.append(stream_id, drafts, now=at, producer=producer)


def values(records: Sequence[Entry]) -> list[Any]:
    return [entry.record.payload.get("data") for entry in records]


def numbers(*values: int) -> list[Draft]:
    return [data_draft(value) for value in values]


def binary(body: bytes, **more: Any) -> Draft:
    """A binary record."""
    return Draft(body=body, payload={"metadata": {"mime_type": "image/jpeg"}}, **more)


def sequences(records: Sequence[Entry]) -> list[int]:
    return [entry.sequence for entry in records]


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

    # ------------------------------------------------------------------ binary records

    async def test_a_binary_record_is_a_frame_and_a_reference(self, log: StreamLog) -> None:
        stream_id = await opened(log)
        body = bytes(range(256)) * 100
        sent = binary(body, pts_us=-5, dur_us=7, item=3, attempt=1, flags=frames.KEY, index=2)
        appended = await append(log, stream_id, data_draft("text"), sent, data_draft("more"))
        text, entry, _ = await log.read(stream_id, 1)
        assert (text.frame, text.key, entry.key, entry.size) == (None, False, True, len(body))
        assert (entry,) == appended.entries[1:2]
        assert entry.frame is not None
        frame = frames.decode(entry.frame)
        assert (frame.lane, frame.sequence, frame.body) == (0, 3, body)
        assert (frame.pts_us, frame.dur_us, frame.flags, frame.index) == (-5, 7, frames.KEY, 2)
        assert frame.delta_ms == 0
        assert (frame.extension.attempt, frame.extension.item, frame.extension.rseq) == (1, 3, 3)
        said = msgspec.json.decode(entry.json)
        assert said["payload"]["ref"] == {
            "url": f"/api/v1/streams/{stream_id}/records/3",
            "size": len(body),
            "metadata": {"mimeType": "image/jpeg"},
        }
        assert (said["pts_us"], said["dur_us"], said["item"]) == (-5, 7, 3)
        assert entry.record.payload["bytes"] == body
        assert (await log.get(stream_id)).key == 3
        assert (await log.read_run("rn_1", 2))[0] == entry

    @pytest.mark.parametrize("size", [0, 16_384, 70_000, MAX_RECORD_BYTES])
    async def test_payloads_of_every_size_come_back(self, log: StreamLog, size: int) -> None:
        stream_id = await opened(log)
        text = data_draft("x" * max(0, size - 80))
        appended = await append(log, stream_id, binary(b"y" * size), text, binary(b""))
        found = [(await log.read(stream_id, after, max_records=1))[0] for after in (1, 2, 3)]
        assert tuple(found) == appended.entries
        assert (await log.get(stream_id)).kept == sum(
            entry.length for entry in await log.read(stream_id, 0, max_bytes=1 << 24)
        )

    async def test_a_binary_record_too_large_changes_nothing(self, log: StreamLog) -> None:
        stream_id = await opened(log)
        with pytest.raises(TooLarge):
            await append(log, stream_id, binary(b"1"), binary(b"x" * (MAX_RECORD_BYTES + 1)))
        assert (await log.get(stream_id)).head == 1

    async def test_read_limits_count_frames(self, log: StreamLog) -> None:
        stream_id = await opened(log)
        await append(log, stream_id, *[binary(b"z" * 20_000) for _ in range(5)])
        assert sequences(await log.read(stream_id, 1, max_bytes=45_000)) == [2, 3]
        assert sequences(await log.read(stream_id, 3, max_bytes=19_000)) == [4]
        assert sequences(await log.read_run("rn_1", 1, max_bytes=45_000)) == [2, 3]

    # ------------------------------------------------------------------ producers

    async def test_the_log_tells_what_it_has_of_a_producer(self, log: StreamLog) -> None:
        stream_id = await opened(log)
        assert await log.producer(stream_id, "p") is None
        await append(log, stream_id, *numbers(1, 2), producer=Producer(id="p", epoch=2, seq=1))
        await append(log, stream_id, *numbers(0))
        await append(log, stream_id, *numbers(3), producer=Producer(id="p", epoch=2, seq=3))
        known = await log.producer(stream_id, "p")
        assert known is not None
        assert (known.epoch, known.seq) == (2, 3)
        assert [known.sequence_of(seq) for seq in range(5)] == [0, 2, 3, 5, 0]
        assert await log.producer(stream_id, "q") is None
        with pytest.raises(NotFound):
            await log.producer("st_x", "p")

    async def test_where_records_of_long_ago_are_is_forgotten(self, log: StreamLog) -> None:
        """Two producers in turn: each record is a run of its own; the last `PLACES` are known."""
        stream_id = await opened(log)
        for seq in range(1, PLACES + 2):
            for name in ("p", "q"):
                producer = Producer(id=name, epoch=1, seq=seq)
                await append(log, stream_id, *numbers(seq), producer=producer)
        first = Producer(id="p", epoch=1, seq=1)
        again = await append(log, stream_id, *numbers(1), producer=first)
        assert again[:3] == (0, 0, True)
        half = await append(log, stream_id, *numbers(1, 2), producer=first)
        assert half[:3] == (0, 4, True)
        assert (await log.get(stream_id)).head == 1 + 2 * (PLACES + 1)

    async def test_a_fenced_producer_goes_on_under_a_higher_epoch_only(
        self, log: StreamLog
    ) -> None:
        stream_id = await opened(log)
        assert await log.fence(stream_id, "p") is None
        await append(log, stream_id, *numbers(1), producer=Producer(id="p", epoch=3, seq=1))
        known = await log.fence(stream_id, "p")
        assert known is not None
        assert (known.epoch, known.seq) == (4, 0)
        assert await log.producer(stream_id, "p") == known
        for seq in (1, 2):
            with pytest.raises(Fenced) as caught:
                await append(
                    log, stream_id, *numbers(2), producer=Producer(id="p", epoch=3, seq=seq)
                )
            assert caught.value.code is Code.STREAM_FENCED
        taken_over = Producer(id="p", epoch=4, seq=1)
        assert (await append(log, stream_id, *numbers(2), producer=taken_over))[:3] == (3, 3, False)

    # ------------------------------------------------------------------ positions

    async def test_positions_are_found_by_time(self, log: StreamLog) -> None:
        a, b = await opened(log, lane("a")), await opened(log, lane("b"))  # at 1.5 s
        for second in range(2, 12):
            await append(log, a if second % 2 else b, *numbers(second, second), at=NOW + second)
        ms = int(NOW * 1000)
        found = [await log.at_time(a, ms + at) for at in (0, 1500, 1501, 3000, 3001, 11_000)]
        assert found == [0, 0, 1, 1, 3, 9]
        assert await log.at_time(a, ms + 11_001) == 11
        found = [await log.at_time("rn_1", ms + at) for at in (0, 1501, 2001, 11_000, 11_001)]
        assert found == [0, 2, 4, 20, 22]
        with pytest.raises(NotFound):
            await log.at_time("st_x", ms)

    async def test_times_of_a_lane_never_go_back(self, log: StreamLog) -> None:
        stream_id = await opened(log)
        await append(log, stream_id, *numbers(1), at=NOW + 9)
        await append(log, stream_id, *numbers(2), at=NOW + 4)
        records = await log.read(stream_id, 0)
        assert [r.time_ms - int(NOW * 1000) for r in records] == [1500, 9000, 9000]
        assert (await log.get(stream_id)).changed_at == NOW + 9

    async def test_a_lane_keeps_its_epoch(self, log: StreamLog) -> None:
        made = await log.create(lane())
        await opened(log)
        await append(log, made.stream_id, *numbers(1))
        for found in (await log.get(made.stream_id), *await log.lanes("rn_1")):
            assert found.cursor == (made.epoch, 2)
        run = await log.run("rn_1")
        assert (run.cursor, run.workspace) == ((run.epoch, 2), "default")

    # ------------------------------------------------------------------ retention

    async def test_max_bytes_keeps_the_start_and_the_newest(self, log: StreamLog) -> None:
        """Run order then has holes; what is left reads on as it was."""
        keep = Retention(max_bytes=3000)
        short = await opened(log, lane("a", retention=keep))
        other = await opened(log, lane("b"))
        held = list(await log.read(short, 0))
        for number in range(20):
            draft = binary(b"x" * 300) if number % 3 else data_draft("y" * 200)
            held += (await append(log, short, draft, at=NOW + 2 + number)).entries
            await append(log, other, *numbers(number))
            while sum(entry.length for entry in held) > 3000:
                del held[1]
        stands = await log.get(short)
        assert (stands.head, stands.floor) == (21, held[1].sequence)
        assert stands.kept == sum(entry.length for entry in held)
        assert 2 < stands.floor < 21
        assert await log.read(short, 0) == held
        assert await log.read(short, 3) == held[1:]
        assert await log.read(short, held[2].sequence) == held[3:]
        order = await log.read_run("rn_1", 0)
        assert [entry.rseq for entry in order] == sorted(entry.rseq or 0 for entry in order)
        assert [entry for entry in order if entry.stream_id == short] == held
        assert len([entry for entry in order if entry.stream_id == other]) == 21
        assert (await log.run("rn_1")).head == 42
        assert await log.at_time(short, held[1].time_ms - 1) == stands.floor - 1
        assert await log.at_time(short, held[0].time_ms) == 0

    async def test_one_record_may_be_larger_than_what_is_kept(self, log: StreamLog) -> None:
        keep = Retention(max_bytes=1000)
        stream_id = await opened(log, lane(retention=keep))
        await append(log, stream_id, *numbers(1, 2), binary(b"x" * 5000))
        assert sequences(await log.read(stream_id, 0)) == [1, 4]
        await append(log, stream_id, end_draft("complete", chunks=0))
        assert sequences(await log.read(stream_id, 0)) == [1, 5]
        end = (await log.read(stream_id, 4))[0]
        assert end.record.payload["chunks"] == 3

    async def test_lanes_are_due_when_their_retention_says(self, log: StreamLog) -> None:
        live = await opened(log, lane("a", retention=Retention(ttl_s=10)))
        done = await opened(log, lane("b", retention=Retention(ttl_s=5, retain_s=20)))
        await opened(log, lane("c"))
        await append(log, done, end_draft("complete", chunks=0))

        async def due(after_s: float) -> list[str]:
            return [found.stream_id for found in await log.due(NOW + 1.5 + after_s)]

        assert await due(9.9) == []
        assert await due(10) == [live]
        assert sorted(await due(20)) == [live, done]
        assert len(await log.due(NOW + 99, limit=1)) == 1
        await append(log, live, *numbers(1), at=NOW + 9)
        assert await due(10) == []
        await append(log, live, end_draft("expired", chunks=0), at=NOW + 19)
        assert await due(99) == [done]

    async def test_an_expired_lane_keeps_its_name_only(self, log: StreamLog) -> None:
        keep = Retention(retain_s=20)
        done, other = await opened(log, lane("a", retention=keep)), await opened(log, lane("b"))
        producer = Producer(id="p", epoch=1, seq=1)
        last = end_draft("complete", chunks=0)
        await append(log, done, *numbers(1), binary(b"x" * 40_000), last, producer=producer)
        expired = await log.expire(done)
        assert expired == await log.get(done)
        assert (expired.state, expired.head, expired.kept) == ("expired", 4, 0)
        for call in (
            log.read(done, 0),
            append(log, done, *numbers(2)),
            append(log, done, *numbers(1), producer=producer),
        ):
            with pytest.raises(Gone) as caught:
                await call
            assert caught.value.code is Code.STREAM_EXPIRED
        assert await log.due(NOW + 999) == []
        order = await log.read_run("rn_1", 0)
        assert [(entry.stream_id, entry.rseq) for entry in order] == [(other, 2)]
        with pytest.raises(NotFound):
            await log.expire("st_x")
